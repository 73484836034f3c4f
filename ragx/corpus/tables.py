"""Files of records: .jsonl, .json, .csv and .tsv, each record streamed with the place where it stands."""

import csv
import io
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragx.corpus.streams import Limits, Problem, decoded, read_lines

Record = tuple[str, dict[str, Any]]
"""A place, such as `corpus.jsonl:3`, and the record that stands there."""

_PIECE = 1 << 16


def read_json_lines(file: io.BufferedIOBase, path: Path, limits: Limits) -> Iterator[Record | Problem]:
    """Each non-blank line of a .jsonl file."""
    for number, line in read_lines(file, limits):
        place = f"{path}:{number}"
        if isinstance(line, Problem):
            yield Problem(place, line.reason)
        elif line.strip():
            yield _object(_loaded(line), place)


def read_json(file: io.BufferedIOBase, path: Path, limits: Limits) -> Iterator[Record | Problem]:
    """Each object of a .json file, in a list or one after the other; places count from 1.

    Raises:
        DataError: the file is not UTF-8.
    """
    reader = _Values(file, path, limits)
    inside = reader.skip("[")
    number = 0
    while not reader.at_end(inside):
        number += 1
        place = f"{path}[{number}]"
        try:
            value = reader.value()
        except (ValueError, RecursionError) as error:
            yield Problem(place, f"invalid JSON ({error})")
            return
        yield _object(value, place)
        if inside and not reader.skip(",") and not reader.at_end(inside):
            yield Problem(place, "invalid JSON (no comma after this)")
            return
    if inside and not reader.skip("]"):
        yield Problem(str(path), f"ends inside the list, after {number} records")


def read_table(file: io.BufferedIOBase, path: Path, limits: Limits) -> Iterator[Record | Problem]:
    """Each row of a .csv or .tsv file with a header."""
    csv.field_size_limit(limits.document_bytes)
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    rows = csv.DictReader(_Lines(file, limits), delimiter=delimiter, strict=True)
    try:
        columns = len(rows.fieldnames or ())
    except (csv.Error, _BadLineError) as error:
        yield Problem(f"{path}:1", f"broken header ({error})")
        return
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(f"{path}:{rows.reader.line_num}", f"broken table ({error})")
            continue
        except _BadLineError as error:
            yield Problem(f"{path}:{error.problem.place}", error.problem.reason)
            continue
        place = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
            yield Problem(place, f"{columns} columns in the header, another number in this row")
        else:
            yield place, row


class _BadLineError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


class _Lines:
    """Lines for the csv reader, which goes on after a bad one."""

    def __init__(self, file: io.BufferedIOBase, limits: Limits) -> None:
        self._lines = read_lines(file, limits)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        if isinstance(line, Problem):
            raise _BadLineError(line)
        return line


class _Values:
    """JSON values out of a stream, of which at most one document is in memory."""

    def __init__(self, file: io.BufferedIOBase, path: Path, limits: Limits) -> None:
        self._pieces = decoded(file, "utf-8", path)
        self._decoder = json.JSONDecoder(object_pairs_hook=_no_doubles, parse_constant=_refuse_constant)
        self._limits = limits
        self._text, self._at = "", 0

    def skip(self, character: str) -> bool:
        """Pass white space and this character, if it comes next."""
        found = self._next() == character
        self._at += found
        return found

    def at_end(self, inside: bool) -> bool:
        """Whether nothing comes next, or the end of the list that we are in."""
        return self._next() in ("", "]" if inside else "")

    def value(self) -> Any:
        """The next value; more is read until it is whole."""
        size = _PIECE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > self._limits.document_bytes:
                    raise ValueError(self._limits.too_long) from None
                if not self._more(size):
                    raise
                size = len(self._text)
            else:
                self._at = end
                return value

    def _next(self) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in string.whitespace:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_PIECE):
                return ""

    def _more(self, size: int) -> bool:
        pieces, length = [self._text[self._at :]], 0
        while length < size and (piece := next(self._pieces, "")):
            pieces.append(piece)
            length += len(piece)
        self._text, self._at = "".join(pieces), 0
        return length > 0


def _loaded(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_no_doubles, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Problem("", f"invalid JSON ({error})")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(value: Any, place: str) -> Record | Problem:
    if isinstance(value, Problem):
        return Problem(place, value.reason)
    if not isinstance(value, dict):
        return Problem(place, f"expected an object, found {type(value).__name__}")
    return place, value
