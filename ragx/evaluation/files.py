"""The files a report leaves: predictions, JSON, Markdown, JUnit XML and a page."""

from collections.abc import Mapping
from pathlib import Path

from ragx.artifacts import write_json, write_text
from ragx.evaluation.as_html import html
from ragx.evaluation.as_json import report_json
from ragx.evaluation.as_junit import junit
from ragx.evaluation.as_markdown import markdown
from ragx.evaluation.predictions import write_predictions
from ragx.records import Report


def write_report(report: Report, folder: Path, plots: Mapping[str, str]) -> Path:
    """Write SPLIT.MODEL predictions (.jsonl) and report (.md, .html, .xml, .json); returns the .json's path.

    A mean over seeds has no predictions of its own and leaves none. A smoke run's files are named SPLIT.MODEL.smoke and
    replace no others. The JSON comes last: where it stands, all do.
    """
    stem = f"{report.split}.{report.model}{'' if report.limit is None else '.smoke'}"
    if report.seeds is None:
        write_predictions(report.predictions, folder / f"{stem}.predictions.jsonl")
    write_text(folder / f"{stem}.report.md", markdown(report))
    write_text(folder / f"{stem}.report.html", html(report, plots))
    write_text(folder / f"{stem}.report.xml", junit(report))
    path = folder / f"{stem}.report.json"
    write_json(path, report_json(report))
    return path
