"""`ragx finetune`."""

from typing import Annotated

import typer

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


def finetune(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train question encoder and generator end to end on the marginal likelihood."""
    start_log(quiet, verbose)
    with progress_bar(quiet) as progress:
        done = stages.finetune(load_config(config, overrides or ()), resume=resume, dry_run=dry_run, progress=progress)
    if as_json:
        print_json(done)
    elif dry_run:
        typer.echo(done["text"])
    else:
        typer.echo(
            f"{done['model']}: {done['steps']} steps, best at {done['best_step']}, {done['seconds'] / 60:.1f} min"
        )
