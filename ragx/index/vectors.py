"""The FAISS index over passage vectors: built from shards, memory-mapped, exact inner product."""

from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from ragx.errors import ArtifactError
from ragx.index.encoder import Vectors

Ids = NDArray[np.int64]


def write_flat(path: Path, shards: Iterable[Vectors], dimension: int) -> None:
    """Write an exact inner-product index of all shards, in order."""
    index = faiss.IndexFlatIP(dimension)
    for shard in shards:
        index.add(shard)
    faiss.write_index(index, str(path))


class VectorIndex:
    """An opened FAISS index; vector i belongs to passage i."""

    def __init__(self, path: Path, passages: int, dimension: int) -> None:
        """Memory-map the file.

        Raises:
            ArtifactError: FAISS cannot read it, or it holds another number or width of vectors.
        """
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: FAISS cannot read it ({str(error).splitlines()[0]})") from error
        if (self._index.ntotal, self._index.d) != (passages, dimension):
            raise ArtifactError(
                f"{path}: holds {self._index.ntotal} vectors of {self._index.d} dimensions, "
                f"expected {passages} of {dimension}"
            )

    def search(self, queries: Vectors, k: int) -> Ids:
        """The ids [B, k] of the passages with the largest inner products; -1 where there are fewer than k."""
        _, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return np.asarray(ids, dtype=np.int64)

    def vectors(self, ids: Ids) -> Vectors:
        """The vectors [..., D] of passage ids; zeros where an id is -1."""
        flat = ids.reshape(-1)
        found = self._index.reconstruct_batch(np.maximum(flat, 0))
        found[flat < 0] = 0.0
        return np.asarray(found, dtype=np.float32).reshape(*ids.shape, self._index.d)

    def all_vectors(self) -> Vectors:
        """Every vector [N, D]."""
        return np.asarray(self._index.reconstruct_n(0, self._index.ntotal), dtype=np.float32)
