"""Exact match and F1 of short answers (SQuAD; Rajpurkar et al. 2016)."""

from collections import Counter
from collections.abc import Sequence

from ragx.evaluation.text import units


def exact_match(answer: str, references: Sequence[str], *, by_character: bool = False) -> float:
    """1 where the normalised answer equals a normalised reference, else 0."""
    found = units(answer, by_character)
    return float(any(found == units(reference, by_character) for reference in references))


def f1(answer: str, references: Sequence[str], *, by_character: bool = False) -> float:
    """The best harmonic mean of precision and recall of units over the references, 0-1."""
    found = units(answer, by_character)
    return max(_f1(found, units(reference, by_character)) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))
