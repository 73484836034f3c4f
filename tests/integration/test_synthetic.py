"""Synthetic questions with the default models, MiniLM and SmolLM2-135M, on a few documents of the sample domain."""

import json

import pytest

from ragx import build_index, finetune, load_config, stages
from ragx.index.store import Index

pytestmark = [pytest.mark.slow, pytest.mark.network]

WANTED = 8


@pytest.fixture
def config(tmp_path):
    stages.init(tmp_path, sample=True)
    overrides = [
        'corpus.paths=["saltmere/documents/people/*.md"]',
        "data.train=null",
        "data.dev=null",
        "finetune.synthetic=8",
        "finetune.batch_size=2",
        "finetune.max_steps=1",
        "finetune.warmup_epochs=0",
        "retrieval.top_k=2",
        "generator.max_input_tokens=128",
    ]
    config = load_config(tmp_path / "ragx.yaml", overrides)
    build_index(config)
    return config


def test_statements_survive_the_round_trip(config):
    done = finetune(config)
    assert (done["questions"], done["synthetic_questions"], done["steps"]) == (WANTED, WANTED, 1)
    folder = config.run_dir / "training"
    plan = json.loads((folder / "synthetic.plan.json").read_text(encoding="utf-8"))
    assert plan["kind"] == "statements"
    surplus = plan["dropped"]["beyond the number wanted"]
    assert plan["kept"] + surplus >= 0.5 * plan["drafts"]
    texts = {}
    for passage in Index(config.run_dir / "index", "ragx index").all_passages():
        texts[passage.document_id] = texts.get(passage.document_id, "") + " " + passage.text
    records = [json.loads(line) for line in (folder / "synthetic.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({record["doc_ids"][0] for record in records}) >= 6  # each of 8 documents had its turn; a draft may fall
    for record in records:
        statement = f"{record['question'].removesuffix(' ...')} {record['answers'][0]}"
        assert statement in texts[record["doc_ids"][0]]
