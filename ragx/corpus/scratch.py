"""Temporary databases: what the reading of a large corpus has to remember, outside of memory."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ragx.errors import RagxError

_FOLDERS = ("/var/tmp", "/usr/tmp", "/tmp", ".")


def open_scratch(schema: str) -> sqlite3.Connection:
    """A database that is gone when it is closed; SQLite keeps some megabytes in memory, the rest in a nameless file."""
    database = sqlite3.connect("", check_same_thread=False)
    database.executescript(f"{schema} PRAGMA journal_mode = OFF;")
    return database


@contextmanager
def naming_scratch() -> Iterator[None]:
    """Around what reads and writes such a database.

    Raises:
        RagxError: its folder, which SQLite does not name, is full.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RagxError(
            f"{_folder()}: no room for what is known of the corpus so far ({error}); make some there, or set TMPDIR"
        ) from error


def _folder() -> Path:
    """Where SQLite puts temporary files: the first of these that can be written to."""
    wanted = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), *_FOLDERS)
    found = (Path(name) for name in wanted if name and os.access(name, os.W_OK | os.X_OK))
    return next((folder for folder in found if folder.is_dir()), Path())
