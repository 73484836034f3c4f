"""Every pattern that meets the text of others takes time in proportion to it, whatever it says."""

import importlib
from itertools import islice

import pytest
import regex

MODULES = [
    *("artifacts", "corpus.markdown", "corpus.passages", "corpus.duplicates", "corpus.answers"),
    *("index.words", "index.bm25", "training.synthetic", "evaluation.text", "evaluation.overlap"),
]
BOUNDED = {"_WRITTEN"}  # meets what a generator writes, of 64 tokens at most
FROM_THE_START = {"_FRONT", "_SENTENCE"}  # a text as a whole is matched with these, nothing is sought
SECONDS = 5
"""Ten times what the slowest takes on a slow machine; a pattern of quadratic time would take minutes."""


def patterns():
    for name in MODULES:
        found = vars(importlib.import_module(f"ragx.{name}")).items()
        yield from (
            pytest.param(value, key in FROM_THE_START, id=f"{name}.{key}")
            for key, value in found
            if isinstance(value, regex.Pattern) and key not in BOUNDED
        )


def runs(count=200_000):
    """Long runs of what patterns repeat, after what begins a match and before what forbids it."""
    for unit in (
        " ",
        "\t",
        "\n",
        " \n",
        "\r",
        ".",
        "?!",
        "…",
        "。",
        ",;",
        ")",
        '"',
        "=",
        "-",
        "#",
        "a",
        "字",
        "\u0301",
    ):
        for before in ("x", "x.", "title: x", "---\n"):
            yield before + unit * (count // len(unit)) + "y"
    for unit in ("A. ", "Mr. ", '. "', "# ", "--- x\n", "title: ", "x\n" + " " * 400 + "y"):
        yield unit * (count // len(unit))


@pytest.mark.parametrize(("pattern", "from_the_start"), patterns())
def test_pattern_takes_time_in_proportion_to_the_text(pattern, from_the_start):
    for text in runs():
        pattern.match(text, timeout=SECONDS)
        pattern.fullmatch(text, timeout=SECONDS)
        found = () if from_the_start else pattern.finditer(text, timeout=SECONDS)
        for _ in islice(found, 1000):  # many short matches are no danger
            pass
