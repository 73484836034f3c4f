"""The RAG model: retriever, generator and the marginal likelihood that trains both."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ragx.errors import RagxError
from ragx.rag.beams import Stream
from ragx.rag.decoding import Decoded, decode
from ragx.rag.generator import Generator, Pair
from ragx.rag.marginal import (
    distillation,
    log_likelihood,
    masked,
    sequence_posterior,
    token_posterior,
    with_null,
)
from ragx.rag.rerank import Rerank, question_log_probs, reordered
from ragx.rag.retriever import Retrieval, Retriever
from ragx.rag.state import State
from ragx.records import NOTHING

PRUNE_BELOW = 0.6
"""Share of passages carrying the wanted posterior mass above which one ordinary pass is cheaper than two."""

NULL_BIAS = -3.0
"""Where the null bias starts: a twentieth of the prior."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The outcome of one batch of B questions.

    nll: [B] of -log p(y|x) in nats, with gradient; tokens [B] of the answers; retrieval and posterior [B, K] behind it;
    kept [B], the share of the passages that carry the wanted posterior mass; distillation [B] in nats, with gradient
    towards the retriever alone; question [B], -log p(x|z) in nats, expected under the posterior, with gradient towards
    the generator alone, or 0 where it was not asked for.
    """

    nll: Tensor
    tokens: Tensor
    retrieval: Retrieval
    posterior: Tensor
    kept: Tensor
    distillation: Tensor
    question: Tensor


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers to B questions with the retrieval behind them, and the hits that it was chosen from, in their order; NLL
    in nats and tokens of the reference answers."""

    decoded: list[Decoded]
    retrieval: Retrieval
    hits: Retrieval
    reference_nll: list[float] | None = None
    reference_tokens: list[int] | None = None


