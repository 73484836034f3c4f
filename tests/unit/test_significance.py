"""ragx.evaluation.significance: bootstrap intervals."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from ragx.evaluation.significance import Bootstrap, difference, sample
from ragx.evaluation.statistic import mean
from ragx.records import Interval


def interval(values, weights=None, resamples=500, confidence=0.95, seed=13):
    found = sample({"x": mean(values, weights)}, len(values), Bootstrap(resamples, confidence, seed))
    return found["x"].interval(confidence)


def test_weighted_mean():
    assert interval([1.0, 0.0], [3.0, 1.0]).value == 0.75


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_no_spread_no_width(values):
    assert interval(values) == Interval(0.5, 0.5, 0.5, 0.0)


def test_same_seed_same_interval():
    values = list(np.random.default_rng(0).random(50))
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=14)


def test_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    found = interval(list(values), resamples=2000)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_interval_is_scipys_where_samples_are_large():
    """Another generator's draws: 5 % of the width is several standard errors of a quantile of 4000."""
    values = np.random.default_rng(4).random(1000)
    ours = interval(list(values), resamples=4000)
    theirs = scipy_bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_small_samples_have_wider_intervals_than_plain_percentiles():
    values = [0.0, 0.2, 0.5, 0.9, 1.0]
    draws = sample({"x": mean(values)}, 5, Bootstrap(2000, 0.95, 13))["x"].draws
    low, high = np.quantile(draws, [0.025, 0.975])
    found = interval(values, resamples=2000)
    assert found.low < low and found.high > high


def test_confidence_widens():
    values = list(np.random.default_rng(2).random(60))
    narrow, wide = (interval(values, confidence=c) for c in (0.6, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_difference_is_paired():
    before = list(np.random.default_rng(3).random(40))
    change = difference(mean(before), mean([value + 0.25 for value in before]))
    found = sample({"x": change}, 40, Bootstrap(500, 0.95, 13))["x"].interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_detectable_effect_is_that_of_the_z_test():
    values = np.random.default_rng(6).normal(size=2000)
    found = interval(list(values), resamples=4000)
    expected = (1.959964 + 0.841621) * values.std() / np.sqrt(2000)
    assert found.detectable == pytest.approx(expected, rel=0.05)


def test_more_questions_detect_less():
    values = np.random.default_rng(7).normal(size=3200)
    assert interval(list(values)).detectable < 0.5 * interval(list(values[:200])).detectable


@pytest.mark.parametrize("already", [0.0, 0.2])
def test_a_detectable_drop_is_detected_four_times_in_five(already):
    """Of 200 simulations with a true drop of what is stated, where runs that are alike, or differ in some questions,
    lose answers: 80 % less three standard errors; more where they are alike: few losses are no normal variable."""
    draw, stated, found, n = np.random.default_rng(9), [], 0, 150

    def pair(lost):
        before = (draw.random(n) < 0.6).astype(float)
        after = np.where(draw.random(n) < already, draw.random(n) < 0.6, before)
        return before, np.where(draw.random(n) < lost / 0.6, 0.0, after)

    def change(pair, seed):
        statistic = difference(*(mean(list(each)) for each in pair))
        return sample({"x": statistic}, n, Bootstrap(200, 0.95, seed), units={"x": 1.0})["x"].interval(0.95)

    for seed in range(40):
        stated.append(change(pair(0.0), seed).detectable)
    for seed in range(200):
        found += change(pair(float(np.mean(stated))), seed).high < 0
    assert 0.715 <= found / 200 <= (0.885 if already else 0.99)


def test_intervals_cover_at_their_nominal_rate():
    """F1-like scores with most of their mass at 0 and 1, 100 questions, 500 simulations: 95 % within two points."""
    draw = np.random.default_rng(8)
    held = 0
    for number in range(500):
        kind = draw.random(100)
        scores = np.where(kind < 0.45, 0.0, np.where(kind < 0.75, 1.0, draw.beta(2, 2, 100)))
        found = interval(list(scores), resamples=400, seed=number)
        held += found.low <= 0.3 + 0.25 / 2 <= found.high
    assert 0.93 <= held / 500 <= 0.97
