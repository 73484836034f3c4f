"""Answers from the marginal: beam search on p(y|x), and rescoring of candidates over all passages.

Every (question, passage) prompt runs through the model once. RAG-Token decodes on the marginal of every step.
RAG-Sequence takes each passage's best texts as candidates and then either scores each under all passages
("thorough") or counts only the passages whose beam holds it ("fast"; Lewis et al. 2020, section 2.5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.rag.generator import Generator, State
from ragx.rag.marginal import (
    log_likelihood,
    sequence_posterior,
    token_posterior,
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer with log p(y|x), the number of its tokens with the end, and the posterior of its K passages."""

    text: str
    log_probability: float
    tokens: int
    posterior: tuple[float, ...]


def decode(
    generator: Generator, state: State, log_prior: Tensor, *, marginal: str, decoding: str, num_beams: int
) -> list[Decoded]:
    """The best answer to each of B questions, from the started state of its B * K prompts and its log-prior [B, K]."""
    questions, k = log_prior.shape
    if marginal == "token":
        found = beam_search(generator, state, log_prior, num_beams)
        candidates = [[generator.text(best[0][0])] for best in found]
        return _rescore(generator, state, log_prior, candidates, marginal)
    alone = torch.zeros((questions * k, 1), device=log_prior.device)
    beams = beam_search(generator, state, alone, num_beams)
    texts = [[(generator.text(ids), score) for ids, score in beam] for beam in beams]
    by_question = [texts[row * k : (row + 1) * k] for row in range(questions)]
    if decoding == "fast":
        candidates = [[_fast_best(row, prior)] for row, prior in zip(by_question, log_prior, strict=True)]
    else:
        candidates = [list(dict.fromkeys(text for beam in row for text, _ in beam)) for row in by_question]
    return _rescore(generator, state, log_prior, candidates, marginal)


def beam_search(
    generator: Generator, state: State, log_prior: Tensor, num_beams: int
) -> list[list[tuple[list[int], float]]]:
    """For each of G groups of K rows of `state`, up to `num_beams` token sequences with their log-probabilities.

    A step's distribution is the marginal over the group's rows under `log_prior` [G, K]; with K = 1 and a log-prior of
    0 it is the model's own. One beam is greedy search. No length normalisation: the score is log p(y|x).
    """
    groups, k = log_prior.shape
    device = log_prior.device
    width = num_beams * (1 + len(generator.stop_ids))
    written: list[list[list[int]]] = [[[]] for _ in range(groups)]
    scores = torch.zeros((groups, 1), device=device)
    finished: list[list[tuple[list[int], float]]] = [[] for _ in range(groups)]
    for step in range(generator.max_answer_tokens):
        beams = scores.shape[1]
        rows = state.log_probs.reshape(groups, beams, k, -1)
        marginals = torch.logsumexp(rows + log_prior[:, None, :, None], dim=2)
        flat = (scores.unsqueeze(-1) + marginals).flatten(1)
        totals, choices = flat.topk(min(width, flat.shape[-1]), dim=-1)
        vocabulary = marginals.shape[-1]
        last = step == generator.max_answer_tokens - 1
        kept: list[list[tuple[int, int, float]]] = []
        for group in range(groups):
            live: list[tuple[int, int, float]] = []
            for rank, (total, choice) in enumerate(zip(totals[group].tolist(), choices[group].tolist(), strict=True)):
                beam, token = divmod(choice, vocabulary)
                if token in generator.stop_ids or last:
                    if rank < num_beams:
                        finished[group].append(([*written[group][beam], token], total))
                elif len(live) < num_beams:
                    live.append((beam, token, total))
            kept.append(live)
        if last or all(_done(done, live, num_beams) for done, live in zip(finished, kept, strict=True)):
            break
        written = [[[*written[g][beam], token] for beam, token, _ in live] for g, live in enumerate(kept)]
        scores = torch.tensor([[total for _, _, total in live] for live in kept], device=device)
        parents = torch.tensor([[beam for beam, _, _ in live] for live in kept], device=device)
        tokens = torch.tensor([[token for _, token, _ in live] for live in kept], device=device)
        offsets = torch.arange(groups, device=device)[:, None] * beams
        sources = (((offsets + parents) * k).unsqueeze(-1) + torch.arange(k, device=device)).reshape(-1)
        same = torch.equal(sources, torch.arange(len(sources), device=device)) and len(sources) == len(state.log_probs)
        state = generator.advance(state if same else state.select(sources), tokens.reshape(-1).repeat_interleave(k))
    return [sorted(done, key=lambda found: -found[1])[:num_beams] for done in finished]


def _done(finished: list[tuple[list[int], float]], live: list[tuple[int, int, float]], num_beams: int) -> bool:
    """No live beam can still enter the best: scores only fall."""
    best = sorted((score for _, score in finished), reverse=True)[:num_beams]
    return len(best) == num_beams and best[-1] >= max(total for _, _, total in live)


def _fast_best(beams: list[list[tuple[str, float]]], log_prior: Tensor) -> str:
    """The text with the largest marginal when a passage counts only for texts of its own beam."""
    totals: dict[str, Tensor] = {}
    for beam, prior in zip(beams, log_prior, strict=True):
        for text, score in beam:
            joint = prior + score
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
        posteriors = _posteriors(marginal, prior, log_probs, mask)
        for row, answer, total, posterior in zip(rows, answers, totals.tolist(), posteriors.tolist(), strict=True):
            standing = best[row]
            if standing is None or total > standing.log_probability:
                best[row] = Decoded(candidates[row][slot], total, len(answer), tuple(posterior))
    return [decoded for decoded in best if decoded is not None]


def _posteriors(marginal: str, log_prior: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """p(z|x,y) [B, K]; for the token marginal the mean over the answer's tokens."""
    if marginal == "sequence":
        return sequence_posterior(log_prior, log_probs, mask)
    return (token_posterior(log_prior, log_probs) * mask).sum(-1) / mask.sum(-1)
