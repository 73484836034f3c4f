"""`ragx finetune`: questions and index -> tuned model."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ragx.artifacts import fingerprint, lock, remove_folder, write_text
from ragx.config import Config, Lora, dump_config
from ragx.errors import ArtifactError, ConfigError, DataError
from ragx.records import Example, Progress, no_progress
from ragx.stages.models import compute_device, compute_dtype, open_index, open_model, tuned_index
from ragx.stages.questions import fitting, hold_out, training_data, training_policy
from ragx.stages.synthetic import synthetic_questions
from ragx.stages.tuned import draw_curves, write_index, write_model
from ragx.stages.warmup import lesson, settle

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.rag.model import RagModel
    from ragx.rag.retriever import Retriever
    from ragx.training.checkpoints import Position
    from ragx.training.policy import Policy
    from ragx.training.processes import Processes
    from ragx.training.settings import TrainSettings

log = logging.getLogger(__name__)

WHOLE_BELOW = 500_000_000
"""Encoder-decoder generators with fewer weights are trained whole when `lora: auto`; causal ones never are."""
QUESTION_LOSS = 0.2
"""The weight of -log p(x|z) beside -log p(y|x,z) when `question_loss: auto`; measured beside 0 and 1."""
PAIRS_A_PASS = {"cpu": 16, "cuda": 64}
"""(question, passage) pairs that go through the generator with gradient at once when `micro_batch_size: auto`: on a GPU
launching takes longer than computing where they are few."""


@dataclass(frozen=True)
class _Job:
    """A training as it was decided: its parts, data and settings, and the plan that its checkpoints must match."""

    config: Config
    model: RagModel
    examples: Sequence[Example]
    dev: Sequence[Example]
    settings: TrainSettings
    folds: int
    plan: dict[str, Any]
    rerank_hits: int


def finetune(
    config: Config, *, resume: bool = False, dry_run: bool = False, progress: Progress = no_progress
) -> dict[str, Any]:
    """Train question encoder and generator on the marginal likelihood and write `model/`; returns what was done.

    Started by torchrun, all processes train together and the first one writes. With `dry_run`: the plan, and an
    estimate of time and memory from a short measurement.

    Raises:
        RagxError: data, index, model or machine are at fault; checkpoints and the former model stay.
    """
    from ragx.training.processes import Processes

    started = time.monotonic()
    processes = Processes(compute_device(config))
    progress = progress if processes.is_first else no_progress
    job = _decide(config, processes, dry_run, progress)
    if dry_run:
        return job.plan | _estimate(job, processes.count)
    with lock(config.run_dir / ".training.lock", "this model") if processes.is_first else nullcontext():
        position = _train(job, processes, resume, progress)
        seconds, index_seconds = time.monotonic() - started, 0.0
        if processes.is_first:
            seconds, index_seconds = _finish(job, position, seconds, progress)
    return {
        "model": str(config.run_dir / "model"),
        "questions": len(job.examples),
        "synthetic_questions": job.plan["synthetic_questions"],
        "steps": position.step,
        "best_step": position.weights_step,
        "rollbacks": position.rollbacks,
        "dev_nll_per_token": position.best_nll,
        "prior": job.model.retriever.prior.values(),
        "rerank": None if job.model.rerank is None else job.model.rerank.values(),
        "seconds": round(seconds, 1),
        **_refresh_cost(job.model, position, index_seconds),
    }


def _decide(config: Config, processes: Processes, dry_run: bool, progress: Progress) -> _Job:
    """Read the data, write questions where wanted, choose what is trained how long, and open the models for it."""
    with processes.before_others(processes.is_first_on_host):  # models are fetched, questions written once
        examples, dev = training_data(config)
        synthetic, statements = synthetic_questions(config, examples, dev, dry_run=dry_run, progress=progress)
        policy = training_policy(
            config,
            len(examples) + len(synthetic),
            has_dev=bool(dev),
            passages=open_index(config).passages_count,
            statements=statements and not examples,
        )
        config = _with_parts(config, policy)
        prepare = partial(prepare_training, few=policy.few, prior_learns=policy.prior_learns)
        model = open_model(config, "base", prepare=prepare)
    _require_enough_passages(config, model.retriever.index.passages_count)
    synthetic = fitting(synthetic, model.generator, config)
    examples = fitting(examples, model.generator, config)
    if not examples and not synthetic:
        limit = config.generator.max_answer_tokens
        raise DataError(f"{config.data.train}: every answer exceeds generator.max_answer_tokens: {limit}; raise it")
    written = {example.id for example in synthetic}
    if policy.held_out:
        examples, synthetic, dev = hold_out(examples, synthetic, policy.held_out, config)
    examples = [*examples, *synthetic]
    settings = _train_settings(config, policy, model.generator, written=bool(synthetic))
    plan = _plan(config, model, examples, dev, settings, synthetic=len(synthetic))
    several = f", by {processes.count} processes" if processes.count > 1 else ""
    log.info("%s", policy.text)
    log.info("%s%s", plan["text"], several)
    hits = _rerank_hits(config, model, dev, written)
    return _Job(config, model, examples, dev, settings, policy.folds, plan | {"policy": policy.text}, hits)


def _train(job: _Job, processes: Processes, resume: bool, progress: Progress) -> Position:
    """Warm up the retriever, then train all parts together, or go on with that; the model is left at its best."""
    from ragx.training.hits import open_settled
    from ragx.training.loop import train

    config, model, folder = job.config, job.model, job.config.run_dir / "training"
    with processes.before_others(processes.is_first):
        going_on = _goes_on(config, job.plan, resume)
    processes.wait()
    if processes.is_first:
        write_text(config.run_dir / "config.yaml", dump_config(config))
        if not going_on:
            remove_folder(folder / "checkpoints")
            reads = job.settings.reading_epochs > 0
            settled = settle(config, model, job.examples, job.dev, folds=job.folds, reads=reads, progress=progress)
            settled.save(folder / "checkpoints" / "settled")
    processes.wait()
    return train(
        model,
        job.examples,
        job.dev,
        job.settings,
        folder,
        processes,
        plan=job.plan["fingerprint"],
        resume=going_on,
        progress=progress,
        settled=open_settled(folder / "checkpoints" / "settled"),
    )


def _finish(job: _Job, position: Position, seconds: float, progress: Progress) -> tuple[float, float]:
    """Write curves, index and model, then remove what training needed; returns the seconds of the training with its
    last fit, and those of the index."""
    folder = job.config.run_dir / "training"
    draw_curves(folder)
    index_seconds = write_index(job.config, job.model, folder / "passage_encoder", progress)
    started = time.monotonic()
    _fit_rerank(job)
    seconds += time.monotonic() - started
    write_model(job.config, job.model, job.plan, position, seconds)
    remove_folder(folder / "checkpoints")
    remove_folder(folder / "passage_encoder")
    if job.model.retriever.passage_side is None:
        remove_folder(tuned_index(job.config))
    return seconds, index_seconds


def _rerank_hits(config: Config, model: RagModel, dev: Sequence[Example], written: Container[str]) -> int:
    """The hits whose reordering is fitted to the dev questions, 0 for none.

    `auto` asks for a generator that weighs as it reads, and for questions that it has not `written` itself: those are
    likely after their passages.
    """
    if config.retrieval.rerank == "auto" and not (
        model.generator.weighs_as_it_reads and dev and all(example.id not in written for example in dev)
    ):
        return 0
    return config.retrieval.rerank_hits


def _fit_rerank(job: _Job) -> None:
    """What the generator's likelihood of the question is worth from now on, where hits are to be reordered."""
    from ragx.rag.rerank import Rerank
    from ragx.training.passes import autocast
    from ragx.training.rerank import fit_rerank
    from ragx.training.warmup import supervise

    if not job.rerank_hits:
        return
    dev = supervise(job.dev, job.model.retriever.index.all_passages())
    with autocast(job.model, job.settings):
        job.model.rerank = fit_rerank(job.model, dev, job.rerank_hits)
    if job.model.rerank is None:
        log.info("reranking: no dev question has a right passage among its first %d hits", job.rerank_hits)
        if job.config.retrieval.rerank != "auto":
            job.model.rerank = Rerank(job.rerank_hits)


