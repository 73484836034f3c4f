"""ragx.index.vectors: the FAISS file, exact and memory-mapped."""

import numpy as np
import pytest

from ragx.errors import ArtifactError
from ragx.index.vectors import VectorIndex, write_flat

RANDOM = np.random.default_rng(3)
VECTORS = RANDOM.standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.faiss"
    write_flat(path, iter([VECTORS[:7], VECTORS[7:]]), 4)
    return path


def test_search_and_the_scores_of_what_it_found_agree_with_numpy(file):
    index, queries = VectorIndex(file, 20, 4), RANDOM.standard_normal((5, 4)).astype(np.float32)
    ids = index.search(queries, 6)
    scores = queries @ VECTORS.T
    np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1)[:, :6])
    found = np.einsum("bd,bkd->bk", queries, index.vectors(ids))
    np.testing.assert_allclose(found, np.take_along_axis(scores, ids, 1), rtol=1e-5)


def test_vectors_come_back_as_written(file):
    index = VectorIndex(file, 20, 4)
    np.testing.assert_array_equal(index.all_vectors(), VECTORS)
    np.testing.assert_array_equal(index.vectors(np.array([[3, -1], [19, 0]]))[0, 0], VECTORS[3])
    assert not index.vectors(np.array([[3, -1]]))[0, 1].any()


def test_more_than_there_are_is_padded(file):
    assert VectorIndex(file, 20, 4).search(VECTORS[:1], 22)[0, 20:].tolist() == [-1, -1]


def test_queries_in_another_layout(file):
    queries = np.asfortranarray(VECTORS[:3].astype(np.float64))
    np.testing.assert_array_equal(
        VectorIndex(file, 20, 4).search(queries, 1)[:, 0], np.argmax(VECTORS[:3] @ VECTORS.T, 1)
    )


def test_ties_at_the_cut_keep_the_lowest_ids(tmp_path):
    write_flat(tmp_path / "v", [np.ones((9, 4), np.float32)], 4)
    (ids,) = VectorIndex(tmp_path / "v", 9, 4).search(np.ones((1, 4), np.float32), 4)
    assert sorted(ids) == [0, 1, 2, 3]


@pytest.mark.parametrize(("passages", "dimension"), [(19, 4), (20, 5)])
def test_index_of_another_shape(file, passages, dimension):
    with pytest.raises(ArtifactError, match=f"holds 20 vectors of 4 dimensions, expected {passages} of {dimension}"):
        VectorIndex(file, passages, dimension)


@pytest.mark.parametrize("data", [b"", b"IxFI", b"no index at all"])
def test_file_that_is_no_index(tmp_path, data):
    (tmp_path / "v").write_bytes(data)
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        VectorIndex(tmp_path / "v", 1, 4)


def test_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        VectorIndex(tmp_path / "v", 1, 4)
