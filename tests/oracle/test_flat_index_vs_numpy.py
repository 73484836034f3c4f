"""The FAISS index against numpy: the ids of a search are an argsort of all inner products.

FAISS sums float32 products in another order than numpy. The oracle is float64, and ids may differ only where two exact
inner products are nearer than 1e-5 (|q| and |z| are about 6, so float32 errs by some 1e-6).
"""

import numpy as np
import pytest

from ragx.errors import ArtifactError
from ragx.index.vectors import VECTORS, VectorIndex, write_vectors


@pytest.fixture
def written(tmp_path):
    def write(seed, count, dimension, shards):
        vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
        write_vectors(tmp_path / VECTORS, np.array_split(vectors, shards), vectors.shape)
        return vectors, tmp_path

    return write


@pytest.mark.parametrize(("count", "dimension", "shards"), [(1, 8, 1), (7, 3, 3), (500, 32, 4), (2000, 48, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_argsort(seed, count, dimension, shards, written):
    vectors, path = written(seed, count, dimension, shards)
    index = VectorIndex(path, count, dimension)
    queries = np.random.default_rng(seed + 100).normal(size=(20, dimension)).astype(np.float32)
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for k in (1, min(5, count), count):
        found = index.search(queries, k)
        assert found.dtype == np.int64 and found.shape == (20, k)
        expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
        swapped = found != expected
        rows = np.arange(20)[:, None]
        assert (np.abs(products[rows, found] - products[rows, expected])[swapped] < 1e-5).all()
        assert swapped.mean() < 0.01
        assert all(len(set(row)) == k for row in found.tolist())


def test_vectors_come_back_bit_for_bit(written):
    vectors, path = written(1, 101, 16, 5)
    index = VectorIndex(path, 101, 16)
    assert np.array_equal(index.all_vectors(), vectors)
    ids = np.array([[3, 100, -1], [0, 0, 7]])
    found = index.vectors(ids)
    assert np.array_equal(found[ids >= 0], vectors[ids[ids >= 0]])
    assert not found[0, 2].any()


def test_more_hits_wanted_than_vectors(written):
    vectors, path = written(2, 4, 8, 1)
    found = VectorIndex(path, 4, 8).search(vectors, 6)
    assert [sorted(row) for row in found.tolist()] == [[-1, -1, 0, 1, 2, 3]] * 4


@pytest.mark.parametrize(("count", "dimension"), [(5, 8), (4, 9)])
def test_another_shape_is_refused(count, dimension, written):
    _, path = written(2, 4, 8, 1)
    with pytest.raises(ArtifactError, match="expected"):
        VectorIndex(path, count, dimension)
