"""The plots of a report as SVG text, for a page that needs nothing else."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ragx.evaluation.calibration import reliability, risk_coverage
from ragx.evaluation.metrics import confidence, correct
from ragx.evaluation.report import primary_metric
from ragx.evaluation.why import ranked_losses
from ragx.records import Report

INK, BLUE, GREY, GREEN, RED = "#333333", "#2f6db5", "#b8bec6", "#2e8b57", "#c0392b"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ragx",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
}


def draw(report: Report) -> dict[str, str]:
    """A title and its SVG, in the order to show them; plots without data are left out."""
    metric = primary_metric(report)
    plots: dict[str, str] = {"Metrics with their intervals": _svg(lambda axes: _intervals(axes, report))}
    if set(report.differences or ()) - {"nll"}:
        plots["Change to the baseline"] = _svg(lambda axes: _changes(axes, report))
    if metric is not None:
        plots[f"Distribution of {metric}"] = _svg(lambda axes: _distribution(axes, report, metric))
        if report.before is not None:
            plots[f"Wins and losses in {metric}"] = _svg(lambda axes: _wins_and_losses(axes, report, metric))
    if all(p.log_probability is not None for p in report.predictions):
        plots["Calibration: is p(y|x) the share correct?"] = _svg(lambda axes: _calibration(axes, report))
        plots["Risk and coverage: answering only the surest"] = _svg(lambda axes: _risk(axes, report))
    return plots


def _svg(fill: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        fill(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _intervals(axes: Axes, report: Report) -> None:
    names = [name for name, value in report.metrics.items() if value.high <= 1 and name != "nll"]
    for place, name in enumerate(names):
        value = report.metrics[name]
        axes.plot([value.low, value.high], [place, place], color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(value.value, place, "o", color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()


def _changes(axes: Axes, report: Report) -> None:
    changes = {name: value for name, value in (report.differences or {}).items() if name != "nll"}
    for place, (name, value) in enumerate(changes.items()):
        better = -1 if name in ("ece", "aurc") else 1
        color = RED if better * value.value < 0 else GREEN if value.value else GREY
        axes.plot([value.low, value.high], [place, place], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(value.value, place, "o", color=color)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(changes)), list(changes))
    axes.set_xlabel("after - before")
    axes.invert_yaxis()


def _distribution(axes: Axes, report: Report, metric: str) -> None:
    scores = [p.scores[metric] for p in report.predictions]
    span = (0.0, max(1.0, *scores))
    if report.before is not None:
        old = [p.scores[metric] for p in report.before]
        axes.hist([old, scores], bins=10, range=span, color=[GREY, BLUE], label=["baseline", "now"])
        axes.legend(frameon=False)
    else:
        axes.hist(scores, bins=20, range=span, color=BLUE)
    axes.set_xlabel(metric)
    axes.set_ylabel("questions")


def _wins_and_losses(axes: Axes, report: Report, metric: str) -> None:
    changed = ranked_losses(report.predictions, report.before or (), metric, metric == "nll")
    gains = [gain for gain, _, _ in changed]
    axes.bar(range(len(gains)), gains, width=1.0, color=[RED if gain < 0 else GREEN for gain in gains])
    axes.axhline(0, color=INK, linewidth=0.8)
    losses = sum(gain < 0 for gain in gains)
    same = report.n - len(gains)
    axes.set_xlabel(f"{losses} lost, {len(gains) - losses} won, {same} as before")
    axes.set_xticks([])
    axes.set_ylabel("gain")


def _calibration(axes: Axes, report: Report) -> None:
    points = reliability(confidence(report.predictions), correct(report.predictions))
    axes.plot([0, 1], [0, 1], "--", color=GREY)
    axes.scatter(
        [sure for sure, _, _ in points],
        [right for _, right, _ in points],
        s=[20 + 200 * count / report.n for _, _, count in points],
        color=BLUE,
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="p(y|x)", ylabel="share correct")


def _risk(axes: Axes, report: Report) -> None:
    points = risk_coverage(confidence(report.predictions), correct(report.predictions))
    axes.plot([share for share, _ in points], [risk for _, risk in points], color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share of questions answered", ylabel="share of them wrong")
