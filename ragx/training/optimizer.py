"""AdamW with a group for each part, and its schedule: in each phase the learning rates rise and fall to zero."""

import torch
from torch import nn

from ragx.rag.model import RagModel
from ragx.training.settings import TrainSettings

JOINT_SHARE = 0.5
"""The highest learning rates of the joint phase after one of reading, as a share of those of reading."""


def optimizer_of(
    model: RagModel, settings: TrainSettings, reading: int, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with one group a part and none of its decay on biases, norms and the prior, for `total` steps of which the
    first are `reading`."""
    groups: list[dict[str, object]] = []
    parts: list[tuple[nn.Module, float, float]] = [
        (model.generator_module, settings.learning_rate, settings.weight_decay),
        *((encoder, settings.retriever_learning_rate, settings.weight_decay) for encoder in model.retriever.encoders()),
    ]
    for part, rate, decay in parts:
        parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups += [{"params": matrices, "lr": rate, "weight_decay": decay}] if matrices else []
        groups += [{"params": others, "lr": rate, "weight_decay": 0.0}] if others else []
    groups += model.retriever.prior.groups(settings.prior_learning_rate)
    if model.null_bias is not None:
        groups.append({"params": [model.null_bias], "lr": settings.prior_learning_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: share_of_rate(step, reading, total, settings.warmup_ratio)
    )
    return optimizer, schedule


def share_of_rate(step: int, reading: int, total: int, warmup_ratio: float) -> float:
    """The share of its learning rate that a step has: a linear warm-up and decay in each phase."""
    first, end, highest = (0, reading, 1.0) if step < reading else (reading, total, JOINT_SHARE if reading else 1.0)
    warm = max(1, round(warmup_ratio * (end - first)))
    return highest * min(1.0, (step - first + 1) / warm) * max(0.0, 1 - (step - first) / (end - first + 1))
