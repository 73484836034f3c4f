"""`ragx export`."""

from pathlib import Path
from typing import Annotated, Literal

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


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; an earlier export is replaced.")],
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    form: Annotated[Literal["transformers"], typer.Option("--format", help="Whose format.")] = "transformers",
    model: Annotated[Literal["auto", "base", "tuned"], typer.Option(help="auto: tuned where it exists.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write model and index as transformers' RAG classes and RagRetriever open them."""
    start_log(quiet, verbose)
    with progress_bar(quiet) as progress:
        done = stages.export(load_config(config, overrides or ()), folder, which=model, progress=progress)
    if as_json:
        print_json({"format": form, **done})
    else:
        typer.echo(f"{done['folder']}: {done['class']} ({done['model']}) and {done['passages']} passages")
