"""p(z|x): the question encoder, the index and the prior's two learned parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ragx.errors import ConfigError
from ragx.index.encoder import Encoder, Vectors
from ragx.index.store import Index, Mode
from ragx.index.vectors import Ids
from ragx.rag.marginal import log_prior
from ragx.records import Passage

COSINE_TEMPERATURE = 0.05
"""For encoders that normalise: cosines of hits lie within some tenths, so their raw softmax is nearly flat. 1 / 20 is
the scale with which the common sentence encoders were trained."""
LEXICAL_WEIGHT = 10.0
"""For lexical scores relative to the best hit: at temperature 0.05 the best hit gains what half a cosine gains."""


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """Mode, number of passages K, candidates taken from each list, and what the prior is normalised over."""

    mode: Mode = "hybrid"
    top_k: int = 5
    candidates: int = 50
    prior: str = "topk"


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The K hits of B questions, best first: passages, scores [B, K] and log p(z|x) [B, K] with gradient."""

    passages: list[list[Passage]]
    scores: Tensor
    log_prior: Tensor


class Prior(nn.Module):
    """s = <q, z> / temperature + lexical_weight * lexical: the scores whose softmax is p(z|x)."""

    def __init__(self, temperature: float, lexical_weight: float, mode: Mode) -> None:
        super().__init__()
        self.mode = mode
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(temperature))), requires_grad=mode != "lexical")
        self.lexical_weight = nn.Parameter(torch.tensor(float(lexical_weight)), requires_grad=mode != "dense")

    def forward(self, dense: Tensor, lexical: Tensor) -> Tensor:
        """Scores in nats, of the shape of both arguments."""
        match self.mode:
            case "dense":
                return dense.float() / self.log_temperature.exp()
            case "lexical":
                return self.lexical_weight * lexical.float()
            case "hybrid":
                return dense.float() / self.log_temperature.exp() + self.lexical_weight * lexical.float()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimizer that moves every parameter by about its learning rate a step, as Adam does: the
        lexical weight's is that many times larger as the weight itself is at first."""
        rates = [(self.log_temperature, learning_rate), (self.lexical_weight, learning_rate * LEXICAL_WEIGHT)]
        return [{"params": [one], "lr": rate, "weight_decay": 0.0} for one, rate in rates if one.requires_grad]

    def values(self) -> dict[str, float]:
        """Temperature and lexical weight as numbers."""
        temperature, weight = self.log_temperature.detach().exp(), self.lexical_weight.detach()
        return {"temperature": float(temperature), "lexical_weight": float(weight)}


