"""Which questions a step takes, and in which parts. All of it follows from seed, epoch and step."""

import dataclasses
import logging
import math
import random
from collections.abc import Sequence
from itertools import pairwise

import torch

from ragx.errors import RagxError
from ragx.records import Example
from ragx.training.settings import TrainSettings

log = logging.getLogger(__name__)


def batch_of(examples: Sequence[Example], settings: TrainSettings, epoch: int, offset: int) -> list[Example]:
    """Batch number `offset` of an epoch, whose order and drawn answers follow from the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator).tolist()
    batch = [examples[row] for row in order[offset * settings.batch_size : (offset + 1) * settings.batch_size]]
    return batch if settings.answers == "first" else [with_drawn_answer(e, settings.seed, epoch) for e in batch]


def with_drawn_answer(example: Example, seed: int, epoch: int) -> Example:
    """The example with one of its answers alone, drawn by seed, epoch and question."""
    drawn = random.Random(f"{seed} {epoch} {example.id}").choice(example.answers)
    return dataclasses.replace(example, answers=(drawn,))


def cut(questions: int, most: int, processes: int) -> list[range]:
    """Parts of a batch with at most `most` questions each, of like size, as many for each process where possible."""
    count = min(questions, processes * math.ceil(questions / (processes * most)))
    edges = [questions * part // count for part in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def pieces(part: range, most: int) -> list[range]:
    """A part in pieces of at most `most` questions, all but the last as large as that."""
    return [part[start : start + most] for start in range(0, len(part), most)]


def fewer(at_once: int, error: BaseException) -> int:
    """How many questions to try at once after memory ran out."""
    if at_once == 1:
        raise RagxError(
            "out of memory with one question at once; say finetune.gradient_checkpointing: true, "
            "or lower finetune.top_k or generator.max_input_tokens"
        ) from error
    log.warning("out of memory with %d questions at once; going on with %d", at_once, at_once // 2)
    return at_once // 2
