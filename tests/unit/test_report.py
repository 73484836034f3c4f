"""ragx.evaluation.report and the files it becomes: aggregation, schema, and text that stays inert in every format."""

import dataclasses
import json
import math
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import lxml.etree
import pytest
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt

import ragx
from ragx.errors import ArtifactError, RagxError
from ragx.evaluation.as_html import html
from ragx.evaluation.as_json import percentiles, read_report, report_json
from ragx.evaluation.as_junit import junit
from ragx.evaluation.as_markdown import SUMMARY_BYTES, markdown, write_step_summary
from ragx.evaluation.files import write_report
from ragx.evaluation.gates import parse_gates
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.plots import draw
from ragx.evaluation.predictions import read_predictions
from ragx.evaluation.report import make_report, score
from ragx.evaluation.significance import Bootstrap
from ragx.records import Evidence, Example, Prediction

BOOTSTRAP = Bootstrap(100, 0.95, 13)
SCHEMA = json.loads((Path(ragx.__file__).parent / "evaluation/report.schema.json").read_text())
ABOUT = {"split": "test", "model": "base", "seconds": 1.23456}
SIGNATURE = {"seed": "13", "data": "d", "metrics": "m"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:y)",
    "![i](http://x)",
    "a | b",
    "`code` **bold** _it_ \\",
    "x\n\n# heading\n- item",
    "a\x1b[31mb\u202ec\x9b",
    "a\x1b]8;;http://x\x07link\x1b]52;c;eA==\x07",
    "&lt;b&gt; ]]> -->",
    "~~gone~~ $x$ @someone",
    "[/red] [bold]",
    "x" + "\u0301" * 10_000,
    "\ufffe\uffff\x00\x0b",
    "{{ 7 * 7 }} {% raw %}",
    "=1+1",
]


def prediction(identity="q1", answer="me", expected="I", *, nll=1.0, tokens=1, question="Who?", passage="", **facts):
    hits = (Evidence("d#0", "d", True, True, 0.7, 0.9, passage, passage), Evidence("e#1", "e", False, False))
    given = {"log_probability": -0.5, "reference_nll": nll, "reference_tokens": tokens, "hits": hits}
    return Prediction(identity, question, (expected,), answer, **{**given, **facts})


def report_of(*predictions, rules=None, before=None, limit=None, names=("em", "f1", "nll"), **more):
    metrics = parse_metrics(list(names))
    baseline = None if before is None else (score(before, metrics), SIGNATURE)
    return make_report(
        score(predictions, metrics),
        metrics,
        parse_gates(rules or {}, metrics),
        BOOTSTRAP,
        signature=SIGNATURE,
        baseline=baseline,
        limit=limit,
        **{**ABOUT, **more},
    )


def hostile_report(text, **more):
    bad = prediction("q1", text, text, question=text, passage=text, fields={"topic": text})
    good = prediction("q1", "right", text, question=text, passage=text)
    good = dataclasses.replace(good, answers=(text, "right"))
    bad = dataclasses.replace(bad, answers=(text, "right"), answer=f"{text} wrong")
    slices = {"slice_names": ["topic", "document_kind"]}
    facts = {"rules": {"f1": "no worse than baseline"}, "before": [good], **slices, **more}
    return dataclasses.replace(report_of(bad, **facts), signature={**SIGNATURE, "generator": text})


def test_nll_weighs_questions_by_their_tokens():
    report = report_of(prediction(nll=3.0, tokens=3), prediction("q2", nll=5.0, tokens=1))
    assert report.metrics["nll"].value == 2.0


