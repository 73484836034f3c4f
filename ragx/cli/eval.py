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
from ragx.errors import ConfigError
from ragx.records import Report

GATE_FAILED = 1


def evaluate(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    split: Annotated[Literal["auto", "train", "dev", "test"], typer.Option(help="auto: test, else dev.")] = "auto",
    model: Annotated[Literal["auto", "base", "tuned"], typer.Option(help="auto: tuned where it exists.")] = "auto",
    baseline: Annotated[
        list[Path] | None,
        typer.Option(metavar="REPORT.json", help="Compare with an earlier report, or with several seeds' reports."),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.jsonl", help="Score these predictions, or several seeds' mean; no model is loaded."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A smoke run of the first N questions; it passes no gate.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score answers and retrieval with intervals; exit code 1 when a gate fails."""
    start_log(quiet, verbose)
    loaded = load_config(config, overrides or ())
    with progress_bar(quiet) as progress:
        report = stages.evaluate(
            loaded,
            split=split,
            which=model,
            baseline=baseline or (),
            predictions=predictions or (),
            limit=limit,
            progress=progress,
        )
    if as_json:
        print_json(stages.report_json(report))
    else:
        _show(report)
    if report.limit is not None and report.gates:
        raise ConfigError(f"--limit {report.limit}: a smoke run passes no gate; run without --limit")
    if not all(gate.passed for gate in report.gates):
        raise typer.Exit(GATE_FAILED)


def _show(report: Report) -> None:
    smoke = "" if report.limit is None else "SMOKE RUN of the first questions only: "
    title = f"{smoke}{report.split}, {report.model} model: {report.n} questions in {report.seconds:.0f} s"
    changed = report.differences
    table = Table("metric", *(["before"] if changed else []), "value", "interval", title=title)
    if changed:
        table.add_column("difference")
    table.add_column("detectable")
    if report.seeds is not None:
        table.add_column("deviation of seeds")
    for name, value in report.metrics.items():
        change = changed.get(name) if changed else None
        old = [f"{value.value - change.value:.3f}" if change else ""] if changed else []
        new = [f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})" if change else ""] if changed else []
        table.add_row(
            *(name, *old, f"{value.value:.3f}", f"{value.low:.3f} - {value.high:.3f}", *new, f"{value.detectable:.3f}"),
            *([f"{report.seeds.spread[name].deviation:.3f}"] if report.seeds is not None else []),
        )
    Console(highlight=False).print(table)
    if report.seeds is not None:
        typer.echo(f"means over {len(report.seeds.runs)} seeds; outcomes are those of {report.seeds.shown}")
    missing = sum(prediction.missing for prediction in report.predictions)
    if missing:
        typer.echo(f"{missing} questions have no prediction and count as wrong")
    typer.echo(", ".join(f"{count} {name}" for name, count in report.outcomes.items() if count))
    for gate in report.gates:
        typer.echo(f"gate {gate.verdict}: {gate.metric} {gate.rule} ({gate.reason})")
