"""The entry point: subcommands, and the only place that turns errors into exit codes."""

import errno
import json
import signal
import sys
import traceback
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from ragx.artifacts import untrusted
from ragx.cli.ask import ask
from ragx.cli.check import check
from ragx.cli.eval import evaluate
from ragx.cli.finetune import finetune
from ragx.cli.index import index
from ragx.cli.init import init
from ragx.errors import RagxError

INPUT, BUG, INTERRUPTED, TERMINATED = 2, 70, 130, 143

app = typer.Typer(
    name="ragx",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carry a pretrained RAG model over to your own documents.",
    epilog="A first run:  ragx init demo --sample  &&  cd demo  &&  ragx index  &&  ragx ask 'Who winds the bow door?'",
)
app.command()(init)
app.command()(check)
app.command()(index)
app.command()(finetune)
app.command()(ask)
app.command("eval")(evaluate)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: as JSON.")] = False,
) -> None:
    """Carry a pretrained RAG model over to your own documents."""
    if show_version:
        names = ("ragx", "torch", "transformers", "sentence-transformers", "faiss-cpu")
        versions = {name: version(name) for name in (names if as_json else names[:1])}
        typer.echo(json.dumps(versions) if as_json else f"ragx {versions['ragx']}")
        raise typer.Exit


def run() -> NoReturn:
    """Run the command line. 0 done, 1 a gate failed, 2 input or machine, 70 a bug, 130 and 143 interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app()
    except RagxError as error:
        _fail(str(error))
    except MemoryError:
        _fail("out of memory; lower finetune.micro_batch_size, eval.batch_size or encoder.batch_size")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT, errno.EIO):
            _bug()
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror}; nothing that stood there was changed: make room or permit it, then run again")
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from here (finetune: with --resume)", INTERRUPTED)
    except Exception:  # noqa: BLE001 - the boundary: a bug must not look like a failed gate
        _bug()
    sys.exit(0)


def _fail(message: str, code: int = INPUT) -> NoReturn:
    for line in message.splitlines():
        sys.stderr.write(f"ragx: {untrusted(line)}\n")
    sys.exit(code)


def _bug() -> NoReturn:
    traceback.print_exc()
    sys.stderr.write("ragx: this is a bug; please report it with the lines above\n")
    sys.exit(BUG)


if __name__ == "__main__":
    run()
