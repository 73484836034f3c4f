"""Passage vectors made anew while their encoder learns: what the next questions choose between, or all of them.

The opened index keeps the vectors in use; a refresh replaces some of them in memory. How stale the others are is told
by a random sample of all passages, encoded at every refresh.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ragx.index.encoder import Vectors, auto_batch_tokens
from ragx.index.vectors import Ids
from ragx.rag.retriever import Retriever
from ragx.records import Passage
from ragx.training.processes import Processes

log = logging.getLogger(__name__)

SAMPLE = 64
UNCHANGED = 0.9999
"""Cosine of a vector to that of the same weights, rounding included."""
_QUESTIONS_AT_ONCE = 32
_PASSAGES_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did and found: passages encoded, whether they were all, the mean cosine of a random sample to its
    vectors in use, the share of the K hits of the questions that stayed hits, and seconds."""

    passages: int
    whole: bool
    cosine: float
    overlap: float
    seconds: float


@torch.no_grad()
def refresh(
    retriever: Retriever,
    processes: Processes,
    questions: Sequence[str],
    top_k: int,
    *,
    whole_below: float,
    seed: int,
) -> Refreshed:
    """Encode anew the hits of `questions` and as many next to them; every passage where the sample's mean cosine is
    below `whole_below`. All processes encode their share and then hold the same vectors."""
    started = time.monotonic()
    total = retriever.index.passages_count
    before = hits(retriever, processes, questions, min(2 * top_k, total))
    sample = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:SAMPLE].numpy()
    cosine = float(_renew(retriever, processes, sample).mean())
    whole = cosine < whole_below
    others = np.setdiff1d(np.arange(total) if whole else before, sample)
    _renew(retriever, processes, others)
    after = hits(retriever, processes, questions, top_k)
    pairs = zip(before[:, :top_k].tolist(), after.tolist(), strict=True)
    overlap = float(np.mean([len({*one} & {*two}) / top_k for one, two in pairs])) if len(after) else 1.0
    return Refreshed(len(sample) + len(others), whole, cosine, overlap, time.monotonic() - started)


def hits(retriever: Retriever, processes: Processes, questions: Sequence[str], k: int) -> Ids:
    """The numbers [Q, k] of the best passages of each question by the vectors in use, best first."""
    starts = range(0, len(questions), _QUESTIONS_AT_ONCE)
    found = []
    for start in processes.share(starts):
        part = questions[start : start + _QUESTIONS_AT_ONCE]
        numbers = [[passage.number for passage in row] for row in retriever(part, k).passages]
        found.append((range(start, start + len(part)), torch.tensor(numbers)))
    return np.asarray(processes.table(len(questions), k, found).numpy().astype(np.int64))


def _renew(retriever: Retriever, processes: Processes, numbers: Ids) -> Vectors:
    """Encode passages and put their vectors in use; the cosine [n] of each to the one before."""
    cosines = [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(numbers), _PASSAGES_AT_ONCE):
        part = numbers[start : start + _PASSAGES_AT_ONCE]
        new, old = _encode(retriever, processes, part), retriever.index.vectors(part)
        lengths = np.linalg.norm(new, axis=1) * np.linalg.norm(old, axis=1)
        cosines.append((new * old).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny))
        retriever.replace_vectors(part, new)
    return np.concatenate(cosines)


def _encode(retriever: Retriever, processes: Processes, numbers: Ids) -> Vectors:
    """Vectors [n, D] of passages, each process encoding its part of them."""
    size = -(-len(numbers) // processes.count)
    computed = []
    for start in processes.share(range(0, len(numbers), size)):
        part = numbers[start : start + size]
        found = retriever.index.passages(part)
        vectors = encode(retriever, [found[number] for number in part.tolist()])
        computed.append((range(start, start + len(part)), torch.from_numpy(vectors)))
    dimension = retriever.encoder.dimension
    return np.asarray(processes.table(len(numbers), dimension, computed).numpy().astype(np.float32))


def encode(retriever: Retriever, passages: Sequence[Passage]) -> Vectors:
    """Vectors [n, D] of passages from the learning passage encoder, in the index's dtype and without graph."""
    encoder = retriever.passage_side
    assert encoder is not None
    dtype: torch.dtype = getattr(torch, retriever.index.manifest["dtype"])
    return encoder.encode_passages(passages, batch_tokens=auto_batch_tokens(encoder.device), dtype=dtype)


@contextmanager
def fresh(retriever: Retriever, numbers: Ids) -> Iterator[None]:
    """For the time of a block some passages have the vectors that the learning passage encoder gives them now."""
    if retriever.passage_side is None or not len(numbers):
        yield
        return
    before, found = state(retriever), retriever.index.passages(numbers)
    retriever.replace_vectors(numbers, encode(retriever, [found[number] for number in numbers.tolist()]))
    try:
        yield
    finally:
        restore(retriever, before)


def state(retriever: Retriever) -> dict[str, torch.Tensor]:
    """What a checkpoint needs to have the vectors in use again: those that are not the index's own."""
    ids, vectors = retriever.index.replaced_vectors()
    return {"ids": torch.from_numpy(ids), "vectors": torch.from_numpy(vectors)}


def restore(retriever: Retriever, saved: dict[str, torch.Tensor]) -> None:
    """Put the vectors of a checkpoint in use."""
    retriever.index.restore_vectors()
    retriever.replace_vectors(saved["ids"].numpy(), saved["vectors"].numpy())