def test_json_shape():
    found = report_json(report_of(prediction(answer="I"), rules={"f1": ">= 0.6"}))
    jsonschema.validate(found, SCHEMA)
    assert found["metrics"]["f1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "detectable": 0.0}
    assert found["gates"][0]["verdict"] == "passed"
    assert found["seconds"] == 1.235


def test_schema_refuses_other_things():
    found = report_json(report_of(prediction()))
    for spoilt in ({**found, "format": 1}, {**found, "more": 1}, {k: v for k, v in found.items() if k != "n"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, SCHEMA)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_score_that_is_no_number(value):
    with pytest.raises(RagxError, match="nll of question q1 is not a number"):
        report_of(prediction(nll=value))


def test_files_read_back(tmp_path):
    report = report_of(prediction(), prediction("q2", answer="é\nline\ttab"))
    path = write_report(report, tmp_path, {})
    assert json.loads(path.read_text()) == report_json(report)
    assert read_report(path)["signature"] == SIGNATURE
    examples = [Example(p.id, p.question, p.answers) for p in report.predictions]
    again = read_predictions(tmp_path / "test.base.predictions.jsonl", examples)
    assert score(again, parse_metrics(["em", "f1", "nll"])).predictions == list(report.predictions)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "test.base.predictions.jsonl",
        "test.base.report.html",
        "test.base.report.json",
        "test.base.report.md",
        "test.base.report.xml",
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_line_separators_in_text_read_back(tmp_path, separator):
    report = report_of(prediction(question=f"Who{separator}?"))
    write_report(report, tmp_path, {})
    (again,) = read_predictions(tmp_path / "test.base.predictions.jsonl", [Example("q1", f"Who{separator}?", ("I",))])
    assert again.question == f"Who{separator}?"


EXAMPLES = [Example("q1", "Who?", ("I",)), Example("q2", "What?", ("it",))]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([""], ":1: damaged predictions"),
        (["{"], ":1: damaged predictions"),
        (["[1]"], ":1: damaged predictions (no object)"),
        (["{}"], ":1: a prediction needs 'id' and 'answer'"),
        (['{"id": "q1", "answer": 3}'], ":1: a prediction needs 'id' and 'answer'"),
        (['{"id": "q1", "answer": "x", "log_probability": NaN}'], ":1: damaged predictions (NaN is no number)"),
        (['{"id": "q1", "answer": "x", "log_probability": 1e999}'], "log_probability is no number"),
        (['{"id": "q1", "answer": "x", "reference_nll": "y"}'], "reference_nll is no number"),
        (['{"id": "q1", "answer": "x", "colour": 1}'], ":1: damaged predictions"),
        (['{"id": "q1", "answer": "x", "hits": [{"id": 1}]}'], ":1: damaged predictions"),
        (['{"id": "q1", "answer": "\\ud800"}'], ":1: damaged predictions"),
        (['{"id": "q9", "answer": "x"}'], ":1: question q9 is not in this split"),
        (['{"id": "q1", "answer": "x", "question": "Why?"}'], ":1: question q1 is another one"),
        (['{"id": "q1", "answer": "x"}'] * 2, ":2: a second prediction of question q1"),
        (['{"id": "q1", "answer": "' + "x" * 100_001 + '"}'], ":1: an answer of 100001 characters"),
        (["[" * 100_000], ":1: damaged predictions"),
    ],
)
def test_predictions_that_cannot_be_used(tmp_path, lines, named):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ArtifactError) as caught:
        read_predictions(path, EXAMPLES)
    assert named in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_prediction_counts_as_wrong(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "q1", "answer": "I"}\n')
    found = read_predictions(path, EXAMPLES)
    assert [(p.id, p.answer, p.missing) for p in found] == [("q1", "I", False), ("q2", "", True)]
    report = report_of(*found, names=("em", "f1"))
    assert report.metrics["em"].value == 0.5
    assert report_json(report)["missing"] == 1
    assert "1 questions have no prediction and count as wrong" in markdown(report)
    assert "1 questions have no prediction and count as wrong" in html(report, {})


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"format": 1, "signature": {}}', '{"format": 2, "signature": {"a": 1}}']
)
def test_reports_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "test.base.report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=str(path)):
        read_report(path)


def test_difference_of_two_reports():
    before = [prediction("q1", "no"), prediction("q2", "I")]
    report = report_of(prediction("q1", "I"), prediction("q2", "I"), before=before)
    assert report.differences["em"].value == 0.5
    assert report_json(report)["regressions"] == []
    back = report_of(*before, before=[prediction("q1", "I"), prediction("q2", "I")])
    assert [(each["id"], each["gain"]) for each in report_json(back)["regressions"]] == [("q1", -1.0)]
    jsonschema.validate(report_json(back), SCHEMA)


def test_difference_of_other_questions():
    with pytest.raises(ArtifactError, match="other questions"):
        report_of(prediction("q1"), before=[prediction("q2")])


def test_smoke_runs_are_marked_everywhere(tmp_path):
    report = report_of(prediction(), rules={"f1": ">= 0"}, limit=1)
    path = write_report(report, tmp_path, {})
    assert path.name == "test.base.smoke.report.json"
    assert (report.gates[0].passed, json.loads(path.read_text())["limit"]) == (False, 1)
    for suffix in ("md", "html"):
        assert "Smoke run: only 1 questions" in (tmp_path / f"test.base.smoke.report.{suffix}").read_text()
    (suite,) = JUnitXml.fromfile(tmp_path / "test.base.smoke.report.xml")
    (case,) = suite
    assert isinstance(case.result[0], Error) and "smoke run" in case.result[0].message


@pytest.mark.parametrize(("rule", "kind"), [(">= 0.9", Failure), (">= 0", None)])
def test_junit(rule, kind):
    text = junit(report_of(prediction(), rules={"f1": rule}))
    (suite,) = JUnitXml.fromstring(text.encode())
    (case,) = suite
    assert [type(result) for result in case.result] == ([kind] if kind else [])
    assert suite.failures == (1 if kind else 0) and suite.tests == 1
    assert {p.name: p.value for p in suite.properties()}["f1"] == "0.000000"


def test_junit_without_gates_says_that_it_ran():
    (suite,) = JUnitXml.fromstring(junit(report_of(prediction())).encode())
    assert [case.name for case in suite] == ["evaluated"]


