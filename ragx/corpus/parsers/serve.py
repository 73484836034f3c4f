"""The child's side: read requests, parse files, write records. Nothing but the parsers imports this.

A request is a line of JSON: {"path", "name", "fields"}. Answers are lines too: {"place", "record"} or {"place",
"reason"}, and {"end": true} after the last. Whatever goes wrong in a way that the parser does not know ends the
process; the parent makes one problem of it.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ragx.corpus.streams import Limits, Problem, open_bytes, read_up_to
from ragx.corpus.tables import Record
from ragx.errors import DataError

Parser = Callable[[Path, str, list[str], Limits], Iterator[Record | Problem]]
"""(path, name, names of the id, title and text fields, limits) -> records."""

OUTPUT = 1 << 20
"""Bytes of the largest file that a child may write: its own complaints."""


def serve(parse: Parser) -> None:
    """Answer requests on stdin until it ends. Limits are the first argument, in JSON."""
    limits = Limits(**json.loads(sys.argv[1]))
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_mb * 1_000_000,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints is no answer
        for line in sys.stdin.buffer:
            request = json.loads(line)
            _start_clock(limits)
            for answer in _answers(parse, request, limits):
                signal.setitimer(signal.ITIMER_REAL, 0)
                out.write(json.dumps(answer).encode() + b"\n")
                _start_clock(limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            out.write(b'{"end": true}\n')
            out.flush()


def read_whole(path: Path, limits: Limits) -> bytes:
    """The bytes of a file, decompressed.

    Raises:
        DataError: it cannot be read, or takes more than half of the memory allowed.
    """
    most = limits.memory_mb * 500_000
    with open_bytes(path, limits) as file:
        data = read_up_to(file, most + 1)
    if len(data) > most:
        raise DataError(f"{path}: takes more than half of corpus.limits.memory_mb: {limits.memory_mb}")
    return data


def _start_clock(limits: Limits) -> None:
    """Give the next document its processor seconds, and ten times as many by the clock on the wall."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime) + limits.seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_REAL, 10 * limits.seconds)


def _answers(parse: Parser, request: dict[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
    path = Path(request["path"])
    try:
        for outcome in parse(path, request["name"], request["fields"], limits):
            if isinstance(outcome, Problem):
                yield {"place": outcome.place, "reason": outcome.reason}
            else:
                place, record = outcome
                length = sum(len(value) for value in record.values() if isinstance(value, str))
                fits = length <= limits.document_bytes
                yield {"place": place, **({"record": record} if fits else {"reason": limits.too_long})}
    except DataError as error:
        yield {"place": str(path), "reason": str(error).removeprefix(f"{path}: ")}
    except MemoryError:
        yield {"place": str(path), "reason": f"needs more than corpus.limits.memory_mb: {limits.memory_mb}"}
    except RecursionError:
        yield {"place": str(path), "reason": "nested too deep"}
