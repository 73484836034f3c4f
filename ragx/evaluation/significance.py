"""How sure a figure is: the bootstrap over questions (Efron 1979), paired for differences.

Every metric is resampled with the same draws, so a difference of two runs is paired question by question, also for
figures that exist for a set only (BLEU, calibration). Percentiles are expanded as for small samples (Hesterberg 2015):
plain ones are too narrow by sqrt((n - 1) / n) and by what t quantiles add.
"""

from collections.abc import Mapping
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
class Sampled:
    """A figure over n questions and its values in the resamples [R]."""

    value: float
    draws: Floats
    n: int

    def interval(self, confidence: float) -> Interval:
        """The expanded percentile interval at a confidence level, with the effect that this spread lets one detect."""
        if self.n == 1:
            return Interval(self.value, self.value, self.value)
        tail = float(norm.cdf(np.sqrt(self.n / (self.n - 1)) * t.ppf((1 - confidence) / 2, self.n - 1)))
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return Interval(self.value, float(low), float(high), _detectable(float(self.draws.std(ddof=1)), confidence))


def sample(statistics: Mapping[str, Statistic], n: int, bootstrap: Bootstrap) -> dict[str, Sampled]:
    """Each figure with its resamples, all from the same draws of n questions."""
    generator = np.random.default_rng(bootstrap.seed)
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    for start in range(0, bootstrap.resamples, _ROWS):
        rows = min(_ROWS, bootstrap.resamples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=rows).astype(np.float64)
        for name, statistic in statistics.items():
            draws[name].append(statistic(counts))
    once = np.ones((1, n))
    return {
        name: Sampled(float(statistic(once)[0]), np.concatenate(draws[name]), n)
        for name, statistic in statistics.items()
    }


def difference(before: Statistic, after: Statistic) -> Statistic:
    """after - before over the same questions."""
    return lambda counts: after(counts) - before(counts)


def detectable_alone(interval: Interval) -> float:
    """The effect one detects against another run whose errors have nothing to do with this one's: the worst case."""
    return float(np.sqrt(2)) * interval.detectable


def _detectable(deviation: float, confidence: float) -> float:
    """The true change that an interval of this confidence excludes 0 for, with probability POWER."""
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(POWER)) * deviation