def _with_parts(config: Config, policy: Policy) -> Config:
    """The configuration with the parts that the policy says are trained."""
    section = config.finetune.model_copy(update={"train": policy.parts})
    return config.model_copy(update={"finetune": section})


def _refresh_cost(model: RagModel, position: Position, index_seconds: float) -> dict[str, Any]:
    """What the vectors of a learning passage encoder cost: passages encoded anew while it learned, and the index."""
    if model.retriever.passage_side is None:
        return {}
    cost = {"passages": position.refreshed, "seconds": round(position.refresh_seconds, 1)}
    return {"refresh": cost | {"index_seconds": round(index_seconds, 1)}}


def _goes_on(config: Config, plan: dict[str, Any], resume: bool) -> bool:
    """Whether training goes on from a checkpoint; whoever starts over need not have one that can be read.

    Raises:
        ArtifactError: the checkpoint is damaged, or was made for another configuration or other data.
    """
    from ragx.training import checkpoints

    folder = config.run_dir / "training"
    last = folder / "checkpoints" / "last"
    if not resume:
        if last.exists():
            log.warning("starting over; the checkpoint that was in %s is gone", folder)
        return False
    found = checkpoints.plan_of(last)
    if found is None:
        log.warning("nothing to resume in %s; starting from the beginning", folder)
        return False
    if found != plan["fingerprint"]:
        raise ArtifactError(f"{folder}: its checkpoint belongs to another configuration or data; run: ragx finetune")
    return True


def _require_enough_passages(config: Config, passages: int) -> None:
    wanted = config.finetune.top_k
    if wanted is not None and wanted > passages:
        raise ConfigError(f"finetune.top_k: {wanted} passages wanted, the index holds {passages}; lower it")


