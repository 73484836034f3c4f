"""Several seeds of one training as one evaluation: the mean over them, and how far they lie apart."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ragx.errors import ArtifactError
from ragx.evaluation.report import Scored, ranking_metric
from ragx.evaluation.statistic import Floats, Statistic

SAME = ("ragx", "data", "corpus", "index", "generator")
"""What the seeds of one training share in their signatures."""


def together(runs: Sequence[Scored]) -> Scored:
    """The mean over runs, with the predictions of the middle one by the metric that questions are ranked by."""
    if len(runs) == 1:
        return runs[0]
    names = list(runs[0].statistics)
    values = {name: tuple(value for run in runs for value in run.values[name]) for name in names}
    metric = ranking_metric(runs[0].predictions, names)
    order = sorted(range(len(runs)), key=lambda row: values[metric][row] if metric else row)
    middle = order[(len(runs) - 1) // 2]
    statistics = {name: _mean([run.statistics[name] for run in runs]) for name in names}
    return Scored(runs[middle].predictions, statistics, values, middle)


def require_seeds(runs: Sequence[tuple[Path, Mapping[str, str]]]) -> dict[str, str]:
    """The signature of several runs, each a file and its signature; what differs stands in it once for each value.

    Raises:
        ArtifactError: two are the same predictions, or differ in more than their training.
    """
    for (one, first), (two, second) in itertools.combinations(runs, 2):
        if first["predictions"] == second["predictions"]:
            raise ArtifactError(f"{two}: the same predictions as {one}; a seed counts once")
        for name in SAME:
            if name in first and name in second and first[name] != second[name]:
                raise ArtifactError(f"{two}: not another seed of {one}: {name} {second[name]}, there {first[name]}")
    names = dict.fromkeys(name for _, signature in runs for name in signature)
    merged = {name: [signature.get(name, "(none)") for _, signature in runs] for name in names}
    found = {name: " / ".join(dict.fromkeys(values)) for name, values in merged.items()}
    return found if len(runs) == 1 else {**found, "seeds": str(len(runs))}


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    def figure(counts: Floats) -> Floats:
        mean: Floats = np.mean([statistic(counts) for statistic in statistics], axis=0)
        return mean

    return figure
