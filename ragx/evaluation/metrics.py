"""Metrics as values with a name that round-trips (`recall@5`). Every question is scored by every metric."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ragx.corpus.answers import unspaced
from ragx.errors import ConfigError, DataError
from ragx.evaluation import calibration, matching, overlap, ranking
from ragx.evaluation.statistic import Measured, averaged, mean, percentile
from ragx.evaluation.text import units
from ragx.records import Example, Prediction

Needs = Literal["answer", "hits", "reference_nll", "log_probability", "seconds"]
_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_RANKING = tuple(ranking.KINDS)
KNOWN = (
    *("em", "f1", "nll", *_ROUGE, "bleu", "chrf", "chrf++", "rprecision", "ece", "aurc", "selective_em@80"),
    "latency_p95",
    *(f"{name}@5" for name in _RANKING),
)
DEPTH = 20
"""Passages kept a question at least, so that predictions can be scored anew by most metrics."""
LONGEST = 100_000
"""Characters of an answer: more is no answer, and ROUGE-L takes time in their square."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A named figure over questions; `cutoff` counts passages, None for metrics of the answer; `needs` is the fact of a
    prediction without which it cannot be had."""

    name: str
    cutoff: int | None
    needs: Needs
    measure: Callable[[Sequence[Prediction]], Measured]

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller figure is the better one."""
        return self.name in ("nll", "ece", "aurc") or self.timed

    @property
    def bounded(self) -> bool:
        """Whether it is the mean of scores from 0 to 1, one a question."""
        return self.needs in ("answer", "hits") and self.name not in ("bleu", "chrf", "chrf++")

    @property
    def timed(self) -> bool:
        """Whether it is a time, which belongs to a machine and not to predictions."""
        return self.needs == "seconds"


