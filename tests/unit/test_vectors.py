"""ragx.index.vectors: exact search in the memory-mapped file."""

import numpy as np
import pytest

from ragx.errors import ArtifactError
from ragx.index.vectors import VECTORS as NAME
from ragx.index.vectors import VectorIndex, write_vectors

RANDOM = np.random.default_rng(3)
VECTORS = RANDOM.standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    write_vectors(tmp_path / NAME, iter([VECTORS[:7], VECTORS[7:]]), (20, 4))
    return tmp_path


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
    write_vectors(tmp_path / NAME, [np.ones((9, 4), np.float32)], (9, 4))
    (ids,) = VectorIndex(tmp_path, 9, 4).search(np.ones((1, 4), np.float32), 4)
    assert sorted(ids) == [0, 1, 2, 3]


@pytest.mark.parametrize(("passages", "dimension"), [(19, 4), (20, 5)])
def test_index_of_another_shape(file, passages, dimension):
    with pytest.raises(ArtifactError, match=f"holds 20 vectors of 4 dimensions, expected {passages} of {dimension}"):
        VectorIndex(file, passages, dimension)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"no vectors at all" * 9])
def test_file_that_holds_no_vectors(tmp_path, data):
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(ArtifactError, match="cannot be read"):
        VectorIndex(tmp_path, 1, 4)


def test_vectors_of_another_type(tmp_path):
    np.save(tmp_path / NAME, VECTORS.astype(np.float64))
    with pytest.raises(ArtifactError, match="holds float64"):
        VectorIndex(tmp_path, 20, 4)


def test_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        VectorIndex(tmp_path, 1, 4)


def test_file_cut_short(file):
    path = file / NAME
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="cannot be read"):
        VectorIndex(file, 20, 4)


def test_shards_of_another_number(tmp_path):
    with pytest.raises(ArtifactError, match="hold 7 vectors, expected 20"):
        write_vectors(tmp_path / NAME, [VECTORS[:7]], (20, 4))


def test_writing_to_what_was_read_changes_no_file(file):
    VectorIndex(file, 20, 4).all_vectors()[:] = 0
    np.testing.assert_array_equal(VectorIndex(file, 20, 4).all_vectors(), VECTORS)
