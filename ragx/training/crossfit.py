"""Cross-fitted retrieval: every training question gets the passages of a retriever that has not seen it.

A warmed-up retriever ranks the gold passages of its own training questions nearly perfectly, those of new questions
not. A generator that learns from the first trusts the passages of the second too much. So the warm-up also runs on
folds: each question is retrieved by the retriever warmed up on the other folds, and its log p(z|x) in training is that
retriever's, plus what the one that is trained learns from there on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ragx.rag.retriever import Retriever
from ragx.records import Example, Progress
from ragx.training.warmup import Supervised, WarmupSettings, snapshot, warm_up

AT_ONCE = 64
"""Questions retrieved at once."""


def fold_of(examples: int, folds: int, seed: int) -> list[int]:
    """The fold of each question, as many in each as can be."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed)).tolist()
    place = {row: position % folds for position, row in enumerate(order)}
    return [place[row] for row in range(examples)]


def cross_fit(
    retriever: Retriever,
    examples: Sequence[Example],
    supervised: Sequence[Supervised],
    settings: WarmupSettings,
    folds: int,
    width: int,
    progress: Progress,
) -> tuple[Tensor, Tensor, int]:
    """Passage numbers and log p(z|x) [N, width] of every question by the retriever that was warmed up on the other
    folds, and the epochs that the folds found best, on average; the retriever keeps its weights."""
    start = snapshot(retriever)
    fold = {
        example.id: number
        for example, number in zip(examples, fold_of(len(examples), folds, settings.seed), strict=True)
    }
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    log_prior = torch.zeros(len(examples), width)
    epochs = []
    for number in range(folds):
        own = [item for item in supervised if fold[item.example.id] == number]
        others = [item for item in supervised if fold[item.example.id] != number]
        retriever.load_state_dict(start)
        if others:
            epochs.append(warm_up(retriever, others, own, settings, _named(progress, number, folds)))
        rows = [row for row, example in enumerate(examples) if fold[example.id] == number]
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            with torch.no_grad():
                found = retriever([examples[row].question for row in part], width)
            ids[part] = torch.tensor([[passage.number for passage in row] for row in found.passages])
            log_prior[part] = found.log_prior.cpu()
    retriever.load_state_dict(start)
    best = max(1, round(sum(epochs) / max(1, len(epochs))))
    return ids, log_prior, min(best, settings.epochs)


@torch.no_grad()
def offsets_of(retriever: Retriever, examples: Sequence[Example], ids: Tensor, log_prior: Tensor) -> Tensor:
    """What makes log p(z|x) of passages `ids` [N, C] equal to `log_prior` [N, C] as long as the retriever does not
    change, [N, C]."""
    now = [
        retriever.over(
            [example.question for example in examples[i : i + AT_ONCE]], ids[i : i + AT_ONCE]
        ).log_prior.cpu()
        for i in range(0, len(examples), AT_ONCE)
    ]
    return log_prior - torch.cat(now)


def _named(progress: Progress, number: int, folds: int) -> Progress:
    return lambda what, done, total: progress(f"{what}, fold {number + 1} of {folds}", done, total)
