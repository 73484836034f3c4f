"""The retriever's warm-up: what it learns from, its folds, and what is settled by it before training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragx.config import Config
from ragx.records import Example, Progress

if TYPE_CHECKING:
    from ragx.rag.model import RagModel
    from ragx.training.hits import Settled
    from ragx.training.warmup import Supervised, WarmupSettings

log = logging.getLogger(__name__)

WARMUP_EPOCHS = 8
"""Epochs at most of the retriever warm-up when `warmup_epochs: auto`; the dev set picks the best of them."""


def settle(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    *,
    folds: int,
    reads: bool,
    progress: Progress,
) -> Settled:
    """Train the retriever alone first, where there is something to learn from, and settle what follows from it: with
    `folds` the passages of every training question, and the one that the generator `reads` in its first epochs."""
    from ragx.training.hits import Settled
    from ragx.training.reading import right_passages
    from ragx.training.warmup import supervise

    settled, supervised = Settled(), None
    found = lesson(config, model, examples, dev)
    if found is not None:
        supervised, held_out, settings = found
        if supervised:
            settled = _warm_up(config, model, examples, supervised, held_out, settings, folds, progress)
        else:
            log.warning("no retriever warm-up: no training question has gold documents or an answer found in a passage")
    if not reads:
        return settled
    if supervised is None:
        supervised = supervise(examples, model.retriever.index.all_passages())
    return dataclasses.replace(settled, right=right_passages(model.retriever, examples, supervised))


def _warm_up(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    supervised: Sequence[Supervised],
    held_out: Sequence[Supervised],
    settings: WarmupSettings,
    folds: int,
    progress: Progress,
) -> Settled:
    """Train the retriever; before, on `folds` of the questions, which settles their passages with what is added to
    their log p(z|x), and the number of epochs where there is no dev set."""
    from ragx.training.crossfit import cross_fit, offsets_of
    from ragx.training.hits import Settled
    from ragx.training.warmup import warm_up

    retriever = model.retriever
    against = "all passages" if retriever.passage_side is None else "each other's passages and mined ones"
    log.info("retriever warm-up on %d of %d questions against %s", len(supervised), len(examples), against)
    if not folds:
        warm_up(retriever, supervised, held_out, settings, progress)
        return Settled()
    width = config.finetune.top_k or config.retrieval.top_k
    if config.finetune.distractors:
        width = min(max(width, config.retrieval.candidates), retriever.index.passages_count)
    ids, log_prior, epochs = cross_fit(retriever, examples, supervised, settings, folds, width, progress)
    if not held_out:
        settings = dataclasses.replace(settings, epochs=epochs)
    warm_up(retriever, supervised, held_out, settings, progress)
    return Settled(ids, offsets_of(retriever, examples, ids, log_prior))


def lesson(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example]
) -> tuple[list[Supervised], list[Supervised], WarmupSettings] | None:
    """What the retriever's warm-up learns from and how, where one is wanted and anything of the retriever learns: no
    epochs where only the prior does."""
    from ragx.training.warmup import WarmupSettings, supervise

    section = config.finetune
    epochs = WARMUP_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    retriever = model.retriever
    if not epochs or not any(weight.requires_grad for weight in retriever.parameters()):
        return None
    encoders_learn = any(weight.requires_grad for side in retriever.encoders() for weight in side.parameters())
    passages = retriever.index.all_passages()
    settings = WarmupSettings(
        epochs=epochs if encoders_learn else 0,
        batch_size=section.warmup_batch_size,
        learning_rate=section.warmup_learning_rate,
        prior_learning_rate=section.prior_learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        seed=config.seed,
        hard_negatives=section.hard_negatives,
    )
    neutral = retriever.passage_side is not None
    train, held_out = (supervise(split, passages, neutral=neutral) for split in (examples, dev))
    return train, held_out, settings
