"""TF-IDF over passages by scikit-learn: cosine of passage and question, kept column by column on disk, memory-mapped.

words.txt            the vocabulary, a word a line, in order
idf.npy              float32 [V]
data, indices, indptr.npy   the weights [N, V] of the passages, compressed by columns: a question reads only its words
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array
from sklearn.feature_extraction.text import TfidfVectorizer

from ragx.artifacts import naming
from ragx.errors import ArtifactError
from ragx.index.words import analyzer, separate
from ragx.records import Passage

_ARRAYS = ("data", "indices", "indptr")


def _vectorizer(vocabulary: list[str] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer=_words(), sublinear_tf=True, dtype=np.float32, vocabulary=vocabulary)


def _words() -> Callable[[str], list[str]]:
    analyze = analyzer().analyze
    return lambda text: [word for word in analyze(separate(text)) if word.strip()]


def write_tfidf(folder: Path, passages: Iterable[Passage]) -> None:
    """Write a TF-IDF index of all passages; a passage of no word weighs nothing."""
    folder.mkdir()
    vectorizer = _vectorizer()
    try:
        weights = csc_array(vectorizer.fit_transform(f"{passage.title}\n{passage.text}" for passage in passages))
        words, idf = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_
    except ValueError:  # no word in the whole corpus
        weights, words, idf = csc_array((1, 0), dtype=np.float32), [], np.zeros(0)
    with naming(folder / "words.txt"):
        (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8", newline="\n")
    for name, array in [("idf", idf.astype(np.float32)), *((name, getattr(weights, name)) for name in _ARRAYS)]:
        _save(folder / f"{name}.npy", array)


def _save(path: Path, array: NDArray[Any]) -> None:
    """Through a file of ours: numpy tells neither why a write failed nor, of the last bytes, that it did."""
    with naming(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


class TfidfIndex:
    """An opened TF-IDF index."""

    def __init__(self, folder: Path, passages: int) -> None:
        """Open the folder.

        Raises:
            ArtifactError: it cannot be read, or its parts do not fit each other or the number of passages.
        """
        try:
            words = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
            arrays = tuple(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
            self._weights = csc_array(arrays, shape=(passages, len(words)))
            self._weights.check_format(full_check=False)
            self._vectorizer = _vectorizer(words) if words else None
            if self._vectorizer is not None:
                self._vectorizer.idf_ = np.load(folder / "idf.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{folder}: the TF-IDF index cannot be read ({error})") from error

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Passage numbers and scores of the k best hits, best first, ties by number; scores relative to the best."""
        scores = self.all_scores(question)
        found = np.flatnonzero(scores)
        best = found[np.argsort(-scores[found], kind="stable")[:k]]
        return [(int(number), float(scores[number])) for number in best]

    def scores(self, question: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The scores of given passages, on the scale of `search`."""
        return self.all_scores(question)[list(numbers)]

    def all_scores(self, question: str) -> NDArray[np.float32]:
        """The scores [N] of all passages."""
        if self._vectorizer is None:
            return np.zeros(self._weights.shape[0], dtype=np.float32)
        asked = self._vectorizer.transform([question])
        scores = np.asarray(self._weights[:, asked.indices] @ asked.data, dtype=np.float32)
        best = scores.max(initial=0.0)
        return scores / best if best > 0 else scores
