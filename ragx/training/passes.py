"""One pass over some questions: their loss, and what a whole dev set shows."""

from collections.abc import Sequence

import torch

from ragx.rag.model import Loss, RagModel
from ragx.rag.retriever import Retrieval
from ragx.records import Example
from ragx.training import watch
from ragx.training.batches import pieces
from ragx.training.processes import Processes
from ragx.training.settings import TrainSettings
from ragx.training.watch import Monitor


def autocast(model: RagModel, settings: TrainSettings) -> torch.autocast:
    """Computing in the dtype of the settings."""
    device = model.generator.device.type
    return torch.autocast(device, settings.dtype, enabled=settings.dtype != torch.float32)


def forward(
    model: RagModel,
    part: Sequence[Example],
    settings: TrainSettings,
    retrieval: Retrieval | None = None,
    with_question: bool = False,
) -> Loss:
    """The loss of some questions on their first answers, in the dtype of the settings."""
    with autocast(model, settings):
        questions, answers = [e.question for e in part], [e.answers[0] for e in part]
        loss: Loss = model(questions, answers, settings.top_k, settings.posterior_mass, retrieval, with_question)
        return loss


@torch.no_grad()
def dev_monitor(
    model: RagModel, dev: Sequence[Example], settings: TrainSettings, processes: Processes, at_once: int
) -> Monitor:
    """The monitor over a whole dev set, the same in all processes, each of which takes `at_once` questions at once."""
    parts = processes.share(pieces(range(len(dev)), settings.micro_batch_size))
    computed = []
    for rows in [piece for part in parts for piece in pieces(part, at_once)]:
        part = dev[rows.start : rows.stop]
        computed.append((rows, watch.rows_of(forward(model, part, settings), part)))
    return watch.monitor_of(processes.table(len(dev), watch.FIXED_COLUMNS + settings.top_k, computed))
