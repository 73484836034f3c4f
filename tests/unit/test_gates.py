"""ragx.evaluation.gates."""

import math

import numpy as np
import pytest

from ragx.errors import ConfigError
from ragx.evaluation.gates import judge, not_judged, parse_gates, require_baseline
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.significance import Sampled
from ragx.records import Interval


def gates_of(rules, names=("f1", "em", "nll")):
    return parse_gates(rules, parse_metrics(list(names)))


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
        ("low >= 0.2", 0.3, True),
        ("low >= 0.21", 0.3, False),
        ("high >= 0.4", 0.3, True),
        ("high >= 0.41", 0.3, False),
    ],
)
def test_absolute(rule, value, passed):
    figure = Interval(value, 0.2, 0.4)
    (result,) = judge(gates_of({"f1": rule}), {"f1": figure}, {}, 0.95)
    assert (result.metric, result.rule, result.passed) == ("f1", rule, passed)
    assert (result.verdict == "FAILED") == (not passed)


@pytest.mark.parametrize(
    ("rule", "verdict"), [(">= 0.1", "passed"), (">= 0.3", "inconclusive"), (">= 0.36", "FAILED"), ("< 0.5", "passed")]
)
def test_a_bound_inside_the_interval_is_said(rule, verdict):
    (result,) = judge(gates_of({"f1": rule}), {"f1": Interval(0.35, 0.25, 0.45)}, {}, 0.95)
    assert result.verdict == verdict
    assert "0.350, interval 0.250 to 0.450" in result.reason


def change(low, high):
    """Draws spread evenly so that 95 % of them lie between."""
    middle, half = (low + high) / 2, (high - low) / 2 / 0.95
    return Sampled(middle, np.linspace(middle - half, middle + half, 100_001), 10**9)


@pytest.mark.parametrize(
    ("metric", "rule", "low", "high", "verdict"),
    [
        ("f1", "no worse than baseline", -0.2, -0.1, "FAILED"),
        ("f1", "no worse than baseline", -0.2, 0.1, "inconclusive"),
        ("f1", "no worse than baseline", 0.01, 0.1, "passed"),
        ("f1", "no worse than baseline by 0.15", -0.2, -0.1, "inconclusive"),
        ("f1", "no worse than baseline by 0.3", -0.2, -0.1, "passed"),
        ("f1", "no worse than baseline by .05", -0.2, -0.1, "FAILED"),
        ("f1", "better than baseline", -0.1, 0.2, "FAILED"),
        ("f1", "better than baseline", 0.1, 0.2, "passed"),
        ("f1", "better than baseline by 0.15", 0.1, 0.2, "FAILED"),
        ("nll", "no worse than baseline", 0.1, 0.2, "FAILED"),
        ("nll", "no worse than baseline", -0.2, -0.1, "passed"),
        ("nll", "better than baseline", -0.2, -0.1, "passed"),
        ("nll", "  no worse  than baseline  by  0.3 ", 0.1, 0.2, "passed"),
    ],
)
def test_relative(metric, rule, low, high, verdict):
    figures = {metric: Interval(0.5, 0.4, 0.6)}
    (result,) = judge(gates_of({metric: rule}), figures, {metric: change(low, high)}, 0.95)
    assert (result.verdict, result.passed) == (verdict, verdict != "FAILED")
    assert ("beyond these questions" in result.reason) == (verdict == "inconclusive")


def test_more_relative_gates_are_each_stricter():
    """Bonferroni: what fails alone at 95 % need not fail beside four others."""
    changes = {name: change(-0.2, -0.004) for name in ("f1", "em", "nll", "recall@1", "recall@2")}
    rule = "no worse than baseline"
    figures = dict.fromkeys(changes, Interval(0.5, 0.4, 0.6))
    (alone,) = judge(gates_of({"f1": rule}), figures, changes, 0.95)
    together = judge(gates_of(dict.fromkeys(changes, rule), changes), figures, changes, 0.95)
    assert not alone.passed and together[0].passed


def test_no_gates():
    assert judge((), {}, {}, 0.95) == ()


def test_nothing_changed_at_all_passes():
    same = Sampled(0.0, np.zeros(1000), 50)
    (result,) = judge(gates_of({"f1": "no worse than baseline"}), {"f1": Interval(0.5, 0.4, 0.6)}, {"f1": same}, 0.95)
    assert result.verdict == "passed"


def test_a_smoke_run_passes_nothing():
    (result,) = not_judged(gates_of({"f1": ">= 0"}), {"f1": Interval(1, 1, 1)}, "why")
    assert (result.passed, result.verdict, result.reason) == (False, "not judged", "why")


def test_all_problems_at_once():
    rules = {"f2": ">= 1", "f1": "0.3", "em": "== 1", "nll": "no worse than main"}
    with pytest.raises(ConfigError) as caught:
        gates_of(rules)
    forms = 'write for example ">= 0.30" or "no worse than baseline by 0.01"'
    assert caught.value.problems == (
        "eval.gates: f2 is not among eval.metrics (f1, em, nll); add it there",
        f"eval.gates.f1: cannot read '0.3'; {forms}",
        f"eval.gates.em: cannot read '== 1'; {forms}",
        f"eval.gates.nll: cannot read 'no worse than main'; {forms}",
    )


def test_times_of_two_runs_are_not_compared():
    with pytest.raises(ConfigError, match=r"latency_p95: seconds belong to a machine; write an absolute gate"):
        gates_of({"latency_p95": "no worse than baseline"}, ["latency_p95"])
    (gate,) = gates_of({"latency_p95": "<= 2.0"}, ["latency_p95"])
    figures = {"latency_p95": Interval(2.1, 2.0, 2.2)}
    assert judge((gate,), figures, {}, 0.95)[0].verdict == "FAILED"


def test_relative_gates_need_a_baseline():
    gates = gates_of({"f1": "no worse than baseline", "em": ">= 0"})
    require_baseline(gates, True)
    with pytest.raises(ConfigError, match=r"eval\.gates\.f1: .* needs a baseline; give --baseline REPORT\.json"):
        require_baseline(gates, False)
