"""Gold-token log-probabilities from hidden states and vocabulary head, a slice of the vocabulary at a time.

Neither logits nor their gradients of all tokens exist at once (cf. Wijmans et al. 2024, cut cross-entropy), and the
head's gradient, as large as its weight, is added to `weight.grad` slice by slice instead of being made beside it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Logits made at once: on a processor few enough to stay in its cache."""
KEPT = 1 << 24
"""Logits kept for the backward pass, 64 MiB; where there are more, they are made again there."""


def gold_log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, gold: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """log p [R] in float32 of gold tokens [R] under softmax(hidden [R, H] @ weight [V, H]^T + bias [V]).

    Computed in the dtype of autocast where that is on. With `label_smoothing` the value stays and the gradient is that
    of (1 - e) log p(gold) + e mean_v log p(v). `backward` adds to `weight.grad` and `bias.grad` itself, where these
    want a gradient: `torch.autograd.grad` with respect to them finds none.
    """
    found: Tensor = _GoldLogProbs.apply(hidden, weight, bias, gold, label_smoothing)  # type: ignore[no-untyped-call]
    return found


def accumulator(parameter: Tensor) -> Tensor:
    """The parameter's gradient to add to, zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _GoldLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, gold: Tensor, label_smoothing: float
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        slices = _slices(len(gold), len(weight), device)
        keeps = any(ctx.needs_input_grad) and len(gold) * len(weight) <= KEPT
        total = torch.full((len(gold),), -torch.inf, device=hidden.device)
        found, share = torch.zeros_like(total), torch.zeros_like(total)
        states, kept = hidden.to(dtype), []
        with torch.autocast(device, enabled=False):
            for part in slices:
                logits = _logits(states, weight, bias, part)
                kept += [logits] if keeps else []
                exact = logits.float()
                mass = exact.logsumexp(-1)
                total = torch.logaddexp(total, mass)
                inside, place = _within(gold, part)
                own = torch.log_softmax(exact, dim=-1).gather(-1, place).squeeze(-1)
                own = own.masked_fill(mass == -torch.inf, 0.0)  # no number where the whole slice is impossible
                found, share = torch.where(inside, own, found), torch.where(inside, mass, share)
        ctx.save_for_backward(states, gold, total, *kept)
        ctx.weight, ctx.bias = weight, bias
        ctx.label_smoothing, ctx.hidden_dtype = label_smoothing, hidden.dtype
        return found + (share - total)  # log p(gold | its slice) + log p(its slice)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        states, gold, total, *kept = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        even = ctx.label_smoothing / len(weight)
        towards = torch.zeros(states.shape, device=states.device) if wants_hidden else None
        slope = slope.unsqueeze(-1)
        with torch.autocast(states.device.type, enabled=False):
            for number, part in enumerate(_slices(len(gold), len(weight), states.device.type)):
                logits = kept[number] if kept else _logits(states, weight, bias, part)
                # d log p(gold) / d logits = onehot - softmax
                pull = (logits.float() - total.unsqueeze(-1)).exp_().neg_().add_(even)
                inside, place = _within(gold, part)
                pull.scatter_add_(-1, place, (inside * (1.0 - ctx.label_smoothing)).unsqueeze(-1))
                pull = pull.mul_(slope).to(states.dtype)
                if towards is not None:
                    towards += pull @ weight[part].to(states.dtype)
                if wants_weight and weight.dtype == states.dtype:
                    accumulator(weight)[part].addmm_(pull.T, states)
                elif wants_weight:
                    accumulator(weight)[part].add_(pull.T @ states)
                if wants_bias:
                    accumulator(bias)[part].add_(pull.sum(0))
        return (None if towards is None else towards.to(ctx.hidden_dtype)), None, None, None, None


def _slices(rows: int, words: int, device: str) -> list[slice]:
    """Even parts of the vocabulary."""
    count = -(-rows * words // SLICES["cpu" if device == "cpu" else "cuda"])
    size = -(-words // count)
    return [slice(start, min(start + size, words)) for start in range(0, words, size)]


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    own = None if bias is None else bias[part].to(states.dtype)
    return torch.nn.functional.linear(states, weight[part].to(states.dtype), own)


def _within(gold: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which gold tokens [R] are in the slice, and their places in it [R, 1], any place where they are not."""
    inside = (gold >= part.start) & (gold < part.stop)
    return inside, (gold - part.start).clamp(0, part.stop - part.start - 1).unsqueeze(-1)
