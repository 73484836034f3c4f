"""`ragx index`."""

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


def index(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    stats: Annotated[bool, typer.Option("--stats", help="Only describe the index that is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build the FAISS and lexical index of the corpus; an interrupted build goes on where it stopped."""
    start_log(quiet, verbose)
    loaded = load_config(config, overrides or ())
    if stats:
        found = stages.index_stats(loaded)
    else:
        with progress_bar(quiet) as progress:
            found = stages.build_index(loaded, progress)
    if as_json:
        print_json(found)
    else:
        typer.echo(
            f"{found['folder']}: {found['passages']} passages of {found['documents']} documents, {found['kind']} index "
            f"of {found['dimension']} dimensions, lexical: {found['lexical']}, {found['bytes'] / 1e6:.1f} MB"
        )
