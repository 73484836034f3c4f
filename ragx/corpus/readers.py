"""Files, folders and globs -> documents, streamed in the order of the files.

Formats that take a parser library are read in child processes with limits, several files ahead and at once; the others
here, where one pass of the standard library is faster than handing them over.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ragx.artifacts import is_text
from ragx.corpus.files import EXTRAS, corpus_files, find_files, format_of, require_extras
from ragx.corpus.markdown import sections_of, title_and_body
from ragx.corpus.rejects import Rejects
from ragx.corpus.sandbox import Sandbox
from ragx.corpus.scratch import naming_scratch, open_scratch
from ragx.corpus.streams import Limits, Problem, open_utf8, read_text
from ragx.corpus.tables import Record, read_json, read_json_lines, read_table
from ragx.errors import DataError
from ragx.records import Document

__all__ = ["Fields", "corpus_files", "read_documents"]

Found = tuple[Path, str] | Problem
Outcome = Document | Problem


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a document's fields in files of records."""

    id: str = "id"
    title: str = "title"
    text: str = "text"


def read_documents(
    paths: Iterable[str],
    fields: Fields,
    on_error: str = "fail",
    *,
    encoding: str = "utf-8",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Generator[Document]:
    """Stream the documents of all files, in the order of the files; `encoding` is that of files without a mark.

    Whoever may stop early closes this: parsers read ahead.

    Raises:
        DataError: a file or record is broken, empty or beyond the limits, an id occurs twice, a library is not
            installed, or no document was found; with `on_error="skip"` bad files and records are logged and counted
            instead.
        RagxError: the folder of temporary files is full.
    """
    paths, rejects = list(paths), Rejects(on_error)
    count = 0
    with _ids() as first_place:
        for outcome in _outcomes(find_files(paths), fields, encoding, limits):
            problem = outcome if isinstance(outcome, Problem) else _problem(outcome, first_place)
            if problem is not None:
                rejects.add(problem)
            elif isinstance(outcome, Document):
                count += 1
                yield outcome
    rejects.count("records")
    if not count:
        raise DataError(f"{', '.join(paths)}: no documents in the corpus")


@contextmanager
def _ids() -> Iterator[Callable[[Document], str | None]]:
    """A function that says where a document's id stood first, or None when it is new; ids are kept on disk."""
    with naming_scratch():
        opened = open_scratch("CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;")
    with closing(opened) as database:

        def first_place(document: Document) -> str | None:
            known = (document.id, document.source)
            with naming_scratch():
                if database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", known).rowcount:
                    return None
                return str(database.execute("SELECT place FROM ids WHERE id = ?", known[:1]).fetchone()[0])

        yield first_place


def _problem(document: Document, first_place: Callable[[Document], str | None]) -> Problem | None:
    if not document.text.strip():
        return Problem(document.source, f"document {document.id!r} is empty")
    place = first_place(document)
    return Problem(document.source, f"id {document.id!r} stands already at {place}") if place else None


def _outcomes(files: Iterator[Found], fields: Fields, encoding: str, limits: Limits) -> Iterator[Outcome]:
    """Documents and problems of all files in order; files of one document for a parser are read ahead.

    Where reading ends early, parsers are killed before the threads that wait for them are waited for.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ahead: deque[Iterator[Outcome] | Future[list[Outcome]]] = deque()
    with _threads(workers) as threads, Sandbox(limits) as sandbox:
        for found in chain(files, [None] * (2 * workers)):
            if isinstance(found, Problem):
                ahead.append(iter([found]))
            elif found is not None:
                path, name = found
                format = str(format_of(path.name))
                require_extras([format])
                outcomes = _read_file(format, path, name, fields, encoding, limits, sandbox)
                one = format in EXTRAS and format != "parquet"
                ahead.append(threads.submit(list, outcomes) if one else outcomes)
            if ahead and (found is None or len(ahead) > 2 * workers):
                first = ahead.popleft()
                yield from first.result() if isinstance(first, Future) else first


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block: what nobody has begun is dropped."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _read_file(
    format: str, path: Path, name: str, fields: Fields, encoding: str, limits: Limits, sandbox: Sandbox
) -> Iterator[Outcome]:
    """The documents of one file; what ends the reading of a file is its last problem."""
    try:
        if format in EXTRAS:
            columns = [fields.id, fields.title, fields.text] if format == "parquet" else ["id", "title", "text"]
            for outcome in sandbox.read(format, path, name, columns):
                yield _document(outcome, Fields(*columns), "" if format == "parquet" else _name_as_title(name))
            return
        with open_utf8(path, limits, encoding) as file:
            if format in _RECORDS:
                for outcome in _RECORDS[format](file, path, limits):
                    yield _document(outcome, fields)
            else:
                text = read_text(file, path, limits)
                yield text if isinstance(text, Problem) else _page(format, text, path, name)
    except DataError as error:
        yield Problem(str(path), str(error).removeprefix(f"{path}: "))


_RECORDS = {"jsonl": read_json_lines, "json": read_json, "table": read_table}


def _page(format: str, text: str, path: Path, name: str) -> Outcome:
    """A .txt or .md file as one document."""
    title, body = title_and_body(text) if format == "markdown" else ("", text)
    sections = sections_of(body) if format == "markdown" else ()
    record = {"id": name, "title": title, "text": body, "sections": sections}
    return _document((str(path), record), Fields(), _name_as_title(name))


def _name_as_title(name: str) -> str:
    return Path(name).name.partition(".")[0].replace("-", " ")


def _document(outcome: Record | Problem, fields: Fields, default_title: str = "") -> Outcome:
    """A record as a document, if it is one."""
    if isinstance(outcome, Problem):
        return outcome
    place, record = outcome
    reason = _reason_against(record, fields)
    if reason:
        return Problem(place, reason)
    title = record.get(fields.title) or default_title
    sections = tuple((int(offset), str(heading)) for offset, heading in record.get("sections", ()))
    return Document(str(record[fields.id]), title, record[fields.text], place, sections)


def _reason_against(record: dict[str, Any], fields: Fields) -> str | None:
    missing = [name for name in (fields.id, fields.text) if name not in record]
    if missing:
        return f"no field {missing[0]!r}; fields here: {', '.join(record)}"
    identity, title, text = record[fields.id], record.get(fields.title) or "", record[fields.text]
    if not isinstance(text, str) or not isinstance(title, str):
        return f"{fields.text!r} and {fields.title!r} must be text"
    if not isinstance(identity, str | int) or identity == "":
        return f"{fields.id!r} must be text or a whole number"
    whole = f"{identity}{title}{text}"
    if "\x00" in whole:
        return "holds a NUL, which is no text"
    if not is_text(whole):
        return "holds half of a surrogate pair, which is no text"
    return None