class RagModel(nn.Module):
    """p(y|x) = sum_z p(z|x) p(y|x,z), with K passages a question. With a null bias, a share of sigmoid(null_bias) goes
    to the answer without any passage: the last of then K + 1."""

    def __init__(
        self,
        retriever: Retriever,
        generator: Generator,
        marginal: str,
        null_bias: float | None = None,
        rerank: Rerank | None = None,
    ) -> None:
        super().__init__()
        self.rerank = rerank
        self.null_bias = None if null_bias is None else nn.Parameter(torch.tensor(float(null_bias)))
        self.retriever = retriever
        self.generator = generator
        self.generator_module = generator.model
        self.marginal = marginal
        self.kept_share = 1.0

    @property
    def width(self) -> int:
        """The hits of a question that those which are read are chosen from: `top_k`, or as many as are reordered."""
        top_k = self.retriever.settings.top_k
        return top_k if self.rerank is None else min(self.rerank.hits, self.retriever.index.passages_count)

    def retrieve(self, questions: Sequence[str], k: int | None = None) -> Retrieval:
        """The `k` (default `top_k`) best passages of each question, reordered without gradient where that is wanted."""
        if self.rerank is None:
            found: Retrieval = self.retriever(questions, k)
            return found
        found = self.retriever(questions, max(k or 0, self.width))
        likely = question_log_probs(self.generator, questions, found)
        return self.retriever.first(reordered(found, likely, self.rerank)[0], k or self.retriever.settings.top_k)

    def _start(self, questions: Sequence[str], hits: Retrieval) -> tuple[State, Retrieval, Retrieval]:
        """The prompts of the hits that are read, run through the generator; these, and all hits in order."""
        wide = self._with_null(hits)
        pairs = [pair for row in pairs_of(questions, wide) for pair in row]
        state = self.generator.start(pairs, weigh=self.rerank is not None)
        if self.rerank is None:
            return state, wide, hits
        assert state.question is not None
        width, count = wide.scores.shape[1], hits.scores.shape[1]
        hits, order = reordered(hits, state.question.reshape(-1, width)[:, :count], self.rerank)
        read = self.retriever.first(hits, self.retriever.settings.top_k)
        none = torch.arange(count, width, device=order.device).expand(len(order), -1)
        columns = torch.cat([order[:, : read.scores.shape[1]], none], dim=-1)
        rows = torch.arange(len(order), device=order.device).unsqueeze(-1) * width + columns
        return state.select(rows.reshape(-1)), self._with_null(read), hits

    def forward(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        k: int | None = None,
        posterior_mass: float = 1.0,
        retrieval: Retrieval | None = None,
        with_question: bool = False,
    ) -> Loss:
        """-log p(y|x) of each question's answer, with gradient when it is enabled, over `k` passages or `retrieval`;
        `with_question` also what the generator makes of the question, in one pass.

        With `posterior_mass` below 1, and where that saves work, one pass without graph gives the posterior and with it
        the retriever's exact gradient, p(z|x) - p(z|x,y); the generator is then differentiated only on the passages
        that hold this share of the posterior, weighted by it. Whether that saves work is told by `kept_share`, which a
        training sets once a step from what was kept in the one before.
        """
        retrieval = self._with_null(retrieval or self.retrieve(questions, k))
        pairs = pairs_of(questions, retrieval)
        ids = [self.generator.answer_ids(answer) for answer in answers]
        prunes = posterior_mass < 1.0 and self.kept_share < PRUNE_BELOW and not with_question
        two_passes = torch.is_grad_enabled() and prunes
        with torch.set_grad_enabled(torch.is_grad_enabled() and not two_passes):
            log_probs, mask, likely = self._log_probs(pairs, ids, with_question)
        nll = -log_likelihood(self.marginal, retrieval.log_prior, log_probs, mask)
        weights = self._weights(retrieval.log_prior.detach(), log_probs.detach(), mask)
        kept = _kept(weights.amax(-1), posterior_mass)
        if two_passes:
            nll = nll + self._generator_gradient(pairs, ids, weights, kept)
        posterior, share = self._posterior(weights, mask), kept.float().mean(-1)
        distilled = distillation(retrieval.log_prior, log_probs, mask)
        question = -(posterior * likely).sum(-1)
        return Loss(nll, mask[:, 0].sum(-1), retrieval, posterior, share, distilled, question)

    @torch.no_grad()
    def answer(
        self,
        questions: Sequence[str],
        *,
        decoding: str,
        num_beams: int,
        retrieval: Retrieval | None = None,
        references: Sequence[str] | None = None,
        stream: Stream | None = None,
    ) -> Answered:
        """The best answer to each question, and log p of given reference answers, from one pass over the prompts.

        The hits are those of `retrieval`, where it is given: `width` of each question. `stream` is called with one
        question's answer so far.

        Raises:
            RagxError: the scores of a question's passages are not finite, or probabilities are not numbers.
        """
        hits = retrieval or self.retriever(questions, None if self.rerank is None else self.width)
        self._require_finite(questions, hits)
        state, retrieval, hits = self._start(questions, hits)
        decoded = decode(
            self.generator,
            state,
            retrieval.log_prior,
            marginal=self.marginal,
            decoding=decoding,
            num_beams=num_beams,
            stream=stream,
        )
        if references is None:
            return Answered(decoded, retrieval, hits)
        pairs = pairs_of(questions, retrieval)
        ids = [self.generator.answer_ids(reference) for reference in references]
        log_probs, mask = self._reshape(*self.generator.score(state, self._repeat(ids, pairs)), len(pairs))
        nll = -log_likelihood(self.marginal, retrieval.log_prior, log_probs, mask)
        return Answered(decoded, retrieval, hits, nll.tolist(), [len(answer) for answer in ids])

    def _require_finite(self, questions: Sequence[str], retrieval: Retrieval) -> None:
        """Refuse questions whose vectors are broken; their hits are any passages, and no answer could be told best."""
        for question, finite in zip(questions, retrieval.scores.isfinite().all(-1).tolist(), strict=True):
            if not finite:
                raise RagxError(
                    f"{self.retriever.encoder.folder}: the encoder's vector of {question[:60]!r} is not finite; "
                    "name another encoder.model, or where it was tuned run ragx finetune again"
                )

    def _with_null(self, retrieval: Retrieval) -> Retrieval:
        """The retrieval with no passage as its last, where there is a share for it."""
        if self.null_bias is None:
            return retrieval
        rows = [[*row, NOTHING] for row in retrieval.passages]
        score = self.null_bias + retrieval.scores.logsumexp(-1, keepdim=True)
        log_prior = with_null(retrieval.log_prior, self.null_bias)
        return Retrieval(rows, torch.cat([retrieval.scores, score], dim=-1), log_prior)

    def _log_probs(
        self, pairs: list[list[Pair]], ids: list[list[int]], with_question: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gold-token log-probabilities and mask, [B, K, T], and log p(x|z) [B, K], 0 where it is not wanted."""
        flat, answers = [pair for row in pairs for pair in row], self._repeat(ids, pairs)
        if with_question:
            log_probs, mask, likely = self.generator.reading_log_probs(flat, answers)
        else:
            log_probs, mask = self.generator.token_log_probs(flat, answers)
            likely = log_probs.new_zeros(len(flat))
        return *self._reshape(log_probs, mask, len(pairs)), likely.reshape(len(pairs), -1)

    def _generator_gradient(
        self, pairs: list[list[Pair]], ids: list[list[int]], weights: Tensor, kept: Tensor
    ) -> Tensor:
        """[B] of value 0 whose gradient is that of -log p(y|x) towards the generator: -sum_kt w_kt d log p(y_t|x,k)."""
        rows, columns = kept.nonzero(as_tuple=True)
        chosen = [pairs[row][column] for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
        log_probs, mask = self.generator.token_log_probs(chosen, [ids[row] for row in rows.tolist()])
        weighted = (masked(log_probs, mask) * weights[rows, columns, : log_probs.shape[1]]).sum(-1)
        totals = torch.zeros(len(pairs), device=weighted.device).index_add(0, rows, weighted)
        return totals.detach() - totals

    def _weights(self, log_prior: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
        """d log p(y|x) / d log p(y_t|x,k) [B, K, T]: the posterior of the sequence, or of each token."""
        if self.marginal == "token":
            return token_posterior(log_prior, log_probs) * mask
        return sequence_posterior(log_prior, log_probs, mask).unsqueeze(-1) * mask

    def _posterior(self, weights: Tensor, mask: Tensor) -> Tensor:
        return weights.sum(-1) / mask.sum(-1)

    @staticmethod
    def _repeat(ids: list[list[int]], pairs: list[list[Pair]]) -> list[list[int]]:
        return [answer for answer, row in zip(ids, pairs, strict=True) for _ in row]

    @staticmethod
    def _reshape(log_probs: Tensor, mask: Tensor, questions: int) -> tuple[Tensor, Tensor]:
        return log_probs.reshape(questions, -1, log_probs.shape[-1]), mask.reshape(questions, -1, mask.shape[-1])


def pairs_of(questions: Sequence[str], retrieval: Retrieval) -> list[list[Pair]]:
    """Each question beside each of its passages: B rows of K pairs."""
    return [[(q, passage) for passage in row] for q, row in zip(questions, retrieval.passages, strict=True)]


def _kept(weights: Tensor, mass: float) -> Tensor:
    """The fewest passages [B, K] whose weights hold `mass` of each question's total."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    enough = before < mass * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(enough).scatter(-1, order, enough)
