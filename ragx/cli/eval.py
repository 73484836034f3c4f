"""`ragx eval`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from ragx import stages
from ragx.cli.common import (
    DEFAULT_CONFIG,
    AsJson,
    ConfigPath,
    Overrides,
    Quiet,
    Verbose,
    print_json,
    progress_bar,
    start_log,
)
from ragx.config import load_config
from ragx.records import Interval, Report

GATE_FAILED = 1


def evaluate(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    split: Annotated[Literal["auto", "train", "dev", "test"], typer.Option(help="auto: test, else dev.")] = "auto",
    model: Annotated[Literal["auto", "base", "tuned"], typer.Option(help="auto: tuned where it exists.")] = "auto",
    baseline: Annotated[
        Path | None, typer.Option(metavar="REPORT.json", help="Compare with an earlier report, question by question.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score answers and retrieval with intervals; exit code 1 when a gate fails."""
    start_log(quiet, verbose)
    loaded = load_config(config, overrides or ())
    with progress_bar(quiet) as progress:
        report = stages.evaluate(loaded, split=split, which=model, progress=progress)
    differences = stages.compare(loaded, report, baseline) if baseline else None
    if as_json:
        print_json(stages.report_json(report, differences))
    else:
        _show(report, differences)
    if not all(gate.passed for gate in report.gates):
        raise typer.Exit(GATE_FAILED)


def _show(report: Report, differences: dict[str, Interval] | None) -> None:
    title = f"{report.split}, {report.model} model: {report.n} questions in {report.seconds:.0f} s"
    table = Table("metric", *(["before"] if differences else []), "value", "95% interval", title=title)
    if differences:
        table.add_column("difference")
    for name, value in report.metrics.items():
        change = differences.get(name) if differences else None
        old = [f"{value.value - change.value:.3f}" if change else ""] if differences else []
        new = [_difference(change)] if differences else []
        table.add_row(name, *old, f"{value.value:.3f}", f"{value.low:.3f} - {value.high:.3f}", *new)
    Console(highlight=False).print(table)
    for gate in report.gates:
        word = "passed" if gate.passed else "FAILED"
        typer.echo(f"gate {word}: {gate.metric} {gate.rule} (is {gate.value:.3f})")


def _difference(change: Interval | None) -> str:
    return f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})" if change else ""
