"""`ragx finetune`."""

from typing import Annotated, Any

import typer

from ragx import stages
from ragx.cli.common import (
    DEFAULT_CONFIG,
    AsJson,
    ConfigPath,
    Overrides,
    Quiet,
    Verbose,
    is_first_process,
    print_json,
    progress_bar,
    start_log,
)
from ragx.config import load_config


def finetune(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, how long it will take and in how much memory.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train question encoder and generator end to end on the marginal likelihood."""
    start_log(quiet, verbose)
    with progress_bar(quiet) as progress:
        done = stages.finetune(load_config(config, overrides or ()), resume=resume, dry_run=dry_run, progress=progress)
    if not is_first_process():
        return
    if as_json:
        print_json(done)
    elif dry_run:
        typer.echo(f"{done['text']}\n{_estimate(done)}")
    else:
        typer.echo(
            f"{done['model']}: {done['steps']} steps, best at {done['best_step']}, {done['seconds'] / 60:.1f} min"
            f"{_refreshed(done)}"
        )


def _refreshed(done: dict[str, Any]) -> str:
    if "refresh" not in done:
        return ""
    cost = done["refresh"]
    return (
        f", of them {cost['seconds'] / 60:.1f} min to encode {cost['passages']} passages anew; "
        f"the index took {cost['index_seconds'] / 60:.1f} min more"
    )


def _estimate(plan: dict[str, Any]) -> str:
    seconds = plan["seconds"]
    refreshes = f", passages anew {seconds['refreshes'] / 60:.1f}" if "refreshes" in seconds else ""
    return (
        f"about {seconds['total'] / 60:.1f} min (retriever warm-up at most {seconds['warm_up'] / 60:.1f}, "
        f"{plan['steps']} steps {seconds['steps'] / 60:.1f}, dev set {seconds['evaluations'] / 60:.1f}{refreshes}) "
        f"and {plan['memory_bytes'] / 1e9:.1f} GB of memory a process"
    )
