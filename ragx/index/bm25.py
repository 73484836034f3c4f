"""BM25 over passages by tantivy: top hits, and the exact score of any passage for any question."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import regex
import tantivy
from numpy.typing import NDArray

from ragx.errors import ArtifactError, RagxError
from ragx.index.words import analyzer, separate
from ragx.records import Passage

_HEAP = 64 << 20
_WORD = regex.compile(r"\w+")
_FIELDS = ["title", "text"]
_ANALYZER = "ragx"

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("number", indexed=True, fast=True)
    builder.add_text_field("title", tokenizer_name=_ANALYZER)
    builder.add_text_field("text", tokenizer_name=_ANALYZER)
    return builder.build()


def write_bm25(folder: Path, passages: Iterable[Passage]) -> None:
    """Write a BM25 index of all passages; one writer thread keeps it the same every time.

    Raises:
        RagxError: tantivy cannot write it.
    """
    folder.mkdir()
    try:
        index = tantivy.Index(_schema(), path=str(folder))
        index.register_tokenizer(_ANALYZER, analyzer())
        writer = index.writer(_HEAP, num_threads=1)
        for passage in passages:
            document = tantivy.Document(title=separate(passage.title), text=separate(passage.text))
            document.add_unsigned("number", passage.number)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
    except ValueError as error:
        raise RagxError(f"{folder}: tantivy cannot write ({error})") from error


class Bm25Index:
    """An opened BM25 index."""

    def __init__(self, folder: Path, passages: int) -> None:
        """Open the folder.

        Raises:
            ArtifactError: tantivy cannot read it, or it holds another number of passages.
        """
        try:
            self._index = tantivy.Index.open(str(folder))
        except ValueError as error:
            raise ArtifactError(f"{folder}: tantivy cannot read it ({error})") from error
        self._index.register_tokenizer(_ANALYZER, analyzer())
        self._searcher = self._index.searcher()
        self._passages = passages
        if self._searcher.num_docs != passages:
            raise ArtifactError(f"{folder}: holds {self._searcher.num_docs} passages, expected {passages}")

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Passage numbers and scores of the k best hits, best first, ties by number; scores relative to the best."""
        numbers, scores = self._hits(self._parse(question), k)
        if not len(scores) or scores.max() <= 0:
            return []
        relative = scores / scores.max()
        order = np.lexsort((numbers, -scores))
        return [(int(numbers[row]), float(relative[row])) for row in order if scores[row] > 0]

    def scores(self, question: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The scores of given passages, on the scale of `search`."""
        query = self._parse(question)
        _, best = self._hits(query, 1)
        if not len(best) or best[0] <= 0:
            return np.zeros(len(numbers), dtype=np.float32)
        found = dict(zip(*self._hits(self._among(query, numbers), len(numbers)), strict=True))
        chosen = np.array([found.get(number, 0.0) for number in numbers], dtype=np.float32)
        return np.asarray(chosen / best[0], dtype=np.float32)

    def all_scores(self, question: str) -> NDArray[np.float32]:
        """The scores [N] of all passages."""
        all_scores = np.zeros(self._passages, dtype=np.float32)
        numbers, scores = self._hits(self._parse(question), self._passages)
        if len(scores) and scores.max() > 0:
            all_scores[numbers] = scores / scores.max()
        return all_scores

    def _parse(self, question: str) -> tantivy.Query:
        """Any word of the question, in either field; nothing in it is query syntax."""
        words = " ".join(_WORD.findall(separate(question))).lower()
        query, _ = self._index.parse_query_lenient(words, _FIELDS)
        return query

    def _among(self, query: tantivy.Query, numbers: Sequence[int]) -> tantivy.Query:
        members = tantivy.Query.term_set_query(self._index.schema, "number", list(numbers))
        silent = tantivy.Query.const_score_query(members, 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, silent)])

    def _hits(self, query: tantivy.Query, k: int) -> Found:
        """Numbers and scores of the k best, as tantivy orders them."""
        found = self._searcher.search(query, limit=k, count=False).hits
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        numbers = self._searcher.fast_field_values("number", [address for _, address in found])
        return np.array(numbers, np.int64), np.array([score for score, _ in found], np.float32)
