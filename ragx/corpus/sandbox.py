"""The parent's side of the parsers: child processes started when needed, and again after one died of a file."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from ragx.corpus.streams import Limits, Problem
from ragx.corpus.tables import Record
from ragx.errors import RagxError

_LONGEST = 12
"""Bytes of a line of JSON for a character at most: a surrogate pair, escaped."""


class Sandbox:
    """Parsers by format; several threads may read at once, each with a child of its own.

    At its end all children are killed, those that are at work too: a thread which waits for one then goes on at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle: dict[str, list[_Child]] = {}
        self._busy: set[_Child] = set()
        self._ended = False
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._ended = True
            for child in self._busy:
                child.interrupt()
            for child in chain.from_iterable(self._idle.values()):
                child.kill()

    def read(self, format: str, path: Path, name: str, fields: list[str]) -> Iterator[Record | Problem]:
        """The records of a file; the death of its parser is one problem more. None once the sandbox has ended."""
        child = self._child(format)
        if child is None:
            return
        ended = False
        try:
            for answer in child.ask({"path": str(path), "name": name, "fields": fields}):
                ended = "end" in answer
                if "record" in answer:
                    yield answer["place"], answer["record"]
                elif not ended:
                    yield Problem(answer["place"], answer["reason"])
            if not ended and not self._ended:
                yield Problem(str(path), child.reason_of_death(self._limits))
        finally:
            self._give_back(format, child, reusable=ended)

    def _child(self, format: str) -> "_Child | None":
        """An idle child, or a new one."""
        with self._lock:
            if self._ended:
                return None
            idle = self._idle.setdefault(format, [])
            child = idle.pop() if idle else _Child(format, self._limits)
            self._busy.add(child)
            return child

    def _give_back(self, format: str, child: "_Child", *, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(child)
            if reusable and not self._ended:
                self._idle[format].append(child)
                return
        child.kill()


class _Child:
    """One parser process; its complaints go to a file that is gone with it."""

    def __init__(self, format: str, limits: Limits) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._line_limit = limits.document_bytes * _LONGEST
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"ragx.corpus.parsers.{format}", json.dumps(dataclasses.asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answers to a request, the last of which holds "end" unless the child died."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return
        while (line := self._process.stdout.readline(self._line_limit)).endswith(b"\n"):
            answer = json.loads(line)
            yield answer
            if "end" in answer:
                return

    def reason_of_death(self, limits: Limits) -> str:
        """What killed the child, as a reason for its file.

        Raises:
            RagxError: it never ran.
        """
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its parser gave no answer that can be read"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["nothing said"]
        if any("ModuleNotFoundError" in line or "ImportError" in line for line in said[-1:]):
            raise RagxError(f"the parser cannot start ({said[-1]}); install ragx anew with its extras")
        if code in (-signal.SIGXCPU, -signal.SIGALRM):
            return f"takes longer than corpus.limits.seconds: {limits.seconds}"
        if code < 0:
            return f"its parser was killed by {signal.Signals(-code).name}"
        return f"its parser failed ({said[-1]})"

    def interrupt(self) -> None:
        """End the process while another thread waits for its answer, and leave the rest to that thread."""
        self._process.kill()

    def kill(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        assert self._process.stdin and self._process.stdout
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()
