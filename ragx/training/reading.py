"""The first epochs of a training, in which the generator alone learns to read: each question with one right passage.

A step on one passage costs a fraction of one on K. Here the generator learns what answers of the domain are like, and
where `question_loss` says so what is asked of a passage; the joint epochs then teach it to tell passages apart, and the
retriever which of them it can read.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ragx.rag.retriever import Retrieval, Retriever
from ragx.records import Example
from ragx.training import refresh
from ragx.training.warmup import Supervised

AT_ONCE = 64
"""Questions retrieved at once."""


@torch.no_grad()
def right_passages(retriever: Retriever, examples: Sequence[Example], supervised: Sequence[Supervised]) -> Tensor:
    """Numbers [N, 1] of the passage each question is read with: that of its right ones which the retriever finds
    likeliest, or its first hit where none is known to be right."""
    positives = {item.example.id: item.positives for item in supervised}
    several = {number for numbers in positives.values() if len(numbers) > 1 for number in numbers}
    with refresh.fresh(retriever, np.array(sorted(several), dtype=np.int64)):
        parts = [examples[start : start + AT_ONCE] for start in range(0, len(examples), AT_ONCE)]
        return torch.cat([_likeliest(retriever, part, positives) for part in parts])


def _likeliest(retriever: Retriever, examples: Sequence[Example], positives: Mapping[str, tuple[int, ...]]) -> Tensor:
    questions = [example.question for example in examples]
    first = retriever(questions, 1).passages
    known = [positives.get(example.id, (row[0].number,)) for example, row in zip(examples, first, strict=True)]
    widest = max(map(len, known))
    ids = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in known])
    best = retriever.scores_of(questions, ids).argmax(-1, keepdim=True).cpu()
    return ids.gather(1, best)


def alone(retriever: Retriever, passages: Tensor) -> Retrieval:
    """The retrieval of one given passage a question, numbers [B, 1]: all of the prior is on it."""
    found = retriever.index.passages(passages.reshape(-1).tolist())
    zeros = torch.zeros(passages.shape, device=retriever.prior.log_temperature.device)
    return Retrieval([[found[number] for number in row] for row in passages.tolist()], zeros, zeros)
