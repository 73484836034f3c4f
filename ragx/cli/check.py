"""`ragx check`."""

from typing import Any

import typer

from ragx import stages
from ragx.artifacts import untrusted
from ragx.cli.common import DEFAULT_CONFIG, AsJson, ConfigPath, Overrides, Quiet, Verbose, print_json, start_log
from ragx.config import load_config


def check(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read configuration, documents and questions, load no model, and say what to expect."""
    start_log(quiet, verbose)
    found = stages.check(load_config(config, overrides or ()))
    if as_json:
        print_json(found)
    else:
        typer.echo(untrusted("\n".join(_lines(found))))


def _lines(found: dict[str, Any]) -> list[str]:
    passages = "" if found["passages"] is None else f", {found['passages']} passages"
    lines = [f"corpus: {found['documents']} documents, {found['words']} words{passages}"]
    for split, facts in found["splits"].items():
        share = f"{facts['answer_in_corpus']:.0%} have an answer that stands in the corpus (the ceiling of em)"
        lines.append(f"{split}: {facts['questions']} questions; {share}")
        if facts["unknown_gold_documents"]:
            lines.append(f"  gold documents not in the corpus: {', '.join(facts['unknown_gold_documents'][:5])}")
        if facts["also_in"]:
            lines.append(f"  {facts['repeated']} questions also stand in {', '.join(facts['also_in'])}")
    size, free = found["index_bytes"] / 1e6, found["free_bytes"] / 1e6
    return [*lines, f"index: about {size:.1f} MB, {free:.0f} MB free on the disk"]
