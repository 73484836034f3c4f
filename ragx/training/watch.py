"""What a training shows while it runs, and the signs that it has collapsed.

A retriever trained on a marginal can fall into states that the loss alone does not tell apart from learning: the same
passages for every question, a prior that says nothing, gold passages that lose their mass.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.rag.model import Loss
from ragx.records import NOTHING, Example

FIXED_COLUMNS = 5
DIVERGED = 2.0
"""Nats a token by which answers may become less likely than they were at the start."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """What some questions showed: nats a token and a question, prior mass on gold documents (0-1), share of retrieved
    passages that are distinct (0-1), entropy of the prior over the hits in nats, share of passages that carried the
    posterior (0-1), and the number of questions."""

    nll_per_token: float
    nll: float
    p_gold: float
    unique: float
    prior_entropy: float
    kept: float
    questions: int


def rows_of(loss: Loss, examples: Sequence[Example]) -> Tensor:
    """What `monitor_of` needs of B questions, [B, 5 + K]: nll, tokens, P(gold), prior entropy, share of passages kept,
    and the numbers of the passages."""
    passages = [[passage for passage in row if passage != NOTHING] for row in loss.retrieval.passages]
    log_prior = loss.retrieval.log_prior.detach().double()[:, : len(passages[0])]
    prior = torch.softmax(log_prior, dim=-1)
    gold = [[p.document_id in example.doc_ids for p in row] for example, row in zip(examples, passages, strict=True)]
    p_gold = (log_prior.exp().cpu() * torch.tensor(gold)).sum(-1)
    columns = [loss.nll.detach(), loss.tokens, p_gold, torch.special.entr(prior).sum(-1), loss.kept]
    fixed = torch.stack([column.double().cpu() for column in columns], dim=-1)
    numbers = torch.tensor([[passage.number for passage in row] for row in passages], dtype=torch.float64)
    return torch.cat([fixed, numbers], dim=-1)


def monitor_of(table: Tensor) -> Monitor:
    """Summarise the rows of some questions."""
    nll, tokens, p_gold, entropy, kept = table[:, :FIXED_COLUMNS].unbind(-1)
    numbers = table[:, FIXED_COLUMNS:]
    return Monitor(
        nll_per_token=float(nll.sum() / tokens.sum()),
        nll=float(nll.mean()),
        p_gold=float(p_gold.mean()),
        unique=len(torch.unique(numbers)) / numbers.numel(),
        prior_entropy=float(entropy.mean()),
        kept=float(kept.mean()),
        questions=len(table),
    )


def mean(monitors: Sequence[Monitor]) -> Monitor:
    """The mean of several monitors, weighed by their questions."""
    total = sum(monitor.questions for monitor in monitors)
    names = [field.name for field in dataclasses.fields(Monitor) if field.name != "questions"]
    means = {name: sum(getattr(m, name) * m.questions for m in monitors) / total for name in names}
    return Monitor(**means, questions=total)


def alarm(start: Monitor, now: Monitor, top_k: int) -> str | None:
    """What has collapsed since the start, in words; None when nothing has.

    A fall of P(gold) counts when it is beyond what chance does to that many questions (two standard errors of a share).
    """
    most = math.log(top_k)
    chance = 1 / math.sqrt(now.questions)
    if not math.isfinite(now.nll):
        return "the loss is not finite"
    if now.nll_per_token > start.nll_per_token + DIVERGED:
        return f"answers became less likely (nll/token {start.nll_per_token:.2f} -> {now.nll_per_token:.2f})"
    if now.unique < 0.5 * start.unique:
        return f"the same passages for every question (unique passages {start.unique:.2f} -> {now.unique:.2f})"
    if now.p_gold + chance < 0.5 * start.p_gold:
        return f"gold passages lost their prior (P(gold) {start.p_gold:.2f} -> {now.p_gold:.2f})"
    if now.prior_entropy > 0.98 * most and start.prior_entropy < 0.8 * most:
        return f"the prior became flat (entropy {start.prior_entropy:.2f} -> {now.prior_entropy:.2f} nats)"
    sharp = now.prior_entropy < 0.02 * most and start.prior_entropy > 0.2 * most
    if sharp and now.nll_per_token > start.nll_per_token:
        return (
            f"the prior is all on one passage (entropy {start.prior_entropy:.2f} -> {now.prior_entropy:.2f} nats) "
            "and answers are no likelier"
        )
    return None


def status(monitor: Monitor) -> str:
    """The figures in one line."""
    return (
        f"nll/token {monitor.nll_per_token:.3f}, P(gold) {monitor.p_gold:.2f}, unique passages {monitor.unique:.2f}, "
        f"prior entropy {monitor.prior_entropy:.2f}"
    )
