"""ragx.evaluation.seeds, and the error of a mean over seeds."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from ragx.errors import ArtifactError
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.report import score
from ragx.evaluation.seeds import require_seeds, together
from ragx.evaluation.significance import Bootstrap, difference, sample, seed_error
from ragx.evaluation.statistic import mean
from ragx.records import Prediction


def run(*answers):
    """Predictions of questions whose answer is x."""
    return score([Prediction(str(n), "?", ("x",), text) for n, text in enumerate(answers)], parse_metrics(["em"]))


def test_the_mean_over_runs_with_the_middle_one_shown():
    runs = [run("x", "x", "x", "x"), run("y", "y", "y", "y"), run("x", "y", "y", "y")]
    found = together(runs)
    assert found.values == {"em": (1.0, 0.0, 0.25)}
    assert float(found.statistics["em"](np.ones((1, 4)))[0]) == pytest.approx(1.25 / 3)
    assert (found.shown, found.predictions) == (2, runs[2].predictions)


def test_one_run_stays_as_it_is():
    alone = run("x", "y")
    assert together([alone]) is alone


@pytest.mark.parametrize("sides", [[[0.1, 0.3, 0.2], [0.5, 0.4]], [[1.0, 2.0], [1.0, 1.5, 4.0, 2.0]]])
def test_error_of_a_difference_is_welchs(sides):
    found, theirs = seed_error(*sides), ttest_ind(sides[1], sides[0], equal_var=False)
    assert found.freedom == pytest.approx(theirs.df)
    assert (np.mean(sides[1]) - np.mean(sides[0])) / found.error == pytest.approx(theirs.statistic)


@pytest.mark.parametrize("sides", [[[0.3]], [[0.3], [0.4]], [[0.25, 0.25, 0.25]]])
def test_no_spread_no_error(sides):
    assert seed_error(*sides) is None


def test_one_run_is_sampled_as_before():
    values = list(np.random.default_rng(0).random(40))
    alone = sample({"x": mean(values)}, 40, Bootstrap(200, 0.95, 13))["x"]
    named = sample({"x": mean(values)}, 40, Bootstrap(200, 0.95, 13), {"x": None})["x"]
    assert alone.interval(0.95) == named.interval(0.95)


def trainings(draw, seeds, effect=0.05, questions=60):
    """Scores [S, n] of seeds that answer each question by its difficulty and their own luck."""
    hard = draw.random(questions)
    return [(draw.random(questions) < np.clip(hard + draw.normal(0, effect), 0, 1)).astype(float) for _ in range(seeds)]


def over(runs):
    return lambda counts: np.mean([mean(list(each))(counts) for each in runs], axis=0)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_what_other_seeds_and_questions_would_give(seeds):
    """The mean of all trainings on all questions is 0.5: 95 % intervals hold it in 190 of 200 simulations, give or take
    three standard errors below; without the seeds' error the same intervals do in fewer."""
    draw, held, plain = np.random.default_rng(seeds), 0, 0
    for number in range(200):
        runs = trainings(draw, seeds, effect=0.15)
        error = seed_error([float(each.mean()) for each in runs])
        for errors in ({"x": error}, {}):
            interval = sample({"x": over(runs)}, 60, Bootstrap(200, 0.95, number), errors)["x"].interval(0.95)
            inside = interval.low <= 0.5 <= interval.high
            held, plain = (held + inside, plain) if errors else (held, plain + inside)
    assert held >= 181 > plain


def test_a_difference_of_trainings_is_wider_than_that_of_two_models():
    draw = np.random.default_rng(3)
    before, after = trainings(draw, 3), trainings(draw, 3)
    change = difference(over(before), over(after))
    error = seed_error(*([float(each.mean()) for each in side] for side in (before, after)))
    narrow = sample({"x": change}, 60, Bootstrap(500, 0.95, 1))["x"].interval(0.95)
    wide = sample({"x": change}, 60, Bootstrap(500, 0.95, 1), {"x": error})["x"].interval(0.95)
    assert wide.value == narrow.value
    assert wide.high - wide.low > narrow.high - narrow.low
    assert wide.detectable > narrow.detectable


def test_signatures_are_joined():
    merged = require_seeds([("a", {"predictions": "1", "index": "i"}), ("b", {"predictions": "2", "index": "i"})])
    assert merged == {"predictions": "1 / 2", "index": "i", "seeds": "2"}
    assert require_seeds([("a", {"predictions": "1"})]) == {"predictions": "1"}


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"predictions": "1", "index": "i"}, "b: the same predictions as a; a seed counts once"),
        ({"predictions": "2", "index": "j"}, "b: not another seed of a: index j, there i"),
    ],
)
def test_what_is_no_other_seed(second, named):
    with pytest.raises(ArtifactError, match=named):
        require_seeds([("a", {"predictions": "1", "index": "i"}), ("b", second)])
