"""Which of many texts stand in another one, in one pass over it (Aho and Corasick 1975)."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from ahocorasick_rs import AhoCorasick

from ragx.corpus.answers import normalise_answer, unspaced

Key = TypeVar("Key", bound=Hashable)


class Finder(Generic[Key]):
    """Many texts, each under a key that may have several; what normalises to nothing stands nowhere."""

    def __init__(self, texts: Iterable[tuple[Key, str]]) -> None:
        keys: dict[str, list[Key]] = {}
        for key, text in texts:
            if normal := normalise_answer(text):
                keys.setdefault(normal if unspaced([normal]) else f" {normal} ", []).append(key)
        self._keys = list(keys.values())
        self._patterns = AhoCorasick(keys) if keys else None

    def within(self, text: str) -> set[Key]:
        """The keys of which a text stands in this one, both normalised: as whole words, where its script has words."""
        if self._patterns is None:
            return set()
        matches = self._patterns.find_matches_as_indexes(f" {normalise_answer(text)} ", overlapping=True)
        return {key for number in {number for number, _, _ in matches} for key in self._keys[number]}
