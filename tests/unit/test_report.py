"""ragx.evaluation.report: aggregation, files that read back, inert Markdown."""

import dataclasses
import json
import math

import pytest

from ragx.errors import ArtifactError, RagxError
from ragx.evaluation.gates import parse_gates
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.report import Bootstrap, compare, make_report, read_predictions, report_json, write_report
from ragx.records import Prediction

BOOTSTRAP = Bootstrap(100, 0.95, 13)


def prediction(identity="q1", *, f1=0.5, nll=1.0, tokens=2, question="Who?", answer="me", expected="I"):
    scores = {"f1": f1, "nll": nll}
    return Prediction(identity, question, (expected,), answer, -1.5, tokens, ("d#0", "e#1"), scores)


def report_of(*predictions, rules=None):
    metrics = parse_metrics(["f1", "nll"])
    gates = parse_gates(rules or {}, ["f1", "nll"])
    about = {"split": "test", "model": "base", "signature": {"seed": "13"}, "seconds": 1.23456}
    return make_report(predictions, metrics, gates, BOOTSTRAP, **about)


def test_nll_weighs_questions_by_their_tokens():
    report = report_of(prediction(f1=1.0, nll=1.0, tokens=3), prediction("q2", f1=0.0, nll=5.0, tokens=1))
    assert report.metrics["f1"].value == 0.5
    assert report.metrics["nll"].value == 2.0


def test_json_shape():
    found = report_json(report_of(prediction(), rules={"f1": ">= 0.6"}))
    assert list(found) == ["format", "split", "model", "n", "metrics", "gates", "signature", "seconds"]
    assert found["metrics"]["f1"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["gates"] == [{"metric": "f1", "rule": ">= 0.6", "value": 0.5, "passed": False}]
    assert found["seconds"] == 1.235


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_score_that_is_no_number(value):
    with pytest.raises(RagxError, match="nll of question q1 is not a number"):
        report_of(prediction(nll=value))


def test_files_read_back(tmp_path):
    report = report_of(prediction(), prediction("q2", answer="é\nline\ttab"))
    path = write_report(report, tmp_path)
    assert json.loads(path.read_text()) == report_json(report)
    assert read_predictions(path) == report.predictions
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "test.base.predictions.jsonl",
        "test.base.report.json",
        "test.base.report.md",
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_line_separators_in_text_read_back(tmp_path, separator):
    report = report_of(prediction(question=f"Who{separator}?"))
    assert read_predictions(write_report(report, tmp_path)) == report.predictions


@pytest.mark.parametrize("damage", ["", "{", "[1]", "{}", '{"id": 1}'])
def test_damaged_predictions(tmp_path, damage):
    path = write_report(report_of(prediction()), tmp_path)
    beside = tmp_path / "test.base.predictions.jsonl"
    beside.write_text(beside.read_text() + damage + "\n")
    with pytest.raises(ArtifactError, match="damaged predictions"):
        read_predictions(path)


@pytest.mark.parametrize("name", ["test.base.report.json", "other.json"])
def test_missing_predictions(tmp_path, name):
    with pytest.raises(ArtifactError, match=r"predictions\.jsonl beside it"):
        read_predictions(tmp_path / name)


def test_difference_of_two_reports():
    before = [prediction(f1=0.1), prediction("q2", f1=0.4)]
    after = [dataclasses.replace(p, scores={"f1": p.scores["f1"] + 0.5, "nll": 1.0}) for p in before]
    assert compare(before, after, ["f1"], BOOTSTRAP)["f1"].value == pytest.approx(0.5)


def test_difference_of_other_questions():
    with pytest.raises(ArtifactError, match="other questions"):
        compare([prediction("q1")], [prediction("q2")], ["f1"], BOOTSTRAP)


def markdown(tmp_path, **fields):
    write_report(report_of(prediction(**fields)), tmp_path)
    return (tmp_path / "test.base.report.md").read_text()


def test_markdown_shows_figures_gates_and_worst_answers(tmp_path):
    write_report(report_of(prediction(f1=0.25), prediction("q2"), rules={"f1": ">= 0.9"}), tmp_path)
    text = (tmp_path / "test.base.report.md").read_text()
    assert "| f1 | 0.375 | " in text
    assert "- FAILED: f1 >= 0.9 (is 0.375)" in text
    assert "- Who?: me (expected I)" in text


@pytest.mark.parametrize("field", ["question", "answer", "expected"])
@pytest.mark.parametrize(
    ("hostile", "inert"),
    [
        ("<script>alert(1)</script>", r"\<script\>alert\(1\)\</script\>"),
        ("[x](javascript:y)", r"\[x\]\(javascript:y\)"),
        ("![i](http://x)", r"\!\[i\]\(http://x\)"),
        ("a | b", r"a \| b"),
        ("`code` **bold** _it_ \\", r"\`code\` \*\*bold\*\* \_it\_ \\"),
        ("x\n\n# heading\n- item", r"x \# heading \- item"),
        ("a\x1b[31mb\u202ec\x9b", r"a\[31mbc"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        ("~~gone~~", r"\~\~gone\~\~"),
    ],
)
def test_untrusted_text_is_inert_in_markdown(tmp_path, field, hostile, inert):
    text = markdown(tmp_path, **{field: hostile})
    (line,) = [line for line in text.splitlines() if inert in line]
    assert line.startswith("- ")
    assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_no_answer_is_said(tmp_path):
    assert "- Who?: (nothing) (expected I)" in markdown(tmp_path, answer="")
