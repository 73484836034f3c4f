"""How sure a figure is: percentile bootstrap over questions (Efron 1979), paired for differences."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from ragx.records import Interval


def interval(
    values: Sequence[float], weights: Sequence[float], *, resamples: int, confidence: float, seed: int
) -> Interval:
    """The weighted mean of per-question values with its interval; questions are what is resampled."""
    data, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    mean = float(_weighted_mean(data, weight))
    if len(data) == 1 or bool((data == data[0]).all()):
        return Interval(mean, mean, mean)
    found = bootstrap(
        (data, weight),
        _weighted_mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        paired=True,
        vectorized=True,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """The mean of after - before over the same questions, with its interval."""
    differences = [new - old for old, new in zip(before, after, strict=True)]
    return interval(differences, weights, resamples=resamples, confidence=confidence, seed=seed)


def _weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64] | np.float64:
    mean: NDArray[np.float64] | np.float64 = (values * weights).sum(axis=axis) / weights.sum(axis=axis)
    return mean
