"""The report as one HTML page that opens offline: no script, nothing fetched."""

from collections.abc import Mapping
from importlib.resources import files

import jinja2
from markupsafe import Markup

from ragx.artifacts import untrusted
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.report import judged, primary_metric
from ragx.evaluation.why import MEANINGS, ranked_losses
from ragx.records import Report

WORST = 20
SHOWN = 1200
"""Characters of a passage that are shown."""


def html(report: Report, plots: Mapping[str, str]) -> str:
    """The page. `plots` are titles and SVG of our own making; all else is escaped, whatever it holds."""
    environment = jinja2.Environment(autoescape=True, finalize=_inert, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    metric = primary_metric(report)
    changed = (
        ranked_losses(report.predictions, report.before, metric, metric == "nll")
        if metric is not None and report.before is not None
        else []
    )
    sign = -1.0 if metric == "nll" else 1.0
    wrong = [p for p in report.predictions if p.outcome != "correct"]
    hurt = [
        (p.reference_nll - p.closed_book_nll, p)
        for p in report.predictions
        if p.closed_book_nll is not None and p.reference_nll is not None and p.closed_book_nll < p.reference_nll
    ]
    return template.render(
        report=report,
        judged=judged(report),
        metric=metric,
        plots={title: Markup(svg) for title, svg in plots.items()},
        slice_fields=list(dict.fromkeys(each.field for each in report.slices)),
        losses=[each for each in changed if each[0] < 0][:WORST],
        wins=[each for each in reversed(changed) if each[0] > 0][:WORST],
        worst=sorted(wrong, key=lambda p: sign * p.scores.get(metric or "", 0.0))[:WORST],
        hurt=sorted(hurt, key=lambda each: -each[0])[:WORST],
        missing=sum(p.missing for p in report.predictions),
        failed=sum(not gate.passed for gate in report.gates),
        lower={each.name for each in parse_metrics(list(report.metrics)) if each.lower_is_better},
        meanings=MEANINGS,
    )


def _inert(value: object) -> object:
    """Every text that is printed, but for our own markup: without control characters, long text cut."""
    if isinstance(value, str) and not isinstance(value, Markup):
        text = untrusted(value)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return value
