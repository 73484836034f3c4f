"""ragx.index.kinds: which FAISS index is chosen, and that what it proposes is scored exactly."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from ragx.errors import ArtifactError, ConfigError, RagxError
from ragx.index.kinds import Wanted, choose, write_approximate
from ragx.index.vectors import APPROXIMATE, VECTORS, VectorIndex, write_flat, write_vectors
from ragx.records import no_progress

COUNT, WIDTH = 3000, 16
GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(5)
    centres = random.standard_normal((40, WIDTH))
    found = centres[random.integers(0, 40, COUNT)] + 0.6 * random.standard_normal((COUNT, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, vectors):
    write_vectors(tmp_path / VECTORS, [vectors], vectors.shape)
    return tmp_path


def opened(folder, built):
    return VectorIndex(folder, COUNT, WIDTH, exact=built.kind == "flat", search=built.search)


@pytest.mark.parametrize(
    ("count", "memory", "kind", "factory"),
    [
        (1, 64 * GIGABYTE, "flat", "Flat"),
        (100_000, 64 * GIGABYTE, "flat", "Flat"),
        (100_001, 64 * GIGABYTE, "ivf", "IVF1264,SQ8"),
        (2_000_000, 64 * GIGABYTE, "ivf", "IVF5656,SQ8"),
        (2_000_001, 64 * GIGABYTE, "ivfpq", "IVF5656,PQ192x4fs"),
        (100_000, GIGABYTE // 8, "ivf", "IVF1264,SQ8"),
        (1_000_000, GIGABYTE // 2, "ivfpq", "IVF4000,PQ192x4fs"),
    ],
)
def test_auto_goes_by_size_and_memory(count, memory, kind, factory):
    assert choose(Wanted(), count, 384, memory) == (kind, factory)


def test_what_is_asked_for_is_chosen():
    assert choose(Wanted("hnsw"), 100, 384) == ("hnsw", "HNSW32_SQ8")
    assert choose(Wanted("ivf"), 20, 384) == ("ivf", "IVF1,SQ8")
    assert choose(Wanted("ivfpq"), 100, 33) == ("ivfpq", "IVF2,PQ33x4fs")
    assert choose(Wanted(factory="OPQ8,IVF4,PQ8"), 100, 384) == ("factory", "OPQ8,IVF4,PQ8")


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_approximate_index_finds_most_and_scores_exactly(folder, vectors, kind):
    built = write_approximate(folder, Wanted(kind), vectors.shape, no_progress)
    assert built.kind == kind
    assert built.recall > 0.8
    index, queries = opened(folder, built), vectors[:50]
    ids = index.search(queries, 10)
    scores = np.einsum("bd,bkd->bk", queries, index.vectors(ids))
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(index.vectors(ids), vectors[ids])
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact, strict=True)]) > 0.8


def test_recall_is_that_of_another_count(folder, vectors):
    """Recall@10 of the manifest, counted again from FAISS's own exact index, self left out."""
    built = write_approximate(folder, Wanted(factory="IVF64,PQ4x4fs"), vectors.shape, no_progress)
    numbers = np.sort(np.random.default_rng(12).choice(COUNT, 256, replace=False))
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    right = flat.search(vectors[numbers], 11)[1][:, 1:]
    found = opened(folder, built).search(vectors[numbers], 11)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), right.tolist(), strict=True)])
    assert built.recall == pytest.approx(share)
    assert built.recall < 1


def test_recall_target_finds_the_smallest_parameter(folder, vectors):
    low = write_approximate(folder, Wanted("ivf", recall_target=0.3), vectors.shape, no_progress)
    high = write_approximate(folder, Wanted("ivf", recall_target=0.99), vectors.shape, no_progress)
    assert low.search["nprobe"] < high.search["nprobe"]
    assert low.recall >= 0.3 and high.recall >= 0.99


def test_graph_is_tuned_too(folder, vectors):
    built = write_approximate(folder, Wanted("hnsw", recall_target=0.5), vectors.shape, no_progress)
    assert built.search == {"ef_search": 16}
    assert built.recall >= 0.5


