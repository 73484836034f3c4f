"""What all commands share: their options, the log, progress and rendering. stdout is the result; the rest is stderr."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ragx import records
from ragx.artifacts import untrusted, untrusted_json

ConfigPath = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override section.key; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what is going on inside.")]

DEFAULT_CONFIG = Path("ragx.yaml")
PLAIN_SECONDS = 10.0
"""Seconds between progress lines when stderr is no terminal."""


def stderr() -> Console:
    """A console on the current stderr."""
    return Console(stderr=True, highlight=False)


def is_first_process() -> bool:
    """Whether this process is alone, or the first of those that torchrun or accelerate launch started."""
    return os.environ.get("RANK", "0") == "0"


def start_log(quiet: bool, verbose: bool) -> None:
    """Send ragx's log to stderr; other libraries only warn. Of several processes only the first says anything."""
    logging.captureWarnings(not verbose)
    handler = RichHandler(console=stderr(), show_time=False, show_level=False, show_path=False, markup=False)
    handler.setFormatter(_Inert("%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO if verbose else logging.ERROR)
    own = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("ragx").setLevel(own if is_first_process() else logging.ERROR)


class _Inert(logging.Formatter):
    """Log lines may quote documents: control characters never reach the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return untrusted(super().format(record))


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


@contextmanager
def progress_bar(quiet: bool) -> Iterator[records.Progress]:
    """A progress callback: a bar with rate and remaining time at a terminal, else a line every ten seconds."""
    console = stderr()
    if quiet:
        yield records.no_progress
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield _plain_lines()


def _bars(console: Console) -> Iterator[records.Progress]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        last = ""

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal last
            stage = what.split(",")[0].rstrip("0123456789. ")
            if stage != last:
                bars.reset(task)
            last = stage
            bars.update(task, description=what, completed=done, total=total)

        yield show


def _plain_lines() -> records.Progress:
    started: dict[str, tuple[float, int]] = {}
    last = 0.0

    def show(what: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        then, before = started.setdefault(what.split(",")[0].rstrip("0123456789. "), (now, done))
        if now - last >= PLAIN_SECONDS or done == total:
            last = now
            pace = _pace(done - before, None if total is None else total - done, now - then)
            sys.stderr.write(f"{what}: {done}{'' if total is None else f'/{total}'}{pace}\n")
            sys.stderr.flush()

    return show


def _pace(done: int, remaining: int | None, seconds: float) -> str:
    """Units a second, and the time the remaining ones will take."""
    if seconds < 1 or not done:
        return ""
    left = f", {seconds / done * remaining:.0f} s left" if remaining else ""
    return f", {done / seconds:.2g}/s{left}"


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout; NaN is refused."""
    typer.echo(untrusted_json(json.dumps(value, ensure_ascii=False, allow_nan=False)))
