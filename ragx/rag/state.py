"""Where N prompts stand in decoding: their key-values with room for what is written after them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values [N, heads, L, D] of every layer."""


@dataclass(frozen=True, slots=True)
class State:
    """N prompts that went through the model, with what was written after each.

    log_probs [N, V] of the next token; keys and values of the decoder, whose first `filled` places count and whose rest
    is room; those of the cross-attention; the attention mask [N, L] over the prompt, for causal models grown by what
    was written; next position [N]; and where it was wanted log p(x|z) [N] of the question, in nats.

    What follows is written into the room, not into a copy: of two continuations of a state the newer one is valid.
    """

    log_probs: Tensor
    layers: Layers
    filled: int
    attention: Tensor
    positions: Tensor
    cross: Layers = ()
    encoder_states: Tensor | None = None
    question: Tensor | None = None

    def select(self, rows: Tensor) -> "State":
        """A copy whose row i is this one's row `rows[i]`."""
        return State(
            self.log_probs[rows],
            _rows(self.layers, rows),
            self.filled,
            self.attention[rows],
            self.positions[rows],
            _rows(self.cross, rows),
            None if self.encoder_states is None else self.encoder_states[rows],
            None if self.question is None else self.question[rows],
        )


class RoomLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that writes into room kept for it; transformers' own copies all keys and values at every token."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.room = keys, values
        self._show(filled)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [N, heads, t, D]; returns all of them."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if (missing := end - self.room[0].shape[-2]) > 0:
            self.room = with_room(*self.room, missing)
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def _show(self, filled: int) -> None:
        self.keys, self.values = (room[:, :, :filled] for room in self.room)


def cache_of(layers: Layers, filled: int) -> DynamicCache:
    """A transformers cache over the given tensors themselves."""
    cache = DynamicCache()
    cache.layers.extend(RoomLayer(keys, values, filled) for keys, values in layers)
    return cache


def layers_of(cache: Any) -> Layers:
    """Keys and values of every layer of a transformers cache, with their room where they have some."""
    return tuple(getattr(layer, "room", (layer.keys, layer.values)) for layer in cache.layers)


def with_room(keys: Tensor, values: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Copies of keys and values with `room` more places at their end."""
    return nn.functional.pad(keys, (0, 0, 0, room)), nn.functional.pad(values, (0, 0, 0, room))


def joined(parts: list[Layers], rows: list[list[int]], length: int, room: int) -> Layers:
    """Batches of keys and values as one: part i holds the rows `rows[i]`, and stands at the right of `length` places
    that are followed by `room` more."""
    found = []
    for layer in range(len(parts[0])):
        both = []
        for kind in (0, 1):
            sample = parts[0][layer][kind]
            shape = (sum(map(len, rows)), sample.shape[1], length + room, sample.shape[3])
            whole = torch.zeros(shape, dtype=sample.dtype, device=sample.device)
            for part, own in zip(parts, rows, strict=True):
                tensor = part[layer][kind]
                whole[own, :, length - tensor.shape[2] : length] = tensor
            both.append(whole)
        found.append((both[0], both[1]))
    return tuple(found)


def _rows(layers: Layers, rows: Tensor) -> Layers:
    return tuple((keys[rows], values[rows]) for keys, values in layers)