def test_target_out_of_reach_takes_the_largest_parameter(folder, vectors, caplog):
    built = write_approximate(folder, Wanted(factory="IVF8,PQ2x4fs", recall_target=1.0), vectors.shape, no_progress)
    assert built.search == {"nprobe": 8}
    assert built.recall < 1
    assert "below index.recall_target 1.000" in caplog.text


def test_search_parameters_can_be_overridden(folder, vectors):
    built = write_approximate(folder, Wanted("ivf"), vectors.shape, no_progress)
    few = VectorIndex(folder, COUNT, WIDTH, exact=False, search={"nprobe": 1}).search(vectors[:100], 10)
    many = VectorIndex(folder, COUNT, WIDTH, exact=False, search={"nprobe": 76}).search(vectors[:100], 10)
    assert (few != many).any()
    assert built.search["nprobe"] > 1
    with pytest.raises(ConfigError, match=r"index\.ef_search: .* no such search parameter"):
        VectorIndex(folder, COUNT, WIDTH, exact=False, search={"ef_search": 8})


def test_factory_without_search_parameter(folder, vectors):
    built = write_approximate(folder, Wanted(factory="SQ8"), vectors.shape, no_progress)
    assert built.search == {}
    assert built.recall > 0.95


@pytest.mark.parametrize("factory", ["IVF", "nonsense", "IVF5000,SQ8", "PQ5", "IVF16,PQ8,Refine("])
def test_factory_that_cannot_be_built(folder, vectors, factory):
    with pytest.raises(ConfigError, match=r"index\.factory: .*: FAISS cannot build this for 3000 vectors"):
        write_approximate(folder, Wanted(factory=factory), vectors.shape, no_progress)


def test_more_than_there_are_is_padded(tmp_path):
    few = np.eye(3, dtype=np.float32)
    write_vectors(tmp_path / VECTORS, [few], few.shape)
    built = write_approximate(tmp_path, Wanted("hnsw"), few.shape, no_progress)
    index = VectorIndex(tmp_path, 3, 3, exact=False, search=built.search)
    assert sorted(index.search(few[:1], 5)[0].tolist()) == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("data", [b"", b"IwSq", b"no index at all"])
def test_file_that_is_no_index(folder, data):
    (folder / APPROXIMATE).write_bytes(data)
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        VectorIndex(folder, COUNT, WIDTH, exact=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
@pytest.mark.parametrize("write", ["approximate", "flat"])
def test_last_bytes_that_find_no_room_are_noticed(tmp_path, write):
    """An index so small that only the closing of its file fails, which FAISS keeps to itself."""
    few = np.eye(3, dtype=np.float32)
    (tmp_path / APPROXIMATE).symlink_to("/dev/full")
    write_vectors(tmp_path / VECTORS, [few], few.shape)
    with pytest.raises(RagxError, match=rf"{APPROXIMATE}: cannot be written \(No space left on device\)"):
        if write == "flat":
            write_flat(tmp_path / APPROXIMATE, [few], 3)
        else:
            write_approximate(tmp_path, Wanted("hnsw"), few.shape, no_progress)


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,SQ8", "OPQ8,IVF4,PQ8x4fs", "IVF4,Flat,RFlat"])
def test_index_of_another_metric(folder, vectors, factory):
    index = faiss.index_factory(WIDTH, factory, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / APPROXIMATE))
    with pytest.raises(ArtifactError, match=r"vectors\.faiss: its metric is not the inner product; run: ragx index"):
        VectorIndex(folder, COUNT, WIDTH, exact=False)


def test_index_of_other_vectors(folder, vectors):
    write_approximate(folder, Wanted("ivf"), vectors.shape, no_progress)
    write_vectors(folder / VECTORS, [vectors[1:]], (COUNT - 1, WIDTH))
    with pytest.raises(ArtifactError, match="holds 3000 vectors of 16 dimensions, expected 2999 of 16"):
        VectorIndex(folder, COUNT - 1, WIDTH, exact=False)
