"""`ragx finetune`: questions and index -> tuned model."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ragx.artifacts import lock, remove_folder, write_text
from ragx.config import Config, dump_config
from ragx.errors import ArtifactError
from ragx.records import Progress, no_progress
from ragx.stages.job import Job, decide
from ragx.stages.models import compute_device, tuned_index
from ragx.stages.tuned import draw_curves, write_index, write_model
from ragx.stages.warmup import lesson, settle

if TYPE_CHECKING:
    from ragx.rag.model import RagModel
    from ragx.training.checkpoints import Position
    from ragx.training.processes import Processes

log = logging.getLogger(__name__)


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
    job = decide(config, processes, dry_run, progress)
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


def _train(job: Job, processes: Processes, resume: bool, progress: Progress) -> Position:
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


def _finish(job: Job, position: Position, seconds: float, progress: Progress) -> tuple[float, float]:
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


def _fit_rerank(job: Job) -> None:
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


def _estimate(job: Job, processes: int) -> dict[str, Any]:
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
