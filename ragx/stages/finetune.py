"""`ragx finetune`: questions and index -> tuned model."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import fingerprint, lock, new_folder, write_text
from ragx.config import Config, Lora, dump_config
from ragx.errors import ArtifactError, DataError
from ragx.records import Example, Progress, no_progress
from ragx.stages.index import build_tuned_index
from ragx.stages.models import (
    MODEL_KIND,
    compute_device,
    compute_dtype,
    open_model,
    pretrained_folders,
    tuned_index,
)
from ragx.stages.synthetic import synthetic_questions

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.rag.model import RagModel
    from ragx.rag.retriever import Retriever
    from ragx.training.checkpoints import Position
    from ragx.training.loop import TrainSettings
    from ragx.training.policy import Policy
    from ragx.training.warmup import Supervised, WarmupSettings

log = logging.getLogger(__name__)

WHOLE_BELOW = 500_000_000
"""Encoder-decoder generators with fewer weights are trained whole when `lora: auto`; causal ones never are."""
PAIRS_A_PASS = 16
"""(question, passage) pairs that go through the generator with gradient at once when `micro_batch_size: auto`."""
WARMUP_EPOCHS = 8
"""Epochs at most of the retriever warm-up when `warmup_epochs: auto`; the dev set picks the best of them."""


def finetune(
    config: Config, *, resume: bool = False, dry_run: bool = False, progress: Progress = no_progress
) -> dict[str, Any]:
    """Train question encoder and generator on the marginal likelihood and write `model/`; returns what was done.

    Started by torchrun, all processes train together and the first one writes. With `dry_run`: the plan, and an
    estimate of time and memory from a short measurement.

    Raises:
        RagxError: data, index, model or machine are at fault; checkpoints and the former model stay.
    """
    from ragx.training.crossfit import open_hits
    from ragx.training.loop import train
    from ragx.training.processes import Processes

    started = time.monotonic()
    processes = Processes(compute_device(config))
    progress = progress if processes.is_first else no_progress
    with processes.before_others(processes.is_first_on_host):  # models are fetched, questions written once
        examples, dev = _training_data(config)
        synthetic = synthetic_questions(config, examples, dev, dry_run=dry_run, progress=progress)
        policy = _policy(config, len(examples) + len(synthetic), has_dev=bool(dev))
        model = open_model(config, "base", prepare=partial(_prepare_training, few=policy.few))
    synthetic = _fitting(synthetic, model.generator, config)
    examples = _fitting(examples, model.generator, config)
    if not examples and not synthetic:
        limit = config.generator.max_answer_tokens
        raise DataError(f"{config.data.train}: every answer exceeds generator.max_answer_tokens: {limit}; raise it")
    if policy.held_out:
        examples, synthetic, dev = _hold_out(examples, synthetic, policy.held_out, config)
    examples = [*examples, *synthetic]
    settings = _train_settings(config, policy)
    plan = _plan(config, model, examples, dev, settings, synthetic=len(synthetic))
    several = f", by {processes.count} processes" if processes.count > 1 else ""
    log.info("%s", policy.text)
    log.info("%s%s", plan["text"], several)
    plan["policy"] = policy.text
    if dry_run:
        return plan | _estimate(config, model, examples, dev, settings, processes.count, policy.folds)
    folder = config.run_dir / "training"
    with lock(config.run_dir / ".training.lock", "this model") if processes.is_first else nullcontext():
        with processes.before_others(processes.is_first):
            going_on = _goes_on(config, plan, resume)
        processes.wait()
        if processes.is_first:
            write_text(config.run_dir / "config.yaml", dump_config(config))
            if not going_on:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                _warm_up(config, model, examples, dev, policy.folds, progress)
        processes.wait()
        hits = open_hits(folder / "checkpoints" / "hits")
        where = {"plan": plan["fingerprint"], "resume": going_on}
        position = train(model, examples, dev, settings, folder, processes, progress=progress, hits=hits, **where)
        seconds = time.monotonic() - started
        index_seconds = 0.0
        if processes.is_first:
            _draw_curves(folder)
            index_seconds = _write_index(config, model, folder / "passage_encoder", progress)
            _write_model(config, model, plan, position, seconds)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            shutil.rmtree(folder / "passage_encoder", ignore_errors=True)
            if model.retriever.passage_side is None:
                shutil.rmtree(tuned_index(config), ignore_errors=True)
    return {
        "model": str(config.run_dir / "model"),
        "questions": len(examples),
        "synthetic_questions": len(synthetic),
        "steps": position.step,
        "best_step": position.weights_step,
        "rollbacks": position.rollbacks,
        "dev_nll_per_token": position.best_nll,
        "prior": model.retriever.prior.values(),
        "seconds": round(seconds, 1),
        **_refresh_cost(model, position, index_seconds),
    }


def _refresh_cost(model: RagModel, position: Position, index_seconds: float) -> dict[str, Any]:
    """What the vectors of a learning passage encoder cost: passages encoded anew while it learned, and the index."""
    if model.retriever.passage_side is None:
        return {}
    cost = {"passages": position.refreshed, "seconds": round(position.refresh_seconds, 1)}
    return {"refresh": cost | {"index_seconds": round(index_seconds, 1)}}


def _goes_on(config: Config, plan: dict[str, Any], resume: bool) -> bool:
    """Whether training goes on from a checkpoint.

    Raises:
        ArtifactError: the checkpoint was made for another configuration or other data.
    """
    from ragx.training import checkpoints

    folder = config.run_dir / "training"
    found = checkpoints.plan_of(folder / "checkpoints" / "last")
    if not resume:
        if found is not None:
            log.warning("starting over; the checkpoint that was in %s is gone", folder)
        return False
    if found is None:
        log.warning("nothing to resume in %s; starting from the beginning", folder)
        return False
    if found != plan["fingerprint"]:
        raise ArtifactError(f"{folder}: its checkpoint belongs to another configuration or data; run: ragx finetune")
    return True


def _training_data(config: Config) -> tuple[list[Example], list[Example]]:
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


def _policy(config: Config, questions: int, *, has_dev: bool) -> Policy:
    """What follows from the number of training questions."""
    from ragx.training.policy import choose

    section = config.finetune
    return choose(
        questions,
        has_dev=has_dev,
        batch_size=section.batch_size,
        epochs=section.epochs,
        dev_share=section.dev_share,
        cross_fit=section.cross_fit,
    )


def _hold_out(
    examples: list[Example], synthetic: list[Example], count: int, config: Config
) -> tuple[list[Example], list[Example], list[Example]]:
    """`count` questions drawn by seed as a dev set, the user's own where there are enough of them."""
    pool = examples if len(examples) > count else synthetic
    drawn = {example.id for example in random.Random(config.seed).sample(pool, min(count, len(pool) - 1))}
    held_out = [example for example in pool if example.id in drawn][: config.finetune.dev_limit]
    rest = [example for example in pool if example.id not in drawn]
    return (rest, synthetic, held_out) if pool is examples else (examples, rest, held_out)


