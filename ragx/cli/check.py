"""`ragx check`."""

from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ragx import stages
from ragx.artifacts import untrusted
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


def check(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read documents and questions, build nothing, and say what is repeated, leaked, cut or unanswerable, and what
    ragx index will take."""
    start_log(quiet, verbose)
    with progress_bar(quiet) as progress:
        found = stages.check(load_config(config, overrides or ()), progress)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    left_out = f" ({found['left_out']} duplicates left out)" if found["left_out"] else ""
    typer.echo(
        f"corpus: {found['documents']} documents, {found['words']} words, {found['passages']} passages{left_out}"
    )
    if found["splits"]:
        Console(highlight=False).print(_table(found["splits"]))
    typer.echo(untrusted("\n".join([*_details(found["splits"]), *_cuts(found["truncation"]), *_index(found["index"])])))


_COUNTED = {
    "duplicates": "asked twice in the split",
    "leaked": "asked in an earlier split too",
    "in_corpus": "stand in the corpus, word for word",
    "long_answers": "answer above generator.max_answer_tokens",
    "no_room": "leave no room for a passage",
}


def _table(splits: dict[str, Any]) -> Table:
    """A column a split."""
    table = Table("questions", *splits)
    for column in table.columns[1:]:
        column.justify = "right"
    facts = splits.values()
    table.add_row("in all", *(str(each["questions"]) for each in facts))
    table.add_row("answer in some passage (ceiling of em)", *(f"{each['answer_in_corpus']:.1%}" for each in facts))
    table.add_row("answer in a gold document's passage", *(_percent(each["answer_in_gold"]) for each in facts))
    for name, label in _COUNTED.items():
        table.add_row(label, *(str(each[name]["count"]) for each in facts))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _details(splits: dict[str, Any]) -> Iterator[str]:
    """The first question of each kind that something is wrong with."""
    for split, facts in splits.items():
        for name, label in _COUNTED.items():
            if first := facts[name]["first"]:
                yield f"{split}: {facts[name]['count']} {label}, first {first['id']} ({first['where']}): " + (
                    _short(first["question"])
                )
        if unknown := facts["unknown_gold_documents"]:
            yield f"{split}: {len(unknown)} gold documents are not in the corpus, first {_short(unknown[0])}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _cuts(truncation: dict[str, Any]) -> Iterator[str]:
    for name, key in (("passages", "encoder.max_tokens"), ("prompts", "generator.max_input_tokens")):
        if facts := truncation[name]:
            yield (
                f"{key}: {facts['limit']} cuts {facts['cut']:.1%} of {name}, {facts['tokens_lost']:.1%} of their "
                f"tokens ({facts['sample']} drawn, the longest has {facts['longest']})"
            )


def _index(found: dict[str, Any]) -> Iterator[str]:
    measured = f"{found['tokens_per_second']:.0f} tokens/s, measured on {found['passages']} passages"
    disk, building, free = (_size(found[name]) for name in ("disk_bytes", "building_bytes", "free_bytes"))
    yield (
        f"ragx index: {found['kind']} ({found['factory']}) of {found['dimension']} dimensions, "
        f"about {_duration(found['seconds'])} ({measured}), {found['memory_bytes'] / 1e9:.1f} GB of memory, "
        f"{disk} on the disk and {building} while building, of {free} free"
    )
    if found["building_bytes"] > found["free_bytes"]:
        yield "ragx index: the disk is too small for this; set output_dir to another"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
