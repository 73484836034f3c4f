"""`python -m benchmarks.warmup`: retrieval alone, on test questions and on training questions that were not drawn."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import ragx

ROOT = Path(ragx.__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of an installed ragx", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import warmup  # noqa: E402
from benchmarks.transfer import Cell, trained  # noqa: E402
from ragx.rag.rerank import Rerank  # noqa: E402
from ragx.stages.models import open_model  # noqa: E402

TEST, REST = "test", "training, not drawn"
ROWS = ("prior", "question side", "both sides", "separate", "separate hybrid")


def test_every_row_is_judged_on_questions_it_was_not_trained_on(tiny_config, tmp_path, monkeypatch, capsys):
    arguments = [tiny_config(), "--out", tmp_path / "out", "--questions", "5", "--seed", "13,14"]
    arguments += ["--rows", ",".join(ROWS), "--against", "question side"]
    monkeypatch.setattr("sys.argv", ["warmup", *map(str, arguments)])
    warmup.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [(line["row"], line["judged"]) for line in lines] == [
        (row, judged) for row in ROWS for judged in (TEST, REST)
    ]
    cells = [Cell(tiny_config(), tmp_path / "out", "5", seed) for seed in (13, 14)]
    rest = [{example.id for example in warmup.judged(cell)[REST]} for cell in cells]
    drawn = [{row["id"] for row in map(json.loads, _train(cell).read_text("utf-8").splitlines())} for cell in cells]
    assert all(len(ids) == 5 and not ids & judged for ids, judged in zip(drawn, rest, strict=True))
    assert {line["n"] for line in lines if line["judged"] == REST} == {len(rest[0] | rest[1])}
    assert {line["n"] for line in lines if line["judged"] == TEST} == {4}
    assert all(len(line["runs"]) == 2 for line in lines)
    assert all(line["against"] == "question side" for line in lines)
    assert all(line["recall@1"]["change"] == [0.0] * 3 for line in lines if line["row"] == "question side")


def _train(cell):
    return Path(cell.load("warmup").data.train)


def test_with_both_sides_all_passages_are_encoded_anew(tiny_config, tmp_path):
    keep_last = {"data": {"dev": None}, "finetune": {"warmup_learning_rate": 1e-2}}
    cell = Cell(tiny_config(**keep_last), tmp_path / "out", "5", 13)
    untouched, _ = warmup.retrieved(cell, "untouched")
    retriever, _ = warmup.retrieved(cell, "both sides")
    index, encoder = retriever.index, retriever.passage_side
    now = encoder.encode_passages(index.all_passages(), batch_tokens=512)
    np.testing.assert_allclose(index.all_vectors(), now, atol=1e-5)
    assert not np.allclose(index.all_vectors(), untouched.index.all_vectors(), atol=1e-5)


def test_what_a_training_has_left_is_judged_before_and_after_its_reordering(tiny_config, tmp_path):
    """The hits that the generator has put in another order are followed by those it has not seen."""
    config = tiny_config(retrieval={"rerank": 4}, finetune={"max_steps": 2})
    cell = Cell(config, tmp_path / "out", "5", 13)
    trained(cell, name="ragx", family="ragx")
    model = open_model(cell.load("ragx"), "tuned")
    model.rerank = Rerank(4, weight=1000.0)  # a generator of random weights hardly tells passages apart
    questions = [example.question for example in warmup.judged(cell)[TEST]]
    as_retrieved = model.retriever(questions, 6).passages
    reordered = warmup.as_reordered(model, questions, 6)
    answered = model.answer(questions, decoding="fast", num_beams=1)
    assert [row[:4] for row in reordered] == [list(row) for row in answered.hits.passages]
    assert [list(row[4:]) for row in as_retrieved] == [row[4:] for row in reordered]
    assert any(list(old) != new for old, new in zip(as_retrieved, reordered, strict=True))
    deep = warmup.as_reordered(model, questions, 1000)
    assert {len(row) for row in deep} == {model.retriever.index.passages_count}

    asked = warmup.judged(cell)
    before, _ = warmup._scores(cell, "ragx", asked)
    after, _ = warmup._scores(cell, "ragx reordered", asked)
    assert all(before[TEST][q][2] == after[TEST][q][2] for q in before[TEST])  # recall@20 holds whatever their order


def test_a_question_that_two_seeds_judge_counts_once():
    before = [{TEST: {"a": (0.0, 0.0, 1.0), "b": (0.0, 1.0, 1.0)}}, {TEST: {"a": (1.0, 1.0, 1.0)}}]
    after = [{TEST: {"a": (1.0, 1.0, 1.0), "b": (0.0, 1.0, 1.0)}}, {TEST: {"a": (1.0, 1.0, 1.0)}}]
    found = warmup.compared(before, after, TEST)
    assert found["n"] == 2
    assert (found["recall@1"]["before"], found["recall@1"]["after"]) == (0.25, 0.5)
    assert found["recall@20"]["change"] == [0.0, 0.0, 0.0]


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        warmup.parse(["ragx.yaml", "--out", "there", "--rows", "reranker"])
    assert "reranker" in capsys.readouterr().err
