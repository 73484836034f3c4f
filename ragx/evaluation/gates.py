"""Gates: the rules that decide the exit code.

`f1: ">= 0.30"` compares the figure itself, `"low >= 0.28"` and `"high >= 0.28"` the ends of its interval. `f1: "no
worse than baseline by 0.01"` fails when the whole interval of the paired difference lies below -0.01; `"better than
baseline"` passes when it lies above 0. Several relative gates share their error rate (Bonferroni), so that more gates
do not mean more false alarms.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from ragx.errors import ConfigError
from ragx.evaluation.metrics import Metric
from ragx.evaluation.significance import Sampled
from ragx.records import GateResult, Interval

_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_ABSOLUTE = re.compile(rf"\s*(?:(low|high)\s+)?(>=|<=|>|<)\s*({_NUMBER})\s*")
_RELATIVE = re.compile(rf"\s*(no worse|better)\s+than\s+baseline(?:\s+by\s+({_NUMBER}))?\s*")

Kind = Literal["value", "low", "high", "no worse", "better"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric, what of it is judged, a comparison and its bound: for relative gates the margin."""

    metric: Metric
    kind: Kind
    comparison: str
    bound: float
    rule: str

    @property
    def relative(self) -> bool:
        """Whether it needs a baseline."""
        return self.kind in ("no worse", "better")


def parse_gates(rules: Mapping[str, str], metrics: Sequence[Metric]) -> tuple[Gate, ...]:
    """The gates of a configuration.

    Raises:
        ConfigError: with one line for every rule that cannot be read or whose metric is not computed.
    """
    gates, problems = [], []
    by_name = {metric.name: metric for metric in metrics}
    for name, rule in rules.items():
        absolute, relative = _ABSOLUTE.fullmatch(rule), _RELATIVE.fullmatch(rule)
        if name not in by_name:
            problems.append(f"eval.gates: {name} is not among eval.metrics ({', '.join(by_name)}); add it there")
        elif absolute is not None:
            gates.append(Gate(by_name[name], _kind(absolute[1]), absolute[2], float(absolute[3]), rule))
        elif relative is not None and by_name[name].timed:
            problems.append(f'eval.gates.{name}: seconds belong to a machine; write an absolute gate such as "<= 2.0"')
        elif relative is not None:
            gates.append(Gate(by_name[name], _kind(relative[1]), "", float(relative[2] or 0), rule))
        else:
            forms = '">= 0.30" or "no worse than baseline by 0.01"'
            problems.append(f"eval.gates.{name}: cannot read {rule!r}; write for example {forms}")
    if problems:
        raise ConfigError(*problems)
    return tuple(gates)


def require_baseline(gates: Sequence[Gate], given: bool) -> None:
    """Check that relative gates have something to be relative to.

    Raises:
        ConfigError: naming each gate.
    """
    if not given:
        wanting = [gate for gate in gates if gate.relative]
        remedy = "give --baseline REPORT.json; to make one: --set eval.gates={}"
        if wanting:
            raise ConfigError(
                *(f"eval.gates.{gate.metric.name}: {gate.rule!r} needs a baseline; {remedy}" for gate in wanting)
            )


def judge(
    gates: Sequence[Gate], metrics: Mapping[str, Interval], differences: Mapping[str, Sampled], confidence: float
) -> tuple[GateResult, ...]:
    """Whether each gate holds; a figure that is not a number never passes."""
    shared = 1 - (1 - confidence) / max(1, sum(gate.relative for gate in gates))
    return tuple(
        _judge_change(gate, metrics[gate.metric.name], differences[gate.metric.name].interval(shared))
        if gate.relative
        else _judge_value(gate, metrics[gate.metric.name])
        for gate in gates
    )


def not_judged(gates: Sequence[Gate], metrics: Mapping[str, Interval], reason: str) -> tuple[GateResult, ...]:
    """The gates of a run that may pass none."""
    return tuple(
        GateResult(gate.metric.name, gate.rule, metrics[gate.metric.name].value, False, "not judged", reason)
        for gate in gates
    )


def _kind(word: str | None) -> Kind:
    match word:
        case None:
            return "value"
        case "low" | "high" | "no worse" | "better":
            return word
        case _:
            raise AssertionError(word)


def _judge_value(gate: Gate, figure: Interval) -> GateResult:
    holds = _OPERATORS[gate.comparison]
    value = {"value": figure.value, "low": figure.low, "high": figure.high}[gate.kind]
    passed = math.isfinite(value) and bool(holds(value, gate.bound))
    spread = f"{figure.value:.3f}, interval {figure.low:.3f} to {figure.high:.3f}"
    if not passed:
        return GateResult(gate.metric.name, gate.rule, figure.value, False, "FAILED", f"is {spread}")
    sure = holds(figure.low, gate.bound) and holds(figure.high, gate.bound)
    verdict = "passed" if sure else "inconclusive"
    reason = f"is {spread}" + ("" if sure else ", which holds the bound: passed, but not for sure")
    return GateResult(gate.metric.name, gate.rule, figure.value, True, verdict, reason)


def _judge_change(gate: Gate, figure: Interval, change: Interval) -> GateResult:
    """Judged is the gain: the change, turned round where a smaller figure is the better one."""
    low, high = (-change.high, -change.low) if gate.metric.lower_is_better else (change.low, change.high)
    match gate.kind:
        case "no worse":
            passed, sure = high >= -gate.bound, low >= -gate.bound
        case "better":
            passed = sure = low > gate.bound
        case "value" | "low" | "high":
            raise AssertionError(gate.kind)
        case _:
            assert_never(gate.kind)
    verdict = "FAILED" if not passed else "passed" if sure else "inconclusive"
    reason = f"changed by {change.value:+.3f}, interval {change.low:+.3f} to {change.high:+.3f}"
    if verdict == "inconclusive":
        reason += f": no drop proven; changes below {change.detectable:.3f} are beyond these questions"
    return GateResult(gate.metric.name, gate.rule, figure.value, passed, verdict, reason)
