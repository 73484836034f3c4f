"""Gates: rules such as `f1: ">= 0.30"` that decide the exit code."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragx.errors import ConfigError
from ragx.records import GateResult, Interval

_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_RULE = re.compile(r"\s*(>=|<=|>|<)\s*(\d+(?:\.\d*)?|\.\d+)\s*")


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric, a comparison and its bound."""

    metric: str
    comparison: str
    bound: float
    rule: str


def parse_gates(rules: Mapping[str, str], metrics: Sequence[str]) -> tuple[Gate, ...]:
    """The gates of a configuration.

    Raises:
        ConfigError: with one line for every rule that cannot be read or whose metric is not computed.
    """
    gates, problems = [], []
    for metric, rule in rules.items():
        match = _RULE.fullmatch(rule)
        if metric not in metrics:
            problems.append(f"eval.gates: {metric} is not among eval.metrics ({', '.join(metrics)}); add it there")
        elif match is None:
            problems.append(f'eval.gates.{metric}: cannot read {rule!r}; write for example ">= 0.30"')
        else:
            gates.append(Gate(metric, match[1], float(match[2]), rule))
    if problems:
        raise ConfigError(*problems)
    return tuple(gates)


def judge(gates: Sequence[Gate], metrics: Mapping[str, Interval]) -> tuple[GateResult, ...]:
    """Whether each gate holds for the metric's value; a value that is not a number never passes."""
    results = []
    for gate in gates:
        value = metrics[gate.metric].value
        passed = math.isfinite(value) and _OPERATORS[gate.comparison](value, gate.bound)
        results.append(GateResult(gate.metric, gate.rule, value, passed))
    return tuple(results)
