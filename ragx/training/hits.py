"""What training questions are answered from: what the retriever finds, or what was settled before training."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ragx.artifacts import new_folder, read_manifest
from ragx.rag.retriever import Retrieval, Retriever
from ragx.records import Example
from ragx.training.reading import alone

KIND = "ragx retrieval for training"


def _no_rows() -> Tensor:
    return torch.zeros(0, 1)


@dataclass(frozen=True, slots=True)
class Settled:
    """A row for each of N training questions, or no rows where it is not wanted: cross-fitted passage numbers `ids`
    [N, C] with what is added to their log p(z|x), `offsets` [N, C], and the number of the passage to read, `right`
    [N, 1]."""

    ids: Tensor = field(default_factory=_no_rows)
    offsets: Tensor = field(default_factory=_no_rows)
    right: Tensor = field(default_factory=_no_rows)

    def save(self, folder: Path) -> None:
        """Write a sealed folder."""
        with new_folder(folder, KIND) as beside:
            save_file({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, beside / "settled.safetensors")


def open_settled(folder: Path) -> Settled:
    """What was saved in a folder.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    read_manifest(folder, KIND, "ragx finetune without --resume")
    return Settled(**load_file(folder / "settled.safetensors"))


class TrainingRetrieval:
    """What training questions are answered from: the retriever's own hits, or cross-fitted ones, and distractors."""

    def __init__(self, examples: Sequence[Example], settled: Settled, distractors: int, seed: int) -> None:
        self._rows = {example.id: row for row, example in enumerate(examples)}
        self._settled, self._distractors, self._seed = settled, distractors, seed

    def right(self, retriever: Retriever, part: Sequence[Example]) -> Retrieval:
        """The one right passage of each question."""
        return alone(retriever, self._settled.right[[self._rows[example.id] for example in part]])

    def retrieve(self, retriever: Retriever, part: Sequence[Example], k: int, step: int) -> Retrieval:
        """K passages of each question. Of these the last `distractors` are drawn, by seed, step and question, from all
        that were found beyond the others."""
        questions = [example.question for example in part]
        width = max(k, retriever.settings.candidates) if self._distractors else k
        width = min(width, retriever.index.passages_count)
        if len(self._settled.ids):
            rows = [self._rows[example.id] for example in part]
            found = retriever.over(questions, self._settled.ids[rows], self._settled.offsets[rows])
        else:
            found = retriever(questions, width)
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
