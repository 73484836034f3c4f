"""`ragx check`: what it finds in data, limits and corpus, and what it says an index will take."""

import importlib
import json
import tracemalloc
from types import SimpleNamespace

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ragx.config import load_config
from ragx.evaluation.survey import Survey
from ragx.rag.generators import load_generator
from ragx.rag.lengths import Lengths
from ragx.rag.prompts import PromptSettings
from ragx.records import Passage, no_progress


def found(cli, config, *arguments):
    done = cli("check", "--json", "-q", "-c", config, *arguments)
    assert (done.code, done.err) == (0, ""), done.err
    return json.loads(done.out)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def add(path, **record):
    write_lines(path, [*rows(path), record])


NOTHING = {"count": 0, "first": None}


def test_clean_data(cli, tiny_config):
    config = tiny_config()
    facts = found(cli, config)
    assert (facts["documents"], facts["words"], facts["passages"], facts["left_out"]) == (12, 205, 24, 0)
    for split, count in (("train", 12), ("dev", 4), ("test", 4)):
        assert facts["splits"][split] == {
            "questions": count,
            "answer_in_corpus": 1.0,
            "answer_in_gold": 1.0,
            "unknown_gold_documents": [],
            **dict.fromkeys(("duplicates", "leaked", "in_corpus", "long_answers", "no_room"), NOTHING),
        }
    assert not (config.parent / "runs").exists()


def test_sample_domain_is_clean(cli, tmp_path, tiny_models):
    cli("init", tmp_path, "--sample")
    models = ("--set", f"encoder.model={tiny_models.encoder}", "--set", f"generator.model={tiny_models.t5}")
    facts = found(cli, tmp_path / "ragx.yaml", *models, "--set", "encoder.max_tokens=64")
    assert list(facts["splits"]) == ["train", "dev", "test"]
    for split in facts["splits"].values():
        assert split["unknown_gold_documents"] == []
        assert all(split[name] == NOTHING for name in ("duplicates", "leaked", "in_corpus", "no_room"))
        assert split["answer_in_corpus"] > 0.98


def test_what_is_wrong_is_counted_and_the_first_named(cli, tiny_config, tiny_corpus):
    add(tiny_corpus.test, id="again", question="who LIGHTS the kiln", answers=["nobody"], doc_ids=["gone"])
    add(tiny_corpus.test, id="twice", question="Who lights a kiln?!", answers=["beech wood"], doc_ids=["clay"])
    add(tiny_corpus.test, id="faq", question="The kiln at Orrin burns", answers=["x", "Marta"], doc_ids=["kiln"])
    add(tiny_corpus.test, id="long", question="Why? " * 30, answers=["beech wood " * 9])
    add(tiny_corpus.test, id="endless", question="Why? " * 300, answers=["beech"])
    config = tiny_config()
    split = found(cli, config)["splits"]["test"]
    assert split["leaked"] == {
        "count": 2,
        "first": {"id": "again", "question": "who LIGHTS the kiln", "where": "train q1"},
    }
    assert (split["duplicates"]["count"], split["duplicates"]["first"]["where"]) == (1, "again")
    assert split["in_corpus"]["first"] == {"id": "faq", "question": "The kiln at Orrin burns", "where": "kiln"}
    assert (split["long_answers"]["count"], split["long_answers"]["first"]["id"]) == (1, "long")
    assert (split["no_room"]["count"], split["no_room"]["first"]["id"]) == (1, "endless")
    assert split["unknown_gold_documents"] == ["gone"]
    assert split["answer_in_corpus"] == pytest.approx(7 / 9)
    assert split["answer_in_gold"] == pytest.approx(5 / 7)
    done = cli("check", "-q", "-c", config)
    assert (done.code, done.err) == (0, "")
    assert "test: 2 asked in an earlier split too, first again (train q1): who LIGHTS the kiln\n" in done.out
    assert "test: 1 gold documents are not in the corpus, first gone\n" in done.out
    assert "answer in some passage (ceiling of em)" in done.out and "77.8%" in done.out


