"""The joint phase: question encoder and generator together on -log sum_z p(z|x) p(y|x,z).

The loop is plain to read: batch, loss, backward, clip, step, checkpoint. Everything random follows from (seed, step),
so that a resumed run repeats an uninterrupted one exactly.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ragx.errors import ConfigError, RagxError
from ragx.rag.model import Loss, RagModel
from ragx.records import Example, Progress
from ragx.training import checkpoints
from ragx.training.checkpoints import Position

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Epochs, questions a step and a pass, learning rates, and where to stop."""

    epochs: int
    batch_size: int
    micro_batch_size: int
    top_k: int
    posterior_mass: float
    learning_rate: float
    retriever_learning_rate: float
    prior_learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    patience: int
    checkpoint_steps: int
    seed: int
    dtype: torch.dtype
    max_steps: int | None = None
    tracker: str | None = None

    def steps(self, questions: int) -> int:
        """Optimizer steps of the whole training."""
        steps = self.epochs * self.steps_per_epoch(questions)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps_per_epoch(self, questions: int) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(questions / self.batch_size)


@dataclass(frozen=True, slots=True)
class Monitor:
    """What a batch or the dev set showed: nats a token and a question, prior mass on gold documents (0-1), share of
    retrieved passages that are distinct (0-1)."""

    nll_per_token: float
    nll: float
    p_gold: float
    unique: float


def train(
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    folder: Path,
    *,
    plan: str,
    resume: bool,
    progress: Progress,
) -> Position:
    """Train `model` in place and leave it at its best dev NLL (at the end, where there is no dev set).

    Checkpoints go to `folder`/checkpoints, one line a step to `folder`/metrics.jsonl.

    Raises:
        RagxError: the loss is not finite; the last checkpoint stays as it was.
    """
    accelerator = _accelerator(model, settings, folder)
    optimizer, schedule = _optimizer(model, settings, settings.steps(len(examples)))
    last, best = folder / "checkpoints" / "last", folder / "checkpoints" / "best"
    position = checkpoints.load(last, model, optimizer)[1] if resume else Position()
    checkpoints.truncate_metrics(folder / "metrics.jsonl", position.step if resume else -1)
    model.kept_share = position.kept_share
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": position.step})
    per_epoch, total = settings.steps_per_epoch(len(examples)), settings.steps(len(examples))
    first, started = position.step + 1, time.monotonic()
    while position.step < total and position.bad_epochs < settings.patience:
        epoch, offset = divmod(position.step, per_epoch)
        batch = _batch(examples, settings, epoch, offset)
        monitor = _step(model, batch, optimizer, accelerator, settings, position.step + 1)
        schedule.step()
        position = dataclasses.replace(position, step=position.step + 1, kept_share=model.kept_share)
        _record(folder, position.step, "train", monitor, accelerator)
        progress(_status(monitor), position.step, total)
        if position.step == first:
            seconds = time.monotonic() - started
            log.info("a step takes %.1f s: about %.0f min to the end", seconds, seconds * (total - first + 1) / 60)
        end_of_epoch = offset == per_epoch - 1 or position.step == total
        if end_of_epoch:
            position = _end_epoch(model, dev, settings, position, best, folder, plan, accelerator)
        if end_of_epoch or position.step % settings.checkpoint_steps == 0:
            checkpoints.save(last, plan, model, position, optimizer)
    if position.best_nll is not None:
        checkpoints.load(best, model)
    accelerator.end_training()
    return position


def _step(
    model: RagModel,
    batch: Sequence[Example],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    settings: TrainSettings,
    step: int,
) -> Monitor:
    """One optimizer step on a batch: the mean over its questions of -log p(y|x), micro-batch by micro-batch."""
    torch.manual_seed(settings.seed * 1_000_003 + step)
    optimizer.zero_grad()
    losses: list[Loss] = []
    for start in range(0, len(batch), settings.micro_batch_size):
        part = batch[start : start + settings.micro_batch_size]
        loss = _forward(model, part, settings)
        _refuse_nan(loss.nll, part, step)
        accelerator.backward(loss.nll.sum() / len(batch))
        losses.append(loss)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
    _refuse_nan(norm, batch, step)
    optimizer.step()
    return monitor_of(losses, batch)


def _forward(model: RagModel, part: Sequence[Example], settings: TrainSettings) -> Loss:
    device = model.generator.device.type
    with torch.autocast(device, settings.dtype, enabled=settings.dtype != torch.float32):
        questions, answers = [e.question for e in part], [e.answers[0] for e in part]
        loss: Loss = model(questions, answers, settings.top_k, settings.posterior_mass)
        return loss


