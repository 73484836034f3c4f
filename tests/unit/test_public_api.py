"""The five public calls, and what importing ragx costs."""

import inspect
import subprocess
import sys

import pytest

import ragx

HEAVY = ("torch", "transformers", "faiss", "sentence_transformers", "scipy", "accelerate", "peft", "tantivy", "numpy")


def test_five_calls():
    assert sorted(ragx.__all__) == ["ask", "build_index", "evaluate", "finetune", "load_config"]
    assert all(callable(getattr(ragx, name)) and getattr(ragx, name).__doc__ for name in ragx.__all__)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("load_config", "path"),
        ("build_index", "config"),
        ("finetune", "config"),
        ("ask", "config"),
        ("evaluate", "config"),
    ],
)
def test_first_argument_and_only_keywords_after_the_second(name, first):
    parameters = list(inspect.signature(getattr(ragx, name)).parameters.values())
    assert parameters[0].name == first
    required = [p.name for p in parameters if p.default is p.empty]
    assert required == ([first, "question"] if name == "ask" else [first])


def loaded_after(code):
    code += f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


COMMAND = """
import contextlib, sys
sys.argv = ["ragx", *{arguments!r}]
from ragx.cli.main import run
with contextlib.suppress(SystemExit):
    run()
"""


def test_import_loads_nothing_heavy():
    assert loaded_after("import ragx") == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["--version", "--json"], ["finetune", "--help"], ["ask", "-c", "none.yaml", "x"]],
)
def test_command_line_loads_nothing_heavy_before_it_must(arguments):
    assert loaded_after(COMMAND.format(arguments=arguments)) == []


STATE = """
import logging, os, warnings
def state():
    return dict(os.environ), logging.getLogger().handlers[:], warnings.filters[:]
before = state()
import ragx
print(state() == before)
"""


def test_import_changes_no_state():
    done = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_typed_marker_is_shipped():
    from importlib.resources import files

    assert files("ragx").joinpath("py.typed").is_file()