def test_answer_over_a_border_stands_in_no_passage(cli, tiny_config, tiny_corpus):
    write_lines(tiny_corpus.test, [{"question": "When?", "answers": ["lights it on Monday"], "doc_ids": ["kiln"]}])
    assert found(cli, tiny_config())["splits"]["test"]["answer_in_corpus"] == 0.0
    config = tiny_config(passages={"size": 50})
    assert found(cli, config)["splits"]["test"]["answer_in_corpus"] == 1.0


def test_answers_in_a_script_without_spaces(cli, tiny_config, tiny_corpus):
    add(tiny_corpus.corpus, id="zh", title="", text="窑炉在星期一点火。")
    write_lines(tiny_corpus.test, [{"question": "什么时候点火", "answers": ["星期一"]}])
    facts = found(cli, tiny_config())["splits"]["test"]
    assert (facts["answer_in_corpus"], facts["answer_in_gold"]) == (1.0, None)


def test_truncation_is_counted_in_the_tokens_of_the_models(cli, tiny_config, tiny_corpus, tiny_models):
    config = tiny_config(passages={"size": 50}, encoder={"max_tokens": 23}, generator={"max_input_tokens": 60})
    facts = found(cli, config)["truncation"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.encoder)
    lengths = [len(tokenizer(f"{row['title']}\n{row['text']}")["input_ids"]) for row in rows(tiny_corpus.corpus)]
    assert facts["passages"] == {
        "sample": 12,
        "cut": pytest.approx(sum(length > 23 for length in lengths) / 12),
        "tokens_lost": pytest.approx(sum(max(0, length - 23) for length in lengths) / sum(lengths)),
        "longest": max(lengths),
        "limit": 23,
    }
    assert 0 < facts["passages"]["cut"] < 1
    assert facts["prompts"]["cut"] > 0 and facts["prompts"]["longest"] > 60
    relaxed = found(cli, tiny_config(passages={"size": 50}))["truncation"]
    assert relaxed["passages"]["cut"] == relaxed["prompts"]["cut"] == 0.0


@pytest.mark.parametrize("generator", ["causal", "causal_chat", "t5", "bart"])
def test_lengths_are_those_of_the_generator(tiny_models, generator):
    prompt = PromptSettings("{title}: {passage}\nQuestion: {question}", "Be short.", 400)
    lengths = Lengths(getattr(tiny_models, generator), prompt)
    loaded = load_generator(getattr(tiny_models, generator), prompt, 12)
    passage = Passage(0, "d", "The kiln", "It burns beech wood </s>.", "d#0")
    assert lengths.prompt(passage, "What?") == len(loaded.template.ids(passage, "What?"))
    for answer in ("Marta Veld", "beech", "1912 </s>"):
        assert lengths.answer(answer) == len(loaded.answer_ids(answer))


@pytest.mark.parametrize("unit", ["words", "tokens", "sentences", "sections"])
def test_passages_are_those_of_the_index(cli, tiny_config, tiny_corpus, unit):
    add(tiny_corpus.corpus, id="copy", title="Copy", text=rows(tiny_corpus.corpus)[0]["text"])
    config = tiny_config(passages={"unit": unit, "size": 10, "overlap": 2, "deduplicate": "exact"})
    facts = found(cli, config)
    built = json.loads(cli("index", "--json", "-q", "-c", config).out)
    assert (facts["passages"], facts["left_out"]) == (built["passages"], built["left_out"])
    assert built["left_out"] > 0
    described = cli("index", "--stats", "-c", config).out
    assert f"{built['passages']} passages ({built['left_out']} duplicates left out) of 12 documents" in described


