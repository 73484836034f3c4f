"""Passages that say again what an earlier one said: exact, or near by MinHash (Broder 1997)."""

import hashlib
import weakref
import zlib
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

from ragx.corpus.scratch import naming_scratch, open_scratch

Signature = NDArray[np.uint32]

_PERMUTATIONS, _BANDS = 64, 8
"""A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^8)^8: 0.5 at 0.74, 0.99 at 0.9."""

SIMILARITY = 0.8
"""Share of equal MinHash values from which a passage is a near duplicate: the estimated Jaccard similarity."""

_SCHEMA = """
CREATE TABLE exact (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE signatures (number INTEGER PRIMARY KEY, signature BLOB);
CREATE TABLE bands (band BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID;
"""
_SHINGLE = 3
_TOKEN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|\w+")
_PRIME = np.uint64((1 << 31) - 1)
_random = np.random.default_rng(1997)
_FACTORS = _random.integers(1, int(_PRIME), _PERMUTATIONS, dtype=np.uint64)
_TERMS = _random.integers(0, int(_PRIME), _PERMUTATIONS, dtype=np.uint64)


class Deduplicator:
    """Remembers the passages seen, in a temporary file."""

    def __init__(self, kind: Literal["none", "exact", "near"]) -> None:
        self.removed = 0
        self._kind = kind
        with naming_scratch():
            self._seen = open_scratch(_SCHEMA)
        weakref.finalize(self, self._seen.close)

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is a duplicate of this one; letter case, punctuation and white space do not count.

        Raises:
            RagxError: the folder of temporary files is full.
        """
        if self._kind == "none":
            return True
        tokens = _TOKEN.findall(text.lower())
        digest = hashlib.blake2b(" ".join(tokens or [text]).encode(), digest_size=16).digest()
        with naming_scratch():
            new = self._seen.execute("INSERT OR IGNORE INTO exact VALUES (?)", (digest,)).rowcount > 0
            new = new and not (self._kind == "near" and self._has_near(tokens))
        self.removed += not new
        return new

    def _has_near(self, tokens: list[str]) -> bool:
        if len(tokens) < _SHINGLE:
            return False
        signature = _signature(tokens)
        width = _PERMUTATIONS // _BANDS
        bands = [bytes([n]) + signature[n * width : (n + 1) * width].tobytes() for n in range(_BANDS)]
        marks = ",".join("?" * _BANDS)
        shared = f"number IN (SELECT number FROM bands WHERE band IN ({marks}))"
        for (other,) in self._seen.execute(f"SELECT signature FROM signatures WHERE {shared}", bands):
            if (np.frombuffer(other, dtype=np.uint32) == signature).mean() >= SIMILARITY:
                return True
        number = self._seen.execute("INSERT INTO signatures (signature) VALUES (?)", (signature.tobytes(),)).lastrowid
        self._seen.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", ((band, number) for band in bands))
        return False


def _signature(tokens: list[str]) -> Signature:
    """The MinHash of a text's word 3-grams: [64], equal in two texts at a share of places near their similarity."""
    grams = {" ".join(tokens[at : at + _SHINGLE]) for at in range(len(tokens) - _SHINGLE + 1)}
    hashes = np.fromiter((zlib.crc32(gram.encode()) for gram in grams), dtype=np.uint64, count=len(grams)) % _PRIME
    least: Signature = ((hashes[:, None] * _FACTORS + _TERMS) % _PRIME).min(axis=0).astype(np.uint32)
    return least
