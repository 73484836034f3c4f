"""Checkpoints and towers that do not fit: one line that says why, exit code 2, nothing written."""

import json
import shutil

import pytest
import transformers


@pytest.fixture
def towers(tiny_models, draw_dpr, save_rag, tmp_path, monkeypatch):
    """A RAG checkpoint (.rag) and DPR passage towers of its width (.same) and of another (.wider)."""
    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))
    questions, passages, words = draw_dpr(3)
    writer = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny_models.bart)
    letters = transformers.AutoTokenizer.from_pretrained(tiny_models.bart)
    save_rag(tmp_path / "rag", "sequence", (questions, words), (writer, letters))
    for name, tower in (("same", passages), ("wider", draw_dpr(3, hidden_size=48)[1])):
        tower.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    return tmp_path


def configured(tiny_config, folder, tower):
    return tiny_config(
        "bart",
        rag={"checkpoint": str(folder / "rag")},
        encoder={"passage_model": str(folder / tower)},
        retrieval={"mode": "dense"},
    )


def edit(path, **changes):
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value | changes), encoding="utf-8")


def assert_refused(done, *parts):
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ragx: ") and done.err.count("\n") == 1
    assert [part for part in parts if str(part) not in done.err] == []


def test_towers_of_different_width(towers, tiny_config, cli, standing):
    """Refused before a passage is encoded."""
    done = cli("index", "-q", "-c", configured(tiny_config, towers, "wider"))
    assert_refused(done, "encoder.passage_model", "48 dimensions", "of 32", "name its twin")
    assert not standing()
    assert cli("index", "-q", "-c", configured(tiny_config, towers, "same")).code == 0


@pytest.mark.parametrize(("part", "kind"), [("generator", "pegasus"), ("question_encoder", "bert")])
def test_checkpoint_of_another_architecture(towers, tiny_config, cli, part, kind):
    config = json.loads((towers / "rag" / "config.json").read_text(encoding="utf-8"))
    edit(towers / "rag" / "config.json", **{part: config[part] | {"model_type": kind}})
    done = cli("index", "-q", "-c", configured(tiny_config, towers, "same"))
    assert_refused(done, towers / "rag", "unsupported architecture", kind, "dpr with bart or t5")


def test_a_generator_alone_is_no_checkpoint(towers, tiny_models, tiny_config, cli):
    shutil.rmtree(towers / "rag")
    shutil.copytree(tiny_models.bart, towers / "rag")
    done = cli("index", "-q", "-c", configured(tiny_config, towers, "same"))
    assert_refused(done, towers / "rag", "not a checkpoint of RagSequenceForGeneration")


def test_checkpoint_without_tokenizers(towers, tiny_config, cli):
    shutil.rmtree(towers / "rag" / "generator_tokenizer")
    assert_refused(
        cli("index", "-q", "-c", configured(tiny_config, towers, "same")), towers / "rag", "generator_tokenizer"
    )


@pytest.mark.parametrize("fault", ["other vocabulary", "no end"])
def test_a_tokenizer_that_lacks_what_the_generator_needs(fault, indexed, tiny_models, tiny_config, cli, tmp_path):
    folder = tmp_path / "generator"
    shutil.copytree(tiny_models.bart, folder)
    indexed()
    if fault == "other vocabulary":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["gneiss", "schist"])
        tokenizer.save_pretrained(folder)
        named = ["its tokenizer has 502 tokens, its model knows 500"]
    else:
        edit(folder / "tokenizer_config.json", eos_token=None)
        edit(folder / "config.json", eos_token_id=None)
        edit(folder / "generation_config.json", eos_token_id=None)
        named = ["no end-of-text token"]
    done = cli("ask", "Who?", "-q", "-c", tiny_config({"model": str(folder)}))
    assert_refused(done, *named, folder)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rag": {"truncation": "end"}}, "rag.truncation: end cuts off the question"),
        (
            {"rag": {"input_format": "transformers"}, "generator": {"prompt": "{passage} {question}"}},
            "generator.prompt is not used",
        ),
    ],
)
def test_contradictions_of_the_input_format(changed, named, tiny_config, cli):
    generator = {"model": "x", **changed.pop("generator", {})}
    assert_refused(cli("index", "-q", "-c", tiny_config(generator, **changed)), named)
