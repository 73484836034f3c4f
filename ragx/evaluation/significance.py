"""How sure a figure is: the bootstrap over questions (Efron 1979), paired for differences.

Every metric is resampled with the same draws, so a difference of two runs is paired question by question, also for
figures that exist for a set only (BLEU, calibration). Percentiles are expanded as for small samples (Hesterberg 2015):
plain ones are too narrow by sqrt((n - 1) / n) and by what t quantiles add.

A mean over S seeds of a training is unsure in two ways. Questions are resampled with the same draws for every seed. The
seeds are too few to be resampled: their mean has the standard error s / sqrt(S) with Student's t of S - 1 degrees of
freedom, and this error is added to the resamples. What seeds do to single questions is in both: a little too wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from ragx.evaluation.statistic import Floats, Statistic
from ragx.records import Interval

POWER = 0.8
_ROWS = 100


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resamples, confidence level (0-1) and seed."""

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class SeedError:
    """The standard error of a mean over seeds, and its degrees of freedom."""

    error: float
    freedom: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """A figure over n questions and its values in the resamples [R], with the error of its seeds where it has any. For
    a change, `unit` is the most that one question can change by; 0 where that is not known."""

    value: float
    draws: Floats
    n: int
    seeds: SeedError | None = None
    unit: float = 0.0

    def interval(self, confidence: float) -> Interval:
        """The expanded percentile interval at a confidence level, with the effect that this spread lets one detect."""
        if self.n == 1:
            return Interval(self.value, self.value, self.value)
        tail = float(norm.cdf(np.sqrt(self.n / (self.n - 1)) * t.ppf((1 - confidence) / 2, self.n - 1)))
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        deviation = float(self.draws.std(ddof=1))
        if self.seeds is not None:  # the tails of few seeds are beyond a standard deviation
            deviation = float(high - low) / 2 / float(norm.ppf((1 + confidence) / 2))
        return Interval(self.value, float(low), float(high), _detectable(deviation, confidence, self.unit / self.n))


def sample(
    statistics: Mapping[str, Statistic],
    n: int,
    bootstrap: Bootstrap,
    seeds: Mapping[str, SeedError | None] | None = None,
    units: Mapping[str, float] | None = None,
) -> dict[str, Sampled]:
    """Each figure with its resamples, all from the same draws of n questions; the error of its seeds and the unit of
    its change by its name."""
    generator = np.random.default_rng(bootstrap.seed)
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    for start in range(0, bootstrap.resamples, _ROWS):
        rows = min(_ROWS, bootstrap.resamples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=rows).astype(np.float64)
        for name, statistic in statistics.items():
            draws[name].append(statistic(counts))
    uniform = generator.random(bootstrap.resamples)
    once, errors = np.ones((1, n)), seeds or {}
    return {
        name: Sampled(
            float(statistic(once)[0]),
            np.concatenate(draws[name]) + _seed_draws(errors.get(name), uniform),
            n,
            errors.get(name),
            (units or {}).get(name, 0.0),
        )
        for name, statistic in statistics.items()
    }


def seed_error(*sides: Sequence[float]) -> SeedError | None:
    """The error of a mean over seeds, or of the difference of two such means (Welch), from the figures by seed.

    A side of one run adds none: it is taken as this very model, not as one of many that its training could give.
    """
    parts = [(float(np.var(side, ddof=1)) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    squared = sum(part for part, _ in parts)
    if not squared:
        return None
    return SeedError(squared**0.5, squared**2 / sum(part**2 / freedom for part, freedom in parts))


def _seed_draws(seeds: SeedError | None, uniform: Floats) -> Floats:
    """What the choice of seeds adds to each resample."""
    if seeds is None:
        return np.zeros_like(uniform)
    found: Floats = seeds.error * t.ppf(uniform, seeds.freedom)
    return found


def difference(before: Statistic, after: Statistic) -> Statistic:
    """after - before over the same questions."""
    return lambda counts: after(counts) - before(counts)


def detectable_alone(interval: Interval) -> float:
    """The effect one detects against another run whose errors have nothing to do with this one's: the worst case."""
    return float(np.sqrt(2)) * interval.detectable


def _detectable(deviation: float, confidence: float, step: float) -> float:
    """The true change that an interval of this confidence excludes 0 for, with probability POWER.

    A change d takes questions that change, at most by a step each: it adds a variance of step * d to the one seen. So d
    solves d = z * sqrt(deviation^2 + step * d); two runs that agree everywhere still cannot tell less than z^2 steps.
    """
    z = float(norm.ppf((1 + confidence) / 2) + norm.ppf(POWER))
    half = z * z * step / 2
    return half + float(np.hypot(half, z * deviation))
