"""The sample domain with the default models, MiniLM and SmolLM2-135M, cut down so that two cores need a few minutes."""

import json

import pytest

from ragx import build_index, evaluate, load_config, stages
from ragx.stages.models import open_model

pytestmark = [pytest.mark.slow, pytest.mark.network]

FOLDERS = ("boats", "people")


def cut(source, target, count):
    """The first `count` questions whose gold documents all lie in the folders kept."""
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    kept = [r for r in records if all(d.startswith(FOLDERS) for d in r["doc_ids"])][:count]
    assert len(kept) == count
    target.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return target


def test_sample_domain(tmp_path, cli, read_metrics):
    stages.init(tmp_path, sample=True)
    domain = tmp_path / "saltmere"
    overrides = [
        'corpus.paths=["saltmere/documents/[bp][oe]*/*.md"]',
        f"data.train={cut(domain / 'train.jsonl', tmp_path / 'train.jsonl', 32)}",
        f"data.dev={cut(domain / 'dev.jsonl', tmp_path / 'dev.jsonl', 4)}",
        f"data.test={cut(domain / 'test.jsonl', tmp_path / 'test.jsonl', 8)}",
        "finetune.max_train=32",
        "finetune.epochs=1",
        "finetune.batch_size=8",
        "finetune.warmup_epochs=1",
        "retrieval.top_k=2",
        "generator.max_input_tokens=128",
        "eval.bootstrap=100",
        "eval.gates={}",
    ]
    config = load_config(tmp_path / "ragx.yaml", overrides)
    options = ["-c", tmp_path / "ragx.yaml", *(word for text in overrides for word in ("--set", text))]

    indexed = cli("index", *options, "--json")
    assert indexed.code == 0, indexed.err
    stats = json.loads(indexed.out)
    assert stats["documents"] == 19 and stats["dimension"] == 384
    before = evaluate(config, which="base")

    trained = cli("finetune", *options, "--json")
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["steps"] == 4
    lines = read_metrics(config.run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["nll_per_token"] < lines[0]["nll_per_token"]

    asked = cli("ask", "Who is the Abbess?", *options, "--json")
    assert asked.code == 0, asked.err
    answer = json.loads(asked.out)
    assert answer["answer"] and 0 < answer["confidence"] <= 1 and len(answer["passages"]) == 2
    assert sum(hit["prior"] for hit in answer["passages"]) == pytest.approx(1, abs=1e-3)

    scored = cli("eval", *options, "--json")
    assert scored.code == 0, scored.err
    report = json.loads(scored.out)
    assert (report["split"], report["model"], report["n"]) == ("test", "tuned", 8)
    assert report["metrics"]["nll"]["value"] < before.metrics["nll"].value


def test_self_retrieval(tmp_path):
    """A passage's own words find it: hybrid retrieval on real vectors puts it first nearly always."""
    stages.init(tmp_path, sample=True)
    config = load_config(tmp_path / "ragx.yaml", ['corpus.paths=["saltmere/documents/[bp][oe]*/*.md"]'])
    build_index(config)
    model = open_model(config, "base")
    passages = model.retriever.index.all_passages()[::4]
    found = model.retriever([passage.text for passage in passages], 1)
    hits = [row[0].number == passage.number for row, passage in zip(found.passages, passages, strict=True)]
    assert sum(hits) >= 0.95 * len(hits)
