"""`ragx init`."""

from pathlib import Path
from typing import Annotated

import typer

from ragx import stages
from ragx.cli.common import AsJson, Quiet, Verbose, print_json, start_log


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(),
    sample: Annotated[bool, typer.Option("--sample", help="Also write the sample domain.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a commented ragx.yaml, with --sample also a small domain to try it on."""
    start_log(quiet, verbose)
    written = [str(path) for path in stages.init(folder, sample=sample)]
    if as_json:
        print_json({"written": written})
    else:
        typer.echo("\n".join(f"wrote {path}" for path in written))
