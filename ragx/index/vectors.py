"""Passage vectors: one exact file, memory-mapped, and for large corpora an approximate FAISS index beside it.

vectors.npy     float32 [N, D]; vector i belongs to passage i. Every score is computed from it.
vectors.faiss   unless the kind is flat: it only proposes passages, so that a score is exact whatever the kind, and its
                codes may be coarse: `OVERSAMPLE` times as many are proposed as wanted, and the exactly best are kept.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from ragx.artifacts import naming
from ragx.errors import ArtifactError, ConfigError, RagxError
from ragx.index.encoder import Vectors

Ids = NDArray[np.int64]
Parameter = Literal["ef_search", "nprobe"]

VECTORS = "vectors.npy"
APPROXIMATE = "vectors.faiss"
OVERSAMPLE = 4
METRIC = "inner product"
FAISS_VERSION: str = faiss.__version__
"""That of the library which writes and reads `APPROXIMATE`."""
_FAISS_NAMES: dict[Parameter, str] = {"ef_search": "efSearch", "nprobe": "nprobe"}
_QUERIES_AT_ONCE = 64


def write_vectors(path: Path, shards: Iterable[Vectors], shape: tuple[int, int]) -> None:
    """Write the vectors [N, D] of all shards, in order; no more than one shard is in memory.

    Raises:
        ArtifactError: the shards hold another number of vectors.
    """
    rows = 0
    with naming(path), path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for shard in shards:
            file.write(np.ascontiguousarray(shard, dtype="<f4").data)
            rows += len(shard)
    if rows != shape[0]:
        raise ArtifactError(f"{path}: the shards hold {rows} vectors, expected {shape[0]}")


def write_index(path: Path, index: faiss.Index) -> None:
    """Write a FAISS index through a file of ours: FAISS does not tell when the last bytes of its own found no room.

    Raises:
        RagxError: it cannot be written.
    """
    try:
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
    except OSError as error:
        raise RagxError(f"{path}: cannot be written ({error.strerror}); is the disk full?") from error
    except RuntimeError as error:
        raise RagxError(f"{path}: FAISS cannot write ({str(error).splitlines()[0]})") from error


def write_flat(path: Path, shards: Iterable[Vectors], dimension: int) -> None:
    """Write a FAISS index of exact inner products over all shards, in order: what other programs open.

    Raises:
        RagxError: it cannot be written.
    """
    index = faiss.IndexFlatIP(dimension)
    for shard in shards:
        index.add(shard)
    write_index(path, index)


def open_vectors(path: Path, shape: tuple[int, int]) -> Vectors:
    """The vectors [N, D], memory-mapped; writing to the array changes no file.

    Raises:
        ArtifactError: the file is none, or holds another number or width of vectors.
    """
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
    if found.ndim != 2 or found.dtype != np.float32:
        raise ArtifactError(f"{path}: holds {found.dtype} of shape {found.shape}, expected float32 vectors")
    if found.shape != shape:
        raise ArtifactError(
            f"{path}: holds {found.shape[0]} vectors of {found.shape[1]} dimensions, expected {shape[0]} of {shape[1]}"
        )
    return np.asarray(found)


def set_parameter(index: faiss.Index, name: Parameter, value: int) -> bool:
    """Set a search parameter of a FAISS index; False where this kind of index has none of that name."""
    try:
        faiss.ParameterSpace().set_index_parameter(index, _FAISS_NAMES[name], value)
    except RuntimeError:
        return False
    return True


class VectorIndex:
    """The opened vectors of a generation, and their nearest neighbours by inner product."""

    def __init__(
        self,
        folder: Path,
        passages: int,
        dimension: int,
        *,
        exact: bool = True,
        search: dict[Parameter, int] | None = None,
    ) -> None:
        """Memory-map the files; `search` holds the search parameters of an index that is not exact.

        Raises:
            ArtifactError: a file cannot be read, or holds another number or width of vectors.
            ConfigError: the index has no such search parameter.
        """
        self._folder, self._shape = folder, (passages, dimension)
        self.restore()
        self._approximate: faiss.Index | None = None
        if exact:
            return
        path = folder / APPROXIMATE
        try:
            self._approximate = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: FAISS cannot read it ({str(error).splitlines()[0]})") from error
        if (self._approximate.ntotal, self._approximate.d) != (passages, dimension):
            raise ArtifactError(
                f"{path}: holds {self._approximate.ntotal} vectors of {self._approximate.d} dimensions, "
                f"expected {passages} of {dimension}"
            )
        if self._approximate.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ArtifactError(f"{path}: its metric is not the {METRIC}; run: ragx index")
        for name, value in (search or {}).items():
            if not set_parameter(self._approximate, name, value):
                raise ConfigError(f"index.{name}: the index {path} has no such search parameter")

    def search(self, queries: Vectors, k: int) -> Ids:
        """The ids [B, k] of the passages with the largest inner products, best first, ties by number; -1 where there
        are fewer than k. Unless the index is exact, they are the best of `OVERSAMPLE` * k proposed ones."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self._approximate is None:
            _, ids = faiss.knn(queries, self._vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
            return np.asarray(ids, dtype=np.int64)
        starts = range(0, len(queries), _QUERIES_AT_ONCE)
        return np.concatenate(
            [self._best_proposed(queries[i : i + _QUERIES_AT_ONCE], k) for i in starts] or [np.zeros((0, k), np.int64)]
        )

    def _best_proposed(self, queries: Vectors, k: int) -> Ids:
        assert self._approximate is not None
        _, ids = self._approximate.search(queries, max(k, min(OVERSAMPLE * k, len(self._vectors))))
        ids = np.sort(np.asarray(ids, dtype=np.int64), axis=1)
        scores = np.einsum("bd,bcd->bc", queries, self.vectors(ids))
        order = np.argsort(np.where(ids < 0, np.inf, -scores), axis=1, kind="stable")[:, :k]
        return np.asarray(np.take_along_axis(ids, order, axis=1), dtype=np.int64)

    def vectors(self, ids: Ids) -> Vectors:
        """The vectors [..., D] of passage ids; zeros where an id is -1."""
        found = self._vectors[np.maximum(ids, 0)]
        found[ids < 0] = 0.0
        return found

    def all_vectors(self) -> Vectors:
        """Every vector [N, D], memory-mapped; writing to the array changes no file."""
        return self._vectors

    def replace(self, ids: Ids, vectors: Vectors) -> None:
        """Give passages other vectors [n, D], in memory only; search is exact from now on, whatever the kind."""
        self._approximate = None
        self._vectors[ids] = vectors
        self._replaced[ids] = True

    def replaced(self) -> Ids:
        """The ids of the passages whose vectors are not those of the file, in order."""
        return np.flatnonzero(self._replaced)

    def restore(self) -> None:
        """Take the vectors of the file again."""
        self._vectors = open_vectors(self._folder / VECTORS, self._shape)
        self._replaced = np.zeros(len(self._vectors), dtype=bool)
