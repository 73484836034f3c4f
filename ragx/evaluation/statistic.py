"""Figures over a set of questions, as functions of how often each question counts: what a bootstrap resamples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Counts [R, n] of n questions in R resamples -> the figure [R] of each."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric over n questions: the score of each, None where the figure exists for a set only, and its statistic."""

    scores: list[float] | None
    statistic: Statistic


def mean(scores: Sequence[float], weights: Sequence[float] | None = None) -> Statistic:
    """The weighted mean of the scores."""
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    weighted = np.asarray(scores, dtype=np.float64) * weight

    def figure(counts: Floats) -> Floats:
        total: Floats = (counts @ weighted) / (counts @ weight)
        return total

    return figure


def percentile(values: Sequence[float], percent: int) -> Statistic:
    """The nearest-rank percentile of the values."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[order]

    def figure(counts: Floats) -> Floats:
        below = counts[:, order].cumsum(-1)
        rank = np.ceil(percent / 100 * below[:, -1:])
        found: Floats = ordered[(below >= rank).argmax(-1)]
        return found

    return figure


def averaged(scores: list[float]) -> Measured:
    """A metric that is the mean of its scores."""
    return Measured(scores, mean(scores))
