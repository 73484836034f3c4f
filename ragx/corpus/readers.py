"""Files, folders and globs -> documents, streamed: one generator per format."""

import csv
import glob
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ragx.errors import DataError
from ragx.records import Document

log = logging.getLogger(__name__)

MAX_FIELD = 1 << 27
"""Characters of one CSV field; the standard library stops at 131,072."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a document's fields in .jsonl, .csv and .tsv files."""

    id: str = "id"
    title: str = "title"
    text: str = "text"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file, decompressing .gz; a byte order mark is dropped.

    Raises:
        DataError: it cannot be opened, is not UTF-8 or is no whole gzip file.
    """
    opener: Callable[..., TextIO] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a block); convert it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def corpus_files(paths: Iterable[str]) -> list[tuple[Path, str]]:
    """Every file that `paths` name, sorted, with its name relative to the folder or glob it came from.

    Raises:
        DataError: a path does not exist, a glob matches nothing, or a named file has an unknown format.
    """
    found: dict[Path, str] = {}
    for text in paths:
        files = _files_of(Path(text), text)
        if not files:
            raise DataError(f"{text}: no file that ragx can read; set corpus.paths")
        found.update(files)
    return list(found.items())


def _files_of(path: Path, text: str) -> dict[Path, str]:
    """The files of one path, folder or glob, with their names."""
    try:
        exists = path.exists()
    except OSError as error:
        raise DataError(f"{text[:80]}: {error.strerror}; set corpus.paths") from error
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _reader_of(p) and p.name[0] != ".")
        return {p: p.relative_to(path).as_posix() for p in inside}
    if exists:
        if not _reader_of(path):
            raise DataError(f"{path}: unknown format; ragx reads {', '.join(sorted(_READERS))}, each also .gz")
        return {path: path.name}
    if not glob.has_magic(text):
        raise DataError(f"{path}: no such file or folder; set corpus.paths")
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute patterns
    root = Path(*_plain_parts(path))
    return {p: p.relative_to(root).as_posix() for p in matches if p.is_file() and _reader_of(p)}


def _plain_parts(path: Path) -> list[str]:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def read_documents(paths: Iterable[str], fields: Fields, on_error: str = "fail") -> Iterator[Document]:
    """Stream the documents of all files, in the order of the files.

    Raises:
        DataError: a record is broken or empty, an id occurs twice, or no document was found; with
            `on_error="skip"` bad records are logged and counted instead.
    """
    seen: dict[str, str] = {}
    skipped = 0
    for path, name in corpus_files(paths):
        for outcome in _read_file(path, name, fields):
            problem = outcome if isinstance(outcome, str) else _problem(outcome, seen)
            if isinstance(outcome, Document) and problem is None:
                seen[outcome.id] = outcome.source
                yield outcome
            elif on_error == "fail":
                raise DataError(f"{problem}; mend it, or say corpus.on_error: skip")
            else:
                skipped += 1
                log.warning("skipped %s", problem)
    if skipped:
        log.warning("%d records skipped", skipped)
    if not seen:
        raise DataError(f"{', '.join(paths)}: no documents in the corpus")


def _problem(document: Document, seen: dict[str, str]) -> str | None:
    if not document.text.strip():
        return f"{document.source}: document {document.id!r} is empty"
    if document.id in seen:
        return f"{document.source}: id {document.id!r} stands already at {seen[document.id]}"
    return None


def _read_file(path: Path, name: str, fields: Fields) -> Iterator[Document | str]:
    """Documents of one file; a string instead of one says what is wrong with a record."""
    reader = _reader_of(path)
    if reader is None:
        raise DataError(f"{path}: unknown format")
    with open_text(path) as file:
        yield from reader(file, path, name, fields)


def _reader_of(path: Path) -> Callable[..., Iterator[Document | str]] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _READERS.get(suffixes[-1]) if suffixes else None


def read_json_lines(file: TextIO, path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each non-blank line of a .jsonl file as (place, object), or (place, what is wrong)."""
    for number, line in enumerate(file, start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, f"invalid JSON ({error})"
            continue
        yield place, value if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"


def _jsonl(file: TextIO, path: Path, name: str, fields: Fields) -> Iterator[Document | str]:
    for place, value in read_json_lines(file, path):
        if isinstance(value, str):
            yield f"{place}: {value}"
        else:
            yield _document(value, place, fields)


def _table(file: TextIO, path: Path, name: str, fields: Fields) -> Iterator[Document | str]:
    csv.field_size_limit(MAX_FIELD)
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    rows = csv.DictReader(file, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{path}:{rows.reader.line_num}: broken table ({error})"
            continue
        place = f"{path}:{rows.line_num}"
        if None in row or None in row.values():
            yield f"{place}: {len(rows.fieldnames or ())} columns in the header, another number in this row"
        else:
            yield _document(row, place, fields)


def _document(record: dict[str, Any], place: str, fields: Fields) -> Document | str:
    missing = [name for name in (fields.id, fields.text) if name not in record]
    if missing:
        return f"{place}: no field {missing[0]!r}; fields here: {', '.join(record)}"
    title, text = record.get(fields.title) or "", record[fields.text]
    if not isinstance(text, str) or not isinstance(title, str):
        return f"{place}: {fields.text!r} and {fields.title!r} must be text"
    if not isinstance(record[fields.id], str | int) or record[fields.id] == "":
        return f"{place}: {fields.id!r} must be text or a whole number"
    try:
        f"{record[fields.id]}{title}{text}".encode()
    except UnicodeEncodeError:
        return f"{place}: holds half of a surrogate pair, which is no text"
    return Document(str(record[fields.id]), title, text, place)


def _plain(file: TextIO, path: Path, name: str, fields: Fields) -> Iterator[Document | str]:
    yield Document(name, Path(name).name.partition(".")[0].replace("-", " "), file.read(), str(path))


def _markdown(file: TextIO, path: Path, name: str, fields: Fields) -> Iterator[Document | str]:
    text = file.read()
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("# "):
        yield Document(name, first[2:].strip(), rest.strip("\n"), str(path))
    else:
        yield Document(name, Path(name).name.partition(".")[0].replace("-", " "), text, str(path))


_READERS: dict[str, Callable[[TextIO, Path, str, Fields], Iterator[Document | str]]] = {
    ".jsonl": _jsonl,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _plain,
    ".md": _markdown,
}
