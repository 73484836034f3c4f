"""`ragx ask`: one question, a pipe of questions, or a conversation."""

import io
import math
import sys
from typing import Annotated, Any, Literal, TextIO

import typer
from rich.table import Table
from rich.text import Text

from ragx import stages
from ragx.artifacts import is_text, untrusted
from ragx.cli.common import (
    DEFAULT_CONFIG,
    AsJson,
    ConfigPath,
    Overrides,
    Quiet,
    Verbose,
    print_json,
    start_log,
    stderr,
)
from ragx.config import load_config
from ragx.errors import DataError
from ragx.records import Answer

BATCH = 8
HELP = "Ask, or type :why for the last answer's passages in full, :quit to leave."


def ask(
    question: Annotated[str | None, typer.Argument(help="Without it: a conversation, or questions on stdin.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    model: Annotated[Literal["auto", "base", "tuned"], typer.Option(help="auto: tuned where it exists.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Answer from the indexed corpus, with confidence, passages, priors and posteriors."""
    start_log(quiet, verbose)
    loaded = load_config(config, overrides or ())
    if question is not None:
        _require_question(question)
    answerer = stages.Answerer(loaded, model)
    if question is not None:
        if as_json:
            _print(answerer.answer([question])[0], as_json)
            return
        answer = _write(answerer, question)
        if not quiet:
            _show_passages(answer, full=False)
    elif _stdin().isatty():
        _converse(answerer)
    else:
        _answer_lines(answerer, as_json)


def _require_question(question: str) -> None:
    if not question.strip():
        raise DataError("the question is empty")
    if not is_text(question):
        raise DataError("the question is not UTF-8; type it again")


def _stdin() -> TextIO:
    """stdin, in which stray bytes are read as halves of surrogate pairs, so that their line can be told."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _answer_lines(answerer: stages.Answerer, as_json: bool) -> None:
    """One answer a line for the questions on stdin; a blank line is answered by an empty line."""
    lines = [line.strip() for line in sys.stdin]
    for number, line in enumerate(lines, start=1):
        if not is_text(line):
            raise DataError(f"stdin:{number}: the question is not UTF-8; convert it, such as with iconv")
    for start in range(0, len(lines), BATCH):
        batch = lines[start : start + BATCH]
        answers = iter(answerer.answer([line for line in batch if line])) if any(batch) else iter(())
        for line in batch:
            if line:
                _print(next(answers), as_json)
            elif not as_json:
                typer.echo("")


def _converse(answerer: stages.Answerer) -> None:
    import readline  # noqa: F401 - gives input() line editing and history

    console = stderr()
    console.print(HELP)
    last: Answer | None = None
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in (":quit", ":q", "exit"):
            return
        if line == ":why" and last is not None:
            _show_passages(last, full=True)
        elif line.startswith(":"):
            console.print(HELP)
        elif not is_text(line):
            console.print("That is not UTF-8; type it again.")
        elif line:
            last = _write(answerer, line)
            _show_passages(last, full=False)


def _write(answerer: stages.Answerer, question: str) -> Answer:
    """Answer on stdout, at a terminal while it is written where the decoding allows it."""
    shown = ""

    def show(text: str) -> None:
        nonlocal shown
        line = " ".join(text.split())
        if line.startswith(shown) and not line.endswith("\ufffd"):
            typer.echo(line[len(shown) :], nl=False)
            shown = line

    streams = answerer.streams and sys.stdout.isatty()
    answer = answerer.answer([question], show if streams else None)[0]
    final = " ".join(answer.text.split())
    typer.echo(final.removeprefix(shown) if final.startswith(shown) else f"\n{final}")
    return answer


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(_object(answer))
    else:
        typer.echo(" ".join(answer.text.split()))


def _object(answer: Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "answer": answer.text,
        "confidence": math.exp(answer.log_probability),
        "passages": [
            {
                "id": hit.passage.id,
                "document_id": hit.passage.document_id,
                "title": untrusted(hit.passage.title),
                "text": untrusted(hit.passage.text),
                "score": hit.score,
                "prior": hit.prior,
                "posterior": hit.posterior,
            }
            for hit in answer.hits
        ],
        "attribution": [
            {"token": token, "posterior": posterior}
            for token, posterior in zip(answer.tokens, answer.token_posterior, strict=True)
        ],
    }


def _show_passages(answer: Answer, full: bool) -> None:
    table = Table("", "source", "prior", "posterior", "passage", title=f"confidence {_percent(answer)}", expand=True)
    for number, hit in enumerate(answer.hits, start=1):
        text = " ".join(untrusted(hit.passage.text).split())
        shown = Text(text if full or len(text) <= 160 else f"{text[:160]}...")
        source = Text(untrusted(hit.passage.id))
        table.add_row(str(number), source, f"{hit.prior:.2f}", f"{hit.posterior:.2f}", shown)
    stderr().print(table)


def _percent(answer: Answer) -> str:
    return f"{math.exp(answer.log_probability):.0%}"
