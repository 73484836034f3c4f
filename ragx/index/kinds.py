"""Which FAISS index proposes passages: chosen by size and memory, trained on a sample, its recall measured.

Measured at 10^5 vectors of 384 dimensions: exact search takes a millisecond a query, so nothing else is worth its build
there. Above, IVF with 8-bit codes; above that, IVF with 4-bit product codes, a twelfth of the memory.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import faiss
import numpy as np
import psutil

from ragx.errors import ConfigError
from ragx.index.encoder import Vectors
from ragx.index.vectors import (
    APPROXIMATE,
    VECTORS,
    Ids,
    Parameter,
    VectorIndex,
    open_vectors,
    set_parameter,
    write_index,
)
from ragx.records import Progress

log = logging.getLogger(__name__)

Kind = Literal["flat", "hnsw", "ivf", "ivfpq", "factory"]

FLAT_UP_TO = 100_000
IVF_UP_TO = 2_000_000
SAMPLE_PER_LIST = 64
RECALL_K = 10
RECALL_QUERIES = 256
_SEED = 12
_ROWS_AT_ONCE = 4096  # FAISS keeps Ctrl-C waiting until its call returns


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks of the vector index; a factory string goes before the kind, and the search parameter
    is tuned until the measured recall@10 reaches the target."""

    kind: Literal["auto", "flat", "hnsw", "ivf", "ivfpq"] = "auto"
    factory: str | None = None
    recall_target: float = 0.95


@dataclass(frozen=True, slots=True)
class Built:
    """What was built: the kind, its FAISS factory string, its search parameters, and recall@10 against exact search."""

    kind: Kind
    factory: str
    search: dict[Parameter, int]
    recall: float


def choose(wanted: Wanted, count: int, dimension: int, memory: int | None = None) -> tuple[Kind, str]:
    """The kind and factory string for `count` vectors of `dimension` on a machine with `memory` bytes.

    "auto" is flat up to 10^5, then ivf, above 2 * 10^6 ivfpq, each only while it fills at most half of the memory.
    """
    if wanted.factory is not None:
        return "factory", wanted.factory
    kind = wanted.kind
    if kind == "auto":
        half = (psutil.virtual_memory().total if memory is None else memory) / 2
        if count <= FLAT_UP_TO and 4 * dimension * count <= half:
            kind = "flat"
        elif count <= IVF_UP_TO and (dimension + 8) * count <= half:
            kind = "ivf"
        else:
            kind = "ivfpq"
    lists = _lists(count)
    match kind:
        case "flat":
            return "flat", "Flat"
        case "hnsw":
            return "hnsw", "HNSW32_SQ8"
        case "ivf":
            return "ivf", f"IVF{lists},SQ8"
        case "ivfpq":
            return "ivfpq", f"IVF{lists},PQ{dimension // 2 if dimension % 2 == 0 else dimension}x4fs"
        case _:
            assert_never(kind)


def write_approximate(folder: Path, wanted: Wanted, shape: tuple[int, int], progress: Progress) -> Built:
    """Build the index over the vectors [N, D] of `folder` and measure it; writes nothing where exact search is chosen.

    Raises:
        ConfigError: FAISS does not know the factory string, or cannot train it on so few vectors.
        RagxError: the index cannot be written.
    """
    kind, factory = choose(wanted, *shape)
    if kind == "flat":
        return Built(kind, factory, {}, 1.0)
    vectors = open_vectors(folder / VECTORS, shape)
    index = _trained(factory, vectors, progress)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        index.add(vectors[start : start + _ROWS_AT_ONCE])
        progress(f"filling {factory}", min(start + _ROWS_AT_ONCE, len(vectors)), len(vectors))
    write_index(folder / APPROXIMATE, index)
    del index
    return _tuned(folder, kind, factory, wanted.recall_target, vectors)


def _lists(count: int) -> int:
    """Inverted lists: four times the square root, with at least 39 vectors to train each, as FAISS wants."""
    return max(1, min(int(4 * math.sqrt(count)), count // 39))


def _trained(factory: str, vectors: Vectors, progress: Progress) -> faiss.Index:
    """An empty index of that description, trained on a random sample of the vectors, always the same."""
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            lists = faiss.extract_index_ivf(index).nlist if "IVF" in factory else 0
            size = min(len(vectors), max(lists, 1024) * SAMPLE_PER_LIST)
            progress(f"training {factory} on {size} vectors", 0, 1)
            index.train(vectors[_sample(len(vectors), size)])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].removeprefix("Error: ")
        raise ConfigError(
            f"index.factory: {factory}: FAISS cannot build this for {len(vectors)} vectors of {vectors.shape[1]} "
            f"dimensions ({reason})"
        ) from error
    return index


def _sample(count: int, size: int) -> Ids:
    return np.sort(np.random.default_rng(_SEED).choice(count, size, replace=False))


def _tuned(folder: Path, kind: Kind, factory: str, target: float, vectors: Vectors) -> Built:
    """The index with its search parameter doubled until it reaches the recall wanted, or its largest value."""
    index = faiss.read_index(str(folder / APPROXIMATE), faiss.IO_FLAG_MMAP_IFC)
    name, value, most = _parameter(index)
    recall = recall_meter(folder, vectors)
    if name is None:
        return Built(kind, factory, {}, recall({}))
    reached = recall({name: value})
    while reached < target and value < most:
        value = min(2 * value, most)
        reached = recall({name: value})
    if reached < target:
        log.warning("%s: recall@10 is %.3f at most, below index.recall_target %.3f", factory, reached, target)
    return Built(kind, factory, {name: value}, reached)


def _parameter(index: faiss.Index) -> tuple[Parameter | None, int, int]:
    """The search parameter of an index, its first value to try and its last."""
    if set_parameter(index, "nprobe", 1):
        return "nprobe", 1, faiss.extract_index_ivf(index).nlist
    if set_parameter(index, "ef_search", 16):
        return "ef_search", 16, 4096
    return None, 0, 0


def recall_meter(folder: Path, vectors: Vectors) -> Callable[[dict[Parameter, int]], float]:
    """Search parameters -> recall@10 against exact search: of the ten nearest other passages of some passages, the
    share that is found. Passages stand in for questions, which lie farther off: the figure for those is lower."""
    numbers = _sample(len(vectors), min(RECALL_QUERIES, len(vectors)))
    k = min(RECALL_K, len(vectors) - 1)
    _, exact = faiss.knn(vectors[numbers], vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)

    def recall(search: dict[Parameter, int]) -> float:
        found = VectorIndex(folder, *vectors.shape, exact=False, search=search).search(vectors[numbers], k + 1)
        pairs = [({*map(int, a)} - {n}, {*map(int, b)} - {n}) for n, a, b in zip(numbers, found, exact, strict=True)]
        return float(np.mean([len(ours & right) / max(1, len(right)) for ours, right in pairs])) if k else 1.0

    return recall
