"""The report as Markdown: a file, and GitHub's step summary."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ragx.artifacts import untrusted
from ragx.evaluation.report import judged, primary_metric
from ragx.evaluation.why import ranked_losses
from ragx.records import Report

SUMMARY_BYTES = 900 * 1024
"""GitHub drops a step summary over 1 MiB."""
SHOWN = 300
"""Characters of an answer or question that are shown."""


def markdown(report: Report, limit: int | None = None) -> str:
    """The whole report. With `limit`, at most so many bytes: rows at the end are left out, and their number said."""
    head = "\n\n".join(part for part in _parts(report) if part) + "\n\n"
    tail = "\n\nSignature: " + ", ".join(f"{key} {inline(value)}" for key, value in report.signature.items()) + "\n"
    rows = _rows(report)
    if limit is None:
        return head + "\n".join(rows) + tail
    room = limit - len((head + tail).encode()) - 100
    kept = 0
    while kept < len(rows) and (room := room - len(rows[kept].encode()) - 1) >= 0:
        kept += 1
    left = f"\n\n{len(rows) - kept} more lines are left out here; the report file has them." if kept < len(rows) else ""
    return head + "\n".join(rows[:kept]) + left + tail


def write_step_summary(report: Report) -> None:
    """Append the report to the file GitHub names for it, where it names one; at most 900 KiB of all."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        path = Path(target)
        there = path.stat().st_size if path.is_file() else 0
        if there < SUMMARY_BYTES:
            with path.open("a", encoding="utf-8") as file:
                file.write(markdown(report, SUMMARY_BYTES - there))


def inline(text: str) -> str:
    """Untrusted text as inert Markdown on one line, long text cut."""
    flat = " ".join(untrusted(text).split())
    flat = flat if len(flat) <= SHOWN else f"{flat[:SHOWN]}..."
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|&~$@" else c for c in flat) or "(nothing)"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {inline(report.split)}, {inline(judged(report))}: {report.n} questions"
    if report.limit is not None:
        yield f"**Smoke run: only {report.limit} questions. It passes no gate and is no baseline.**"
    missing = sum(p.missing for p in report.predictions)
    if missing:
        yield f"**{missing} questions have no prediction and count as wrong.**"
    if report.seeds is not None:
        yield (
            f"Figures are means over {len(report.seeds.runs)} seeds; questions and outcomes are those of the middle "
            f"one, {inline(report.seeds.shown)}."
        )
    if report.gates:
        rows = [(g.verdict, g.metric, inline(g.rule), inline(g.reason)) for g in report.gates]
        yield "## Gates\n\n" + _table(("", "metric", "rule", "why"), rows)
    yield "## Metrics\n\n" + _metrics(report)
    yield "## Why\n\n" + _why(report)
    for name in dict.fromkeys(each.field for each in report.slices):
        yield f"### By {inline(name)}\n\n" + _slices(report, name)


def _metrics(report: Report) -> str:
    changed, seeds = report.differences, report.seeds
    header = ["metric", "value", "interval", *(["change", "its interval"] if changed else []), "detectable"]
    header += ["by seed", "deviation"] if seeds else []
    rows = []
    for name, value in report.metrics.items():
        row = [name, f"{value.value:.3f}", f"{value.low:.3f} - {value.high:.3f}"]
        if changed is not None:
            found = changed.get(name)
            row += [f"{found.value:+.3f}", f"{found.low:+.3f} to {found.high:+.3f}"] if found else ["", ""]
        row.append(f"{value.detectable:.3f}")
        if seeds is not None:
            each = seeds.spread[name]
            row += [", ".join(f"{found:.3f}" for found in each.values), f"{each.deviation:.3f}"]
        rows.append(row)
    return _table(header, rows)


def _why(report: Report) -> str:
    rows = [(name, str(count), f"{count / report.n:.0%}") for name, count in report.outcomes.items()]
    lines = [_table(("outcome", "questions", "share"), rows)]
    if report.ceiling is not None:
        lines.append(f"The answer stands in the corpus for {report.ceiling:.1%} of the questions: the ceiling of em.")
    if report.retrieval_hurts is not None:
        lines.append(f"Without any passage the reference would be likelier for {report.retrieval_hurts:.1%} of them.")
    if report.latency is not None:
        times = ", ".join(f"{name} {value:.3f} s" for name, value in report.latency.items() if name != "n")
        lines.append(f"Seconds a question, batches shared equally: {times}.")
    return "\n\n".join(lines)


def _slices(report: Report, name: str) -> str:
    metrics = list(report.metrics)
    rows = []
    for each in report.slices:
        if each.field == name:
            cells = [
                f"{each.metrics[metric]:.3f}"
                + (
                    f" ({each.metrics[metric] - each.before[metric]:+.3f})"
                    if metric in (each.before or {}) and each.before
                    else ""
                )
                for metric in metrics
            ]
            rows.append((inline(each.value), str(each.n), *cells))
    return _table((inline(name), "n", *metrics), rows)


def _rows(report: Report) -> list[str]:
    """The lines that may be left out: the worst losses, then the worst answers."""
    metric = primary_metric(report)
    if metric is None:
        return []
    lines: list[str] = []
    sign = -1.0 if metric == "nll" else 1.0
    if report.before is not None:
        losses = [each for each in ranked_losses(report.predictions, report.before, metric, sign < 0) if each[0] < 0]
        lines += ["## Worst regressions", ""] if losses else []
        for gain, then, now in losses:
            lines.append(
                f"- {gain:+.3f} {metric}, {now.outcome}: {inline(now.question)} was {inline(then.answer)}, "
                f"is {inline(now.answer)} (expected {inline(now.answers[0])})"
            )
            lines += [f"  - {inline(hit.id)}: {inline(hit.text)}" for hit in now.hits or () if hit.text]
    wrong = sorted((p for p in report.predictions if p.outcome != "correct"), key=lambda p: sign * p.scores[metric])
    lines += ["", "## Worst answers", ""] if wrong else []
    lines += [
        f"- {inline(p.question)}: {inline(p.answer)} (expected {inline(p.answers[0])}; {p.outcome})" for p in wrong
    ]
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
