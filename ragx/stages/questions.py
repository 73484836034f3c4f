"""Which questions a training learns from, and which choose its best weights."""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import TYPE_CHECKING

from ragx.config import Config
from ragx.errors import DataError
from ragx.records import Example
from ragx.stages.models import compute_device

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.training.policy import Policy

log = logging.getLogger(__name__)


def training_data(config: Config) -> tuple[list[Example], list[Example]]:
    """The user's training and dev questions.

    Raises:
        DataError: there are none, and none are wanted from the corpus.
    """
    from ragx.corpus.questions import read_examples

    if config.data.train is None and not config.finetune.synthetic:
        raise DataError(
            "data.train: no training questions are configured; name a .jsonl file of questions and answers, or say "
            "finetune.synthetic: 300 to have as many written from the corpus"
        )
    examples = [] if config.data.train is None else read_examples(config.data.train, config.data.on_error)
    examples = examples[: config.finetune.max_train]
    dev = [] if config.data.dev is None else read_examples(config.data.dev, config.data.on_error)
    return examples, dev[: config.finetune.dev_limit]


def training_policy(
    config: Config, questions: int, *, has_dev: bool, passages: int, statements: bool = False
) -> Policy:
    """What follows from the numbers of training questions and passages, and from whether all questions are
    `statements` from the corpus."""
    from ragx.training.policy import choose

    section, retrieval = config.finetune, config.retrieval
    over_all = retrieval.mode == "lexical" or retrieval.prior == "corpus"
    return choose(
        questions,
        parts=section.named or None,
        passages=passages,
        device=compute_device(config),
        moving=not (over_all or config.has_two_towers or section.cross_fit),
        has_dev=has_dev,
        statements=statements,
        batch_size=section.batch_size,
        warmup_epochs=section.warmup_epochs,
        reading_epochs=section.reading_epochs,
        epochs=section.epochs,
        dev_share=section.dev_share,
        cross_fit=section.cross_fit,
    )


def hold_out(
    examples: list[Example], synthetic: list[Example], count: int, config: Config
) -> tuple[list[Example], list[Example], list[Example]]:
    """`count` questions drawn by seed as a dev set, the user's own where there are enough of them."""
    pool = examples if len(examples) > count else synthetic
    drawn = {example.id for example in random.Random(config.seed).sample(pool, min(count, len(pool) - 1))}
    held_out = [example for example in pool if example.id in drawn][: config.finetune.dev_limit]
    rest = [example for example in pool if example.id not in drawn]
    return (rest, synthetic, held_out) if pool is examples else (examples, rest, held_out)


def fitting(examples: list[Example], generator: Generator, config: Config) -> list[Example]:
    """Examples whose answer fits the budget; `data.on_error: skip` leaves the others out. Where answers are drawn, the
    further ones need not fit."""
    limit = config.generator.max_answer_tokens
    lengths = [len(generator.answer_ids(example.answers[0])) for example in examples]
    over = [(length, example.id) for length, example in zip(lengths, examples, strict=True) if length > limit]
    if over and config.data.on_error == "fail":
        raise DataError(
            f"{config.data.train}: {len(over)} answers exceed generator.max_answer_tokens: {limit} (question "
            f"{over[0][1]}; the longest has {max(over)[0]}); raise it, or say data.on_error: skip to leave them out"
        )
    if over:
        log.warning("left out %d training questions whose answer exceeds %d tokens", len(over), limit)
    kept = [example for length, example in zip(lengths, examples, strict=True) if length <= limit]
    if config.finetune.answers == "first":
        return kept
    return [
        dataclasses.replace(e, answers=tuple(a for a in e.answers if len(generator.answer_ids(a)) <= limit))
        for e in kept
    ]