@pytest.mark.parametrize("lexical", ["bm25", "tfidf", "none"])
@pytest.mark.parametrize("kind", ["auto", "hnsw", "ivf", "ivfpq"])
def test_estimate_of_the_index(cli, tiny_config, tiny_corpus, kind, lexical):
    texts = [row["text"] for row in rows(tiny_corpus.corpus)]
    write_lines(tiny_corpus.corpus, [{"id": n, "text": f"{n} {texts[n % 12]}"} for n in range(300)])
    config = tiny_config(index={"kind": kind, "lexical": lexical}, retrieval={"mode": "dense"}, data={"dev": None})
    facts = found(cli, config)["index"]
    built = json.loads(cli("index", "--json", "-q", "-c", config).out)
    assert (facts["kind"], facts["factory"]) == (built["kind"], built["factory"])
    assert facts["disk_bytes"] == pytest.approx(built["bytes"], rel=0.15)
    assert facts["building_bytes"] > facts["disk_bytes"]
    assert 0 < facts["passages"] <= 600 and facts["seconds"] > 0 and facts["tokens_per_second"] > 0
    assert facts["memory_bytes"] > 100e6 and facts["free_bytes"] > 0


def test_disk_that_is_too_small(cli, tiny_config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    assert "the disk is too small for this; set output_dir to another" in cli("check", "-q", "-c", tiny_config()).out


def test_input_of_a_rag_checkpoint(
    cli, tiny_config, tiny_corpus, tiny_models, draw_dpr, save_rag, tmp_path, monkeypatch
):
    """The prompt is joined as transformers joins it, and DPR's towers read title and text as a pair."""
    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))
    asks, reads, words = draw_dpr(1)
    writer = AutoModelForSeq2SeqLM.from_pretrained(tiny_models.bart)
    letters = AutoTokenizer.from_pretrained(tiny_models.bart)
    save_rag(tmp_path / "rag", "sequence", (asks, words), (writer, letters))
    for part in (reads, words):
        part.save_pretrained(tmp_path / "reads")
    towers = {"checkpoint": str(tmp_path / "rag")}, {"passage_model": str(tmp_path / "reads"), "max_tokens": 20}
    facts = found(cli, tiny_config("bart", rag=towers[0], encoder=towers[1], passages={"size": 50}))["truncation"]
    documents = rows(tiny_corpus.corpus)
    assert facts["passages"]["longest"] == max(len(words(d["title"], d["text"])["input_ids"]) for d in documents)
    assert facts["passages"]["cut"] == 1.0
    assert 0 < facts["prompts"]["longest"] < 200


def test_corpus_is_not_held_in_memory(tiny_config, tiny_corpus, monkeypatch):
    module = importlib.import_module("ragx.stages.check")
    monkeypatch.setattr(module, "SAMPLE", 10)
    text = "The kiln burns beech wood. " * 400
    write_lines(tiny_corpus.corpus, [{"id": n, "text": f"{n} {text}"} for n in range(2000)])
    config = load_config(tiny_config(passages={"size": 1000}))
    tracemalloc.start()
    try:
        read = module._read(config, SimpleNamespace(spans=None), Survey({}), no_progress)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (read.documents, read.passages, len(read.sample)) == (2000, 6000, 10)
    assert peak < 8e6 < tiny_corpus.corpus.stat().st_size / 2


IDS = ["../../outside", "/tmp/outside", "x" * 300, "a/../../b", "..", "~", "$HOME", "a\nb", "-rf"]


def test_ids_are_no_paths(cli, tiny_config, tiny_corpus, tmp_path):
    for number, name in enumerate(IDS):
        add(tiny_corpus.corpus, id=name, title="", text=f"Number {number} is a strange name.")
    config = tiny_config()
    before = sorted(path for path in tmp_path.rglob("*"))
    assert found(cli, config)["documents"] == 12 + len(IDS)
    assert cli("index", "-q", "-c", config).code == 0
    assert cli("ask", "-q", "--json", "-c", config, "What number is a strange name?").code == 0
    new = sorted(path for path in tmp_path.rglob("*") if path not in before and "runs" not in path.parts)
    assert new == []
