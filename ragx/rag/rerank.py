"""What the generator makes of the question: log p(x|z) as a term of p(z|x).

    s = scale * (<q, z> / temperature + lexical_weight * lexical) + weight * log p(x|z)

for the first N hits of a question (Sachan et al. 2022, "Improving Passage Retrieval with Zero-Shot Question
Generation", where it stands alone). Retriever and generator err on different questions, and the generator has read
question and passage together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.rag.generator import Generator
from ragx.rag.marginal import log_prior
from ragx.rag.retriever import Retrieval

QUESTION_WEIGHT = 0.2
"""The weight of log p(x|z), in nats over the whole question, where no dev questions have said another."""
AT_ONCE = 32
"""Questions whose hidden states are held at once."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """The number of hits N that are ordered anew, the weight of log p(x|z), and what the retriever's score counts."""

    hits: int
    weight: float = QUESTION_WEIGHT
    scale: float = 1.0

    def values(self) -> dict[str, float]:
        """Weight and scale as numbers."""
        return {"weight": self.weight, "scale": self.scale}


@torch.no_grad()
def question_log_probs(generator: Generator, questions: Sequence[str], retrieval: Retrieval) -> Tensor:
    """log p(x|z) [B, K] in nats of each question after each of its hits."""
    rows = list(zip(questions, retrieval.passages, strict=True))
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    found = [generator.question_log_probs([(q, passage) for q, row in part for passage in row]) for part in parts]
    return torch.cat(found).reshape(len(rows), -1)


def reordered(retrieval: Retrieval, likely: Tensor, rerank: Rerank) -> tuple[Retrieval, Tensor]:
    """The hits [B, N] of each question, ordered and weighed anew by log p(x|z), `likely` [B, N], ties as they were; and
    their former places [B, N]."""
    scores = rerank.scale * retrieval.scores.detach() + rerank.weight * likely.to(retrieval.scores.device)
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    passages = [[row[j] for j in chosen] for row, chosen in zip(retrieval.passages, order.tolist(), strict=True)]
    scores = scores.gather(1, order)
    return Retrieval(passages, scores, log_prior(scores)), order
