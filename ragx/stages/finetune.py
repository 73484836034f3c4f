"""`ragx finetune`: questions and index -> tuned model."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ragx.artifacts import fingerprint, lock, new_folder, write_text
from ragx.config import Config, Lora, dump_config
from ragx.errors import ArtifactError, DataError
from ragx.records import Example, Progress, no_progress
from ragx.stages.models import MODEL_KIND, compute_dtype, generator_folder, open_model
from ragx.stages.synthetic import synthetic_questions

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.rag.model import RagModel
    from ragx.rag.retriever import Retriever
    from ragx.training.loop import TrainSettings

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

    Raises:
        RagxError: data, index, model or machine are at fault; checkpoints and the former model stay.
    """
    from ragx.training.loop import train

    started = time.monotonic()
    examples, dev = _training_data(config)
    synthetic = synthetic_questions(config, examples, dev, dry_run=dry_run, progress=progress)
    examples = [*examples, *synthetic]
    model = open_model(config, "base", prepare=_prepare_training)
    examples = _fitting(examples, model.generator, config)
    settings = _train_settings(config)
    plan = _plan(config, model, examples, dev, settings, synthetic=len(synthetic))
    log.info("%s", plan["text"])
    if dry_run:
        return plan
    folder = config.run_dir / "training"
    with lock(config.run_dir / ".training.lock", "this model"):
        going_on = _goes_on(config, plan, resume)
        write_text(config.run_dir / "config.yaml", dump_config(config))
        if not going_on:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            _warm_up(config, model, examples, dev, progress)
        where = {"plan": plan["fingerprint"], "resume": going_on}
        position = train(model, examples, dev, settings, folder, progress=progress, **where)
        seconds = time.monotonic() - started
        _write_model(config, model, plan, position.best_nll, seconds)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "model": str(config.run_dir / "model"),
        "questions": len(examples),
        "synthetic_questions": len(synthetic),
        "steps": position.step,
        "best_step": position.best_step or position.step,
        "dev_nll_per_token": position.best_nll,
        "prior": model.retriever.prior.values(),
        "seconds": round(seconds, 1),
    }


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
    if not dev:
        log.warning("no data.dev: training runs to its end and keeps the last weights")
    return examples, dev[: config.finetune.dev_limit]


def _fitting(examples: list[Example], generator: Generator, config: Config) -> list[Example]:
    """Examples whose answer fits the budget; `data.on_error: skip` leaves the others out."""
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
    if not kept:
        raise DataError(f"{config.data.train}: every answer exceeds generator.max_answer_tokens: {limit}; raise it")
    return kept


