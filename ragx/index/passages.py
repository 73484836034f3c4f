"""Passages on disk: one SQLite file with random access, and which of them an older file holds too."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragx.artifacts import fsync
from ragx.errors import ArtifactError, DataError, RagxError
from ragx.records import Passage, Progress

PASSAGES = "passages.sqlite"
_SCHEMA = """
CREATE TABLE passages (number INTEGER PRIMARY KEY, document_id TEXT, title TEXT, text TEXT, id TEXT, digest BLOB);
CREATE INDEX by_document ON passages (document_id);
"""
_COLUMNS = "number, document_id, title, text, id"


def store_passages(
    path: Path, passages: Iterable[Passage], progress: Progress, left_out: Callable[[], int] = lambda: 0
) -> tuple[int, int]:
    """Write all passages unless that was finished; returns the numbers of documents and passages.

    `left_out` is asked at the end how many passages were not given, and the file remembers it.

    Raises:
        DataError: there is no passage.
        RagxError: the file cannot be written.
    """
    if not path.exists():
        beside = path.with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(beside)) as database:
                database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
                for batch in _batches(passages, 1000):
                    rows = [(p.number, p.document_id, p.title, p.text, p.id, _digest(p)) for p in batch]
                    database.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", rows)
                    progress("reading passages", batch[-1].number + 1, None)
                database.execute(f"PRAGMA user_version = {left_out()}")
                database.commit()
        except sqlite3.OperationalError as error:
            raise RagxError(f"{path}: cannot be written ({error}); is the disk full?") from error
        fsync(beside)
        beside.replace(path)
    with closing(open_passages(path)) as database:
        documents, count = database.execute("SELECT count(DISTINCT document_id), count(*) FROM passages").fetchone()
    if not count:
        raise DataError("no passages in the corpus")
    return documents, count


def open_passages(path: Path) -> sqlite3.Connection:
    """The file, for reading only, from any thread; nothing is created beside it, and it may be unlinked afterwards.

    Raises:
        ArtifactError: it is no such file.
    """
    location = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        database = sqlite3.connect(location, uri=True, check_same_thread=False)
        database.execute("SELECT number FROM passages LIMIT 1").fetchone()  # SQLite opens the file only now
    except sqlite3.Error as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
    return database


def read_passages(database: sqlite3.Connection, first: int, count: int) -> Iterator[Passage]:
    """`count` passages from number `first` on, one at a time; -1 for all."""
    query = f"SELECT {_COLUMNS} FROM passages WHERE number >= ? ORDER BY number LIMIT ?"
    return (Passage(*row) for row in database.execute(query, (first, count)))


def find_passages(database: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, Passage]:
    """The passages of the given numbers; negative ones are passed over."""
    wanted = sorted({int(number) for number in numbers if number >= 0})
    query = f"SELECT {_COLUMNS} FROM passages WHERE number IN ({','.join('?' * len(wanted))})"
    return {row[0]: Passage(*row) for row in database.execute(query, wanted)}


def kept_numbers(new: Path, old: Path, count: int) -> NDArray[np.int64]:
    """For each of `count` new passages the number of an old one with the same title and text, or -1: [N].

    Raises:
        ArtifactError: the old file cannot be read.
    """
    kept = np.full(count, -1, dtype=np.int64)
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute("ATTACH ? AS new", (str(new),))
            database.execute("ATTACH ? AS old", (str(old),))
            moved = "SELECT n.number, min(o.number) FROM new.passages n JOIN old.passages o ON n.digest = o.digest "
            stayed = "SELECT number, number FROM new.passages n JOIN old.passages o USING (number) "
            for query in (moved + "GROUP BY n.number", stayed + "WHERE n.digest = o.digest"):
                for number, before in database.execute(query):
                    kept[number] = before
        except sqlite3.Error as error:
            raise ArtifactError(f"{old}: cannot be compared ({error})") from error
    return kept


def count_left_out(path: Path) -> int:
    """How many passages were left out when the file was written."""
    with closing(open_passages(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def lengths(path: Path) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of the passages' characters."""
    with closing(open_passages(path)) as database:
        found = np.fromiter((row[0] for row in database.execute("SELECT length(text) FROM passages")), dtype=np.int64)
    median, high = np.percentile(found, [50, 95])
    return {"mean": round(float(found.mean()), 1), "median": float(median), "p95": float(high), "max": int(found.max())}


def _digest(passage: Passage) -> bytes:
    """What of a passage decides its vector."""
    return hashlib.sha256(f"{passage.title}\0{passage.text}".encode()).digest()[:16]


def _batches(items: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
