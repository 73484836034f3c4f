"""The lexical index, BM25 or TF-IDF.

Scores are divided by the question's best hit, so that one weight serves long and short questions: the best is 1, a
passage that shares no word with the question is 0.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from ragx.index.bm25 import Bm25Index, write_bm25
from ragx.index.tfidf import TfidfIndex, write_tfidf
from ragx.records import Passage

Lexical = Literal["bm25", "tfidf", "none"]


class LexicalIndex(Protocol):
    """What either kind answers; scores are relative to the best of all passages."""

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Passage numbers and scores of the k best hits, best first, ties by number."""

    def scores(self, question: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The scores of given passages."""

    def all_scores(self, question: str) -> NDArray[np.float32]:
        """The scores [N] of all passages."""


def write_lexical(folder: Path, kind: Lexical, passages: Iterable[Passage]) -> None:
    """Write the lexical index of all passages into a new folder; for "none", nothing.

    Raises:
        RagxError: it cannot be written.
    """
    match kind:
        case "bm25":
            write_bm25(folder, passages)
        case "tfidf":
            write_tfidf(folder, passages)
        case "none":
            pass
        case _:
            assert_never(kind)


def open_lexical(folder: Path, kind: Lexical, passages: int) -> LexicalIndex | None:
    """The lexical index of a folder, None for "none".

    Raises:
        ArtifactError: it cannot be read, or holds another number of passages.
    """
    match kind:
        case "bm25":
            return Bm25Index(folder, passages)
        case "tfidf":
            return TfidfIndex(folder, passages)
        case "none":
            return None
        case _:
            assert_never(kind)