def _train_settings(config: Config) -> TrainSettings:
    from ragx.training.loop import TrainSettings

    section = config.finetune
    top_k = section.top_k or config.retrieval.top_k
    micro = max(1, PAIRS_A_PASS // top_k) if section.micro_batch_size == "auto" else section.micro_batch_size
    micro = math.ceil(section.batch_size / math.ceil(section.batch_size / micro))
    shared = {field.name for field in dataclasses.fields(TrainSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in shared}
    values |= {"top_k": top_k, "micro_batch_size": micro, "seed": config.seed, "dtype": compute_dtype(config)}
    return TrainSettings(**values)


def _prepare_training(config: Config, retriever: Retriever, generator: Generator) -> None:
    """Freeze what is not trained; wrap the generator with LoRA where wanted."""
    from ragx.rag.causal import CausalGenerator
    from ragx.rag.generators import add_lora

    section = config.finetune
    trained = set(section.train) - ({"question_encoder"} if config.retrieval.mode == "lexical" else set())
    retriever.question_encoder.requires_grad_("question_encoder" in trained)
    generator.model.requires_grad_("generator" in trained)
    generator.recompute = section.gradient_checkpointing
    large = isinstance(generator, CausalGenerator) or generator.parameters_count >= WHOLE_BELOW
    wanted = large if section.lora == "auto" else section.lora
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

    encoder, generator = count("retriever.question_encoder"), count("generator_module")
    steps = settings.steps(len(examples))
    of_them = f" ({synthetic} of them synthetic, written from the corpus)" if synthetic else ""
    text = (
        f"training {encoder / 1e6:.1f}M weights of the question encoder, {generator / 1e6:.1f}M of the generator's "
        f"{model.generator.parameters_count / 1e6:.1f}M, and the prior's temperature and lexical weight, on "
        f"{len(examples)} questions{of_them} with {settings.top_k} passages each: {settings.epochs} epochs, {steps} "
        f"steps of {settings.batch_size} questions in {str(settings.dtype).removeprefix('torch.')}, "
        f"{len(dev)} dev questions after each epoch"
    )
    facts = {
        "config": config.model_dump(mode="json", exclude={"output_dir", "eval", "data", "corpus", "name"}),
        "index": model.retriever.index.manifest["fingerprint"],
        "data": [dataclasses.asdict(example) for example in (*examples, *dev)],
        "dtype": str(settings.dtype),
    }
    return {
        "text": text,
        "questions": len(examples),
        "synthetic_questions": synthetic,
        "dev_questions": len(dev),
        "steps": steps,
        "trained_weights": {"question_encoder": encoder, "generator": generator},
        "fingerprint": fingerprint(facts),
    }


def _warm_up(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example], progress: Progress
) -> None:
    """Train the retriever alone first, where there is something to learn from."""
    from ragx.training.warmup import WarmupSettings, supervise, warm_up

    section = config.finetune
    epochs = WARMUP_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    if not epochs or "question_encoder" not in section.train:
        return
    passages = model.retriever.index.all_passages()
    train, held_out = supervise(examples, passages), supervise(dev, passages)
    if not train:
        log.warning("no retriever warm-up: no training question has gold documents or an answer found in a passage")
        return
    log.info("retriever warm-up on %d of %d questions against all passages", len(train), len(examples))
    settings = WarmupSettings(
        epochs=epochs,
        batch_size=section.warmup_batch_size,
        learning_rate=section.warmup_learning_rate,
        prior_learning_rate=section.prior_learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        seed=config.seed,
    )
    warm_up(model.retriever, train, held_out, settings, progress)


def _write_model(config: Config, model: RagModel, plan: dict[str, Any], dev_nll: float | None, seconds: float) -> None:
    from ragx.models import model_fingerprint

    adapter = model.generator.model is not model.generator.base
    facts: dict[str, object] = {
        "ragx": version("ragx"),
        "mode": config.retrieval.mode,
        "prior": model.retriever.prior.values(),
        "adapter": adapter,
        "base_generator": model_fingerprint(generator_folder(config)),
        "passage_encoder": model.retriever.index.manifest["encoder"],
        "index": model.retriever.index.manifest["fingerprint"],
        "plan": plan["fingerprint"],
        "dev_nll_per_token": dev_nll,
    }
    with new_folder(config.run_dir / "model", MODEL_KIND, **facts) as beside:
        model.retriever.encoder.save(beside / "question_encoder")
        model.generator.save(beside / "generator")
        write_text(beside / "README.md", _model_card(config, plan, facts, seconds))


def _model_card(config: Config, plan: dict[str, Any], facts: dict[str, object], seconds: float) -> str:
    nll = "no dev set" if facts["dev_nll_per_token"] is None else f"{facts['dev_nll_per_token']:.3f} nats a token"
    return f"""# {config.name}: a RAG model tuned with ragx {facts["ragx"]}

{plan["text"]}.

- question encoder: {config.rag.checkpoint or config.encoder.model}
- generator: {config.rag.checkpoint or config.generator.model}{" (LoRA adapter here)" if facts["adapter"] else ""}
- marginal: {config.rag.marginal}; retrieval: {config.retrieval.mode}, {config.retrieval.top_k} passages
- prior: {json.dumps(facts["prior"])}
- best dev -log p(answer | question): {nll}
- index {facts["index"]}, training plan {facts["plan"]}, {seconds / 60:.1f} minutes
"""
