"""`python -m benchmarks.transfer`: every row is trained and scored on the same test questions, and once only."""

import json
import sys
from pathlib import Path

import pytest

import ragx
from ragx import build_index, load_config
from ragx.records import Example, Passage
from ragx.stages.models import open_model

ROOT = Path(ragx.__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of an installed ragx", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import transfer  # noqa: E402
from benchmarks.one_prompt import OnePrompt, with_hits  # noqa: E402
from benchmarks.separate_peer import Lesson, distinct_batches  # noqa: E402
from benchmarks.transfer_table import NAMES, Row, differences, markdown, read_rows, stem_of  # noqa: E402

METRICS = ("f1", "em", "recall@1", "recall@5")


def row(name, scores, questions="100", seed=13, **facts):
    """A row whose four metrics are the same number a question."""
    scored = {f"q{n}": dict.fromkeys(METRICS, score) for n, score in enumerate(scores)}
    figures = {"metrics": {"nll": {"value": 2.0}}, "peak_mib": 512, "training_seconds": None}
    return Row("tiny", questions, seed, name, {**figures, **facts}, scored)


@pytest.fixture
def run(monkeypatch, capsys):
    """run("CONFIG", "--out", ...) -> the JSON lines it prints."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["transfer", *map(str, arguments)])
        transfer.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def test_every_row_is_scored_on_the_same_questions_and_compared(tiny_config, tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "SYNTHETIC", 3)
    monkeypatch.setattr(transfer, "ONE_PROMPT", ("generator.max_input_tokens=256", "eval.cache=false"))
    config, out = tiny_config(dtype="bfloat16"), tmp_path / "out"
    more = ("--set", "finetune.synthetic_f1=0.0", "--set", "finetune.max_steps=2", "--out", out)
    lines = run(config, *more, "--rows", "ragx,frozen,separate,rag,corpus,depths", "--questions", "5")

    names = [line["row"] for line in lines]
    assert names[0] == "ragx"
    assert set(names) == {name for name in NAMES if name not in transfer.ABLATIONS}
    assert {line["n"] for line in lines} == {4}
    by_name = {line["row"]: line for line in lines}
    assert by_name["ragx"]["train_questions"] == 5
    assert by_name["ragx"]["estimated_seconds"] > 0
    assert set(by_name["separate, marginal"]["ragx_minus_row"]["5"]) == set(METRICS)
    assert "row_minus_untrained" in by_name["corpus only"]
    assert "ragx_minus_row" not in by_name["ragx"]
    assert run(config, *more, "--questions", "5") == []

    monkeypatch.setattr("sys.argv", ["transfer", "--table", str(out)])
    transfer.main()
    table = capsys.readouterr().out
    assert "### tiny, 5 training questions" in table
    assert "### tiny, no training questions" in table
    assert "### ragx finetune --dry-run" in table


def test_without_gold_documents_training_files_name_none(tiny_config, tmp_path):
    cell = transfer.Cell(tiny_config(), tmp_path / "out", "4", 13, gold=False)
    data = cell.load("ragx").data
    for path in (data.train, data.dev):
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        assert [sorted(row) for row in rows] == [["answers", "id", "question"]] * 4
    assert data.test == cell.load("separate").data.test
    assert cell.domain == "tiny-nogold"


def test_a_stopped_row_goes_on_where_its_training_ended(tiny_config, tmp_path, run, monkeypatch):
    out, config = tmp_path / "out", tiny_config()
    with monkeypatch.context() as broken:
        broken.setattr(transfer.stages, "evaluate", lambda *_, **__: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            run(config, "--out", out, "--rows", "ragx", "--questions", "all")
    monkeypatch.setattr(transfer.stages, "finetune", lambda *_, **__: pytest.fail("trained twice"))
    line, as_retrieved = run(config, "--out", out, "--rows", "ragx", "--questions", "all")
    assert line["steps"] == 3
    assert [line["row"], as_retrieved["row"]] == ["ragx", "ragx, not reordered"]


def test_seeds_are_averaged_before_rows_are_paired():
    before = [row("frozen hybrid", [0.0, 1.0, 0.5, 0.5])]
    after = [row("ragx", [0.2, 1.0, 0.5, 0.5]), row("ragx", [0.4, 1.0, 0.5, 0.5], seed=14)]
    assert differences(before, after)["f1"].value == pytest.approx(0.3 / 4)
    with pytest.raises(ValueError, match="other test questions"):
        differences(before, [row("ragx", [0.2, 1.0])])


def test_the_table_marks_what_excludes_zero_and_keeps_the_order():
    rows = [
        row("frozen dense", [0.0] * 30, questions="0"),
        row("separate, marginal", [0.5, 0.6] * 15, training_seconds=60.0),
        row("ragx", [0.6, 0.5] * 15, training_seconds=120.0, estimated_seconds=90.0, steps=3, planned_steps=3),
    ]
    lines = markdown(rows).splitlines()
    assert lines[0] == "### tiny, 100 training questions"
    names = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert names[:5] == ["| row", "| ---", "| frozen dense", "| separate, marginal", "| ragx"]
    assert "**+0.550 (" in lines[4]
    assert "| 2.000 | 1.0 | 0.5 | +0.000 (" in lines[5]
    assert lines[-1].endswith("| 3 of 3 | 90 | 120 | 0.75 |")


def test_rows_are_read_back_in_order_of_questions(tmp_path):
    for count in ("all", "100", "0", "500"):
        stem = stem_of("tiny", count, 13, "ragx")
        facts = {"set": "tiny", "questions": count, "seed": 13, "row": "ragx"}
        (tmp_path / f"{stem}.row.json").write_text(json.dumps(facts), encoding="utf-8")
        line = json.dumps({"id": "q0", "scores": dict.fromkeys(METRICS, 1.0)})
        (tmp_path / f"{stem}.predictions.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [found.questions for found in read_rows(tmp_path)] == ["0", "100", "500", "all"]


def test_one_prompt_holds_all_hits_and_in_training_the_right_one(tiny_config):
    config = load_config(tiny_config(retrieval={"top_k": 3}))
    build_index(config)
    model = open_model(config, "base")
    read, ids = [], model.generator.template.ids
    model.generator.template.ids = lambda passage, question: read.append(passage.text) or ids(passage, question)
    answered = OnePrompt(model.retriever, model.generator, model.marginal).answer(
        ["Who lights the kiln?"], decoding="thorough", num_beams=1, references=["Marta Veld"]
    )
    (hits,) = model.retriever(["Who lights the kiln?"]).passages
    assert len(set(read)) == 1 and all(hit.text in read[0] for hit in hits)
    assert answered.decoded[0].posterior == (1.0,)

    passages = model.retriever.index.all_passages()
    last = model.retriever(["Who lights the kiln?"], len(passages)).passages[0][-1]
    lessons = [
        Lesson(Example("q", "Who lights the kiln?", ("x",)), right, (right.number,)) for right in (hits[1], last)
    ]
    found, mended = (lesson.passage.text for lesson in with_hits(model.retriever, lessons))
    assert all(hit.text in found for hit in hits)
    assert hits[1].text in mended and last.text in mended and hits[2].text not in mended


def test_no_batch_holds_a_passage_that_is_right_for_another_question():
    def lesson(name, number, *positives):
        return Lesson(Example(name, name, ("x",)), Passage(number, "d", "", "", f"d#{number}"), (number, *positives))

    lessons = [lesson("a", 1), lesson("b", 1), lesson("c", 2, 3), lesson("d", 3), lesson("e", 4)]
    batches = distinct_batches(lessons, range(5), 3)
    assert sorted(item.example.id for batch in batches for item in batch) == list("abcde")
    assert max(map(len, batches)) <= 3
    for batch in batches:
        for item in batch:
            assert not any(other.passage.number in item.positives for other in batch if other is not item)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--rows", "ragx,nothing"], "--rows nothing: known are"),
        (["--questions", "0"], "--questions 0: expected numbers above 0, or all"),
        (["--questions", "some"], "--questions some"),
    ],
)
def test_unknown_rows_and_counts_are_refused(arguments, reason, tiny_config, tmp_path):
    options = transfer.parse([str(tiny_config()), "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match=reason):
        transfer.cells_of(options)


def test_counts_beyond_the_set_are_left_out(tiny_config, tmp_path, capsys):
    options = transfer.parse([str(tiny_config()), "--out", str(tmp_path), "--rows", "ragx", "--seed", "1,2"])
    cells = transfer.cells_of(options)
    assert [(cell.questions, cell.seed) for _, cell in cells] == [("all", 1), ("all", 2)]
    assert "12 training questions; left out: 100, 500" in capsys.readouterr().err
