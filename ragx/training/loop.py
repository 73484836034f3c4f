"""The joint phase: question encoder and generator together on -log sum_z p(z|x) p(y|x,z).

The loop is plain to read: batch, loss, backward, sum over processes, clip, step, look, checkpoint. Everything random
follows from (seed, step), so that a resumed run repeats an uninterrupted one exactly, and several processes take one
process's steps.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ragx.errors import ConfigError, RagxError, is_out_of_memory
from ragx.rag.model import RagModel
from ragx.records import Example, Progress
from ragx.training import checkpoints, refresh, watch
from ragx.training.batches import batch_of, cut, fewer, pieces
from ragx.training.checkpoints import Position
from ragx.training.hits import Settled, TrainingRetrieval
from ragx.training.optimizer import optimizer_of
from ragx.training.passes import autocast, dev_monitor, forward
from ragx.training.processes import Processes
from ragx.training.settings import TrainSettings
from ragx.training.watch import Monitor

log = logging.getLogger(__name__)


def train(
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    folder: Path,
    processes: Processes,
    *,
    plan: str,
    resume: bool,
    progress: Progress,
    settled: Settled,
) -> Position:
    """Train `model` in place and leave it at its best dev NLL (at the end, where there is no dev set).

    Training questions are answered from the passages that are `settled`, or where none are from what is retrieved.

    Checkpoints go to `folder`/checkpoints, one line a step to `folder`/metrics.jsonl, sample answers to
    `folder`/samples.jsonl. A collapse (`watch.alarm`) brings back the best weights.

    Raises:
        RagxError: the loss is not finite and no rollback is left; the last checkpoint stays as it was.
    """
    joint = _Joint(model, examples, dev, settings, folder, plan, processes, settled)
    joint.begin(resume)
    total, first, started = joint.total, joint.position.step, time.monotonic()
    while joint.position.step < total and joint.position.bad_epochs < settings.patience:
        monitor = joint.step()
        done = joint.position.step
        if monitor is not None:
            progress(watch.status(monitor), done, total)
        if done == first + 1:
            seconds = time.monotonic() - started
            log.info("a step takes %.1f s: about %.0f min to the end", seconds, joint.left(seconds) / 60)
        if joint.trains_passages and not joint.reads and done % settings.refresh_steps == 0 and done < total:
            joint.refresh(joint.coming_questions(), settings.refresh_cosine)
        if joint.at_end_of_epoch or done % settings.checkpoint_steps == 0:
            joint.look()
        if joint.at_end_of_epoch and done < total:
            seconds = (time.monotonic() - started) / (done - first)
            log.info("step %d of %d: about %.0f min left", done, total, seconds * (total - done) / 60)
    joint.end()
    return joint.position


class _Joint:
    """A joint phase under way: model, optimizer, schedule, position, and what the steps since the last look showed."""

    def __init__(
        self,
        model: RagModel,
        examples: Sequence[Example],
        dev: Sequence[Example],
        settings: TrainSettings,
        folder: Path,
        plan: str,
        processes: Processes,
        settled: Settled,
    ) -> None:
        self.model, self.examples, self.dev, self.settings = model, examples, dev, settings
        self.folder, self.plan, self.processes = folder, plan, processes
        self.reading_steps, self.total = settings.reading_steps(len(examples)), settings.steps(len(examples))
        self.retrieval = TrainingRetrieval(examples, settled, settings.distractors, settings.seed)
        self.optimizer, self.schedule = optimizer_of(model, settings, self.reading_steps, self.total)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.position = Position()
        self.tracker = _tracker(model, settings, folder) if settings.tracker else None
        self._last, self._best = (folder / "checkpoints" / name for name in ("last", "best"))
        self._recent: list[Monitor] = []
        self._at_once = settings.micro_batch_size
        self._dev_seconds = 0.0

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the last step ended an epoch or the training."""
        return (
            self.position.step % self.settings.steps_per_epoch(len(self.examples)) == 0
            or self.position.step == self.total
        )

    @property
    def reads(self) -> bool:
        """Whether the next step is one on right passages alone."""
        return self.position.step < self.reading_steps

    @property
    def trains_passages(self) -> bool:
        """Whether the vectors of passages move, too."""
        return self.model.retriever.passage_side is not None

    def left(self, seconds: float) -> float:
        """Seconds to the end when a step takes `seconds`."""
        looks = self.settings.evaluations(len(self.examples)) - 1
        return seconds * (self.total - self.position.step) + looks * self._dev_seconds

    def begin(self, resume: bool) -> None:
        """Take up the last checkpoint, or score the start: what training is compared with, and falls back to."""
        if resume:
            self.position = self._load(self._last, self.optimizer)
            self._schedule_from(self.position)
        self.model.kept_share = self.position.kept_share
        facts = [self.plan, dataclasses.asdict(self.position)]
        self.processes.require_same(facts, "configuration, data or checkpoints")
        self.processes.copy_from_first(checkpoints.trainable(self.model).values())
        if self.processes.is_first:
            for name in ("metrics.jsonl", "samples.jsonl"):
                if resume:
                    checkpoints.truncate_lines(self.folder / name, self.position.step)
                else:
                    (self.folder / name).unlink(missing_ok=True)
        if not resume:
            if self.trains_passages:
                self.refresh(self.coming_questions(), refresh.UNCHANGED)
            if (problem := self._score_dev()) is not None:
                raise RagxError(f"before the first step: {problem}; try dtype: float32, or another generator.model")
            self._save(self._last)

    def step(self) -> Monitor | None:
        """One optimizer step on the next batch; None where it was not finite and the best weights came back instead."""
        epoch, offset = divmod(self.position.step, self.settings.steps_per_epoch(len(self.examples)))
        batch = batch_of(self.examples, self.settings, epoch, offset)
        table = self._gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        step = self.position.step + 1
        broken = [
            example.id for example, nll in zip(batch, table[:, 0].tolist(), strict=True) if not math.isfinite(nll)
        ]
        if broken or not torch.isfinite(norm):
            what = "loss" if broken else "gradient"
            self.optimizer.zero_grad()
            self.position = dataclasses.replace(self.position, step=step)
            ids = ", ".join(broken or [example.id for example in batch])
            self._roll_back(f"the {what} is not finite (questions {ids})", fatal=True)
            return None
        self.optimizer.step()
        self.schedule.step()
        monitor = watch.monitor_of(table)
        if not self.reads:
            self.model.kept_share = monitor.kept
            self._recent.append(monitor)
        self.position = dataclasses.replace(self.position, step=step, kept_share=self.model.kept_share)
        self._record("train", monitor)
        return monitor

    def _gradients(self, batch: Sequence[Example]) -> Tensor:
        """Gradients of the mean over the batch of the objective, equal in all processes; returns `watch.rows_of` it."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.position.step + 1)
        width = 1 if self.reads else self.settings.top_k
        more = self.settings.top_k // width
        parts = self.processes.share(cut(len(batch), more * self.settings.micro_batch_size, self.processes.count))
        computed: list[tuple[range, Tensor]] | None = None
        while computed is None:
            self.optimizer.zero_grad()
            try:
                computed = [
                    self._backward(batch, piece) for part in parts for piece in pieces(part, more * self._at_once)
                ]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._at_once = fewer(self._at_once, error)
        table = self.processes.table(len(batch), watch.FIXED_COLUMNS + width, computed)
        self.processes.sum_gradients(self.parameters)
        return table

    def _backward(self, batch: Sequence[Example], rows: range) -> tuple[range, Tensor]:
        part = batch[rows.start : rows.stop]
        retriever, step = self.model.retriever, self.position.step
        retrieval = (
            self.retrieval.right(retriever, part)
            if self.reads
            else self.retrieval.retrieve(retriever, part, self.settings.top_k, step)
        )
        asks = self.reads and self.settings.question_loss > 0
        loss = forward(self.model, part, self.settings, retrieval, with_question=asks)
        objective = loss.nll + self.settings.distillation * loss.distillation
        objective = objective + self.settings.question_loss * loss.question
        torch.autograd.backward(objective.sum() / len(batch))
        return rows, watch.rows_of(loss, part)

    def coming_questions(self) -> list[str]:
        """The questions of the steps before the next refresh."""
        per_epoch = self.settings.steps_per_epoch(len(self.examples))
        steps = range(self.position.step, min(self.position.step + self.settings.refresh_steps, self.total))
        batches = [batch_of(self.examples, self.settings, *divmod(step, per_epoch)) for step in steps]
        return [example.question for batch in batches for example in batch]

    def refresh(self, questions: Sequence[str], whole_below: float) -> None:
        """Encode the passages anew that some questions choose between, or all where those in use are too stale."""
        done = refresh.refresh(
            self.model.retriever,
            self.processes,
            questions,
            self.settings.top_k,
            whole_below=whole_below,
            seed=self.settings.seed * 1_000_003 + self.position.step,
        )
        self.position = dataclasses.replace(
            self.position,
            refreshed=self.position.refreshed + done.passages,
            refresh_seconds=self.position.refresh_seconds + done.seconds,
        )
        log.info(
            "step %d: %s%d passages encoded anew in %.1f s; a sample's mean cosine to its vectors before is %.3f, "
            "top-%d overlap %.3f",
            self.position.step,
            "all " if done.whole else "",
            done.passages,
            done.seconds,
            done.cosine,
            self.settings.top_k,
            done.overlap,
        )
        self._write("refresh", {"passages": done.passages, "cosine": done.cosine, "overlap": done.overlap})

    def look(self) -> None:
        """Judge the steps since the last look, and the dev set at the end of an epoch; then write a checkpoint."""
        problem = None
        if self._recent:
            now, self._recent = watch.mean(self._recent), []
            if self.position.train_start is None:
                self.position = dataclasses.replace(self.position, train_start=now)
            else:
                problem = watch.alarm(self.position.train_start, now, self.settings.top_k)
        if problem is None and self.at_end_of_epoch:
            problem = self._score_dev()
        if problem is not None:
            self._roll_back(problem)
        self._save(self._last)

    def _score_dev(self) -> str | None:
        """Score the dev set and keep the weights when they are its best so far; returns what has collapsed."""
        if not self.dev:
            return None
        if self.trains_passages and self.position.step:
            self.refresh([example.question for example in self.dev], self.settings.refresh_cosine)
        started = time.monotonic()
        monitor = dev_monitor(self.model, self.dev, self.settings, self.processes, self._at_once)
        self._dev_seconds = time.monotonic() - started
        if math.isfinite(monitor.nll):
            self._record("dev", monitor)
        log.info("step %d: dev %s", self.position.step, watch.status(monitor))
        start = self.position.dev_start or monitor
        self.position = dataclasses.replace(self.position, dev_start=start)
        problem = watch.alarm(start, monitor, self.settings.top_k)
        if problem is not None:
            return f"dev: {problem}"
        amid_reading = 0 < self.position.step < self.reading_steps
        if not amid_reading:  # learning rates are high there: such weights answer worse than their loss would tell
            self._keep_best(monitor.nll_per_token)
        self._show_answers()
        return None

    def _keep_best(self, nll: float) -> None:
        """Keep the weights where they are the best so far."""
        now = self.position
        if now.best_nll is not None and nll >= now.best_nll:
            joint = now.step > self.reading_steps  # what comes after reading may mend what it spoilt
            self.position = dataclasses.replace(now, bad_epochs=now.bad_epochs + joint)
        else:
            self.position = dataclasses.replace(now, best_nll=nll, best_step=now.step, bad_epochs=0)
            self._save(self._best)

    def _roll_back(self, problem: str, *, fatal: bool = False) -> None:
        """Bring back the best weights (the last checkpoint's, without a dev set) and halve the learning rates; when no
        rollback is left, end with these weights, or with an error where the fault is `fatal`."""
        left = self.settings.rollbacks - self.position.rollbacks
        if not left and fatal:
            raise RagxError(
                f"step {self.position.step}: {problem}; the last checkpoint is kept: lower finetune.learning_rate, "
                "or look at these questions, then run ragx finetune again"
            )
        folder = self._best if self.position.best_nll is not None else self._last
        back = self._load(folder)
        self.model.kept_share = back.kept_share
        self.optimizer.state.clear()
        self._recent = []
        self.position = dataclasses.replace(
            self.position,
            kept_share=back.kept_share,
            rollbacks=self.position.rollbacks + bool(left),
            bad_epochs=self.position.bad_epochs if left else self.settings.patience,
        )
        self._schedule_from(self.position)
        then = "at half the learning rates" if left else "and the training ends with them"
        log.warning("step %d: %s; back to the weights of step %d, %s", self.position.step, problem, back.step, then)

    def _schedule_from(self, position: Position) -> None:
        """Put the schedule at a position, its learning rates halved at every rollback before it."""
        self.schedule.base_lrs = [
            group["initial_lr"] * 0.5**position.rollbacks for group in self.optimizer.param_groups
        ]
        self.schedule.last_epoch = position.step
        rates = [
            base * factor(position.step)
            for base, factor in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _load(self, folder: Path, optimizer: torch.optim.Optimizer | None = None) -> Position:
        """Load a checkpoint in all processes, none of which goes on before all have read it."""
        with self.processes.before_others(self.processes.is_first):
            position = checkpoints.load(folder, self.model, optimizer)[1]
            if self.trains_passages:
                refresh.restore(self.model.retriever, checkpoints.load_vectors(folder))
        self.processes.wait()
        return position

    def _save(self, folder: Path) -> None:
        if self.processes.is_first:
            optimizer = self.optimizer if folder == self._last else None
            vectors = refresh.state(self.model.retriever) if self.trains_passages else None
            checkpoints.save(folder, self.plan, self.model, self.position, optimizer, vectors)

    def _record(self, split: str, monitor: Monitor) -> None:
        """Append one line to metrics.jsonl, and to the tracker when there is one."""
        self._write(split, dataclasses.asdict(monitor))

    def _write(self, split: str, values: dict[str, Any]) -> None:
        if self.processes.is_first:
            checkpoints.append_line(
                self.folder / "metrics.jsonl", {"step": self.position.step, "split": split, **values}
            )
        if self.tracker is not None:
            self.tracker.log({f"{split}/{name}": value for name, value in values.items()}, step=self.position.step)

    def _show_answers(self) -> None:
        """Log what the model answers to the first dev questions, and write it to samples.jsonl."""
        shown = self.dev[: self.settings.sample_answers]
        if not shown or not self.processes.is_first:
            return
        with autocast(self.model, self.settings):
            found = self.model.answer([e.question for e in shown], decoding="thorough", num_beams=1)
        for example, decoded in zip(shown, found.decoded, strict=True):
            log.info("  %s -> %r (%r)", example.question, decoded.text, example.answers[0])
            row = {"step": self.position.step, "id": example.id, "question": example.question, "answer": decoded.text}
            checkpoints.append_line(self.folder / "samples.jsonl", {**row, "reference": example.answers[0]})

    def end(self) -> None:
        """Leave the model at its best, in all processes."""
        if self.position.best_nll is not None:
            self._load(self._best)
        if self.tracker is not None:
            self.tracker.end_training()


def _tracker(model: RagModel, settings: TrainSettings, folder: Path) -> Accelerator:
    on_cpu = model.generator.device.type == "cpu"
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", log_with=settings.tracker, project_dir=str(folder))
    except ValueError as error:
        raise ConfigError(f"finetune.tracker: {error}") from error
    if not accelerator.log_with:
        raise ConfigError(f"finetune.tracker: {settings.tracker} is not installed; pip install {settings.tracker}")
    accelerator.init_trackers("ragx")
    return accelerator
