"""An opened index: candidates with both exact scores, passages read in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ragx.artifacts import read_manifest
from ragx.errors import ArtifactError, StaleIndexError
from ragx.index.encoder import Vectors
from ragx.index.generations import KIND, current_generation
from ragx.index.lexical import LexicalIndex, open_lexical
from ragx.index.passages import PASSAGES, find_passages, open_passages, read_passages
from ragx.index.vectors import Ids, Parameter, VectorIndex
from ragx.records import Passage

Mode = Literal["dense", "lexical", "hybrid"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Passages that may be hits, with exact scores: ids, dense and lexical scores, all [B, C]; id -1 is padding."""

    ids: Ids
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]


class Index:
    """One sealed generation, opened for reading."""

    def __init__(self, folder: Path, remedy: str, search: dict[Parameter, int] | None = None) -> None:
        """Open the generation that `folder/CURRENT` names, every file checked against its manifest.

        `search` overrides search parameters chosen at build time. A writer may replace the index meanwhile: the
        generation opened stays readable.

        Raises:
            ArtifactError: there is none, it is damaged or of another format.
            ConfigError: the index has no such search parameter.
        """
        while True:
            generation = current_generation(folder)
            if generation is None:
                raise ArtifactError(f"{folder}: no index here; run: {remedy}")
            try:
                self._open(generation, remedy, search or {})
                break
            except ArtifactError as error:
                if current_generation(folder) != generation:
                    continue
                if not generation.is_dir():
                    pointer, name = folder / "CURRENT", generation.name
                    raise ArtifactError(f"{pointer}: names {name}, but no ragx index here; run: {remedy}") from error
                raise

    def _open(self, generation: Path, remedy: str, search: dict[Parameter, int]) -> None:
        self.manifest: dict[str, Any] = read_manifest(generation, KIND, remedy)
        self.folder = generation
        self.passages_count: int = self.manifest["passages"]
        self._vectors = VectorIndex(
            generation,
            self.passages_count,
            self.manifest["dimension"],
            exact=self.manifest["kind_of_index"] == "flat",
            search={**self.manifest["search"], **search},
        )
        self._lexical = open_lexical(generation / "lexical", self.manifest["lexical"], self.passages_count)
        self._database = open_passages(generation / PASSAGES)

    def require(self, part: str, configured: object, remedy: str) -> None:
        """Refuse the index when `configured` is not what its manifest says of "corpus", "chunking" or "encoding".

        Raises:
            StaleIndexError: with the first differing fact on both sides and the command that mends it.
        """
        built = self.manifest.get(part)
        if built == configured:
            return
        difference = _difference(built, configured)
        raise StaleIndexError(f"{self.folder}: built with another {part} ({difference}); run: {remedy}")

    def candidates(self, queries: Vectors | None, questions: Sequence[str], mode: Mode, count: int) -> Candidates:
        """The union of the `count` best dense and the `count` best lexical passages, each with both exact scores.

        `queries` [B, D] may be None in lexical mode, whose dense scores are zero. Candidates are in order of number.
        """
        dense_ids = self._dense_ids(queries, mode, count, len(questions))
        chosen = []
        for question, ids in zip(questions, dense_ids, strict=True):
            numbers = {int(number) for number in ids if number >= 0}
            if mode != "dense":
                numbers |= {number for number, _ in self._require_lexical().search(question, count)}
            wanted = min(count, self.passages_count)
            chosen.append(sorted(numbers) if len(numbers) >= wanted else self._filled(numbers, wanted))
        ids = np.full((len(questions), max(map(len, chosen), default=0) or 1), -1, dtype=np.int64)
        for row, found in zip(ids, chosen, strict=True):
            row[: len(found)] = found
        return Candidates(ids, self._dense_scores(queries, ids, mode), self.lexical_scores(questions, ids, mode))

    def corpus_lexical_scores(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """The lexical score of every passage: [B, N]."""
        lexical = self._require_lexical()
        return np.stack([lexical.all_scores(question) for question in questions])

    def lexical_scores(self, questions: Sequence[str], ids: Ids, mode: Mode) -> NDArray[np.float32]:
        """The lexical scores [B, C] of given passages; zeros in dense mode and where an id is -1."""
        if mode == "dense":
            return np.zeros(ids.shape, dtype=np.float32)
        scores = np.zeros(ids.shape, dtype=np.float32)
        for row, question, numbers in zip(scores, questions, ids, strict=True):
            found = [int(number) for number in numbers if number >= 0]
            row[: len(found)] = self._require_lexical().scores(question, found)
        return scores

    def vectors(self, ids: Ids) -> Vectors:
        """The vectors [..., D] of passages; zeros where an id is -1."""
        return self._vectors.vectors(ids)

    def all_vectors(self) -> Vectors:
        """The vectors [N, D] of all passages."""
        return self._vectors.all_vectors()

    def replace_vectors(self, ids: Ids, vectors: Vectors) -> None:
        """Give passages other vectors [n, D] while their encoder learns, in memory only; search is exact from then."""
        self._vectors.replace(ids, vectors)

    def replaced_vectors(self) -> tuple[Ids, Vectors]:
        """The passages whose vectors are not those on disk, and these vectors."""
        ids = self._vectors.replaced()
        return ids, self.vectors(ids)

    def restore_vectors(self) -> None:
        """Take the vectors on disk again."""
        self._vectors.restore()

    def passages(self, numbers: Iterable[int]) -> dict[int, Passage]:
        """The passages of the given numbers."""
        return find_passages(self._database, numbers)

    def all_passages(self) -> list[Passage]:
        """Every passage, in order."""
        return list(read_passages(self._database, 0, -1))

    def passages_of(self, document_ids: Iterable[str]) -> list[int]:
        """The numbers of the passages of some documents."""
        wanted = list(document_ids)
        marks = ",".join("?" * len(wanted))
        query = f"SELECT number FROM passages WHERE document_id IN ({marks}) ORDER BY number"
        return [row[0] for row in self._database.execute(query, wanted)]

    def _filled(self, numbers: set[int], wanted: int) -> list[int]:
        """The candidates with the lowest other numbers: passages that share no word with the question score 0."""
        others = (number for number in range(self.passages_count) if number not in numbers)
        return sorted([*numbers, *islice(others, wanted - len(numbers))])

    def _dense_ids(self, queries: Vectors | None, mode: Mode, count: int, questions: int) -> Ids:
        if mode == "lexical" or queries is None:
            return np.zeros((questions, 0), dtype=np.int64)
        return self._vectors.search(queries, min(count, self.passages_count))

    def _dense_scores(self, queries: Vectors | None, ids: Ids, mode: Mode) -> NDArray[np.float32]:
        if mode == "lexical" or queries is None:
            return np.zeros(ids.shape, dtype=np.float32)
        return np.asarray(np.einsum("bd,bcd->bc", queries, self.vectors(ids)), dtype=np.float32)

    def _require_lexical(self) -> LexicalIndex:
        if self._lexical is None:
            raise ArtifactError(f"{self.folder}: built with index.lexical: none; rebuild it with bm25 or tfidf")
        return self._lexical


def _difference(built: object, configured: object) -> str:
    if isinstance(built, dict) and isinstance(configured, dict):
        for key in sorted({*built, *configured}):
            if built.get(key) != configured.get(key):
                return f"{key}: {built.get(key)} then, {configured.get(key)} now"
    return f"{built} then, {configured} now"