class Retriever(nn.Module):
    """Retrieves with the current question encoder; gradient flows into it through the scores of the hits.

    With `passage_side`, a passage encoder that learns too, the K hits are encoded anew, and gradient flows into both
    encoders through their scores; which passages are hits is still said by the vectors of the index.
    """

    def __init__(
        self,
        encoder: Encoder,
        prior: Prior,
        index: Index,
        settings: RetrievalSettings,
        passage_side: Encoder | None = None,
    ) -> None:
        """Raises ConfigError when vectors do not fit the index, or K exceeds the number of passages."""
        super().__init__()
        if settings.mode != "lexical" and encoder.dimension != index.manifest["dimension"]:
            raise ConfigError(
                f"{encoder.folder}: its vectors have {encoder.dimension} dimensions, "
                f"those of {index.folder} have {index.manifest['dimension']}: use the encoder the index was built with"
            )
        if settings.top_k > index.passages_count:
            raise ConfigError(
                f"retrieval.top_k: {settings.top_k} passages wanted, the index holds {index.passages_count}; lower it"
            )
        self.question_encoder = encoder.module
        self.passage_encoder: nn.Module | None = None if passage_side is None else passage_side.module
        self.passage_side = passage_side
        self.prior = prior
        self.encoder = encoder
        self.index = index
        self.settings = settings

    def forward(self, questions: Sequence[str], k: int | None = None) -> Retrieval:
        """The `k` (default `top_k`) best passages of each question, ties by passage number."""
        k = k or self.settings.top_k
        with torch.autocast(self._device.type, enabled=False):  # questions are few and short: keep them exact
            return self._retrieve(questions, k)

    def _retrieve(self, questions: Sequence[str], k: int) -> Retrieval:
        queries = self.queries(questions)
        ids, scores, prior = (
            self._over_corpus(queries, questions, k)
            if self.settings.prior == "corpus"
            else self._over_hits(queries, questions, k)
        )
        found = self.index.passages(ids.reshape(-1).tolist())
        return Retrieval([[found[number] for number in row] for row in ids.tolist()], scores, prior)

    def queries(self, questions: Sequence[str]) -> Tensor | None:
        """The vectors [B, D] of questions, with gradient; None in lexical mode, which has no use for them."""
        return None if self.settings.mode == "lexical" else self.encoder.forward(questions)

    def encoders(self) -> list[nn.Module]:
        """The question encoder and, where it learns with weights of its own, the passage encoder."""
        apart = self.passage_encoder is not None and self.passage_encoder is not self.question_encoder
        return [self.question_encoder, *([self.passage_encoder] if apart else [])]

    def first(self, retrieval: Retrieval, k: int) -> Retrieval:
        """The retrieval cut to its first k hits."""
        scores = retrieval.scores[:, :k]
        prior = retrieval.log_prior[:, :k] if self.settings.prior == "corpus" else log_prior(scores)
        return Retrieval([row[:k] for row in retrieval.passages], scores, prior)

    def columns(self, retrieval: Retrieval, columns: Tensor) -> Retrieval:
        """Some of the hits of each question, by their columns [B, k]."""
        scores = retrieval.scores.gather(1, columns.to(self._device))
        own = retrieval.log_prior.gather(1, columns.to(self._device))
        prior = own if self.settings.prior == "corpus" else log_prior(own)
        passages = [[row[j] for j in chosen] for row, chosen in zip(retrieval.passages, columns.tolist(), strict=True)]
        return Retrieval(passages, scores, prior)

    def scores_of(self, questions: Sequence[str], ids: Tensor) -> Tensor:
        """The current scores [B, k] of given passages of each question; -inf where an id is -1."""
        queries = self.queries(questions)
        lexical = self.index.lexical_scores(questions, ids.numpy(), self.settings.mode)
        return self._scores(queries, ids, torch.from_numpy(lexical))

    def over(self, questions: Sequence[str], ids: Tensor, offsets: Tensor | None = None) -> Retrieval:
        """Given passages [B, k] of each question with their current scores, `offsets` [B, k] added to log p(z|x)."""
        with torch.autocast(self._device.type, enabled=False):
            if self.settings.prior == "corpus":
                queries = self.queries(questions)
                over_all = self.corpus_scores(queries, questions)
                chosen = ids.to(self._device)
                scores, prior = over_all.gather(1, chosen), log_prior(over_all).gather(1, chosen)
            else:
                scores = self.scores_of(questions, ids)
                prior = log_prior(scores)
        if offsets is not None:
            moved = prior + offsets.to(self._device)
            prior = moved if self.settings.prior == "corpus" else log_prior(moved)
        found = self.index.passages(ids.reshape(-1).tolist())
        return Retrieval([[found[number] for number in row] for row in ids.tolist()], scores, prior)

    def _over_hits(self, queries: Tensor | None, questions: Sequence[str], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, scores and log-prior [B, k], the prior normalised over the k hits."""
        detached = None if queries is None else queries.detach().cpu().numpy()
        found = self.index.candidates(detached, questions, self.settings.mode, max(k, self.settings.candidates))
        ids, lexical = torch.from_numpy(found.ids), torch.from_numpy(found.lexical)
        with torch.no_grad():
            scores = self.prior(torch.from_numpy(found.dense).to(self._device), lexical.to(self._device)).cpu()
            scores = scores.masked_fill(ids < 0, -torch.inf)
            order = torch.argsort(scores, dim=-1, descending=True, stable=True)[:, :k]
        ids = ids.gather(1, order)
        scores = self._scores(queries, ids, lexical.gather(1, order))
        return ids, scores, log_prior(scores)

    def _scores(self, queries: Tensor | None, ids: Tensor, lexical: Tensor) -> Tensor:
        """The scores [B, k] of passages; -inf where an id is -1."""
        lexical = lexical.to(self._device)
        dense = torch.zeros_like(lexical)
        if queries is not None:
            vectors = self._hit_vectors(ids)
            dense = torch.einsum("bd,bkd->bk", queries, vectors)
        return Tensor(self.prior(dense, lexical)).masked_fill(ids.to(self._device) < 0, -torch.inf)

    def _over_corpus(self, queries: Tensor | None, questions: Sequence[str], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, scores and log-prior [B, k], the prior normalised over all passages."""
        scores = self.corpus_scores(queries, questions)
        order = torch.argsort(scores.detach(), dim=-1, descending=True, stable=True)[:, :k]
        return order.cpu(), scores.gather(1, order), log_prior(scores).gather(1, order)

    def _hit_vectors(self, ids: Tensor) -> Tensor:
        """Vectors [B, k, D] of passages: those of the index or, in training the passage encoder, with graph."""
        if self.passage_side is None or not torch.is_grad_enabled():
            return torch.from_numpy(self.index.vectors(ids.numpy())).to(self._device)
        numbers, places = torch.unique(ids.clamp(min=0), return_inverse=True)
        return self.encode_passages(numbers.tolist())[places.to(self._device)]

    def encode_passages(self, numbers: Sequence[int]) -> Tensor:
        """Vectors [n, D] of passages from the learning passage encoder, with gradient."""
        assert self.passage_side is not None
        found = self.index.passages(numbers)
        dtype: torch.dtype = getattr(torch, self.index.manifest["dtype"])
        return self.passage_side.forward_passages([found[number] for number in numbers], dtype)

    def replace_vectors(self, ids: Ids, vectors: Vectors) -> None:
        """Give passages other vectors [n, D] in the opened index."""
        self.index.replace_vectors(ids, vectors)
        self.__dict__.pop("_all_vectors", None)

    def corpus_scores(self, queries: Tensor | None, questions: Sequence[str]) -> Tensor:
        """The scores [B, N] of all passages of the corpus: one matrix product, passages fixed."""
        return Tensor(self.prior(*self.corpus_parts(queries, questions)))

    def corpus_parts(self, queries: Tensor | None, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The inner products and the lexical scores [B, N] of all passages, zeros where the mode has none."""
        none = torch.zeros((), device=self._device).expand(len(questions), self.index.passages_count)  # takes no memory
        dense = none if queries is None else queries @ self._corpus_vectors().T
        if self.settings.mode == "dense":
            return dense, none
        return dense, torch.from_numpy(self.index.corpus_lexical_scores(questions)).to(self._device)

    def _corpus_vectors(self) -> Tensor:
        if not hasattr(self, "_all_vectors"):
            self._all_vectors = torch.from_numpy(self.index.all_vectors()).to(self._device)
        return self._all_vectors

    @property
    def _device(self) -> torch.device:
        return self.prior.log_temperature.device


def starting_prior(
    encoder: Encoder, mode: Mode, temperature: float | str = "auto", lexical_weight: float | str = "auto"
) -> Prior:
    """The untrained prior: "auto" is 0.05 for encoders that normalise, 1 for others, and 10 for the lexical weight."""
    own = COSINE_TEMPERATURE if encoder.settings.normalize else 1.0
    return Prior(
        own if temperature == "auto" else float(temperature),
        LEXICAL_WEIGHT if lexical_weight == "auto" else float(lexical_weight),
        mode,
    )
