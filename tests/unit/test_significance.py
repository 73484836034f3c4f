"""ragx.evaluation.significance: bootstrap intervals."""

import numpy as np
import pytest

from ragx.evaluation.significance import interval, paired_difference
from ragx.records import Interval

HOW = {"resamples": 500, "confidence": 0.95, "seed": 13}


def test_weighted_mean():
    assert interval([1.0, 0.0], [3.0, 1.0], **HOW).value == 0.75


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_no_spread_no_width(values):
    assert interval(values, [1.0] * len(values), **HOW) == Interval(0.5, 0.5, 0.5)


def test_same_seed_same_interval():
    values = list(np.random.default_rng(0).random(50))
    assert interval(values, [1.0] * 50, **HOW) == interval(values, [1.0] * 50, **HOW)
    assert interval(values, [1.0] * 50, **HOW) != interval(values, [1.0] * 50, **{**HOW, "seed": 14})


def test_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    found = interval(list(values), [1.0] * 400, **{**HOW, "resamples": 2000})
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_confidence_widens():
    values = list(np.random.default_rng(2).random(60))
    narrow, wide = (interval(values, [1.0] * 60, **{**HOW, "confidence": c}) for c in (0.6, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_difference_is_paired():
    before = list(np.random.default_rng(3).random(40))
    found = paired_difference(before, [value + 0.25 for value in before], [1.0] * 40, **HOW)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_difference_needs_equal_lengths():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0], [1.0], **HOW)
