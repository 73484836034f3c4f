"""`ragx index`."""

import re
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
    print_json,
    progress_bar,
    start_log,
)
from ragx.config import load_config
from ragx.errors import ConfigError

_PART = re.compile(r"(\d+)/(\d+)")


def index(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    update: Annotated[bool, typer.Option("--update", help="Encode only passages that are new or changed.")] = False,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Encode only the I-th of N parts, for --merge.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the parts of --shard into the index.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Only describe the index that is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build the FAISS and lexical index of the corpus; an interrupted build goes on where it stopped."""
    start_log(quiet, verbose)
    if sum((update, shard is not None, merge, stats)) > 1:
        raise ConfigError("--update, --shard, --merge and --stats exclude each other")
    part = _part(shard)
    loaded = load_config(config, overrides or ())
    if stats:
        _show(stages.index_stats(loaded), as_json)
        return
    with progress_bar(quiet) as progress:
        if part is not None:
            found = {"shards": [str(path) for path in stages.build_index_part(loaded, *part, progress)]}
        elif merge:
            found = stages.merge_index(loaded, progress)
        else:
            found = stages.build_index(loaded, progress, update=update)
    if part is None or as_json:
        _show(found, as_json)
    else:
        typer.echo("\n".join(found["shards"]))


def _part(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    match = _PART.fullmatch(shard)
    if match is None:
        raise ConfigError(f"--shard {shard}: must be I/N, such as 3/8")
    return int(match[1]), int(match[2])


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    search = "".join(f", {name} {value}" for name, value in found["search"].items())
    recall = "" if found["kind"] == "flat" else f" ({found['factory']}{search}, recall@10 {found['recall@10']:.3f})"
    repeated = f" ({found['left_out']} duplicates left out)" if found["left_out"] else ""
    typer.echo(
        f"{found['folder']}: {found['passages']} passages{repeated} of {found['documents']} documents, "
        f"{found['kind']} index"
        f"{recall} of {found['dimension']} dimensions, lexical: {found['lexical']}, {found['bytes'] / 1e6:.1f} MB"
    )