@torch.no_grad()
def dev_monitor(model: RagModel, dev: Sequence[Example], settings: TrainSettings) -> Monitor:
    """The monitor over a whole dev set."""
    size = settings.micro_batch_size
    losses = [_forward(model, dev[start : start + size], settings) for start in range(0, len(dev), size)]
    return monitor_of(losses, dev)


def monitor_of(losses: Sequence[Loss], batch: Sequence[Example]) -> Monitor:
    """Summarise the losses of consecutive parts of a batch."""
    nll = torch.cat([loss.nll.detach() for loss in losses])
    tokens = torch.cat([loss.tokens for loss in losses])
    rows = [row for loss in losses for row in loss.retrieval.passages]
    priors = torch.cat([loss.retrieval.log_prior.detach().exp() for loss in losses])
    gold = [[p.document_id in example.doc_ids for p in row] for example, row in zip(batch, rows, strict=True)]
    numbers = [passage.number for row in rows for passage in row]
    return Monitor(
        nll_per_token=float(nll.sum() / tokens.sum()),
        nll=float(nll.mean()),
        p_gold=float((priors.cpu() * torch.tensor(gold)).sum(-1).mean()),
        unique=len(set(numbers)) / len(numbers),
    )


def _end_epoch(
    model: RagModel,
    dev: Sequence[Example],
    settings: TrainSettings,
    position: Position,
    best: Path,
    folder: Path,
    plan: str,
    accelerator: Accelerator,
) -> Position:
    """Score the dev set; keep the weights when it is the best so far."""
    if not dev:
        return position
    monitor = dev_monitor(model, dev, settings)
    _record(folder, position.step, "dev", monitor, accelerator)
    log.info("step %d: dev %s", position.step, _status(monitor))
    if position.best_nll is not None and monitor.nll_per_token >= position.best_nll:
        return dataclasses.replace(position, bad_epochs=position.bad_epochs + 1)
    position = dataclasses.replace(position, best_nll=monitor.nll_per_token, best_step=position.step, bad_epochs=0)
    checkpoints.save(best, plan, model, position)
    return position


def _batch(examples: Sequence[Example], settings: TrainSettings, epoch: int, offset: int) -> list[Example]:
    """Batch number `offset` of an epoch, whose order follows from the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [examples[row] for row in order[offset * settings.batch_size : (offset + 1) * settings.batch_size]]


def _optimizer(
    model: RagModel, settings: TrainSettings, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one group a part and none of its decay on biases, norms and the prior; linear warm-up and decay."""
    groups: list[dict[str, object]] = []
    parts: list[tuple[nn.Module, float, float]] = [
        (model.generator_module, settings.learning_rate, settings.weight_decay),
        (model.retriever.question_encoder, settings.retriever_learning_rate, settings.weight_decay),
        (model.retriever.prior, settings.prior_learning_rate, 0.0),
    ]
    for part, rate, decay in parts:
        parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups += [{"params": matrices, "lr": rate, "weight_decay": decay}] if matrices else []
        groups += [{"params": others, "lr": rate, "weight_decay": 0.0}] if others else []
    optimizer = torch.optim.AdamW(groups)
    warm = max(1, round(settings.warmup_ratio * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, 1 - step / (total + 1))
    )
    return optimizer, schedule


def _accelerator(model: RagModel, settings: TrainSettings, folder: Path) -> Accelerator:
    on_cpu = model.generator.device.type == "cpu"
    try:
        accelerator = Accelerator(cpu=on_cpu, log_with=settings.tracker, project_dir=str(folder))
    except ValueError as error:
        raise ConfigError(f"finetune.tracker: {error}") from error
    if settings.tracker and not accelerator.log_with:
        raise ConfigError(f"finetune.tracker: {settings.tracker} is not installed; pip install {settings.tracker}")
    if accelerator.num_processes > 1:
        raise RagxError("finetune runs in one process for now; start it without torchrun or accelerate launch")
    if settings.tracker:
        accelerator.init_trackers("ragx")
    return accelerator


def _record(folder: Path, step: int, split: str, monitor: Monitor, accelerator: Accelerator) -> None:
    """Append one line to metrics.jsonl, and to the tracker when there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(monitor)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
    accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def _status(monitor: Monitor) -> str:
    return f"nll/token {monitor.nll_per_token:.3f}, P(gold) {monitor.p_gold:.2f}, unique passages {monitor.unique:.2f}"


def _refuse_nan(values: Tensor, batch: Sequence[Example], step: int) -> None:
    if not torch.isfinite(values).all():
        ids = ", ".join(example.id for example in batch)
        raise RagxError(
            f"the loss at step {step} is not finite (questions {ids}); the last checkpoint is kept: "
            "lower finetune.learning_rate, then run ragx finetune again"
        )
