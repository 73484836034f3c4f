"""Each command on tiny models: what exactly is on stdout, the shape of --json, exit codes."""

import io
import json
import re

import pytest


def lines(text):
    return text.splitlines()


@pytest.mark.parametrize("sample", [False, True])
def test_init(cli, tmp_path, monkeypatch, sample):
    monkeypatch.chdir(tmp_path)
    done = cli("init", "demo", *(["--sample"] if sample else []))
    assert (done.code, done.err) == (0, "")
    assert lines(done.out) == ["wrote demo/ragx.yaml", *(["wrote demo/saltmere"] if sample else [])]
    assert not list(tmp_path.rglob("*.py")) + list(tmp_path.rglob("__pycache__"))


def test_init_as_json(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(cli("init", "--json").out) == {"written": ["ragx.yaml"]}


def test_init_overwrites_nothing(cli, tmp_path):
    (tmp_path / "ragx.yaml").write_text("mine")
    done = cli("init", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"ragx: {tmp_path}/ragx.yaml: is already there; ragx init overwrites nothing\n"
    assert (tmp_path / "ragx.yaml").read_text() == "mine"


def test_index(cli, tiny_config, tmp_path):
    done = cli("index", "-c", tiny_config())
    assert done.code == 0
    assert re.fullmatch(
        rf"{tmp_path}/runs/tiny/index/v1: 24 passages of 12 documents, "
        r"flat index of 32 dimensions, lexical: bm25, 0\.\d MB\n",
        done.out,
    )
    assert "encoding passages: 24/24" in done.err


def test_index_quiet_says_only_the_result(cli, tiny_config):
    assert cli("index", "-q", "-c", tiny_config()).err == ""


def test_index_again_changes_nothing(cli, indexed, standing):
    config, before = indexed(), standing()
    done = cli("index", "-c", config)
    assert done.code == 0
    assert "up to date" in done.err
    assert standing() == before


def test_index_stats_as_json(cli, indexed, tmp_path):
    found = json.loads(cli("index", "--stats", "--json", "-c", indexed()).out)
    assert found.pop("bytes") > 10_000
    fingerprints = found.pop("fingerprints")
    assert found == {
        "folder": f"{tmp_path}/runs/tiny/index/v1",
        "documents": 12,
        "passages": 24,
        "left_out": 0,
        "characters": {"mean": 44.7, "median": 44.0, "p95": 70.0, "max": 73},
        "dimension": 32,
        "kind": "flat",
        "factory": "Flat",
        "search": {},
        "recall@10": 1.0,
        "lexical": "bm25",
        "dtype": "float32",
    }
    assert list(fingerprints) == ["index", "corpus", "chunking", "encoding", "encoder"]
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in fingerprints.values())


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize("generator", ["causal_chat", "bart"])
def test_ask_as_json(cli, indexed, generator, mode):
    done = cli("ask", "Who lights the kiln?", "--json", "-c", indexed(generator, retrieval={"mode": mode}))
    assert (done.code, done.err) == (0, "")
    (line,) = lines(done.out)
    found = json.loads(line)
    assert list(found) == ["question", "answer", "confidence", "passages", "attribution"]
    assert found["attribution"], "at least the end of the answer"
    for token in found["attribution"]:
        assert sum(token["posterior"]) == pytest.approx(1, abs=1e-5)
        assert len(token["posterior"]) == len(found["passages"])
    assert found["question"] == "Who lights the kiln?"
    assert 0 <= found["confidence"] <= 1
    assert [list(p) for p in found["passages"]] == [
        ["id", "document_id", "title", "text", "score", "prior", "posterior"]
    ] * 2
    assert sum(p["prior"] for p in found["passages"]) == pytest.approx(1, abs=1e-5)
    assert sum(p["posterior"] for p in found["passages"]) == pytest.approx(1, abs=1e-5)
    assert found["passages"][0]["score"] >= found["passages"][1]["score"]
    if mode != "dense":
        assert found["passages"][0]["document_id"] == "kiln"


def test_ask_prints_one_line_and_shows_passages_on_stderr(cli, indexed):
    config = indexed()
    done = cli("ask", "Who lights the kiln?", "-c", config)
    assert done.code == 0
    assert len(lines(done.out)) == 1
    assert "kiln#0" in done.err
    quiet = cli("ask", "Who lights the kiln?", "-q", "-c", config)
    assert (quiet.out, quiet.err) == (done.out, "")


def test_piped_questions_one_answer_a_line(cli, indexed):
    config = indexed()
    questions = ["Who lights the kiln?", "", "What is the dog called?", *["When does the train run?"] * 9]
    done = cli("ask", "-c", config, stdin="\n".join(questions) + "\n")
    assert (done.code, done.err) == (0, "")
    answers = done.out.removesuffix("\n").split("\n")
    assert len(answers) == len(questions)
    assert answers[1] == ""
    assert len(set(answers[3:])) == 1
    assert answers[0] == cli("ask", questions[0], "-q", "-c", config).out.removesuffix("\n")


def test_piped_questions_as_json(cli, indexed):
    done = cli("ask", "--json", "-c", indexed(), stdin="Who lights the kiln?\n\nWhat is the dog called?")
    assert [json.loads(line)["question"] for line in lines(done.out)] == [
        "Who lights the kiln?",
        "What is the dog called?",
    ]


@pytest.mark.parametrize("stdin", ["", "\n"])
def test_nothing_piped(cli, indexed, stdin):
    done = cli("ask", "-c", indexed(), stdin=stdin)
    assert (done.code, done.out.strip()) == (0, "")


def test_conversation(cli, indexed, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    config = indexed()
    monkeypatch.setattr("sys.stdin", Terminal("Who lights the kiln?\n:why\n:what\n\n:quit\nnever asked\n"))
    done = cli("ask", "-c", config)
    assert done.code == 0
    assert done.err.count("kiln#0") == 2
    assert done.err.count(":quit to leave") == 2


@pytest.mark.parametrize(("marginal", "streams"), [("token", True), ("sequence", False)])
def test_ask_writes_while_it_decodes_where_the_marginal_allows_it(cli, indexed, monkeypatch, marginal, streams):
    config = indexed("causal_chat", rag={"marginal": marginal})
    whole = cli("ask", "Who lights the kiln?", "-q", "-c", config)
    pieces = []
    monkeypatch.setattr("typer.echo", lambda text, nl=True, **_: pieces.append(text + ("\n" if nl else "")))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cli("ask", "Who lights the kiln?", "-q", "-c", config)
    assert "".join(pieces) == whole.out
    assert (len(pieces) > 2) == streams


def test_finetune_dry_run_trains_nothing(cli, indexed, standing):
    config, before = indexed(), standing()
    done = cli("finetune", "--dry-run", "-c", config)
    assert done.code == 0
    plan, estimate = lines(done.out)
    assert (
        "on 12 questions with 2 passages each: 1 epochs, 3 steps of 4 questions in float32, at a learning rate" in plan
    )
    assert re.fullmatch(
        r"about [\d.]+ min \(retriever warm-up at most [\d.]+, 3 steps [\d.]+, dev set [\d.]+\) "
        r"and [\d.]+ GB of memory a process",
        estimate,
    )
    assert standing() == before
    found = json.loads(cli("finetune", "--dry-run", "--json", "-c", config).out)
    phases = [found["seconds"][name] for name in ("warm_up", "steps", "evaluations")]
    assert found["seconds"]["total"] == pytest.approx(sum(phases), abs=0.2)
    assert found["memory_bytes"] > 50_000_000  # torch alone takes more
    assert standing() == before


@pytest.mark.parametrize("generator", ["causal_chat", "t5"])
def test_finetune_then_eval_compares_with_the_base(cli, indexed, tmp_path, generator):
    config = indexed(generator)
    before = json.loads(cli("eval", "--model", "base", "--json", "-c", config).out)
    done = cli("finetune", "--json", "-c", config)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["questions"], found["steps"], found["model"]) == (12, 3, f"{tmp_path}/runs/tiny/model")
    assert set(found["prior"]) == {"temperature", "lexical_weight"}
    report = tmp_path / "runs/tiny/eval/test.base.report.json"
    done = cli("eval", "--json", "--baseline", report, "-c", config)
    assert done.code == 0, done.err
    after = json.loads(done.out)
    assert (before["model"], after["model"]) == ("base", "tuned")
    assert set(after["differences"]) == {"em", "f1", "recall@2", "nll"}
    shown = cli("eval", "--baseline", report, "-c", config)
    assert shown.code == 0
    assert "difference" in shown.out


def test_eval_as_json(cli, indexed, tmp_path):
    done = cli("eval", "--json", "-q", "-c", indexed(eval={"gates": {"recall@2": ">= 0.0"}}))
    assert (done.code, done.err) == (0, "")
    (line,) = lines(done.out)
    found = json.loads(line)
    assert (found["split"], found["model"], found["n"]) == ("test", "base", 4)
    assert list(found["metrics"]) == ["em", "f1", "recall@2", "nll"]
    assert all(list(metric) == ["value", "low", "high", "detectable"] for metric in found["metrics"].values())
    assert all(0 <= metric["low"] <= metric["high"] <= 1 for name, metric in found["metrics"].items() if name != "nll")
    (gate,) = found["gates"]
    assert (gate["metric"], gate["rule"], gate["value"], gate["passed"]) == ("recall@2", ">= 0.0", 1.0, True)
    wanted = {"ragx", "config", "corpus", "index", "generator", "tuning", "model", "data", "metrics", "seed"}
    assert wanted <= set(found["signature"])
    written = json.loads((tmp_path / "runs/tiny/eval/test.base.report.json").read_text())
    assert written == found


@pytest.mark.parametrize(("split", "n"), [("train", 12), ("dev", 4)])
def test_eval_of_another_split(cli, indexed, split, n):
    found = json.loads(cli("eval", "--json", "--split", split, "-c", indexed()).out)
    assert (found["split"], found["n"]) == (split, n)


def test_eval_table(cli, indexed):
    done = cli("eval", "-c", indexed(eval={"gates": {"nll": "< 99"}}))
    assert done.code == 0
    assert "recall@2" in done.out
    assert re.search(r"^gate passed: nll < 99 \(is \d\.\d{3}, interval \d", done.out, re.M)
    assert "answering: 4/4" in done.err


def test_failed_gate_is_code_1_and_the_report_is_written(cli, indexed, tmp_path):
    done = cli("eval", "-c", indexed(eval={"gates": {"em": "> 0.99"}}))
    assert done.code == 1
    assert "gate FAILED: em > 0.99 (is 0.000, interval 0.000 to 0.000)" in lines(done.out)
    assert "Traceback" not in done.err
    assert (tmp_path / "runs/tiny/eval/test.base.report.json").is_file()


def test_index_of_sections_without_duplicates_skipping_what_is_broken(cli, tiny_config, tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    page = "# Kilns\n\nThe kiln burns beech wood.\n\n## Firing\n\nMarta Veld lights it on Monday.\n"
    (folder / "a.md").write_text(page)
    (folder / "b.md").write_text(page.replace("Kilns", "Copy"))
    (folder / "c.html").write_text("<html><title>Glazes</title><body><p>Green glaze holds copper.</p></body></html>")
    (folder / "d.pdf").write_text("no PDF")
    config = tiny_config(
        corpus={"paths": [str(folder)], "on_error": "skip"},
        passages={"unit": "sections", "size": 40, "deduplicate": "exact"},
    )
    done = cli("index", "--json", "-c", config)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["documents"], found["passages"]) == (2, 3)
    said = "".join(done.err.split())  # a long path is wrapped anywhere
    for line in (
        "d.pdf: no PDF that can be read",
        "1 records skipped",
        "2 passages left out as exact duplicates of earlier ones",
    ):
        assert "".join(line.split()) in said
    answer = json.loads(cli("ask", "Who lights it on Monday?", "--json", "-q", "-c", config).out)
    assert "Kilns > Firing" in [passage["title"] for passage in answer["passages"]]


@pytest.mark.parametrize(
    ("override", "named"),
    [("corpus.encoding=klingon", "Python knows no encoding 'klingon'"), ("corpus.limits.memory_mb=1", "500")],
)
def test_reading_that_cannot_be_configured(cli, tiny_config, override, named):
    done = cli("check", "-q", "-c", tiny_config(), "--set", override)
    assert done.code == 2
    assert named in done.err
