"""What the generator's likelihood of the question is worth beside the retriever's score, by the dev questions.

Not by the training questions: their right passages are known by heart once the retriever is trained.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ragx.rag.model import RagModel
from ragx.rag.rerank import AT_ONCE, QUESTION_WEIGHT, Rerank, question_log_probs
from ragx.training.warmup import Supervised, right_nll

log = logging.getLogger(__name__)


def fit_rerank(model: RagModel, dev: Sequence[Supervised], hits: int) -> Rerank | None:
    """Weight and scale of least -log p(a right passage | question) over the first hits of those questions that have one
    among them, by L-BFGS; None where there is none.

    They are the most likely ones a posteriori under a normal prior around the start, of deviation 0.5 for the scale's
    logarithm and `QUESTION_WEIGHT` for the weight.
    """
    found = [_seen(model, dev[start : start + AT_ONCE], hits) for start in range(0, len(dev), AT_ONCE)]
    seen = sum(len(scores) for scores, _, _ in found)
    if not seen:
        return None
    scores, likely, right = (torch.cat(part) for part in zip(*found, strict=True))
    log_scale = torch.zeros((), requires_grad=True)
    weight = torch.tensor(QUESTION_WEIGHT, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, weight], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        nll = right_nll(log_scale.exp() * scores + weight * likely, right)
        moved = (log_scale / 0.5) ** 2 + ((weight - QUESTION_WEIGHT) / QUESTION_WEIGHT) ** 2
        value = nll.sum() + moved / 2
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted = Rerank(hits, max(0.0, float(weight.detach())), float(log_scale.detach().exp()))
    log.info(
        "reranking fitted to %d dev questions: weight of log p(question | passage) %.2f, scale of the retriever's %.2f",
        seen,
        fitted.weight,
        fitted.scale,
    )
    return fitted


@torch.no_grad()
def _seen(model: RagModel, part: Sequence[Supervised], hits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, log p(x|z) and whether it is right, [n, N] each, of the questions that have a right passage."""
    questions = [item.example.question for item in part]
    found = model.retriever(questions, min(hits, model.retriever.index.passages_count))
    right = torch.tensor(
        [[p.number in item.positives for p in row] for item, row in zip(part, found.passages, strict=True)]
    )
    rows = right.any(-1)
    likely = question_log_probs(model.generator, questions, found)
    return found.scores.float().cpu()[rows], likely.float().cpu()[rows], right[rows]
