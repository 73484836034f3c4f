"""The entry point: subcommands, and the only place that turns errors into exit codes."""

import errno
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from ragx.artifacts import untrusted
from ragx.cli.ask import ask
from ragx.cli.check import check
from ragx.cli.common import is_first_process
from ragx.cli.eval import evaluate
from ragx.cli.export import export
from ragx.cli.finetune import finetune
from ragx.cli.index import index
from ragx.cli.init import init
from ragx.errors import RagxError, is_out_of_memory

INPUT, BUG, INTERRUPTED, CLOSED_PIPE, TERMINATED = 2, 70, 130, 141, 143
GO_ON = "the same command goes on from here (finetune: with --resume)"
MEMORY = (
    "out of memory; lower what is computed at once: encoder.batch_size (index), eval.batch_size (eval), "
    "finetune.micro_batch_size and finetune.warmup_batch_size (finetune), else retrieval.top_k and "
    "generator.max_input_tokens; or say device: cpu where it was a GPU's"
)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
UsageError: Any = typer.BadParameter.__mro__[1]
"""The base of what typer says about a wrong command line; it has no public name."""


class _CarriedError(Exception):
    """Brings an error past typer, which would end with exit code 1 or say nothing; the error is its cause."""


def _carrying(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def carried(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _CarriedError from error

    return carried


app = typer.Typer(
    name="ragx",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carry a pretrained RAG model over to your own documents.",
    epilog="A first run:  ragx init demo --sample  &&  cd demo  &&  ragx index  &&  ragx ask 'Who winds the bow door?'",
)
app.command()(_carrying(init))
app.command()(_carrying(check))
app.command()(_carrying(index))
app.command()(_carrying(finetune))
app.command()(_carrying(ask))
app.command("eval")(_carrying(evaluate))
app.command()(_carrying(export))


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: as JSON.")] = False,
) -> None:
    """Carry a pretrained RAG model over to your own documents."""
    if show_version:
        names = ("ragx", "torch", "transformers", "sentence-transformers", "faiss-cpu")
        versions = {name: version(name) for name in (names if as_json else names[:1])}
        typer.echo(json.dumps(versions) if as_json else f"ragx {versions['ragx']}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(INPUT)


def run() -> NoReturn:
    """Run the command line. 0 done, 1 a gate failed, 2 input or machine, 70 a bug, 130 and 143 interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = app(standalone_mode=False, prog_name="ragx")
        sys.stdout.flush()
    except UsageError as error:
        _fail(f"{error.format_message().replace('Value error, ', '')} See: ragx --help")
    except RagxError as error:
        _fail(str(error))
    except _CarriedError as carried:
        _outside(carried.__cause__)
    except (KeyboardInterrupt, typer.Abort):
        _interrupted()
    except SystemExit as end:
        if end.code == TERMINATED:
            _fail(f"terminated; {GO_ON}", TERMINATED)
        raise
    except BaseException as error:  # noqa: BLE001 - the boundary: a bug, or a panic in Rust, must not look like a failed gate
        if is_out_of_memory(error):
            _fail(MEMORY)
        _bug()
    sys.exit(code if isinstance(code, int) else 0)


def _outside(error: BaseException | None) -> NoReturn:
    """Ctrl-C, a closed pipe, or a disk or memory that failed us; anything else is a bug."""
    if isinstance(error, KeyboardInterrupt):
        _interrupted()
    if not isinstance(error, OSError):
        _bug()
    if is_out_of_memory(error):
        _fail(MEMORY)
    if error.errno == errno.EPIPE:
        with suppress(OSError, ValueError):  # else Python complains when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    if error.errno not in DISK:
        _bug()
    place = error.filename2 or error.filename  # of two, the one that was written
    named = f"{place}: " if place else ""
    _fail(f"{named}{error.strerror}; nothing half written stands there: make room or permit it, then run again")


def _interrupted() -> NoReturn:
    _fail(f"interrupted; {GO_ON}", INTERRUPTED)


def _fail(message: str, code: int = INPUT) -> NoReturn:
    speaker = "ragx" if is_first_process() else f"ragx, process {os.environ['RANK']}"
    for line in message.splitlines():
        sys.stderr.write(f"{speaker}: {untrusted(line)}\n")
    sys.exit(code)


def _bug() -> NoReturn:
    traceback.print_exc()
    sys.stderr.write("ragx: this is a bug; please report it with the lines above\n")
    sys.exit(BUG)


if __name__ == "__main__":
    run()
