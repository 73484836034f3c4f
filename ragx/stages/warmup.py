"""The retriever's warm-up: what it learns from, and its folds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragx.config import Config
from ragx.records import Example, Progress

if TYPE_CHECKING:
    from ragx.rag.model import RagModel
    from ragx.training.warmup import Supervised, WarmupSettings

log = logging.getLogger(__name__)

WARMUP_EPOCHS = 8
"""Epochs at most of the retriever warm-up when `warmup_epochs: auto`; the dev set picks the best of them."""


def warm_up_retriever(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    folds: int,
    progress: Progress,
) -> list[Supervised] | None:
    """Train the retriever alone first, where there is something to learn from; before, on `folds` of the questions,
    which gives their hits in training, and the number of epochs where there is no dev set. Returns what it learned
    from, None where no warm-up is wanted."""
    from ragx.training.crossfit import cross_fit, hits_of, save_hits
    from ragx.training.warmup import warm_up

    found = lesson(config, model, examples, dev)
    if found is None:
        return None
    train, held_out, settings = found
    if not train:
        log.warning("no retriever warm-up: no training question has gold documents or an answer found in a passage")
        return train
    against = "all passages" if model.retriever.passage_side is None else "each other's passages and mined ones"
    log.info("retriever warm-up on %d of %d questions against %s", len(train), len(examples), against)
    if not folds:
        warm_up(model.retriever, train, held_out, settings, progress)
        return train
    width = config.finetune.top_k or config.retrieval.top_k
    if config.finetune.distractors:
        width = min(max(width, config.retrieval.candidates), model.retriever.index.passages_count)
    ids, log_prior, epochs = cross_fit(model.retriever, examples, train, settings, folds, width, progress)
    if not held_out:
        settings = dataclasses.replace(settings, epochs=epochs)
    warm_up(model.retriever, train, held_out, settings, progress)
    hits = hits_of(model.retriever, examples, ids, log_prior)
    save_hits(config.run_dir / "training" / "checkpoints" / "hits", hits)
    return train


def choose_reading(
    config: Config, model: RagModel, examples: Sequence[Example], supervised: list[Supervised] | None
) -> None:
    """Find the passages that the generator reads in its first epochs, now that the retriever is warmed up."""
    from ragx.training.reading import right_passages, save_right
    from ragx.training.warmup import supervise

    if supervised is None:
        supervised = supervise(examples, model.retriever.index.all_passages())
    found = right_passages(model.retriever, examples, supervised)
    save_right(config.run_dir / "training" / "checkpoints" / "right", found)


def lesson(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example]
) -> tuple[list[Supervised], list[Supervised], WarmupSettings] | None:
    """What the retriever's warm-up learns from and how, where one is wanted."""
    from ragx.training.warmup import WarmupSettings, supervise

    section = config.finetune
    epochs = WARMUP_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    passage_side = model.retriever.passage_side is not None
    if not epochs or not (passage_side or "question_encoder" in section.named):
        return None
    passages = model.retriever.index.all_passages()
    settings = WarmupSettings(
        epochs=epochs,
        batch_size=section.warmup_batch_size,
        learning_rate=section.warmup_learning_rate,
        prior_learning_rate=section.prior_learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        seed=config.seed,
        hard_negatives=section.hard_negatives,
    )
    train, held_out = (supervise(split, passages, neutral=passage_side) for split in (examples, dev))
    return train, held_out, settings
