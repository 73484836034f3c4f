"""The report as JSON, by report.schema.json beside this module, and a baseline read back from it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ragx.errors import ArtifactError
from ragx.evaluation.report import primary_metric
from ragx.evaluation.why import ranked_losses
from ragx.records import Report

FORMAT = 2
WORST = 20


def report_json(report: Report) -> dict[str, Any]:
    """What `--json` prints and `SPLIT.MODEL.report.json` holds; fractions 0-1, `nll` in nats a token."""
    return {
        "format": FORMAT,
        "split": report.split,
        "model": report.model,
        "n": report.n,
        "limit": report.limit,
        "missing": sum(p.missing for p in report.predictions),
        "metrics": {name: dataclasses.asdict(value) for name, value in report.metrics.items()},
        "differences": report.differences
        and {name: dataclasses.asdict(value) for name, value in report.differences.items()},
        "gates": [dataclasses.asdict(gate) for gate in report.gates],
        "outcomes": report.outcomes,
        "ceiling": report.ceiling,
        "retrieval_hurts": report.retrieval_hurts,
        "slices": [dataclasses.asdict(each) for each in report.slices],
        "regressions": _regressions(report),
        "signature": report.signature,
        "baseline": report.baseline,
        "latency": report.latency,
        "seeds": report.seeds and dataclasses.asdict(report.seeds),
        "seconds": round(report.seconds, 3),
    }


def read_report(path: Path) -> dict[str, Any]:
    """A report read back: its format, signature and limit are checked.

    Raises:
        ArtifactError: it is missing, damaged or of another format version.
    """
    if not path.name.endswith(".report.json") or not path.is_file():
        raise ArtifactError(f"{path}: expected a SPLIT.MODEL.report.json with its .predictions.jsonl beside it")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        version, signature = report["format"], dict(report["signature"])
        limit = report.get("limit")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged report ({error})") from error
    if version != FORMAT:
        raise ArtifactError(f"{path}: report of format {version}, this ragx reads {FORMAT}; run: ragx eval")
    if not all(isinstance(value, str) for value in signature.values()):
        raise ArtifactError(f"{path}: damaged report (signature)")
    return {**report, "signature": signature, "limit": limit}


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Nearest-rank percentiles of seconds a question; None where nothing was computed."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    rank = {p: max(0, math.ceil(p / 100 * len(ordered)) - 1) for p in (50, 90, 95, 99)}
    return {f"p{p}": round(ordered[place], 6) for p, place in rank.items()} | {"n": len(ordered)}


def _regressions(report: Report) -> list[dict[str, Any]]:
    metric = primary_metric(report)
    if report.before is None or metric is None:
        return []
    losses = ranked_losses(report.predictions, report.before, metric, metric == "nll")
    return [
        {"id": now.id, "metric": metric, "gain": gain, "before": then.answer, "after": now.answer, "why": now.outcome}
        for gain, then, now in losses[:WORST]
        if gain < 0
    ]
