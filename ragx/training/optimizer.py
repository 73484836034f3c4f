"""AdamW with a group for each part, and its schedule."""

import torch
from torch import nn

from ragx.rag.model import RagModel
from ragx.training.settings import TrainSettings


def optimizer_of(
    model: RagModel, settings: TrainSettings, total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with one group a part and none of its decay on biases, norms and the prior; linear warm-up and decay."""
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
    warm = max(1, round(settings.warmup_ratio * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, 1 - step / (total + 1))
    )
    return optimizer, schedule
