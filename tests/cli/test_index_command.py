"""`ragx index` from the command line: kinds, updates, parts, and what is refused."""

import json
import os
import sys

import faiss
import numpy as np
import pytest

from ragx.index.encoder import Encoder
from ragx.index.generations import only_writer
from ragx.index.store import Index


def test_kind_and_recall_are_printed(cli, tiny_config, tmp_path):
    config = tiny_config(index={"kind": "ivf"})
    done = cli("index", "-c", config)
    assert done.code == 0, done.err
    assert "ivf index (IVF1,SQ8, nprobe 1, recall@10 1.000) of 32 dimensions" in done.out
    found = json.loads(cli("index", "--stats", "--json", "-c", config).out)
    manifest = json.loads((tmp_path / "runs/tiny/index/v1/manifest.json").read_text())
    assert (manifest["metric"], manifest["faiss"]) == ("inner product", faiss.__version__)
    assert (found["kind"], found["factory"], found["search"], found["recall@10"]) == (
        "ivf",
        "IVF1,SQ8",
        {"nprobe": 1},
        1.0,
    )


@pytest.mark.parametrize("lexical", ["bm25", "tfidf"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_every_kind_answers(cli, indexed, kind, lexical):
    config = indexed(index={"kind": kind, "lexical": lexical})
    answer = json.loads(cli("ask", "Who lights the kiln?", "--json", "-c", config).out)
    assert len(answer["passages"]) == 2
    assert sum(passage["prior"] for passage in answer["passages"]) == pytest.approx(1, abs=1e-5)


def test_update_after_a_changed_document(cli, indexed, tiny_corpus):
    config = indexed()
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text().replace("Marta Veld", "Hanna Trost"))
    assert "run: ragx index" in cli("ask", "Who lights the kiln?", "-q", "-c", config).err
    done = cli("index", "--update", "-c", config)
    assert done.code == 0, done.err
    assert "update: 23 passages kept, 1 to encode, 1 dropped" in done.err
    assert cli("ask", "Who lights the kiln?", "-q", "-c", config).code == 0


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)]
)  # by order of sums, by rounding
def test_openvino_makes_the_vectors_of_torch(cli, tiny_config, dtype, tolerance):
    config = tiny_config(dtype=dtype, index={"lexical": "none"}, retrieval={"mode": "dense"})
    found = []
    for backend in ("torch", "openvino"):
        done = cli("index", "-q", "-c", config, "--set", f"encoder.backend={backend}")
        assert done.code == 0, done.err
        index = Index(config.parent / "runs" / "tiny" / "index", "ragx index")
        assert index.manifest["backend"] == backend
        found.append(index.all_vectors())
    assert found[0].shape == found[1].shape
    assert np.abs(found[0] - found[1]).max() < tolerance
    assert cli("ask", "Who lights the kiln?", "-q", "-c", config).code == 0


def test_openvino_is_for_processors(cli, tiny_config, monkeypatch):
    config = tiny_config(encoder={"backend": "openvino"})
    monkeypatch.setattr("ragx.stages.models.compute_device", lambda _: "cuda")
    refused = cli("index", "-q", "-c", config)
    assert refused.code == 2
    assert "encoder.backend: openvino computes on the processor; set device: cpu" in refused.err


def test_parts_are_merged(cli, tiny_config):
    config = tiny_config()
    refused = cli("index", "--merge", "-q", "-c", config)
    assert refused.code == 2
    assert "3 of 3 shards are missing (0, 1, 2); run ragx index --shard i/n for every i first" in refused.err
    first = cli("index", "--shard", "1/2", "-q", "-c", config)
    names = [line.rpartition("/")[2] for line in first.out.split()]
    assert names == ["shard-00000.safetensors", "shard-00002.safetensors"]
    second = json.loads(cli("index", "--shard", "2/2", "--json", "-q", "-c", config).out)
    assert [path.rpartition("/")[2] for path in second["shards"]] == ["shard-00001.safetensors"]
    done = cli("index", "--merge", "-q", "-c", config)
    assert done.code == 0, done.err
    assert "24 passages of 12 documents" in done.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--shard", "0/2"], "--shard 0/2: parts count from 1 to 2"),
        (["--shard", "3/2"], "--shard 3/2: parts count from 1 to 2"),
        (["--shard", "one"], "--shard one: must be I/N, such as 3/8"),
        (["--update", "--merge"], "exclude each other"),
        (["--set", "index.factory=nonsense"], "index.factory: nonsense: FAISS cannot build this for 24 vectors of 32"),
        (["--set", "index.factory=Flat", "--set", "index.kind=ivf"], "exclude each other; leave kind at auto"),
        (["--set", "index.recall_target=2"], "index.recall_target"),
    ],
)
def test_what_cannot_be(cli, tiny_config, standing, arguments, named):
    done = cli("index", "-q", "-c", tiny_config(), *arguments)
    assert done.code == 2
    assert done.err.startswith("ragx: ") and named in done.err and len(done.err.splitlines()) == 1
    assert not standing()


def test_search_parameter_of_another_kind(cli, indexed):
    config = indexed(index={"kind": "hnsw"})
    done = cli("ask", "Who?", "-q", "-c", config, "--set", "index.nprobe=3")
    assert done.code == 2
    assert "index.nprobe: the index" in done.err and "has no such search parameter" in done.err


@pytest.mark.parametrize("arguments", [[], ["--update"], ["--merge"]])
def test_second_writer_is_refused_before_it_reads_or_writes_anything(
    cli, tiny_config, tmp_path, monkeypatch, arguments
):
    config, run = tiny_config(), tmp_path / "runs" / "tiny"

    def work(*_, **__):
        raise AssertionError("a corpus was read or an encoder loaded in vain")

    with only_writer(run / "index"):
        (run / "config.yaml").write_text("the first one's")
        monkeypatch.setattr("ragx.stages.index.file_sha256", work)
        monkeypatch.setattr(Encoder, "__init__", work)
        done = cli("index", "-q", "-c", config, *arguments)
    assert done.code == 2, done.err
    assert f"this index is being written by process {os.getpid()} on" in done.err and len(done.err.splitlines()) == 1
    assert (run / "config.yaml").read_text() == "the first one's"


def test_ray_without_ray(cli, tiny_config, monkeypatch, standing):
    monkeypatch.setitem(sys.modules, "ragx.index.cluster", None)
    done = cli("index", "-q", "-c", tiny_config(index={"engine": "ray"}))
    assert (done.code, done.err) == (2, "ragx: index.engine: ray: install ragx[ray]\n")
    assert not standing()


@pytest.mark.parametrize("lexical", ["bm25", "tfidf"])
def test_lexical_alone_through_the_whole_line(cli, indexed, lexical):
    config = indexed(index={"lexical": lexical}, retrieval={"mode": "lexical"}, finetune={"train": ["generator"]})
    assert cli("finetune", "-q", "-c", config).code == 0
    report = json.loads(cli("eval", "--json", "-q", "-c", config).out)
    assert report["metrics"]["recall@2"]["value"] > 0.5