def parse_metrics(names: Sequence[str], tokens: str = "auto") -> tuple[Metric, ...]:
    """The metrics of some names.

    Raises:
        ConfigError: with one line for every unknown or repeated name.
    """
    found, problems = [], []
    for name in dict.fromkeys(names):
        metric = _parse(name, tokens)
        if metric is None:
            close = difflib.get_close_matches(name.lower(), {known.lower(): known for known in KNOWN}, n=1, cutoff=0.4)
            proper = {known.lower(): known for known in KNOWN}
            hint = f"did you mean {proper[close[0]]!r}?" if close else f"known: {', '.join(KNOWN)}"
            problems.append(f"eval.metrics: unknown metric {name!r}; {hint}")
        else:
            found.append(metric)
    problems += [f"eval.metrics: {name} stands there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ConfigError(*problems)
    return tuple(found)


def require_scorable(examples: Sequence[Example], metrics: Sequence[Metric], tokens: str, place: str) -> None:
    """Check that em and f1 can judge every question.

    Raises:
        DataError: all references of a question normalise to nothing, or one is far too long.
    """
    judged = any(metric.name in ("em", "f1") for metric in metrics)
    for example in examples:
        longest = max(map(len, example.answers))
        if longest > LONGEST:
            raise DataError(f"{place}: an answer of question {example.id} has {longest} characters, over {LONGEST}")
        by_character = _by_character(example.answers, tokens)
        if judged and not any(units(answer, by_character) for answer in example.answers):
            raise DataError(
                f"{place}: the answers of question {example.id} normalise to nothing ({example.answers[0]!r}): "
                "em and f1 cannot judge them; add another form"
            )


def require_facts(metrics: Sequence[Metric], predictions: Sequence[Prediction], place: str) -> None:
    """Check that predictions hold what the metrics need.

    Raises:
        DataError: naming the metric and the question.
    """
    depth = max((len(prediction.hits or ()) for prediction in predictions), default=0)
    for metric in metrics:
        if metric.cutoff and DEPTH <= depth < metric.cutoff:
            raise DataError(f"{place}: holds {depth} passages a question, too few for {metric.name}")
        for prediction in predictions:
            counts_as_wrong = prediction.missing and metric.needs not in ("reference_nll", "seconds")
            if metric.needs != "answer" and not counts_as_wrong and getattr(prediction, metric.needs) is None:
                why = "has no prediction" if prediction.missing else f"has no {metric.needs} in its prediction"
                raise DataError(f"{place}: question {prediction.id} {why}; leave {metric.name} out of eval.metrics")


def correct(predictions: Sequence[Prediction], tokens: str = "auto") -> list[float]:
    """Exact match of each prediction."""
    return [
        matching.exact_match(p.answer, p.answers, by_character=_by_character(p.answers, tokens)) for p in predictions
    ]


def confidence(predictions: Sequence[Prediction]) -> list[float]:
    """p(y|x) of each answer, 0-1."""
    return [math.exp(min(0.0, p.log_probability)) if p.log_probability is not None else 0.0 for p in predictions]


def _by_character(answers: Sequence[str], tokens: str) -> bool:
    return tokens == "auto" and unspaced(answers)


def _parse(name: str, tokens: str) -> Metric | None:
    by_script = tokens == "auto"
    match name:
        case "em":
            return Metric(name, None, "answer", lambda found: averaged(correct(found, tokens)))
        case "f1":
            return Metric(name, None, "answer", lambda found: averaged(_f1(found, tokens)))
        case "nll":
            return Metric(name, None, "reference_nll", _nll)
        case "bleu":
            return Metric(name, None, "answer", lambda found: overlap.bleu(*_texts(found), by_script=by_script))
        case "chrf" | "chrf++":
            return Metric(name, None, "answer", lambda found: overlap.chrf(name, *_texts(found)))
        case "rouge1" | "rouge2" | "rougeL" | "rougeLsum":
            return Metric(name, None, "answer", lambda found: overlap.rouge(name, *_texts(found), by_script=by_script))
        case "rprecision":
            depth = ranking.R_PRECISION_DEPTH
            return Metric(name, depth, "hits", lambda found: averaged(ranking.ranking(name, depth, found)))
        case "ece" | "aurc":
            return Metric(name, None, "log_probability", lambda found: _calibration(name, found, tokens))
    if latency := re.fullmatch(r"latency_p([1-9]\d?)", name):
        percent = int(latency[1])
        return Metric(name, None, "seconds", lambda found: Measured(None, percentile(_seconds(found), percent)))
    parts = re.fullmatch(r"([a-z_]+)@([1-9]\d{0,3})", name)
    if parts is None:
        return None
    kind, number = parts[1], int(parts[2])
    if kind == "selective_em" and number <= 100:
        return Metric(name, None, "log_probability", lambda found: _selective(number / 100, found, tokens))
    if kind in ranking.KINDS:
        return Metric(name, number, "hits", lambda found: averaged(ranking.ranking(kind, number, found)))
    return None


def _texts(predictions: Sequence[Prediction]) -> tuple[list[str], list[tuple[str, ...]]]:
    return [p.answer for p in predictions], [p.answers for p in predictions]


def _f1(predictions: Sequence[Prediction], tokens: str) -> list[float]:
    return [matching.f1(p.answer, p.answers, by_character=_by_character(p.answers, tokens)) for p in predictions]


def _nll(predictions: Sequence[Prediction]) -> Measured:
    """Nats a token of the reference; the figure of a set weighs questions by their tokens."""
    tokens = [float(p.reference_tokens or 1) for p in predictions]
    scores = [(p.reference_nll or 0.0) / count for p, count in zip(predictions, tokens, strict=True)]
    return Measured(scores, mean(scores, tokens))


def _seconds(predictions: Sequence[Prediction]) -> list[float]:
    return [p.seconds or 0.0 for p in predictions]


def _calibration(name: str, predictions: Sequence[Prediction], tokens: str) -> Measured:
    figure = calibration.expected_calibration_error if name == "ece" else calibration.area_under_risk
    return Measured(None, figure(confidence(predictions), correct(predictions, tokens)))


def _selective(coverage: float, predictions: Sequence[Prediction], tokens: str) -> Measured:
    figure = calibration.selective_accuracy(confidence(predictions), correct(predictions, tokens), coverage)
    return Measured(None, figure)