def _train_settings(config: Config, policy: Policy, generator: Generator, *, written: bool) -> TrainSettings:
    from ragx.training.policy import generator_rate
    from ragx.training.settings import TrainSettings

    section = config.finetune
    top_k = section.top_k or config.retrieval.top_k
    pairs = PAIRS_A_PASS["cuda" if compute_device(config).startswith("cuda") else "cpu"]
    micro = max(1, pairs // top_k) if section.micro_batch_size == "auto" else section.micro_batch_size
    micro = math.ceil(section.batch_size / math.ceil(section.batch_size / micro))
    shared = {field.name for field in dataclasses.fields(TrainSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in shared}
    values |= {
        "learning_rate": generator_rate(section.learning_rate, width=generator.width, adapted=generator.is_adapted),
        "epochs": policy.epochs,
        "reading_epochs": policy.reading_epochs,
        "question_loss": _question_loss(config, generator, written),
        "top_k": top_k,
        "micro_batch_size": micro,
        "seed": config.seed,
        "dtype": compute_dtype(config),
    }
    return TrainSettings(**values)


def _question_loss(config: Config, generator: Generator, written: bool) -> float:
    """The weight of -log p(x|z) while reading. `auto` leaves it out where the generator does not weigh as it reads, or
    has `written` some of the questions.

    Raises:
        ConfigError: it is wanted of a generator that cannot.
    """
    wanted = config.finetune.question_loss
    if wanted == "auto":
        return QUESTION_LOSS if generator.weighs_as_it_reads and not written else 0.0
    if wanted and not generator.weighs_as_it_reads:
        raise ConfigError(
            f"finetune.question_loss: {wanted} needs a decoder-only generator whose prompt ends with {{question}}; "
            "say 0, or auto"
        )
    return wanted


def prepare_training(
    config: Config, retriever: Retriever, generator: Generator, *, few: bool, prior_learns: bool = True
) -> None:
    """Freeze what is not trained; wrap the generator with LoRA where wanted, or where questions are few."""
    from ragx.rag.causal import CausalGenerator
    from ragx.rag.generators import add_lora, choose_attention

    section = config.finetune
    choose_attention(
        generator, compute_dtype(config), config.generator.max_input_tokens + config.generator.max_answer_tokens
    )
    trained = set(section.named) - ({"question_encoder"} if config.retrieval.mode == "lexical" else set())
    retriever.question_encoder.requires_grad_("question_encoder" in trained)
    if retriever.passage_encoder is not None:
        retriever.passage_encoder.requires_grad_(True)
    if not prior_learns:
        retriever.prior.requires_grad_(False)
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

    encoder, passages, prior, generator = map(
        count, ("retriever.question_encoder", "retriever.passage_encoder", "retriever.prior", "generator_module")
    )
    and_prior = ", and the prior's temperature and lexical weight," if prior else ""
    side = "question encoder"
    if model.retriever.passage_side is not None:
        side = "question and passage encoder, which are one" if config.ties_encoders else "question encoder, "
        side += "" if config.ties_encoders else f"{passages / 1e6:.1f}M of the passage encoder"
    steps, reading = settings.steps(len(examples)), settings.reading_steps(len(examples))
    learnt = ", question and answer" if settings.question_loss else ""
    after = f", after {reading} on one right passage each{learnt}" if reading else ""
    of_them = f" ({synthetic} of them synthetic, written from the corpus)" if synthetic else ""
    text = (
        f"training {encoder / 1e6:.1f}M weights of the {side}, {generator / 1e6:.1f}M of the generator's "
        f"{model.generator.parameters_count / 1e6:.1f}M{and_prior} on "
        f"{len(examples)} questions{of_them} with {settings.top_k} passages each: {settings.epochs} epochs, "
        f"{steps - reading} steps of {settings.batch_size} questions in "
        f"{str(settings.dtype).removeprefix('torch.')}{after}, at a learning rate of {settings.learning_rate:.1e}, "
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


def _estimate(job: _Job, processes: int) -> dict[str, Any]:
    """Seconds and bytes that the training will take."""
    from ragx.training.estimate import estimate

    learnt = lesson(job.config, job.model, job.examples, job.dev)
    lessons = learnt if learnt and learnt[0] else None
    found = estimate(job.model, job.examples, job.dev, job.settings, lessons, processes, job.rerank_hits)
    warm_up = found.warm_up * max(1, job.folds)  # each fold's takes a fold less, and there is one more
    phases = {"warm_up": warm_up, "steps": found.steps, "evaluations": found.evaluations}
    if job.model.retriever.passage_side is not None:
        phases["refreshes"] = found.refreshes
    if job.rerank_hits:
        phases["reranking"] = found.reranking
    return {
        "seconds": {name: round(value, 1) for name, value in phases.items()}
        | {"total": round(sum(phases.values()), 1)},
        "memory_bytes": found.memory,
    }
