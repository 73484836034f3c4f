"""Metrics as values with a name that round-trips (`recall@5`). Every question is scored by every metric."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ir_measures

from ragx.corpus.answers import normalise_answer
from ragx.errors import ConfigError
from ragx.records import Example

_RETRIEVAL = {"recall": ir_measures.R, "mrr": ir_measures.RR, "ndcg": ir_measures.nDCG}
_KNOWN = ("em", "f1", "nll", *(f"{name}@5" for name in _RETRIEVAL))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is scored: the answer, for each retrieved passage its document and whether it holds a reference answer, and
    the reference's NLL in nats and number of tokens."""

    answer: str
    documents: tuple[str, ...]
    holds_answer: tuple[bool, ...]
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Metric:
    """A named score of one question; `cutoff` counts passages, None for metrics of the answer."""

    name: str
    cutoff: int | None
    score: Callable[[Outcome, Example], float]

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller figure is the better one."""
        return self.name == "nll"


def parse_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of some names.

    Raises:
        ConfigError: with one line for every unknown name.
    """
    found, problems = [], []
    for name in names:
        metric = _parse(name)
        if metric is None:
            close = difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KNOWN)}"
            problems.append(f"eval.metrics: unknown metric {name!r}; {hint}")
        else:
            found.append(metric)
    if problems:
        raise ConfigError(*problems)
    return tuple(found)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the normalised answer equals a normalised reference, else 0 (SQuAD)."""
    return float(any(normalise_answer(answer) == normalise_answer(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """The best harmonic mean of token precision and recall over the references, 0-1 (SQuAD)."""
    return max(_f1(normalise_answer(answer).split(), normalise_answer(reference).split()) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))


def _parse(name: str) -> Metric | None:
    match name:
        case "em":
            return Metric(name, None, lambda outcome, example: exact_match(outcome.answer, example.answers))
        case "f1":
            return Metric(name, None, lambda outcome, example: f1(outcome.answer, example.answers))
        case "nll":
            return Metric(name, None, lambda outcome, _: outcome.nll / outcome.tokens)
    parts = re.fullmatch(r"([a-z]+)@([1-9]\d{0,3})", name)
    if parts is None or parts[1] not in _RETRIEVAL:
        return None
    kind, cutoff = parts[1], int(parts[2])
    return Metric(name, cutoff, lambda outcome, example: _retrieval(kind, cutoff, outcome, example))


def _retrieval(kind: str, cutoff: int, outcome: Outcome, example: Example) -> float:
    """Gold documents among the documents of the first `cutoff` passages, each ranked by its best passage.

    Without gold documents a passage that holds an answer counts as the gold one (DPR's top-k accuracy).
    """
    if example.doc_ids:
        ranked = list(dict.fromkeys(outcome.documents[:cutoff]))
        gold = set(example.doc_ids)
    else:
        first = next((rank for rank, holds in enumerate(outcome.holds_answer[:cutoff]) if holds), -1)
        ranked = [str(rank) for rank in range(len(outcome.holds_answer[:cutoff]))]
        gold = {str(first)}
    qrels = [ir_measures.Qrel("q", document, 1) for document in sorted(gold)]
    run = [ir_measures.ScoredDoc("q", document, -float(rank)) for rank, document in enumerate(ranked)]
    (result,) = ir_measures.iter_calc([_RETRIEVAL[kind] @ cutoff], qrels, run)
    return float(result.value)
