"""What counts as a collapse, and what does not."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from ragx.records import Example, Passage
from ragx.training.watch import Monitor, alarm, mean, monitor_of, rows_of

START = Monitor(nll_per_token=3.0, nll=9.0, p_gold=0.5, unique=0.8, prior_entropy=0.7, kept=0.5, questions=320)
TOP_K = 5


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"nll": math.nan, "nll_per_token": math.nan}, "not finite"),
        ({"nll_per_token": 5.1}, "answers became less likely (nll/token 3.00 -> 5.10)"),
        ({"unique": 0.39}, "the same passages for every question (unique passages 0.80 -> 0.39)"),
        ({"p_gold": 0.19}, "gold passages lost their prior (P(gold) 0.50 -> 0.19)"),
        ({"prior_entropy": 0.99 * math.log(TOP_K)}, "the prior became flat"),
        ({"prior_entropy": 0.01, "nll_per_token": 3.1}, "the prior is all on one passage"),
    ],
)
def test_alarms(now, words):
    assert words in alarm(START, dataclasses.replace(START, **now), TOP_K)


@pytest.mark.parametrize(
    "now",
    [
        {},
        {"nll_per_token": 4.9},
        {"unique": 0.41},
        {"p_gold": 0.21},
        {"p_gold": 0.05, "questions": 16},  # chance, with so few
        {"prior_entropy": 0.01, "nll_per_token": 2.0, "p_gold": 0.9},  # sharp, and right
    ],
)
def test_no_alarm(now):
    assert alarm(START, dataclasses.replace(START, **now), TOP_K) is None


def test_a_prior_that_was_flat_from_the_start_is_no_collapse():
    flat = dataclasses.replace(START, prior_entropy=math.log(TOP_K))
    assert alarm(flat, flat, TOP_K) is None


def test_figures_of_a_batch():
    """Two questions, three passages each; the gold document of the first has a quarter of its prior."""
    prior = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], requires_grad=True)
    passages = [[Passage(number, f"d{number}", "", "", "") for number in row] for row in ((4, 7, 9), (4, 7, 8))]
    loss = SimpleNamespace(
        nll=torch.tensor([2.0, 4.0], requires_grad=True),
        tokens=torch.tensor([1, 2]),
        retrieval=SimpleNamespace(passages=passages, log_prior=prior.log()),
        kept=torch.tensor([1.0, 1 / 3]),
    )
    examples = [Example("a", "?", ("x",), ("d7",)), Example("b", "?", ("x",))]
    found = monitor_of(rows_of(loss, examples))
    assert (found.nll_per_token, found.nll, found.questions) == (2.0, 3.0, 2)
    assert found.p_gold == pytest.approx(0.125)
    assert found.unique == pytest.approx(4 / 6)
    assert found.prior_entropy == pytest.approx(1.5 * math.log(2))
    assert found.kept == pytest.approx(2 / 3)


def test_mean_weighs_by_questions():
    other = dataclasses.replace(START, nll=5.0, questions=960)
    assert mean([START, other]).nll == 6.0
    assert mean([START, other]).questions == 1280