class Tags(HTMLParser):
    """What a browser would see: tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    return tags


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_untrusted_text_is_inert_in_every_format(text):
    report = hostile_report(text)
    page = parsed(html(report, {}))
    plain = parsed(html(hostile_report("plain"), {}))
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert not {"script", "img", "iframe", "a", "link"} & set(page.tags)

    document = junit(report)
    lxml.etree.fromstring(document.encode())
    xml.etree.ElementTree.fromstring(document)

    shown = markdown(report)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    kinds = [token.type for token in parser.parse(shown)]
    assert kinds == [token.type for token in parser.parse(markdown(hostile_report("plain")))]
    inner = {child.type for token in parser.parse(shown) for child in token.children or []}
    assert not inner & {"html_inline", "link_open", "image", "code_inline", "em_open", "s_open"}

    for written in (html(report, {}), document, shown):
        assert not any(ord(c) < 32 and c not in "\n\t" for c in written)
        assert not any(c in written for c in "\x7f\x9b\u202e")
    json.loads(json.dumps(report_json(report), allow_nan=False))
    jsonschema.validate(report_json(report), SCHEMA)


def test_page_opens_offline():
    predictions = [prediction(f"q{n}", "I" if n % 3 else "me") for n in range(12)]
    before = [prediction(f"q{n}", "I" if n % 4 else "me") for n in range(12)]
    report = report_of(*predictions, before=before, slice_names=["document_kind"])
    plots = draw(report)
    page = html(report, plots)
    assert len(plots) == 6 and page.count("<svg") == 6
    tags = parsed(page)
    assert "script" not in tags.tags
    assert not [name for name in tags.attributes if name.startswith("on") or name == "src"]
    fetched = lxml.etree.HTML(page).xpath("//link | //img | //iframe | //object | //a[starts-with(@href, 'http')]")
    assert fetched == []
    assert all(title in page for title in plots)
    for svg in plots.values():
        lxml.etree.fromstring(svg.encode())


def test_page_tells_what_a_stranger_would_ask():
    before = [prediction(f"q{n}", "me") for n in range(9)]
    after = [prediction(f"q{n}", "I", nll=9.0) for n in range(9)]
    page = html(report_of(*after, before=before, rules={"f1": ">= 2"}, slice_names=["question_length"]), {})
    text = " ".join(" ".join(parsed(page).text).split())
    assert "1 of 1 gates failed" in text and "nll lower is better" in text and "By question length" in text
    assert "a passage that was read supports the reference" in text
    assert '<td class="figure good">+1.000</td>' in page and '<td class="figure bad">+8.000</td>' in page
    assert "all gates passed" in html(report_of(*after, rules={"f1": ">= 0"}), {})


def test_slices_of_lengths_stand_in_their_order():
    questions = ["a b c d e f g h i j", "a", "b", "c " * 20, "d " * 20]
    predictions = [prediction(f"q{n}", question=text) for n, text in enumerate(questions)]
    found = report_of(*predictions, slice_names=["question_length"]).slices
    assert [(each.value, each.n) for each in found] == [("1-8", 2), ("9-14", 1), ("over 14", 2)]


def test_plots_are_the_same_again():
    report = report_of(prediction(), prediction("q2", "I"))
    assert draw(report) == draw(report)


def test_page_without_plots_says_how_to_get_them():
    assert any("ragx[plots]" in text for text in parsed(html(report_of(prediction()), {})).text)


def summary(monkeypatch, tmp_path, report, there=""):
    path = tmp_path / "summary.md"
    path.write_text(there)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    write_step_summary(report)
    return path.read_text()


def test_step_summary_is_appended(monkeypatch, tmp_path):
    text = summary(monkeypatch, tmp_path, report_of(prediction()), "# before\n")
    assert text.startswith("# before\n# test, base model: 1 questions")


def test_no_step_summary_unless_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_step_summary(report_of(prediction()))
    assert list(tmp_path.iterdir()) == []


def test_step_summary_of_thousands_of_hostile_failures(monkeypatch, tmp_path):
    hostile = "a | b ` <img src=x> " * 12
    many = [prediction(f"q{n}", hostile, "I", question=hostile) for n in range(5000)]
    text = summary(monkeypatch, tmp_path, report_of(*many, names=("em", "f1")))
    assert 0.8 * SUMMARY_BYTES < len(text.encode()) <= SUMMARY_BYTES
    left = int(text.split(" more lines are left out here")[0].split("\n")[-1])
    assert text.count("\n- ") + left == pytest.approx(5000, abs=3)
    tables = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "table_open"]
    assert len(tables) == 2
    assert len(summary(monkeypatch, tmp_path, report_of(*many, names=("em",)), "x" * 800_000).encode()) <= SUMMARY_BYTES


def test_latency_percentiles():
    assert percentiles([]) is None
    assert percentiles([float(n) for n in range(1, 101)]) == {
        "p50": 50.0,
        "p90": 90.0,
        "p95": 95.0,
        "p99": 99.0,
        "n": 100,
    }


def test_markdown_shows_figures_gates_and_worst_answers():
    text = markdown(report_of(prediction(), prediction("q2", "I"), rules={"f1": ">= 0.9"}))
    assert "| f1 | 0.500 | " in text
    assert "| FAILED | f1 | \\>= 0.9 | is 0.500" in text
    assert "- Who?: me (expected I; reader miss)" in text


def test_no_answer_is_said():
    assert "- Who?: (nothing) (expected I" in markdown(report_of(prediction(answer="")))
