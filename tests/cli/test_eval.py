"""`ragx eval` in CI: gates and exit codes, baselines, smoke runs, predictions without a model, resuming, reports."""

import dataclasses
import json
import signal
import sqlite3
from pathlib import Path

import jsonschema
import pytest
import yaml
from junitparser import Error, Failure, JUnitXml

import ragx
from ragx.evaluation import predict as predicting

SCHEMA = json.loads((Path(ragx.__file__).parent / "evaluation/report.schema.json").read_text())


def refused(done, *named):
    assert (done.code, done.out) == (2, ""), done.out + done.err
    assert "Traceback" not in done.err and done.err.startswith("ragx: ")
    assert all(str(part) in done.err for part in named), done.err


def report(tmp_path, name="test.base"):
    found = json.loads((tmp_path / f"runs/tiny/eval/{name}.report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def rewrite(path, change):
    """Each prediction of a file changed, or dropped where `change` gives None."""
    records = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None))


def right(record):
    return {**record, "answer": record["answers"][0]}


def wrong(record):
    return {**record, "answer": "nothing of the kind"}


@pytest.fixture
def scored(cli, indexed, tmp_path):
    """scored(**config): a configuration whose base model was evaluated on train; its predictions file."""

    def run(**overrides):
        config = indexed(**overrides)
        done = cli("eval", "-q", "--split", "train", "--set", "eval.gates={}", "-c", config)
        assert done.code == 0, done.err
        return config, tmp_path / "runs/tiny/eval/train.base.predictions.jsonl"

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Opening a model or an index fails the test."""

    def opened(*_, **__):
        raise AssertionError("a model was opened")

    def forbid():
        monkeypatch.setattr("ragx.stages.answer.open_model", opened)
        monkeypatch.setattr("ragx.stages.answer.open_index", opened)

    return forbid


RELATIVE = {"metrics": ["em", "f1"], "gates": {"f1": "no worse than baseline by 0.05"}, "slices": []}


@pytest.mark.parametrize(("change", "code", "verdict"), [(wrong, 1, "FAILED"), (right, 0, "passed")])
def test_a_pull_request(cli, scored, tmp_path, no_model, change, code, verdict):
    """The baseline is right everywhere; a change that breaks answers is 1 with a reason, a harmless one 0."""
    config, predictions = scored(eval=RELATIVE)
    rewrite(predictions, right)
    no_model()
    again = cli("eval", "-q", "--split", "train", "--predictions", predictions, "--set", "eval.gates={}", "-c", config)
    assert again.code == 0
    baseline = tmp_path / "runs/tiny/eval/train.rescored.report.json"
    kept = tmp_path / "main.report.json"
    kept.write_bytes(baseline.read_bytes())
    (tmp_path / "main.predictions.jsonl").write_bytes(
        (tmp_path / "runs/tiny/eval/train.rescored.predictions.jsonl").read_bytes()
    )
    rewrite(predictions, change)
    done = cli(*("eval", "-q", "--split", "train", "--predictions", predictions, "--baseline", kept, "-c", config))
    assert (done.code, done.err) == (code, "")
    assert f"gate {verdict}: f1 no worse than baseline by 0.05 (changed by " in done.out
    found = report(tmp_path, "train.rescored")
    assert found["gates"][0]["verdict"] == verdict
    assert found["baseline"]["data"] == found["signature"]["data"]
    assert len(found["regressions"]) == (12 if code else 0)
    (suite,) = JUnitXml.fromfile(tmp_path / "runs/tiny/eval/train.rescored.report.xml")
    assert suite.failures == code
    page = (tmp_path / "runs/tiny/eval/train.rescored.report.html").read_text()
    assert ("Worst regressions" in page) == bool(code)


def test_the_same_again_changes_nothing(cli, scored, tmp_path):
    config, _ = scored(eval=RELATIVE)
    baseline = tmp_path / "runs/tiny/eval/train.base.report.json"
    done = cli("eval", "-q", "--json", "--split", "train", "--baseline", baseline, "-c", config)
    assert done.code == 0
    found = json.loads(done.out)
    jsonschema.validate(found, SCHEMA)
    z = 1.959964 + 0.841621  # twelve questions cannot tell less, however alike the runs
    expected = {"value": 0.0, "low": 0.0, "high": 0.0, "detectable": pytest.approx(z**2 / 12, rel=1e-4)}
    assert found["differences"]["f1"] == expected


@pytest.fixture
def by_seed(scored, tmp_path):
    """by_seed("main", 3, 4, 5): a configuration and predictions files of seeds that answer so many of 12 questions."""
    config, predictions = scored(
        eval={"metrics": ["em", "f1"], "gates": {"f1": "no worse than baseline"}, "slices": []}
    )

    def make(name, *rights):
        files = []
        for number, right_ones in enumerate(rights):
            path = tmp_path / f"{name}{number}.predictions.jsonl"
            path.write_bytes(predictions.read_bytes())
            places = iter(range(12))
            luck = {"log_probability": -1 - number / 8}
            rewrite(path, lambda r, n=right_ones, p=places, luck=luck: (right if next(p) < n else wrong)(r | luck))
            beside = predictions.with_name("train.base.report.json").read_bytes()
            path.with_name(f"{name}{number}.report.json").write_bytes(beside)
            files.append(path)
        return config, files

    return make


def options(name, paths):
    return [part for path in paths for part in (name, path)]


@pytest.mark.parametrize(
    ("rights", "code", "verdict"), [((12, 11, 12), 0, "inconclusive"), ((1, 2, 1), 1, "FAILED"), ((11, 12), 0, "")]
)
def test_several_seeds_are_one_evaluation(cli, by_seed, tmp_path, no_model, rights, code, verdict):
    config, files = by_seed("now", *rights)
    _, main = by_seed("main", 11, 12, 12)
    no_model()
    reports = [path.with_name(path.name.replace("predictions.jsonl", "report.json")) for path in main]
    arguments = [*options("--predictions", files), *options("--baseline", reports)]
    done = cli("eval", "-q", "--json", "--split", "train", *arguments, "-c", config)
    assert (done.code, done.err) == (code, "")
    found = report(tmp_path, "train.seeds")
    assert json.loads(done.out) == found
    assert found["seeds"]["spread"]["em"]["values"] == pytest.approx([n / 12 for n in rights])
    assert found["metrics"]["em"]["value"] == pytest.approx(sum(rights) / 12 / len(rights))
    assert found["differences"]["em"]["value"] == pytest.approx(sum(rights) / 12 / len(rights) - 35 / 36)
    assert (found["signature"]["seeds"], found["baseline"]["seeds"]) == (str(len(rights)), "3")
    assert found["gates"][0]["verdict"] in (verdict, "passed", "inconclusive")
    for suffix in ("md", "html"):
        text = (tmp_path / f"runs/tiny/eval/train.seeds.report.{suffix}").read_text()
        assert f"means over {len(rights)} seeds" in text
    assert not (tmp_path / "runs/tiny/eval/train.seeds.predictions.jsonl").exists()
    shown = cli("eval", "-q", "--split", "train", *arguments, "-c", config)
    assert f"means over {len(rights)} seeds" in shown.out and "deviation" in shown.out


def test_seeds_that_are_none(cli, by_seed, tmp_path, no_model):
    config, files = by_seed("now", 3, 5)
    no_model()
    evaluate = ("eval", "-q", "--split", "train", "-c", config, "--set", "eval.gates={}")
    refused(cli(*evaluate, *options("--predictions", [files[0], files[0]])), files[0], "a seed counts once")
    assert cli(*evaluate, *options("--predictions", files)).code == 0
    mean = tmp_path / "runs/tiny/eval/train.seeds.report.json"
    refused(cli(*evaluate, "--predictions", files[0], "--baseline", mean), mean, "mean over seeds", "each")
    other = files[1].with_name("now1.report.json")
    other.write_text(json.dumps({**json.loads(other.read_text()), "signature": {"index": "other"}}))
    refused(cli(*evaluate, *options("--predictions", files)), files[1], "not another seed", "index other")


def test_latency_has_a_gate(cli, indexed, tmp_path):
    """Every answer is timed, also where the cache has it; times are in no file, and are not compared."""
    gates = {"latency_p95": "<= 100", "latency_p50": "<= 0"}
    config = indexed(eval={"metrics": ["em", "latency_p95", "latency_p50"], "gates": gates})
    baseline = tmp_path / "runs/tiny/eval/test.base.report.json"
    for arguments in ([], ["--baseline", baseline]):
        done = cli("eval", "-q", "--json", *arguments, "-c", config)
        assert (done.code, done.err) == (1, "")
        found = report(tmp_path)
        assert [gate["passed"] for gate in found["gates"]] == [True, False]
        assert found["latency"]["n"] == 4
        assert found["metrics"]["latency_p95"]["value"] == pytest.approx(found["latency"]["p95"], abs=1e-6)
    assert list(found["differences"]) == ["em"]
    assert "seconds" not in (tmp_path / "runs/tiny/eval/test.base.predictions.jsonl").read_text()


def test_latency_that_cannot_be_judged(cli, scored, no_model):
    config, predictions = scored()
    no_model()
    timed = ("--set", "eval.metrics=[em, latency_p95]")
    scoring = ("eval", "-q", "--split", "train", "-c", config, *timed)
    refused(cli(*scoring, "--predictions", predictions), predictions, "leave latency_p95 out of eval.metrics")
    gate = ("--set", "eval.gates={latency_p95: better than baseline}")
    refused(cli(*scoring, *gate, "--baseline", "x.report.json"), "eval.gates.latency_p95: seconds belong to a machine")


def test_a_gate_that_is_equal_passes(cli, scored):
    config, predictions = scored(eval={"metrics": ["em"], "gates": {"em": ">= 1"}})
    rewrite(predictions, right)
    assert cli("eval", "-q", "--split", "train", "--predictions", predictions, "-c", config).code == 0


def test_inconclusive_is_stated(cli, scored):
    config, predictions = scored(eval={"metrics": ["em"], "gates": {"em": ">= 0.5"}})
    rewrite(predictions, lambda r: right(r) if int(r["id"][1:]) % 2 else wrong(r))
    done = cli("eval", "-q", "--split", "train", "--predictions", predictions, "-c", config)
    assert done.code in (0, 1)
    assert ("gate inconclusive: em >= 0.5" in done.out) == (done.code == 0)


def test_relative_gate_without_baseline(cli, tiny_config, no_model):
    no_model()
    refused(cli("eval", "-q", "-c", tiny_config(eval=RELATIVE)), "eval.gates.f1", "--baseline REPORT.json")


@pytest.mark.parametrize("gates", [{}, {"f1": ">= 0.0"}])
def test_smoke_run_is_marked_and_passes_no_gate(cli, indexed, tmp_path, gates):
    done = cli("eval", "-q", "--limit", "2", "-c", indexed(eval={"gates": gates}))
    assert done.code == (2 if gates else 0)
    assert "SMOKE RUN" in done.out
    assert ("ragx: --limit 2: a smoke run passes no gate; run without --limit" in done.err) == bool(gates)
    found = report(tmp_path, "test.base.smoke")
    assert (found["limit"], found["n"]) == (2, 2)
    assert not any(gate["passed"] for gate in found["gates"])
    (suite,) = JUnitXml.fromfile(tmp_path / "runs/tiny/eval/test.base.smoke.report.xml")
    kinds = {type(result) for case in suite for result in case.result}
    assert kinds == ({Error} if gates else set()) and Failure not in kinds
    assert not (tmp_path / "runs/tiny/eval/test.base.report.json").exists()


def test_smoke_run_is_no_baseline(cli, indexed, tmp_path, no_model):
    config = indexed()
    assert cli("eval", "-q", "--limit", "2", "-c", config).code == 0
    no_model()
    baseline = tmp_path / "runs/tiny/eval/test.base.smoke.report.json"
    refused(cli("eval", "-q", "--baseline", baseline, "-c", config), baseline, "smoke run of 2 questions")


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_limit_that_is_none(cli, tiny_config, limit):
    done = cli("eval", "--limit", limit, "-c", tiny_config())
    assert done.code == 2 and "Traceback" not in done.err


def test_limit_beyond_the_questions(cli, tiny_config, no_model):
    no_model()
    refused(cli("eval", "-q", "--limit", "4", "-c", tiny_config()), "--limit 4", "has 4 questions")


def test_baseline_of_other_data(cli, scored, tmp_path, no_model):
    config, _ = scored()
    no_model()
    baseline = tmp_path / "runs/tiny/eval/train.base.report.json"
    refused(cli("eval", "-q", "--split", "dev", "--baseline", baseline, "-c", config), baseline, "other questions")


def test_baseline_of_changed_references(cli, scored, tmp_path, tiny_corpus, no_model):
    config, _ = scored()
    tiny_corpus.train.write_text(tiny_corpus.train.read_text().replace("beech", "oak", 1))
    no_model()
    baseline = tmp_path / "runs/tiny/eval/train.base.report.json"
    refused(cli("eval", "-q", "--split", "train", "--baseline", baseline, "-c", config), baseline, "other questions")


def test_predictions_of_another_split(cli, scored, no_model):
    config, predictions = scored()
    no_model()
    refused(
        cli("eval", "-q", "--split", "dev", "--predictions", predictions, "-c", config),
        predictions,
        "not in this split",
    )


def test_missing_predictions_count_as_wrong(cli, scored, tmp_path, no_model):
    config, predictions = scored(eval={"metrics": ["em", "recall@2"], "gates": {}})
    rewrite(predictions, lambda r: right(r) if r["id"] != "q0" else None)
    no_model()
    done = cli("eval", "-q", "--split", "train", "--predictions", predictions, "-c", config)
    assert done.code == 0
    assert "1 questions have no prediction and count as wrong" in done.out
    found = report(tmp_path, "train.rescored")
    assert (found["n"], found["missing"]) == (12, 1)
    assert found["metrics"]["em"]["value"] == pytest.approx(11 / 12)


def test_answers_of_another_system(cli, tiny_config, tiny_corpus, tmp_path, no_model):
    """Lines of id and answer are enough for metrics of the answer; others say what they lack."""
    path = tmp_path / "theirs.jsonl"
    records = [json.loads(line) for line in tiny_corpus.test.read_text().splitlines()]
    path.write_text("".join(json.dumps({"id": r["id"], "answer": r["answers"][0]}) + "\n" for r in records))
    no_model()
    metrics = "eval.metrics=[em, f1, rougeL, bleu, chrf]"
    done = cli("eval", "-q", "--json", "--predictions", path, "--set", metrics, "-c", tiny_config())
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["em"]["value"] == 1
    refused(cli("eval", "-q", "--predictions", path, "-c", tiny_config()), path, "recall@2 out of eval.metrics")


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"metrics": ["rougel"]}, "did you mean 'rougeL'?"),
        ({"metrics": ["em", "em"]}, "em stands there twice"),
        ({"metrics": ["em"], "gates": {"em": "no worse than yesterday"}}, "eval.gates.em: cannot read"),
        ({"slices": ["topic"]}, "no question of"),
        ({"tokens": "letters"}, "eval.tokens"),
    ],
)
def test_evaluation_that_cannot_be_read(cli, tiny_config, no_model, section, named):
    no_model()
    refused(cli("eval", "-q", "-c", tiny_config(eval=section)), named)


def add_question(path, **fields):
    record = {"id": "extra", "question": "Who sings?", "answers": ["potters"], **fields}
    path.write_text(path.read_text() + json.dumps(record) + "\n")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"answers": ["The", "..."]}, "question extra normalise to nothing"),
        ({"answers": ["x" * 100_001]}, "question extra has 100001 characters"),
        ({"doc_ids": ["gone"]}, "gold document 'gone' of question extra is not in the index (1 such)"),
    ],
)
def test_questions_that_cannot_be_scored(cli, indexed, tiny_corpus, fields, named):
    config = indexed()
    add_question(tiny_corpus.test, **fields)
    refused(cli("eval", "-q", "-c", config), tiny_corpus.test, named)


def test_unknown_gold_documents_may_be_let_be(cli, indexed, tiny_corpus):
    config = indexed(data={"on_error": "skip"})
    add_question(tiny_corpus.test, doc_ids=["gone"])
    done = cli("eval", "-q", "--json", "-c", config)
    assert done.code == 0 and json.loads(done.out)["n"] == 5


def test_slices_by_a_field(cli, indexed, tiny_corpus, tmp_path):
    config = indexed(eval={"slices": ["topic", "question_length"]})
    add_question(tiny_corpus.test, topic="song", year=1888)
    assert cli("eval", "-q", "-c", config).code == 0
    slices = report(tmp_path)["slices"]
    assert [(s["value"], s["n"]) for s in slices if s["field"] == "topic"] == [("(none)", 4), ("song", 1)]
    assert sum(s["n"] for s in slices if s["field"] == "question_length") == 5


def test_outcomes(cli, scored, tmp_path):
    answers = {"q0": "BEECH!", "q1": "it is Marta Veld", "q2": "zinc", "q5": "zinc", "q6": "zinc"}

    def change(record):
        record = {**record, "answer": answers.get(record["id"], record["answers"][0])}
        hits = record["hits"]
        if record["id"] == "q5":
            hits = [{**hit, "supports": False} for hit in hits]
        if record["id"] == "q6":
            hits, record["answer_in_corpus"] = [{**hit, "supports": False} for hit in hits], False
        if record["id"] == "q2":
            hits = [{**hit, "supports": True} for hit in hits]
        return {**record, "hits": hits}

    config, predictions = scored()
    rewrite(predictions, change)
    assert cli("eval", "-q", "--split", "train", "--predictions", predictions, "-c", config).code == 0
    lines = (tmp_path / "runs/tiny/eval/train.rescored.predictions.jsonl").read_text().splitlines()
    outcomes = {record["id"]: record["outcome"] for record in map(json.loads, lines)}
    assert (outcomes["q0"], outcomes["q1"], outcomes["q2"]) == ("correct", "normalisation", "reader miss")
    assert (outcomes["q5"], outcomes["q6"]) == ("retrieval miss", "retrieval miss")  # both have a gold document
    assert sum(report(tmp_path, "train.rescored")["outcomes"].values()) == 12


def test_the_ceiling_and_what_nobody_can_answer(cli, indexed, tiny_corpus, tmp_path):
    config = indexed()
    add_question(tiny_corpus.test, answers=["zirconium"])
    assert cli("eval", "-q", "-c", config).code == 0
    found = report(tmp_path)
    assert found["ceiling"] == pytest.approx(4 / 5)
    assert found["outcomes"]["unanswerable in corpus"] == 1
    assert 0 <= found["retrieval_hurts"] <= 1
    assert set(found["latency"]) == {"p50", "p90", "p95", "p99", "n"} and found["latency"]["n"] == 5


def test_unchanged_predictions_are_not_computed_again(cli, indexed, tmp_path, monkeypatch):
    config = indexed()
    first = json.loads(cli("eval", "-q", "--json", "-c", config).out)
    predictions = (tmp_path / "runs/tiny/eval/test.base.predictions.jsonl").read_bytes()

    def opened(*_, **__):
        raise AssertionError("the model was opened")

    monkeypatch.setattr("ragx.stages.answer.open_model", opened)
    again = json.loads(
        cli("eval", "-q", "--json", "-c", config, "--set", "eval.metrics=[em, f1, recall@2, nll, chrf]").out
    )
    assert again["latency"] is None
    assert again["metrics"]["nll"] == first["metrics"]["nll"]
    done = cli("eval", "-q", "--json", "-c", config)
    assert (tmp_path / "runs/tiny/eval/test.base.predictions.jsonl").read_bytes() == predictions
    assert {**json.loads(done.out), "seconds": 0, "latency": 0} == {**first, "seconds": 0, "latency": 0}


@pytest.mark.parametrize("override", ["retrieval.top_k=3", "generator.max_answer_tokens=3", "eval.closed_book=false"])
def test_another_setting_is_computed_anew(cli, indexed, override):
    config = indexed()
    assert cli("eval", "-q", "-c", config).code == 0
    assert json.loads(cli("eval", "-q", "--json", "-c", config, "--set", override).out)["latency"]["n"] == 4


def test_only_a_new_question_is_computed(cli, indexed, tiny_corpus):
    config = indexed()
    assert cli("eval", "-q", "-c", config).code == 0
    add_question(tiny_corpus.test)
    assert json.loads(cli("eval", "-q", "--json", "-c", config).out)["latency"]["n"] == 1


def test_it_goes_on_where_it_was_stopped(cli, indexed, tmp_path, monkeypatch):
    """Stopped in the third of six batches: the rest is computed, and the figures are those of an unbroken run."""
    config = indexed(eval={"batch_size": 2})
    whole = cli("eval", "-q", "--json", "--split", "train", "-c", config, "--set", "eval.cache=false").out
    unbroken = (tmp_path / "runs/tiny/eval/train.base.predictions.jsonl").read_bytes()
    answer, batches = predicting._answer, []

    def stopping(*arguments):
        batches.append(arguments)
        if len(batches) == 3:
            signal.raise_signal(signal.SIGTERM)
        return answer(*arguments)

    monkeypatch.setattr(predicting, "_answer", stopping)
    assert cli("eval", "-q", "--split", "train", "-c", config).code == 143
    monkeypatch.setattr(predicting, "_answer", answer)
    found = json.loads(cli("eval", "-q", "--json", "--split", "train", "-c", config).out)
    assert found["latency"]["n"] == 8
    assert found["metrics"] == json.loads(whole)["metrics"]
    assert (tmp_path / "runs/tiny/eval/train.base.predictions.jsonl").read_bytes() == unbroken


@pytest.mark.parametrize("damage", ["file", "row"])
def test_damaged_cache_is_computed_anew(cli, indexed, tmp_path, damage):
    config = indexed()
    first = json.loads(cli("eval", "-q", "--json", "-c", config).out)
    cache = tmp_path / "runs/tiny/eval/.cache.sqlite"
    if damage == "file":
        cache.write_bytes(b"no database" * 100)
    else:
        with sqlite3.connect(cache) as database:
            database.execute("UPDATE predictions SET value = replace(value, '\"q4\"', '\"q5\"')")
        database.close()
    again = json.loads(cli("eval", "-q", "--json", "-c", config).out)
    assert again["latency"]["n"] == (4 if damage == "file" else 1)
    assert again["metrics"] == first["metrics"]


def test_step_summary(cli, indexed, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert cli("eval", "-q", "-c", indexed()).code == 0
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "runs/tiny/eval/test.base.report.md").read_text()


def test_hostile_passages_reach_no_terminal(cli, tiny_config, tiny_corpus, tiny_models, tmp_path):
    """Escape sequences, markup and bidi characters in passages, questions and answers, through the whole line."""
    hostile = "kiln \x1b[31m \x1b]52;c;eA==\x07 [/red] \u202e <script>alert(1)</script>"
    add = {"id": "evil", "title": hostile, "text": f"Who lights the kiln? {hostile}"}
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text() + json.dumps(add) + "\n")
    add_question(tiny_corpus.test, question=f"Who lights {hostile}?", answers=[hostile])
    model = str(tiny_models.causal)
    config = tiny_config(eval={"slices": ["document_kind"]}, generator={"model": model, "max_input_tokens": 400})
    assert cli("index", "-q", "-c", config).code == 0
    for arguments in (["eval"], ["eval", "--json"], ["eval", "-v"]):
        done = cli(*arguments, "-c", config)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out + done.err and "\u202e" not in done.out + done.err
    for suffix in ("md", "html", "xml"):
        text = (tmp_path / f"runs/tiny/eval/test.base.report.{suffix}").read_text()
        assert "\x1b" not in text and "\u202e" not in text and "<script>alert" not in text


@pytest.mark.parametrize(("columns", "term"), [("20", "dumb"), ("300", "xterm")])
def test_any_terminal(cli, indexed, monkeypatch, columns, term):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", term)
    done = cli("eval", "-q", "-c", indexed())
    assert done.code == 0 and "\x1b" not in done.out


def test_not_a_number_is_code_2(cli, indexed, monkeypatch):
    answer = predicting._answer

    def poisoned(*arguments):
        return [dataclasses.replace(p, reference_nll=float("nan")) for p in answer(*arguments)]

    monkeypatch.setattr(predicting, "_answer", poisoned)
    done = cli("eval", "-q", "-c", indexed(eval={"gates": {"nll": "<= 99"}}))
    assert done.code == 2 and "is not a number" in done.err


def test_import_failure_in_our_code_is_a_bug_not_a_failed_gate(cli, indexed, monkeypatch):
    config = indexed()
    monkeypatch.setitem(__import__("sys").modules, "ragx.evaluation.report", None)
    assert cli("eval", "-q", "-c", config).code == 70


def test_workflows_of_the_documentation(tmp_path):
    """They parse, and every ragx command in them is one."""
    from ragx.cli.main import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    root = Path(ragx.__file__).parents[1] / "docs" / "ci"
    if not root.is_dir():
        pytest.skip("not a source tree")
    for name in ("github.yml", "gitlab.yml"):
        text = (root / name).read_text()
        tree = yaml.safe_load(text)
        assert tree
        commands = [
            line.split("ragx ", 1)[1].split()[0]
            for line in text.splitlines()
            if line.strip().lstrip("- ").startswith(("ragx ", "run: ragx "))
        ]
        assert {"index", "eval"} <= set(commands) <= known
