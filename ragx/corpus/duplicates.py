"""Passages that say again what an earlier one said: exact, or near by MinHash (Broder 1997)."""

import hashlib
import zlib
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

Signature = NDArray[np.uint32]

_PERMUTATIONS, _BANDS = 64, 8
"""A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^8)^8: 0.5 at 0.74, 0.99 at 0.9."""

SIMILARITY = 0.8
"""Share of equal MinHash values from which a passage is a near duplicate: the estimated Jaccard similarity."""

_SHINGLE = 3
_TOKEN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|\w+")
_PRIME = np.uint64((1 << 31) - 1)
_random = np.random.default_rng(1997)
_FACTORS = _random.integers(1, int(_PRIME), _PERMUTATIONS, dtype=np.uint64)
_TERMS = _random.integers(0, int(_PRIME), _PERMUTATIONS, dtype=np.uint64)


class Deduplicator:
    """Remembers the passages seen: 100 bytes each for exact copies, about 1.5 kB for near ones, nothing for "none"."""

    def __init__(self, kind: Literal["none", "exact", "near"]) -> None:
        self.removed = 0
        self._kind = kind
        self._exact: set[bytes] = set()
        self._bands: list[dict[bytes, int]] = [{} for _ in range(_BANDS)]
        self._signatures: list[bytes] = []

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is a duplicate of this one; letter case, punctuation and white space do not count."""
        if self._kind == "none":
            return True
        tokens = _TOKEN.findall(text.lower())
        digest = hashlib.blake2b(" ".join(tokens or [text]).encode(), digest_size=16).digest()
        new = digest not in self._exact and not (self._kind == "near" and self._has_near(tokens))
        self._exact.add(digest)
        self.removed += not new
        return new

    def _has_near(self, tokens: list[str]) -> bool:
        if len(tokens) < _SHINGLE:
            return False
        signature = _signature(tokens)
        width = _PERMUTATIONS // _BANDS
        keys = [signature[n * width : (n + 1) * width].tobytes() for n in range(_BANDS)]
        others = {band[key] for band, key in zip(self._bands, keys, strict=True) if key in band}
        for other in others:
            equal = np.frombuffer(self._signatures[other], dtype=np.uint32) == signature
            if equal.mean() >= SIMILARITY:
                return True
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, len(self._signatures))
        self._signatures.append(signature.tobytes())
        return False


def _signature(tokens: list[str]) -> Signature:
    """The MinHash of a text's word 3-grams: [64], equal in two texts at a share of places near their similarity."""
    grams = {" ".join(tokens[at : at + _SHINGLE]) for at in range(len(tokens) - _SHINGLE + 1)}
    hashes = np.fromiter((zlib.crc32(gram.encode()) for gram in grams), dtype=np.uint64, count=len(grams)) % _PRIME
    least: Signature = ((hashes[:, None] * _FACTORS + _TERMS) % _PRIME).min(axis=0).astype(np.uint32)
    return least
