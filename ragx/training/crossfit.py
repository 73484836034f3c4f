"""Cross-fitted retrieval: every training question gets the passages of a retriever that has not seen it.

A warmed-up retriever ranks the gold passages of its own training questions nearly perfectly, those of new questions
not. A generator that learns from the first trusts the passages of the second too much. So the warm-up also runs on
folds: each question is retrieved by the retriever warmed up on the other folds, and its log p(z|x) in training is that
retriever's, plus what the one that is trained learns from there on.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ragx.artifacts import new_folder, read_manifest
from ragx.rag.retriever import Retrieval, Retriever
from ragx.records import Example, Progress
from ragx.training.reading import alone
from ragx.training.warmup import Supervised, WarmupSettings, snapshot, warm_up

log = logging.getLogger(__name__)

KIND = "ragx retrieval for training"
AT_ONCE = 64
"""Questions retrieved at once."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Passage numbers [N, C] of N training questions, and what is added to their log p(z|x), [N, C]."""

    ids: Tensor
    offsets: Tensor


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
    return ids, log_prior, max(1, round(sum(epochs) / max(1, len(epochs))))


@torch.no_grad()
def hits_of(retriever: Retriever, examples: Sequence[Example], ids: Tensor, log_prior: Tensor) -> Hits:
    """The hits whose log p(z|x) is `log_prior` [N, C] as long as the retriever does not change."""
    now = [
        retriever.over(
            [example.question for example in examples[i : i + AT_ONCE]], ids[i : i + AT_ONCE]
        ).log_prior.cpu()
        for i in range(0, len(examples), AT_ONCE)
    ]
    return Hits(ids, log_prior - torch.cat(now))


def save_hits(folder: Path, hits: Hits) -> None:
    """Write hits as a sealed folder."""
    with new_folder(folder, KIND) as beside:
        save_file({"ids": hits.ids, "offsets": hits.offsets}, beside / "hits.safetensors")


def open_hits(folder: Path) -> Hits | None:
    """The hits of a folder, None where there is none.

    Raises:
        ArtifactError: they are damaged.
    """
    if not folder.exists():
        return None
    read_manifest(folder, KIND, "ragx finetune without --resume")
    return Hits(**load_file(folder / "hits.safetensors"))


class TrainingRetrieval:
    """What training questions are answered from: the retriever's own hits, or cross-fitted ones, and distractors."""

    def __init__(
        self, examples: Sequence[Example], hits: Hits | None, right: Tensor | None, distractors: int, seed: int
    ) -> None:
        self._rows = {example.id: row for row, example in enumerate(examples)}
        self._right = right
        self._hits, self._distractors, self._seed = hits, distractors, seed

    def right(self, retriever: Retriever, part: Sequence[Example]) -> Retrieval:
        """The one right passage of each question."""
        assert self._right is not None
        return alone(retriever, self._right[[self._rows[example.id] for example in part]])

    def retrieve(self, retriever: Retriever, part: Sequence[Example], k: int, step: int) -> Retrieval:
        """K passages of each question. Of these the last `distractors` are drawn, by seed, step and question, from all
        that were found beyond the others."""
        questions = [example.question for example in part]
        width = max(k, retriever.settings.candidates) if self._distractors else k
        width = min(width, retriever.index.passages_count)
        if self._hits is None:
            found: Retrieval = retriever(questions, width)
        else:
            rows = [self._rows[example.id] for example in part]
            found = retriever.over(questions, self._hits.ids[rows], self._hits.offsets[rows])
        if not self._distractors:
            return found
        first = k - self._distractors
        chosen = [
            [
                *range(first),
                *sorted(random.Random(f"{self._seed} {step} {e.id}").sample(range(first, width), k - first)),
            ]
            for e in part
        ]
        return retriever.columns(found, torch.tensor(chosen))


def _named(progress: Progress, number: int, folds: int) -> Progress:
    return lambda what, done, total: progress(f"{what}, fold {number + 1} of {folds}", done, total)
