"""What a training will take, from a short measurement on questions of its own: one part of a batch each way.

How many passages the generator is differentiated on depends on a posterior that training changes. It is measured
untrained; where a warm-up comes first, it is taken to leave at most `KEPT_AFTER_WARMUP` of them a question.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ragx.rag.model import PRUNE_BELOW, RagModel
from ragx.records import Example
from ragx.training.batches import batch_of, cut
from ragx.training.passes import autocast, forward
from ragx.training.refresh import encode
from ragx.training.settings import TrainSettings
from ragx.training.warmup import Supervised, WarmupSettings, objective

KEPT_AFTER_WARMUP = 1.2
"""Passages a question that held 0.99 of the posterior: 1.0 to 1.2 on three sets, of 3 and of 5."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of each phase, and peak bytes of memory of a process (of the GPU, where there is one)."""

    warm_up: float
    steps: float
    evaluations: float
    memory: int
    refreshes: float = 0.0
    reranking: float = 0.0

    @property
    def seconds(self) -> float:
        """All phases together."""
        return self.warm_up + self.steps + self.evaluations + self.refreshes + self.reranking


def estimate(
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    warm_up: tuple[Sequence[Supervised], Sequence[Supervised], WarmupSettings] | None,
    processes: int,
    rerank: int = 0,
) -> Estimate:
    """Measure one part of the first batch and scale it to the whole training, which ends by weighing `rerank` hits of
    each dev question; the model keeps its weights."""
    batch = batch_of(examples, settings, 0, 0)
    part = max(cut(len(batch), settings.micro_batch_size, processes), key=len)
    sample = batch[part.start : part.stop]
    _training_pass(model, sample, settings)  # the first pass of a process is slower
    kept, model.kept_share = model.kept_share, 1.0
    one = _seconds(lambda: _training_pass(model, sample, settings))
    model.kept_share = 0.0
    two = _seconds(lambda: _training_pass(model, sample, settings))
    model.kept_share = kept
    shares: list[float] = []
    scored = _seconds(lambda: shares.append(_score(model, sample, settings)))
    share = shares[0]
    likely = min(share, KEPT_AFTER_WARMUP / settings.top_k) if warm_up else share
    prunes = settings.posterior_mass < 1 and likely < PRUNE_BELOW
    passes = scored + (two - scored) * likely / share if prunes else one
    read, looks = settings.reading_steps(len(examples)), settings.evaluations(len(examples)) if dev else 0
    joint = settings.steps(len(examples)) - read
    a_read = _reading_seconds(model, examples, settings, processes) if read else 0.0
    shown = dev[: settings.sample_answers]
    return Estimate(
        warm_up=0.0 if warm_up is None else _warm_up_seconds(model, *warm_up),
        steps=(joint * passes * len(batch) / len(sample) + read * a_read) / processes,
        evaluations=looks * (scored * len(dev) / len(sample) / processes + (_answering(model, shown, settings))),
        memory=_peak(model) + 8 * sum(p.numel() for p in model.parameters() if p.requires_grad),
        refreshes=_refresh_seconds(model, examples, dev, settings, joint, processes),
        reranking=scored * len(dev) / len(sample) * rerank / settings.top_k,
    )


def _reading_seconds(model: RagModel, examples: Sequence[Example], settings: TrainSettings, processes: int) -> float:
    """Seconds of a step on one passage a question, here the first hit of each."""
    batch = batch_of(examples, settings, 0, 0)
    part = max(cut(len(batch), settings.top_k * settings.micro_batch_size, processes), key=len)
    sample, alone = batch[part.start : part.stop], dataclasses.replace(settings, top_k=1)
    asks = settings.question_loss > 0
    return _seconds(lambda: _training_pass(model, sample, alone, asks)) * len(batch) / len(sample)


def _training_pass(
    model: RagModel, sample: Sequence[Example], settings: TrainSettings, with_question: bool = False
) -> None:
    loss = forward(model, sample, settings, with_question=with_question)
    torch.autograd.backward((loss.nll + loss.question).sum())
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _score(model: RagModel, sample: Sequence[Example], settings: TrainSettings) -> float:
    return float(forward(model, sample, settings).kept.mean())


def _answering(model: RagModel, shown: Sequence[Example], settings: TrainSettings) -> float:
    if not shown:
        return 0.0
    with autocast(model, settings):
        questions = [example.question for example in shown]
        return _seconds(lambda: model.answer(questions, decoding="thorough", num_beams=1))


def _warm_up_seconds(
    model: RagModel, train: Sequence[Supervised], dev: Sequence[Supervised], settings: WarmupSettings
) -> float:
    """Seconds of the longest warm-up; the dev loss may end it sooner."""
    batch = train[: settings.batch_size]
    loss_of, dev_loss = objective(model.retriever, batch, dev[:32], settings)

    def step() -> None:
        torch.autograd.backward(loss_of(range(len(batch))).mean())
        model.zero_grad(set_to_none=True)

    step()
    a_step = _seconds(step)
    a_look = _seconds(dev_loss) * len(dev) / max(1, len(dev[:32]))
    per_epoch = -(-len(train) // settings.batch_size)
    return settings.epochs * (per_epoch * a_step + a_look) + a_look


def _refresh_seconds(
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    steps: int,
    processes: int,
) -> float:
    """Seconds of encoding passages anew: all of them before the first step and at the end, in between as many as the
    questions choose between now."""
    retriever = model.retriever
    if retriever.passage_side is None:
        return 0.0
    count = retriever.index.passages_count
    passages = list(retriever.index.passages(range(min(count, 64))).values())
    rate = _seconds(lambda: encode(retriever, passages)) / len(passages)
    batch, k = batch_of(examples, settings, 0, 0), min(2 * settings.top_k, count)
    found = retriever([example.question for example in batch], k).passages
    a_question = len({passage.number for row in found for passage in row}) / len(batch)
    near = min(count, a_question * settings.refresh_steps * settings.batch_size)
    looks = (settings.evaluations(len(examples)) - 1) * min(count, a_question * len(dev))
    return rate * (count + (count + steps // settings.refresh_steps * near + looks) / processes)


def _seconds(run: Callable[[], object]) -> float:
    """The time of a run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.monotonic()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started


def _peak(model: RagModel) -> int:
    if model.generator.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
