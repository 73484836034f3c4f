"""BM25 over passages by tantivy: top hits, and the exact score of any passage for any question.

Scores are divided by the question's best hit, so that one weight serves long and short questions: the best is 1, a
passage that shares no word with the question is 0.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import regex
import tantivy
from numpy.typing import NDArray

from ragx.errors import ArtifactError
from ragx.records import Passage

_HEAP = 64 << 20
_WORD = regex.compile(r"\w+")
_FIELDS = ["title", "text"]


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("number", indexed=True, fast=True)
    builder.add_text_field("title", tokenizer_name="en_stem")
    builder.add_text_field("text", tokenizer_name="en_stem")
    return builder.build()


def write_lexical(folder: Path, passages: Iterable[Passage]) -> None:
    """Write a BM25 index of all passages; one writer thread keeps it the same every time."""
    folder.mkdir()
    index = tantivy.Index(_schema(), path=str(folder))
    writer = index.writer(_HEAP, num_threads=1)
    for passage in passages:
        document = tantivy.Document(title=passage.title, text=passage.text)
        document.add_unsigned("number", passage.number)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()


class LexicalIndex:
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
        self._searcher = self._index.searcher()
        self._passages = passages
        if self._searcher.num_docs != passages:
            raise ArtifactError(f"{folder}: holds {self._searcher.num_docs} passages, expected {passages}")

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """Passage numbers and scores of the k best hits, best first, ties by number; scores relative to the best."""
        query = self._parse(question)
        hits = self._hits(query, k)
        best = hits[0][1] if hits else 1.0
        return [(number, score / best) for number, score in hits if score > 0]

    def scores(self, question: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The scores of given passages, on the scale of `search`."""
        query = self._parse(question)
        best = self._hits(query, 1)
        found = dict(self._hits(self._among(query, numbers), len(numbers))) if best else {}
        return np.array([found.get(number, 0.0) / best[0][1] if best else 0.0 for number in numbers], np.float32)

    def all_scores(self, question: str) -> NDArray[np.float32]:
        """The scores [N] of all passages."""
        scores = np.zeros(self._passages, dtype=np.float32)
        for number, score in self.search(question, self._passages):
            scores[number] = score
        return scores

    def _parse(self, question: str) -> tantivy.Query:
        """Any word of the question, in either field; nothing in it is query syntax."""
        words = " ".join(_WORD.findall(question)).lower()
        query, _ = self._index.parse_query_lenient(words, _FIELDS)
        return query

    def _among(self, query: tantivy.Query, numbers: Sequence[int]) -> tantivy.Query:
        members = tantivy.Query.term_set_query(self._index.schema, "number", list(numbers))
        silent = tantivy.Query.const_score_query(members, 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, silent)])

    def _hits(self, query: tantivy.Query, k: int) -> list[tuple[int, float]]:
        found = self._searcher.search(query, limit=k, count=False).hits
        if not found:
            return []
        numbers = self._searcher.fast_field_values("number", [address for _, address in found])
        return sorted(zip(numbers, (score for score, _ in found), strict=True), key=lambda hit: (-hit[1], hit[0]))
