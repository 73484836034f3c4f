"""What of a corpus cannot be used: the end of its reading, or a list and a count."""

import logging

from ragx.corpus.streams import Problem
from ragx.errors import DataError

log = logging.getLogger(__name__)

LISTED = 20
"""Skipped records that are logged one by one; the rest are counted, and listed with --verbose."""


class Rejects:
    """Takes the problems of a corpus as `corpus.on_error` says: "fail", or "skip"."""

    def __init__(self, on_error: str) -> None:
        self._fails = on_error == "fail"
        self._count = 0

    def add(self, problem: Problem) -> None:
        """One thing more that cannot be used.

        Raises:
            DataError: problems are not to be skipped.
        """
        if self._fails:
            raise DataError(f"{problem}; mend it, or say corpus.on_error: skip")
        log.log(logging.WARNING if self._count < LISTED else logging.DEBUG, "skipped %s", problem)
        self._count += 1

    def count(self, what: str) -> None:
        """Log how many there were, at the end."""
        if self._count:
            log.warning("%d %s skipped", self._count, what)
