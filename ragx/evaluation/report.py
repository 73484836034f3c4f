"""Predictions -> report -> files: JSON, Markdown and the predictions themselves."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragx.artifacts import untrusted, write_json, write_text
from ragx.errors import ArtifactError, RagxError
from ragx.evaluation.gates import Gate, judge
from ragx.evaluation.metrics import Metric
from ragx.evaluation.significance import interval, paired_difference
from ragx.records import Interval, Prediction, Report

FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resamples, confidence level (0-1) and seed."""

    resamples: int
    confidence: float
    seed: int


def make_report(
    predictions: Sequence[Prediction],
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    bootstrap: Bootstrap,
    *,
    split: str,
    model: str,
    signature: Mapping[str, str],
    seconds: float,
) -> Report:
    """Aggregate predictions: a mean over questions for each metric; `nll` weighs questions by their tokens.

    Raises:
        RagxError: a score is not a number.
    """
    means = {}
    for metric in metrics:
        values = [prediction.scores[metric.name] for prediction in predictions]
        bad = next((p.id for p, value in zip(predictions, values, strict=True) if not math.isfinite(value)), None)
        if bad is not None:
            raise RagxError(f"{metric.name} of question {bad} is not a number; the model is damaged")
        means[metric.name] = interval(values, _weights(metric.name, predictions), **dataclasses.asdict(bootstrap))
    return Report(
        split=split,
        model=model,
        n=len(predictions),
        metrics=means,
        gates=judge(gates, means),
        signature=dict(signature),
        seconds=seconds,
        predictions=tuple(predictions),
    )


def compare(
    before: Sequence[Prediction], after: Sequence[Prediction], metrics: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """The paired difference after - before of each metric, over the same questions.

    Raises:
        ArtifactError: the two were not made from the same questions.
    """
    if [p.id for p in before] != [p.id for p in after]:
        raise ArtifactError("the baseline report holds other questions; make it from the same split")
    return {
        name: paired_difference(
            [p.scores[name] for p in before],
            [p.scores[name] for p in after],
            _weights(name, after),
            **dataclasses.asdict(bootstrap),
        )
        for name in metrics
    }


def report_json(report: Report) -> dict[str, Any]:
    """What `--json` prints and `SPLIT.report.json` holds."""
    return {
        "format": FORMAT,
        "split": report.split,
        "model": report.model,
        "n": report.n,
        "metrics": {name: dataclasses.asdict(value) for name, value in report.metrics.items()},
        "gates": [dataclasses.asdict(gate) for gate in report.gates],
        "signature": report.signature,
        "seconds": round(report.seconds, 3),
    }


def write_report(report: Report, folder: Path) -> Path:
    """Write SPLIT.MODEL predictions (.jsonl), report (.json) and its readable form (.md); returns the report's path."""
    stem = f"{report.split}.{report.model}"
    lines = [json.dumps(dataclasses.asdict(p), ensure_ascii=False, allow_nan=False) for p in report.predictions]
    write_text(folder / f"{stem}.predictions.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(folder / f"{stem}.report.md", _markdown(report))
    path = folder / f"{stem}.report.json"
    write_json(path, report_json(report))
    return path


def read_predictions(report: Path) -> tuple[Prediction, ...]:
    """The predictions beside a report.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    path = report.with_name(report.name.replace(".report.json", ".predictions.jsonl"))
    if not report.name.endswith(".report.json") or not path.is_file():
        raise ArtifactError(f"{report}: expected a SPLIT.MODEL.report.json with its .predictions.jsonl beside it")
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        return tuple(
            Prediction(**{**r, "answers": tuple(r["answers"]), "retrieved": tuple(r["retrieved"])}) for r in records
        )
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: damaged predictions ({error})") from error


def _weights(metric: str, predictions: Sequence[Prediction]) -> list[float]:
    return [float(p.reference_tokens) if metric == "nll" else 1.0 for p in predictions]


def _markdown(report: Report) -> str:
    rows = [
        f"| {name} | {value.value:.3f} | {value.low:.3f} - {value.high:.3f} |" for name, value in report.metrics.items()
    ]
    gates = [
        f"- {'passed' if gate.passed else 'FAILED'}: {gate.metric} {gate.rule} (is {gate.value:.3f})"
        for gate in report.gates
    ]
    worst = sorted(report.predictions, key=lambda p: p.scores.get("f1", 0.0))[:10]
    wrong = [f"- {_inline(p.question)}: {_inline(p.answer)} (expected {_inline(p.answers[0])})" for p in worst]
    parts = [
        f"# {report.split}, {report.model} model: {report.n} questions",
        "| metric | mean | interval |\n|---|---|---|\n" + "\n".join(rows),
        "\n".join(["## Gates", *gates]) if gates else "",
        "\n".join(["## Worst answers", *wrong]),
        "Signature: " + ", ".join(f"{key} {value}" for key, value in report.signature.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inline(text: str) -> str:
    """Untrusted text as inert Markdown on one line."""
    flat = " ".join(untrusted(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|&~" else c for c in flat) or "(nothing)"
