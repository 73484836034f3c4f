"""Answers from the marginal: beam search on p(y|x), and rescoring of candidates over all passages.

Every (question, passage) prompt runs through the model once. RAG-Token decodes on the marginal of every step.
RAG-Sequence takes each passage's best texts as candidates and then either scores each under all passages
("thorough") or counts only the passages whose beam holds it ("fast"; Lewis et al. 2020, section 2.5).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.rag.generator import Generator
from ragx.rag.marginal import (
    log_likelihood,
    running_posterior,
    sequence_posterior,
    token_posterior,
)
from ragx.rag.state import State

COMPACT_BELOW = 0.75
"""Share of prompts still written after below which the finished ones are dropped; dropping copies the others."""

SLACK = 0.05
"""Nats by which log p of the same tokens may differ between two passes of a bfloat16 model."""

Beam = list[tuple[list[int], float]]
"""Token sequences with log p, best first."""
Stream = Callable[[str], None]
"""Called with the answer so far."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer with log p(y|x), its tokens with the end, the posterior of its K passages, and the posterior of the
    passages after each token."""

    text: str
    log_probability: float
    tokens: tuple[str, ...]
    posterior: tuple[float, ...]
    token_posterior: tuple[tuple[float, ...], ...]


def decode(
    generator: Generator,
    state: State,
    log_prior: Tensor,
    *,
    marginal: str,
    decoding: str,
    num_beams: int,
    stream: Stream | None = None,
) -> list[Decoded]:
    """The best answer to each of B questions, from the started state of its B * K prompts and its log-prior [B, K].

    `stream` follows the answer to one question while it is written, where that is the final one: the token marginal
    with one beam.
    """
    questions, k = log_prior.shape
    if marginal == "token":
        found = beam_search(generator, state, log_prior, num_beams, stream if num_beams == questions == 1 else None)
        candidates = [[generator.text(best[0][0])] for best in found]
        return _rescore(generator, state, log_prior, candidates, marginal)
    alone = torch.zeros((questions * k, 1), device=log_prior.device)
    beams = beam_search(generator, state, alone, num_beams)
    by_question = [beams[row * k : (row + 1) * k] for row in range(questions)]
    if decoding == "fast":
        candidates = [[_fast_best(generator, *each)] for each in zip(by_question, log_prior, strict=True)]
    else:
        first = state.log_probs.reshape(questions, k, -1)
        candidates = [_hopeful(generator, *each) for each in zip(by_question, log_prior, first, strict=True)]
    return _rescore(generator, state, log_prior, candidates, marginal)


def beam_search(
    generator: Generator, state: State, log_prior: Tensor, num_beams: int, stream: Stream | None = None
) -> list[Beam]:
    """For each of G groups of K rows of `state`, up to `num_beams` token sequences with their log-probabilities.

    A step's distribution is the marginal over the group's rows under `log_prior` [G, K]; with K = 1 and a log-prior of
    0 it is the model's own. One beam is greedy search. No length normalisation: the score is log p(y|x) of a whole
    answer, whose last possible token is the end. A group whose best sequences no live one can overtake is finished, and
    soon dropped from the batch.
    """
    groups = [_Group(num_beams) for _ in range(len(log_prior))]
    slots = list(range(len(groups)))
    width = num_beams * (1 + len(generator.stop_ids))
    for step in range(generator.max_answer_tokens):
        only = generator.end_id if step == generator.max_answer_tokens - 1 else None
        scores = [groups[slot].scores for slot in slots]
        totals, choices, vocabulary = _choices(state, log_prior[slots], scores, width, only)
        for slot, total, choice in zip(slots, totals, choices, strict=True):
            ranked = [(*divmod(token, vocabulary), score) for token, score in zip(choice, total, strict=True)]
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
    return [group.finished for group in groups]


class _Group:
    """The beam of one distribution: live sequences and finished ones."""

    def __init__(self, num_beams: int) -> None:
        self.num_beams = num_beams
        self.live: list[tuple[int, list[int], float]] = [(0, [], 0.0)]
        self.finished: Beam = []
        self.done = False

    @property
    def scores(self) -> list[float]:
        """log p of the live sequences."""
        return [score for _, _, score in self.live]

    @property
    def best(self) -> list[int]:
        """The tokens of the first sequence."""
        return self.finished[0][0] if self.finished else self.live[0][1]

    def extend(self, ranked: Sequence[tuple[int, int, float]], stop_ids: frozenset[int]) -> None:
        """Take the best continuations (live sequence, token, log p), best first."""
        if self.done:
            return
        live: list[tuple[int, list[int], float]] = []
        for rank, (beam, token, score) in enumerate(ranked):
            written = [*self.live[beam][1], token]
            if token in stop_ids:
                if rank < self.num_beams:
                    self.finished.append((written, score))
            elif len(live) < self.num_beams:
                live.append((beam, written, score))
        self.finished = sorted(self.finished, key=lambda found: -found[1])[: self.num_beams]
        worst = self.finished[-1][1] if len(self.finished) == self.num_beams else float("-inf")
        self.done = worst >= max((score for _, _, score in live), default=worst)  # scores only fall
        self.live = live


def _choices(
    state: State, log_prior: Tensor, scores: list[list[float]], width: int, only: int | None
) -> tuple[list[list[float]], list[list[int]], int]:
    """The `width` best continuations of each group, by the token `only` where one is given: log p, and
    beam * V + token; and V."""
    groups, k = log_prior.shape
    beams = max(map(len, scores))
    rows = state.log_probs.reshape(groups, beams, k, -1)
    joint = rows + log_prior[:, None, :, None]
    marginals = joint[:, :, 0] if k == 1 else torch.logsumexp(joint, dim=2)
    if only is not None:
        others = torch.arange(marginals.shape[-1], device=marginals.device) != only
        marginals = marginals.masked_fill(others, -torch.inf)
    so_far = torch.tensor(scores, device=log_prior.device)
    totals, choices = (so_far.unsqueeze(-1) + marginals).flatten(1).topk(min(width, marginals[0].numel()), dim=-1)
    return totals.tolist(), choices.tolist(), marginals.shape[-1]


def _advance(generator: Generator, state: State, groups: list[_Group], active: list[int], k: int) -> State:
    """The state one token on, of the active groups alone; what a finished one among them gets does not matter."""
    beams = len(state.log_probs) // (len(groups) * k)
    live = [(place * beams + parent, written[-1]) for place in active for parent, written, _ in groups[place].live]
    rows = [row * k + j for row, _ in live for j in range(k)]
    if rows != list(range(len(state.log_probs))):
        state = state.select(torch.tensor(rows, device=state.positions.device))
    tokens = torch.tensor([token for _, token in live], device=state.positions.device)
    return generator.advance(state, tokens.repeat_interleave(k))


def _hopeful(generator: Generator, beams: list[Beam], log_prior: Tensor, first: Tensor) -> list[str]:
    """The distinct texts of K beams that can still be the best under all passages.

    Of each text log p(y|x) lies between two bounds that cost nothing. Below: its passages' own beams, where they hold
    its very tokens. Above: those, and for every other passage the probability of its first token, or what that
    passage's own beam has left over for other texts, whichever is less. `first` [K, V] are the log-probabilities of the
    first token. What cannot reach the largest lower bound is not scored.
    """
    texts = list(dict.fromkeys(generator.text(ids) for beam in beams for ids, _ in beam))
    wanted = [tuple(generator.fitting_ids(text)) for text in texts]
    held = [{tuple(ids): score for ids, score in beam} for beam in beams]
    rest = [math.log(max(0.0, 1 - sum(map(math.exp, own.values()))) + 1e-9) for own in held]
    starts = first[:, [ids[0] for ids in wanted]].tolist()
    low, high = torch.full((2, len(texts), len(beams)), -torch.inf)
    for row, ids in enumerate(wanted):
        for column, own in enumerate(held):
            low[row, column] = own.get(ids, -math.inf)
            high[row, column] = own.get(ids, min(starts[column][row], rest[column]))
    prior = log_prior.cpu()
    reached = float(torch.logsumexp(prior + low, dim=-1).max())
    reachable = torch.logsumexp(prior + high, dim=-1).tolist()
    return [text for text, best in zip(texts, reachable, strict=True) if best >= reached - SLACK]


def _fast_best(generator: Generator, beams: list[Beam], log_prior: Tensor) -> str:
    """The text with the largest marginal when a passage counts only for texts of its own beam."""
    totals: dict[str, Tensor] = {}
    for beam, prior in zip(beams, log_prior, strict=True):
        for ids, score in beam:
            text, joint = generator.text(ids), prior + score
            totals[text] = torch.logaddexp(totals[text], joint) if text in totals else joint
    return max(totals, key=lambda text: float(totals[text]))


def _rescore(
    generator: Generator, state: State, log_prior: Tensor, candidates: list[list[str]], marginal: str
) -> list[Decoded]:
    """The candidate with the largest log p(y|x) of each question, scored under all its passages; ties to the first."""
    k = log_prior.shape[1]
    best: list[Decoded | None] = [None] * len(candidates)
    for slot in range(max(map(len, candidates))):
        rows = [number for number, texts in enumerate(candidates) if slot < len(texts)]
        answers = [generator.fitting_ids(candidates[row][slot]) for row in rows]
        flat = torch.tensor([row * k + j for row in rows for j in range(k)], device=log_prior.device)
        chosen = state if len(flat) == len(state.log_probs) else state.select(flat)
        log_probs, mask = generator.score(chosen, [answer for answer in answers for _ in range(k)])
        log_probs, mask = log_probs.reshape(len(rows), k, -1), mask.reshape(len(rows), k, -1)
        prior = log_prior[rows]
        totals = log_likelihood(marginal, prior, log_probs, mask)
        posteriors, by_token = _posteriors(marginal, prior, log_probs, mask)
        found = zip(rows, answers, totals.tolist(), posteriors.tolist(), by_token.tolist(), strict=True)
        for row, answer, total, posterior, columns in found:
            standing = best[row]
            if standing is None or total > standing.log_probability:
                tokens = tuple(generator.tokenizer.decode([token]) for token in answer)
                of_tokens = tuple(zip(*(column[: len(answer)] for column in columns), strict=True))
                best[row] = Decoded(candidates[row][slot], total, tokens, tuple(posterior), of_tokens)
    return [decoded for decoded in best if decoded is not None]


def _posteriors(marginal: str, log_prior: Tensor, log_probs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """p(z|x,y) [B, K], for the token marginal its mean over the answer's tokens; and p(z|x,y_<=t) [B, K, T]."""
    if marginal == "sequence":
        return sequence_posterior(log_prior, log_probs, mask), running_posterior(log_prior, log_probs, mask)
    by_token = token_posterior(log_prior, log_probs)
    return (by_token * mask).sum(-1) / mask.sum(-1), by_token
