"""ragx.evaluation.gates."""

import math

import pytest

from ragx.errors import ConfigError
from ragx.evaluation.gates import judge, parse_gates
from ragx.records import Interval


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        (">= 0.30", 0.3, True),
        (">=0.30", 0.2999, False),
        ("> .3", 0.3, False),
        ("< 2", 1.9, True),
        ("<= 2.", 2.0, True),
        ("<2", 2.0, False),
        (" >= 0 ", 0.0, True),
        (">= 0", math.nan, False),
        ("<= 9", math.nan, False),
        (">= 0", math.inf, False),
    ],
)
def test_gate(rule, value, passed):
    (result,) = judge(parse_gates({"f1": rule}, ["f1"]), {"f1": Interval(value, 0, 1)})
    assert (result.metric, result.rule, result.passed) == ("f1", rule, passed)


def test_no_gates():
    assert judge(parse_gates({}, ["f1"]), {}) == ()


def test_all_problems_at_once():
    rules = {"f2": ">= 1", "f1": "0.3", "em": "== 1", "nll": ">= x"}
    with pytest.raises(ConfigError) as caught:
        parse_gates(rules, ["f1", "em", "nll"])
    assert caught.value.problems == (
        "eval.gates: f2 is not among eval.metrics (f1, em, nll); add it there",
        "eval.gates.f1: cannot read '0.3'; write for example \">= 0.30\"",
        "eval.gates.em: cannot read '== 1'; write for example \">= 0.30\"",
        "eval.gates.nll: cannot read '>= x'; write for example \">= 0.30\"",
    )