def _fitting(examples: list[Example], generator: Generator, config: Config) -> list[Example]:
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


def _train_settings(config: Config, policy: Policy) -> TrainSettings:
    from ragx.training.loop import TrainSettings

    section = config.finetune
    top_k = section.top_k or config.retrieval.top_k
    micro = max(1, PAIRS_A_PASS // top_k) if section.micro_batch_size == "auto" else section.micro_batch_size
    micro = math.ceil(section.batch_size / math.ceil(section.batch_size / micro))
    shared = {field.name for field in dataclasses.fields(TrainSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in shared}
    values |= {
        "epochs": policy.epochs,
        "top_k": top_k,
        "micro_batch_size": micro,
        "seed": config.seed,
        "dtype": compute_dtype(config),
    }
    return TrainSettings(**values)


def _prepare_training(config: Config, retriever: Retriever, generator: Generator, *, few: bool) -> None:
    """Freeze what is not trained; wrap the generator with LoRA where wanted, or where questions are few."""
    from ragx.rag.causal import CausalGenerator
    from ragx.rag.generators import add_lora

    section = config.finetune
    trained = set(section.train) - ({"question_encoder"} if config.retrieval.mode == "lexical" else set())
    retriever.question_encoder.requires_grad_("question_encoder" in trained)
    if retriever.passage_encoder is not None:
        retriever.passage_encoder.requires_grad_(True)
    generator.model.requires_grad_("generator" in trained)
    generator.recompute = section.gradient_checkpointing
    generator.label_smoothing = section.label_smoothing
    adapted = few or isinstance(generator, CausalGenerator) or generator.parameters_count >= WHOLE_BELOW
    wanted = adapted if section.lora == "auto" else section.lora
    if wanted and "generator" in trained:
        lora = wanted if isinstance(wanted, Lora) else Lora()
        import torch

        torch.manual_seed(config.seed)
        add_lora(generator, rank=lora.rank, alpha=lora.alpha)


def _plan(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    *,
    synthetic: int,
) -> dict[str, Any]:
    """What will be trained, on what, for how many steps; with a fingerprint that a checkpoint must match."""
    from ragx.training.checkpoints import trainable

    def count(prefix: str) -> int:
        return sum(value.numel() for name, value in trainable(model).items() if name.startswith(prefix))

    encoder, passages, generator = map(
        count, ("retriever.question_encoder", "retriever.passage_encoder", "generator_module")
    )
    side = "question encoder"
    if model.retriever.passage_side is not None:
        side = "question and passage encoder, which are one" if config.ties_encoders else "question encoder, "
        side += "" if config.ties_encoders else f"{passages / 1e6:.1f}M of the passage encoder"
    steps = settings.steps(len(examples))
    of_them = f" ({synthetic} of them synthetic, written from the corpus)" if synthetic else ""
    text = (
        f"training {encoder / 1e6:.1f}M weights of the {side}, {generator / 1e6:.1f}M of the generator's "
        f"{model.generator.parameters_count / 1e6:.1f}M, and the prior's temperature and lexical weight, on "
        f"{len(examples)} questions{of_them} with {settings.top_k} passages each: {settings.epochs} epochs, {steps} "
        f"steps of {settings.batch_size} questions in {str(settings.dtype).removeprefix('torch.')}, "
        f"{len(dev)} dev questions after each epoch"
    )
    index = model.retriever.index
    facts = {
        "config": config.model_dump(mode="json", exclude={"output_dir", "eval", "data", "corpus", "name"}),
        "index": index.manifest["fingerprint"],
        "data": [dataclasses.asdict(example) for example in (*examples, *dev)],
        "dtype": str(settings.dtype),
    }
    return {
        "text": text,
        "questions": len(examples),
        "synthetic_questions": synthetic,
        "dev_questions": len(dev),
        "documents": index.manifest["documents"],
        "passages": index.passages_count,
        "steps": steps,
        "trained_weights": {"question_encoder": encoder, "generator": generator, "passage_encoder": passages},
        "fingerprint": fingerprint(facts),
    }


def _warm_up(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    folds: int,
    progress: Progress,
) -> None:
    """Train the retriever alone first, where there is something to learn from; before, on `folds` of the questions,
    which gives their hits in training, and the number of epochs where there is no dev set."""
    from ragx.training.crossfit import cross_fit, hits_of, save_hits
    from ragx.training.warmup import warm_up

    lesson = _lesson(config, model, examples, dev)
    if lesson is None:
        return
    train, held_out, settings = lesson
    if not train:
        log.warning("no retriever warm-up: no training question has gold documents or an answer found in a passage")
        return
    against = "all passages" if model.retriever.passage_side is None else "each other's passages and mined ones"
    log.info("retriever warm-up on %d of %d questions against %s", len(train), len(examples), against)
    if not folds:
        warm_up(model.retriever, train, held_out, settings, progress)
        return
    width = config.finetune.top_k or config.retrieval.top_k
    if config.finetune.distractors:
        width = min(max(width, config.retrieval.candidates), model.retriever.index.passages_count)
    ids, log_prior, epochs = cross_fit(model.retriever, examples, train, settings, folds, width, progress)
    if not held_out:
        settings = dataclasses.replace(settings, epochs=epochs)
    warm_up(model.retriever, train, held_out, settings, progress)
    hits = hits_of(model.retriever, examples, ids, log_prior)
    save_hits(config.run_dir / "training" / "checkpoints" / "hits", hits)


def _lesson(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example]
) -> tuple[list[Supervised], list[Supervised], WarmupSettings] | None:
    """What the retriever's warm-up learns from and how, where one is wanted."""
    from ragx.training.warmup import WarmupSettings, supervise

    section = config.finetune
    epochs = WARMUP_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    passage_side = model.retriever.passage_side is not None
    if not epochs or not (passage_side or "question_encoder" in section.train):
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


def _estimate(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    processes: int,
    folds: int,
) -> dict[str, Any]:
    """Seconds and bytes that the training will take."""
    from ragx.training.estimate import estimate

    lesson = _lesson(config, model, examples, dev)
    found = estimate(model, examples, dev, settings, lesson if lesson and lesson[0] else None, processes)
    warm_up = found.warm_up * max(1, folds)  # each fold's takes a fold less, and there is one more
    phases = {"warm_up": warm_up, "steps": found.steps, "evaluations": found.evaluations}
    if model.retriever.passage_side is not None:
        phases["refreshes"] = found.refreshes
    return {
        "seconds": {name: round(value, 1) for name, value in phases.items()}
        | {"total": round(sum(phases.values()), 1)},
        "memory_bytes": found.memory,
    }


def _draw_curves(folder: Path) -> None:
    """training/curves.png, where the extra that draws is installed."""
    if find_spec("matplotlib") is None:
        log.info("no %s/curves.png: install ragx[plots] to have it drawn", folder)
        return
    from ragx.training.curves import draw

    beside = folder / ".curves.png.tmp"
    beside.write_bytes(draw(folder / "metrics.jsonl"))
    beside.replace(folder / "curves.png")


def _write_index(config: Config, model: RagModel, weights: Path, progress: Progress) -> float:
    """The index of the tuned passage encoder, where one was trained, and its weights in a folder; returns seconds.

    The base model's index stays. What the new one was made with is in the model's manifest.
    """
    retriever = model.retriever
    if retriever.passage_side is None:
        return 0.0
    started = time.monotonic()
    shutil.rmtree(weights, ignore_errors=True)
    retriever.passage_side.save(weights)
    retriever.index = build_tuned_index(config, retriever.index, weights, progress)
    seconds = time.monotonic() - started
    log.info("index of the tuned passage encoder: %s, in %.1f s", retriever.index.folder, seconds)
    return seconds


def _write_model(config: Config, model: RagModel, plan: dict[str, Any], position: Position, seconds: float) -> None:
    from ragx.models import model_fingerprint

    adapter = model.generator.model is not model.generator.base
    facts: dict[str, object] = {
        "ragx": version("ragx"),
        "mode": config.retrieval.mode,
        "prior": model.retriever.prior.values(),
        "null_bias": None if model.null_bias is None else float(model.null_bias.detach()),
        "adapter": adapter,
        "base_generator": model_fingerprint(pretrained_folders(config)[1]),
        "passage_encoder": model.retriever.index.manifest["encoder"],
        "index": model.retriever.index.manifest["fingerprint"],
        "plan": plan["fingerprint"],
        "dev_nll_per_token": position.best_nll,
    }
    with new_folder(config.run_dir / "model", MODEL_KIND, **facts) as beside:
        model.retriever.encoder.save(beside / "question_encoder")
        if model.retriever.passage_side is not None:
            shutil.copytree(config.run_dir / "training" / "passage_encoder", beside / "passage_encoder")
        model.generator.save(beside / "generator")
        write_text(beside / "README.md", _card(config, plan, facts, position, seconds))


def _card(config: Config, plan: dict[str, Any], facts: dict[str, Any], position: Position, seconds: float) -> str:
    from ragx.training.card import model_card

    listed = {
        "corpus": f"{plan['documents']} documents, {plan['passages']} passages",
        "questions": f"{plan['questions']} to train on, {plan['dev_questions']} to choose the best weights by",
        "question encoder": config.rag.checkpoint or config.encoder.model,
        "generator": f"{config.rag.checkpoint or config.generator.model}{' (LoRA adapter here)' * facts['adapter']}",
        "prior": json.dumps(facts["prior"]),
        "null bias": facts["null_bias"],
        "weights": f"of step {position.weights_step} of {plan['steps']}",
        "rollbacks": position.rollbacks,
        "time": f"{seconds / 60:.1f} minutes",
        "index": facts["index"],
        "passage encoder": fingerprint(facts["passage_encoder"]),
        "training plan": facts["plan"],
        "ragx": facts["ragx"],
    }
    metrics = (config.run_dir / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [line for line in map(json.loads, metrics) if line["split"] == "dev"]
    configuration = config.model_dump(mode="json", exclude={"output_dir", "corpus", "data"})
    return model_card(f"{config.name}: a RAG model tuned with ragx", plan["text"], listed, looks, configuration)
