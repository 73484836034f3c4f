"""Rows of different lengths as one, without padding: linear layers see all tokens at once, attention takes row by row
(cf. Krell et al. 2021, packing without cross-contamination).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as fused
from transformers import AttentionInterface

PACKED = "ragx_packed"
"""Its name among transformers' attentions; they make no masks for one whose masks they do not know."""
ARCHITECTURES = frozenset({"bart", "mbart"})
"""Models without position biases, whose positions can be told one by one. Llama's grouped heads gain nothing here."""
PACKED_TOKENS = 2000
"""Tokens packed at once: a step of BART-base's size takes 3 % longer with 1100 and 5 % with 4000."""
PLAIN_UP_TO = 640
"""Tokens of a row up to which plain products are faster than torch's fused attention in bfloat16 on a processor, whose
backward pass is slow, and their matrix is small beside what a layer keeps for its backward pass."""


def packable(model: Any) -> bool:
    """Whether this model's rows can be packed and should be: on a processor, where an attention more costs little."""
    return model.device.type == "cpu" and model.config.model_type in ARCHITECTURES


def packed_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in their order, in batches of at most `PACKED_TOKENS` tokens where a single row has no more."""
    batches: list[list[int]] = [[]]
    room = PACKED_TOKENS
    for row, length in enumerate(lengths):
        if length > room and batches[-1]:
            batches.append([])
            room = PACKED_TOKENS
        batches[-1].append(row)
        room -= length
    return batches


def unpacked(packed: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows [N, longest, H] of a packed one [1, sum of lengths, H]."""
    return nn.utils.rnn.pad_sequence(list(torch.split(packed[0], list(lengths))), batch_first=True)


@contextmanager
def packing(model: Any, side: Any, rows: Sequence[int]) -> Iterator[None]:
    """Within, a side of the model, its encoder or decoder, takes packed rows of these lengths.

    It is to be called with `rows`, these lengths, and a decoder with `sources`, its encoder's.
    """
    own = model.config._attn_implementation
    hook = side.embed_positions.register_forward_pre_hook(_telling_positions(rows), with_kwargs=True)
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
        hook.remove()


def _telling_positions(lengths: Sequence[int]) -> Any:
    """A hook that gives learned positions the place of every token in its row."""
    places = torch.cat([torch.arange(length) for length in lengths])

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given[:1], {"position_ids": places}

    return hook


def _attend(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: None,
    *,
    scaling: float,
    dropout: float,
    rows: Sequence[int],
    sources: Sequence[int] = (),
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention [1, L, heads, D] of queries [1, heads, L, D] to the keys and values [1, heads, L', D] of their own row,
    or of their row's source where `sources` are given and the module is not causal.
    """
    others = sources if sources and not module.is_causal else rows
    plain = queries.dtype == torch.bfloat16 and max(*rows, *others) <= PLAIN_UP_TO
    attend = partial(_plain if plain else fused, dropout_p=dropout, is_causal=module.is_causal, scale=scaling)
    split = [torch.split(all, list(of), 2) for all, of in ((queries, rows), (keys, others), (values, others))]
    found = [attend(*row) for row in zip(*split, strict=True)]
    return torch.cat(found, 2).transpose(1, 2), None


def _plain(queries: Tensor, keys: Tensor, values: Tensor, *, dropout_p: float, is_causal: bool, scale: float) -> Tensor:
    weights = (queries * scale) @ keys.transpose(-1, -2)
    if is_causal:
        later = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
        weights = weights.masked_fill(later, -torch.inf)
    shares = weights.softmax(-1)  # in float32 inside, whatever the dtype
    return nn.functional.dropout(shares, dropout_p) @ values


AttentionInterface.register(PACKED, _attend)
