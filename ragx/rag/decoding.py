"""Answers from the marginal: candidates by beam search, rescored over all passages.

Every (question, passage) prompt runs through the model once. RAG-Token decodes on the marginal of every step.
RAG-Sequence takes each passage's best texts as candidates and then either scores each under all passages
("thorough") or counts only the passages whose beam holds it ("fast"; Lewis et al. 2020, section 2.5). Of the candidates
the likeliest is the answer, or the one that is expected to overlap most with the others ("mbr").
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.errors import RagxError
from ragx.rag.beams import NO_NUMBER, Beam, Stream, beam_search
from ragx.rag.generator import Generator
from ragx.rag.marginal import (
    log_likelihood,
    running_posterior,
    sequence_posterior,
    token_posterior,
)
from ragx.rag.state import State

SLACK = 0.05
"""Nats by which log p of the same tokens may differ between two passes of a bfloat16 model."""

Held = dict[tuple[int, ...], tuple[float, ...]]
"""What a passage's beam holds: token sequences with log p of each token."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text with the tokens it is scored as, and log p of each of them under the passages whose beams hold them."""

    text: str
    ids: tuple[int, ...]
    known: dict[int, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its log p(y|x), and the posterior of its K passages, [K] and after each token [K, T]."""

    candidate: Candidate
    total: float
    posterior: Tensor
    by_token: Tensor


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

    Raises:
        RagxError: a log-probability is not a number.
    """
    questions, k = log_prior.shape
    if marginal == "token":
        found = beam_search(generator, state, log_prior, num_beams, stream if num_beams == questions == 1 else None)
        kept = num_beams if decoding == "mbr" else 1
        held = [[_held(best[:kept], column) for column in range(k)] for best in found]
    else:
        alone = torch.zeros((questions * k, 1), device=log_prior.device)
        beams = [_held(beam, 0) for beam in beam_search(generator, state, alone, num_beams)]
        held = [beams[row * k : (row + 1) * k] for row in range(questions)]
    candidates = []
    for row, own in enumerate(held):
        texts = list(dict.fromkeys(generator.text(ids) for beam in own for ids in beam))
        if decoding == "fast":
            texts = [_fast_best(generator, own, log_prior[row])]
        of_row = [_candidate(generator, text, own) for text in texts]
        first = state.log_probs[row * k : (row + 1) * k]
        all_count = decoding == "mbr" or len(of_row) == 1
        candidates.append(of_row if all_count else _hopeful(of_row, own, log_prior[row], first))
    scored = _rescore(generator, state, log_prior, candidates, marginal)
    best = [_of_least_risk(each) if decoding == "mbr" else max(each, key=lambda one: one.total) for each in scored]
    return [_decoded(generator, each) for each in best]


def _held(beam: Beam, column: int) -> Held:
    return {written.ids: tuple(by_passage[column] for by_passage in written.by_token) for written in beam}


def _candidate(generator: Generator, text: str, held: list[Held]) -> Candidate:
    ids = tuple(generator.fitting_ids(text))
    return Candidate(text, ids, {column: own[ids] for column, own in enumerate(held) if ids in own})


def _hopeful(candidates: list[Candidate], held: list[Held], log_prior: Tensor, first: Tensor) -> list[Candidate]:
    """The candidates that can still be the best under all K passages.

    Of each log p(y|x) lies between two bounds that cost nothing. Below: its passages' own beams, where they hold its
    very tokens. Above: those, and for every other passage the probability of its first token, or what that passage's
    own beam has left over for other texts, whichever is less. `first` [K, V] are the log-probabilities of the first
    token. What cannot reach the largest lower bound is not scored.
    """
    rest = [math.log(max(0.0, 1 - sum(math.exp(sum(logs)) for logs in own.values())) + 1e-9) for own in held]
    starts = first[:, [candidate.ids[0] for candidate in candidates]].tolist()
    low, high = torch.full((2, len(candidates), len(held)), -torch.inf)
    for row, candidate in enumerate(candidates):
        for column, left in enumerate(rest):
            known = sum(candidate.known.get(column, (-math.inf,)))
            low[row, column] = known
            high[row, column] = known if column in candidate.known else min(starts[column][row], left)
    prior = log_prior.cpu()
    reached = float(torch.logsumexp(prior + low, dim=-1).max())
    reachable = torch.logsumexp(prior + high, dim=-1).tolist()
    return [each for each, best in zip(candidates, reachable, strict=True) if best >= reached - SLACK]


def _fast_best(generator: Generator, held: list[Held], log_prior: Tensor) -> str:
    """The text with the largest marginal when a passage counts only for texts of its own beam."""
    totals: dict[str, Tensor] = {}
    for own, prior in zip(held, log_prior, strict=True):
        for ids, logs in own.items():
            text, joint = generator.text(ids), prior + sum(logs)
            totals[text] = torch.logaddexp(totals[text], joint) if text in totals else joint
    return max(totals, key=lambda text: float(totals[text]))


def _of_least_risk(scored: Sequence[Scored]) -> Scored:
    """The candidate of most expected overlap with the answer, were the candidates all there are: of minimum Bayes risk
    (Kumar and Byrne 2004). Overlap is the F1 of tokens, whatever their order; ties to the first."""
    weights: list[float] = torch.softmax(torch.tensor([one.total for one in scored]), dim=0).tolist()
    bags = [Counter(one.candidate.ids) for one in scored]

    def expected(bag: Counter[int]) -> float:
        overlaps = [2 * (bag & other).total() / (bag.total() + other.total()) for other in bags]
        return math.fsum(weight * overlap for weight, overlap in zip(weights, overlaps, strict=True))

    return max(zip(map(expected, bags), scored, strict=True), key=lambda pair: pair[0])[1]


def _rescore(
    generator: Generator, state: State, log_prior: Tensor, candidates: list[list[Candidate]], marginal: str
) -> list[list[Scored]]:
    """The candidates of each question with their log p(y|x) under all its passages."""
    scored: list[list[Scored]] = [[] for _ in candidates]
    for slot in range(max(map(len, candidates))):
        rows = [number for number, own in enumerate(candidates) if slot < len(own)]
        chosen = [candidates[row][slot] for row in rows]
        prior = log_prior[rows]
        log_probs, mask = _token_log_probs(generator, state, rows, chosen, prior)
        totals = log_likelihood(marginal, prior, log_probs, mask)
        posteriors, by_token = (part.cpu() for part in _posteriors(marginal, prior, log_probs, mask))
        for place, (row, total) in enumerate(zip(rows, totals.tolist(), strict=True)):
            if math.isnan(total):
                raise RagxError(NO_NUMBER)
            scored[row].append(Scored(chosen[place], total, posteriors[place], by_token[place]))
    return scored


def _decoded(generator: Generator, scored: Scored) -> Decoded:
    ids = scored.candidate.ids
    tokens = tuple(generator.tokenizer.decode([token]) for token in ids)
    by_token = tuple(zip(*(column[: len(ids)] for column in scored.by_token.tolist()), strict=True))
    return Decoded(scored.candidate.text, scored.total, tokens, tuple(scored.posterior.tolist()), by_token)


def _token_log_probs(
    generator: Generator, state: State, rows: list[int], chosen: list[Candidate], log_prior: Tensor
) -> tuple[Tensor, Tensor]:
    """log p [R, K, T] and mask [R, 1, T] of a candidate for each of the questions `rows`: what is known, or scored."""
    k = log_prior.shape[1]
    lengths = torch.tensor([len(each.ids) for each in chosen], device=log_prior.device)
    mask = torch.arange(int(lengths.max()), device=log_prior.device) < lengths[:, None, None]
    log_probs = torch.zeros((len(rows), k, mask.shape[-1]), device=log_prior.device)
    for place, each in enumerate(chosen):
        for column, logs in each.known.items():
            log_probs[place, column, : len(logs)] = torch.tensor(logs, device=log_prior.device)
    unknown = [(place, j) for place, each in enumerate(chosen) for j in range(k) if j not in each.known]
    if unknown:
        places, columns = map(list, zip(*unknown, strict=True))
        flat = torch.tensor([rows[place] * k + column for place, column in unknown], device=state.positions.device)
        part = state if len(flat) == len(state.log_probs) else state.select(flat)
        found, _ = generator.score(part, [chosen[place].ids for place in places])
        log_probs[places, columns, : found.shape[1]] = found
    return log_probs, mask


def _posteriors(marginal: str, log_prior: Tensor, log_probs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """p(z|x,y) [B, K], for the token marginal its mean over the answer's tokens; and p(z|x,y_<=t) [B, K, T]."""
    if marginal == "sequence":
        return sequence_posterior(log_prior, log_probs, mask), running_posterior(log_prior, log_probs, mask)
    by_token = token_posterior(log_prior, log_probs)
    return (by_token * mask).sum(-1) / mask.sum(-1), by_token
