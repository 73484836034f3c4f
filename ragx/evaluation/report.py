"""Predictions -> report: every question scored, resampled, judged against gates and baseline, and explained."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ragx.errors import ArtifactError, RagxError
from ragx.evaluation.gates import Gate, judge, not_judged
from ragx.evaluation.metrics import Metric, correct
from ragx.evaluation.significance import Bootstrap, Sampled, detectable_alone, difference, sample, seed_error
from ragx.evaluation.statistic import Measured, Statistic
from ragx.evaluation.why import OUTCOMES, outcome, retrieval_hurts, slices
from ragx.records import Prediction, Report, Seeds, Spread


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """Predictions with their scores and outcomes, the statistic of every metric, and its value over all questions by
    run: one, or one of each seed, of which `shown` gave the predictions."""

    predictions: list[Prediction]
    statistics: dict[str, Statistic]
    values: dict[str, tuple[float, ...]]
    shown: int = 0


def score(predictions: Sequence[Prediction], metrics: Sequence[Metric], tokens: str = "auto") -> Scored:
    """Score every prediction by every metric.

    Raises:
        RagxError: a score is not a number.
    """
    measured: dict[str, Measured] = {metric.name: metric.measure(predictions) for metric in metrics}
    scores: list[dict[str, float]] = [{} for _ in predictions]
    for name, found in measured.items():
        for row, value in enumerate(found.scores or ()):
            if not math.isfinite(value):
                raise RagxError(f"{name} of question {predictions[row].id} is not a number; the model is damaged")
            scores[row][name] = value
    exact = correct(predictions, tokens)
    complete = [
        dataclasses.replace(p, scores=scores[row], outcome=outcome(p, exact[row] == 1))
        for row, p in enumerate(predictions)
    ]
    once = np.ones((1, len(complete)))
    values: dict[str, tuple[float, ...]] = {n: (float(found.statistic(once)[0]),) for n, found in measured.items()}
    return Scored(complete, {name: found.statistic for name, found in measured.items()}, values)


def make_report(
    scored: Scored,
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    bootstrap: Bootstrap,
    *,
    split: str,
    model: str,
    signature: Mapping[str, str],
    seconds: float,
    slice_names: Sequence[str] = (),
    baseline: tuple[Scored, Mapping[str, str]] | None = None,
    limit: int | None = None,
    latency: Mapping[str, float] | None = None,
    runs: Sequence[str] = (),
) -> Report:
    """Aggregate, resample, compare and judge. A run of `limit` questions is judged by no gate; `runs` are the files of
    several seeds, where `scored` is their mean.

    Raises:
        ArtifactError: the baseline was not made from the same questions.
        RagxError: a figure is not a number.
    """
    n = len(scored.predictions)
    before = None if baseline is None else _same_questions(baseline[0], scored)
    changes = {
        f"{name} changed": difference(before.statistics[name], statistic)
        for name, statistic in scored.statistics.items()
        if before is not None and name in before.statistics
    }
    errors = {name: seed_error(values) for name, values in scored.values.items()}
    if before is not None:
        errors |= {f"{name} changed": seed_error(values, scored.values[name]) for name, values in before.values.items()}
    units = {f"{metric.name} changed": 1.0 for metric in metrics if metric.bounded}
    sampled = sample({**scored.statistics, **changes}, n, bootstrap, errors, units)
    bad = next((name for name, found in sampled.items() if not math.isfinite(found.value)), None)
    if bad is not None:
        raise RagxError(f"{bad} is not a number; the model is damaged")
    changed: dict[str, Sampled] = {name.removesuffix(" changed"): sampled[name] for name in changes}
    differences = {name: found.interval(bootstrap.confidence) for name, found in changed.items()}
    intervals = {name: sampled[name].interval(bootstrap.confidence) for name in scored.statistics}
    intervals = {
        name: dataclasses.replace(
            found,
            detectable=differences[name].detectable if name in differences else detectable_alone(found),
        )
        for name, found in intervals.items()
    }
    counted = Counter(p.outcome for p in scored.predictions)
    known = [p.answer_in_corpus for p in scored.predictions if p.answer_in_corpus is not None]
    smoke = f"a smoke run of {limit} questions passes no gate; run without --limit"
    return Report(
        split=split,
        model=model,
        n=n,
        metrics=intervals,
        gates=judge(gates, intervals, changed, bootstrap.confidence)
        if limit is None
        else not_judged(gates, intervals, smoke),
        signature=dict(signature),
        seconds=seconds,
        predictions=tuple(scored.predictions),
        before=None if before is None else tuple(before.predictions),
        differences=None if before is None else differences,
        baseline=None if baseline is None else dict(baseline[1]),
        limit=limit,
        outcomes={name: counted[name] for name in OUTCOMES},
        ceiling=sum(known) / n if len(known) == n else None,
        retrieval_hurts=retrieval_hurts(scored.predictions),
        slices=slices(
            slice_names, scored.predictions, scored.statistics, None if before is None else before.statistics
        ),
        latency=None if latency is None else dict(latency),
        seeds=None if len(runs) < 2 else Seeds(tuple(runs), runs[scored.shown], _spreads(scored.values)),
    )


def judged(report: Report) -> str:
    """What the figures are of, for headlines."""
    if report.seeds is not None:
        return f"mean over {len(report.seeds.runs)} seeds"
    return "rescored predictions" if report.model == "rescored" else f"{report.model} model"


def primary_metric(report: Report) -> str | None:
    """The metric that questions are ranked by: f1 where it is computed, else the first with a score a question."""
    return ranking_metric(report.predictions, list(report.metrics))


def ranking_metric(predictions: Sequence[Prediction], names: Sequence[str]) -> str | None:
    """The same, of predictions scored by metrics of these names."""
    there = predictions[0].scores if predictions else {}
    return "f1" if "f1" in there else next((name for name in names if name in there), None)


def _spreads(values: Mapping[str, tuple[float, ...]]) -> dict[str, Spread]:
    return {name: Spread(found, float(np.std(found, ddof=1))) for name, found in values.items()}


def _same_questions(before: Scored, after: Scored) -> Scored:
    facts = [[(p.id, p.question, p.answers) for p in each.predictions] for each in (before, after)]
    if facts[0] != facts[1]:
        raise ArtifactError("the baseline report holds other questions; make it from the same split")
    return before
