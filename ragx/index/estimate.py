"""What building an index will take, from a short measurement: some of its passages encoded, stored and indexed."""

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragx.index.build import Settings
from ragx.index.encoder import Encoder, Tokens
from ragx.index.kinds import choose
from ragx.index.lexical import write_lexical
from ragx.index.passages import PASSAGES, open_passages, read_passages, store_passages
from ragx.records import Passage, no_progress

ENCODING_SECONDS = 4.0
"""For so long batches of the sample are encoded; the first one is slower and does not count, where there are others."""
_LINKS = 272
"""Bytes of a vector's links in HNSW32."""
_MAPPED = ("flat", "factory")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `ragx index` will take.

    kind, factory: the FAISS index that is chosen. passages, tokens_per_second: how many were encoded for the
    measurement, and how fast. seconds: encoding, storing and the lexical index; training and filling an approximate
    index comes on top. memory_bytes: the process at its peak. disk_bytes: the finished generation. building_bytes: what
    the disk must hold meanwhile, besides the generation in use.
    """

    kind: str
    factory: str
    dimension: int
    passages: int
    tokens_per_second: float
    seconds: float
    memory_bytes: int
    disk_bytes: int
    building_bytes: int


def estimate(encoder: Encoder, sample: Sequence[Passage], count: int, settings: Settings) -> Estimate:
    """Measure on a random sample of the passages and scale to `count` of them.

    Raises:
        RagxError: a vector is not finite.
    """
    kind, factory = choose(settings.vectors, count, encoder.dimension)
    started = time.perf_counter()
    tokens = encoder.tokenize_passages(sample)
    tokenizing_each = (time.perf_counter() - started) / len(sample)
    encoded, rate = _encode(encoder, tokens, settings)
    encoding_each = float(tokens.lengths.mean()) / rate
    storing, bytes_each = _store(sample, settings)
    vector = 4 * encoder.dimension
    codes = _code_bytes(kind, factory, encoder.dimension)
    in_memory = (0 if kind in _MAPPED else codes) + (bytes_each[1] if settings.lexical == "tfidf" else 0)
    disk = count * (sum(bytes_each) + vector + codes)
    return Estimate(
        kind,
        factory,
        encoder.dimension,
        encoded,
        rate,
        count * (max(tokenizing_each, encoding_each) + storing / len(sample)),
        _peak() + int(count * in_memory),
        int(disk),
        int(disk + count * (bytes_each[0] + vector)),
    )


def _encode(encoder: Encoder, tokens: Tokens, settings: Settings) -> tuple[int, float]:
    """Batches as the build makes them, in random order, until the time is over: passages encoded, tokens a second."""
    batches = list(tokens.batches(settings.batch_tokens))
    order = np.random.default_rng(0).permutation(len(batches))
    times: list[tuple[int, int, float]] = []
    while len(times) < len(batches) and (len(times) < 2 or sum(each[2] for each in times) < ENCODING_SECONDS):
        rows = batches[order[len(times)]]
        part = Tokens(tuple(tokens.texts[row] for row in rows), tokens.rows(rows), tokens.lengths[rows])
        started = time.perf_counter()
        encoder.encode_tokens(part, batch_tokens=settings.batch_tokens, dtype=settings.dtype)
        times.append((len(rows), int(part.lengths.sum()), time.perf_counter() - started))
    counted = times[1:] or times
    return sum(each[0] for each in times), sum(each[1] for each in counted) / sum(each[2] for each in counted)


def _store(sample: Sequence[Passage], settings: Settings) -> tuple[float, tuple[float, float]]:
    """Seconds that passages and lexical index take, and the bytes a passage of each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.perf_counter()
        store_passages(folder / PASSAGES, sample, no_progress)
        with closing(open_passages(folder / PASSAGES)) as database:
            write_lexical(folder / "lexical", settings.lexical, read_passages(database, 0, -1))
        seconds = time.perf_counter() - started
        stored = (folder / PASSAGES).stat().st_size
        indexed = sum(path.stat().st_size for path in folder.rglob("lexical/**/*") if path.is_file())
    return seconds, (stored / len(sample), indexed / len(sample))


def _code_bytes(kind: str, factory: str, dimension: int) -> float:
    """Bytes of a vector in the approximate index, beside the exact one; 0 where there is none or it is not known."""
    match kind:
        case "hnsw":
            return dimension + _LINKS
        case "ivf":
            return dimension + 8
        case "ivfpq":
            return int(factory.partition("PQ")[2].removesuffix("x4fs")) / 2 + 8
    return 0


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
