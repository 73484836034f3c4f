"""Beam search on the marginal of every step, over several passages at once.

Each sequence keeps log p of its tokens under every passage of its group, so that nothing found is scored again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ragx.errors import RagxError
from ragx.rag.generator import Generator
from ragx.rag.state import State

COMPACT_BELOW = 0.75
"""Share of prompts still written after below which the finished ones are dropped; dropping copies the others."""

NO_NUMBER = "the generator gives probabilities that are no numbers; try dtype: float32, or another generator.model"

Stream = Callable[[str], None]
"""Called with the answer so far."""


@dataclass(frozen=True, slots=True)
class Written:
    """A token sequence with its log p, and log p(y_t|x,z,y_<t) of each token under each of the group's K passages."""

    ids: tuple[int, ...]
    log_probability: float
    by_token: tuple[tuple[float, ...], ...] = ()


Beam = list[Written]
"""What a beam search found, best first."""


def beam_search(
    generator: Generator, state: State, log_prior: Tensor, num_beams: int, stream: Stream | None = None
) -> list[Beam]:
    """For each of G groups of K rows of `state`, up to `num_beams` token sequences with their log-probabilities.

    A step's distribution is the marginal over the group's rows under `log_prior` [G, K]; with K = 1 and a log-prior of
    0 it is the model's own. One beam is greedy search. No length normalisation: the score is log p(y|x) of a whole
    answer, whose last possible token is the end. A group whose best sequences no live one can overtake is finished, and
    soon dropped from the batch.

    Raises:
        RagxError: a log-probability is not a number.
    """
    groups = [_Group(num_beams) for _ in range(len(log_prior))]
    slots = list(range(len(groups)))
    width = num_beams * (1 + len(generator.stop_ids))
    for step in range(generator.max_answer_tokens):
        only = generator.end_id if step == generator.max_answer_tokens - 1 else None
        scores = [groups[slot].scores for slot in slots]
        for slot, ranked in zip(slots, _choices(state, log_prior[slots], scores, width, only), strict=True):
            groups[slot].extend(ranked, generator.stop_ids)
        if stream is not None:
            stream(generator.text(groups[0].best))
        active = [place for place, slot in enumerate(slots) if not groups[slot].done]
        if not active:
            break
        if len(active) > COMPACT_BELOW * len(slots):
            active = list(range(len(slots)))
        state = _advance(generator, state, [groups[slot] for slot in slots], active, log_prior.shape[1])
        slots = [slots[place] for place in active]
    found = [group.finished for group in groups]
    if not all(found) or any(math.isnan(written.log_probability) for beam in found for written in beam):
        raise RagxError(NO_NUMBER)
    return found


class _Choice(NamedTuple):
    """A continuation: the live sequence it continues, its token, log p of the whole, log p of the token by passage."""

    parent: int
    token: int
    log_probability: float
    by_passage: tuple[float, ...]


class _Group:
    """The beam of one distribution: live sequences, each with what it continues, and finished ones."""

    def __init__(self, num_beams: int) -> None:
        self.num_beams = num_beams
        self.live: list[tuple[int, Written]] = [(0, Written((), 0.0))]
        self.finished: Beam = []
        self.done = False

    @property
    def scores(self) -> list[float]:
        """log p of the live sequences."""
        return [written.log_probability for _, written in self.live]

    @property
    def best(self) -> tuple[int, ...]:
        """The tokens of the first sequence."""
        return self.finished[0].ids if self.finished else self.live[0][1].ids

    def extend(self, ranked: Sequence[_Choice], stop_ids: frozenset[int]) -> None:
        """Take the best continuations, best first."""
        if self.done:
            return
        live: list[tuple[int, Written]] = []
        for rank, (parent, token, score, by_passage) in enumerate(ranked):
            before = self.live[parent][1]
            written = Written((*before.ids, token), score, (*before.by_token, by_passage))
            if token in stop_ids:
                if rank < self.num_beams:
                    self.finished.append(written)
            elif len(live) < self.num_beams:
                live.append((parent, written))
        self.finished = sorted(self.finished, key=lambda found: -found.log_probability)[: self.num_beams]
        worst = self.finished[-1].log_probability if len(self.finished) == self.num_beams else float("-inf")
        self.done = worst >= max((written.log_probability for _, written in live), default=worst)  # scores only fall
        self.live = live


def _choices(
    state: State, log_prior: Tensor, scores: list[list[float]], width: int, only: int | None
) -> list[list[_Choice]]:
    """The `width` best continuations of each group, by the token `only` where one is given."""
    groups, k = log_prior.shape
    beams = max(map(len, scores))
    rows = state.log_probs.reshape(groups, beams, k, -1)
    joint = rows + log_prior[:, None, :, None]
    marginals = joint[:, :, 0] if k == 1 else torch.logsumexp(joint, dim=2)
    if only is not None:
        others = torch.arange(marginals.shape[-1], device=marginals.device) != only
        marginals = marginals.masked_fill(others, -torch.inf)
    so_far = torch.tensor(scores, device=log_prior.device)
    totals, found = (so_far.unsqueeze(-1) + marginals).flatten(1).topk(min(width, marginals[0].numel()), dim=-1)
    parents, tokens = found // marginals.shape[-1], found % marginals.shape[-1]
    by_passage = rows[torch.arange(groups, device=found.device).unsqueeze(-1), parents, :, tokens]
    columns = zip(parents.tolist(), tokens.tolist(), totals.tolist(), by_passage.tolist(), strict=True)
    return [[_Choice(p, t, s, tuple(b)) for p, t, s, b in zip(*group, strict=True)] for group in columns]


def _advance(generator: Generator, state: State, groups: list[_Group], active: list[int], k: int) -> State:
    """The state one token on, of the active groups alone; what a finished one among them gets does not matter."""
    beams = len(state.log_probs) // (len(groups) * k)
    live = [(place * beams + parent, written.ids[-1]) for place in active for parent, written in groups[place].live]
    rows = [row * k + j for row, _ in live for j in range(k)]
    if rows != list(range(len(state.log_probs))):
        state = state.select(torch.tensor(rows, device=state.positions.device))
    tokens = torch.tensor([token for _, token in live], device=state.positions.device)
    return generator.advance(state, tokens.repeat_interleave(k))
