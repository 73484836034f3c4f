"""Predictions kept by what they were made from: an evaluation goes on where a kill stopped it, and what did not change
is not computed again."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from ragx.errors import ArtifactError
from ragx.evaluation.predictions import prediction_of, record_of
from ragx.records import Prediction

log = logging.getLogger(__name__)
_TABLE = "CREATE TABLE IF NOT EXISTS predictions (key TEXT PRIMARY KEY, value TEXT NOT NULL, sha256 TEXT NOT NULL)"


class PredictionCache:
    """A table from the fingerprint of model, index, settings and question to its prediction; None keeps nothing.

    A damaged file is begun anew; a damaged row is computed again.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ArtifactError when the file can be neither opened nor begun."""
        self._path = path
        if path is None:
            self._database = _open(":memory:")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError as error:
            log.warning("%s: damaged (%s); begun anew", path, error)
            path.unlink()
            self._database = _open(path)

    def read(self, keys: Iterable[str]) -> dict[str, Prediction]:
        """The predictions there are for some keys."""
        found = {}
        for key in keys:
            row = self._database.execute("SELECT value, sha256 FROM predictions WHERE key = ?", (key,)).fetchone()
            if row is not None and _sha256(row[0]) == row[1]:
                found[key] = prediction_of(json.loads(row[0]))
        return found

    def write(self, predictions: Mapping[str, Prediction]) -> None:
        """Keep some predictions, all or none.

        Raises:
            ArtifactError: they cannot be written.
        """
        texts = {key: json.dumps(record_of(value), allow_nan=False) for key, value in predictions.items()}
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO predictions VALUES (?, ?, ?)",
                    [(key, text, _sha256(text)) for key, text in texts.items()],
                )
        except sqlite3.Error as error:
            raise ArtifactError(f"{self._path}: {error}; make room, or say eval.cache: false") from error

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def _open(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    try:
        database.execute(_TABLE)
        database.commit()
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
