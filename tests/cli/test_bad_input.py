"""What is wrong is said in one line that names the place; the exit code is 2; nothing half written stays."""

import dataclasses
import errno
import io
import json
import resource
import shutil
import signal
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tantivy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ragx import stages
from ragx.artifacts import fingerprint, untrusted
from ragx.config import load_config
from ragx.corpus import duplicates, readers
from ragx.errors import DataError, RagxError
from ragx.index import build
from ragx.index.encoder import Encoder, EncoderSettings
from ragx.rag.causal import CausalGenerator


def refused(done, *named, problems=1):
    """Exit code 2, one `ragx:` line a problem on stderr and nothing else anywhere; the lines hold `named`."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert [line[:6] for line in done.err.splitlines()] == ["ragx: "] * problems, done.err
    missing = [text for text in named if str(text) not in done.err]
    assert not missing, done.err


# --- configuration


@pytest.mark.parametrize("command", ["check", "index", "finetune", "ask", "eval"])
def test_no_configuration(cli, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    refused(cli(command, "-q", stdin=""), "ragx.yaml: no such file; write one with: ragx init")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "index", "finetune", "ask", "eval"])
def test_unknown_key(cli, tiny_config, standing, command):
    config = tiny_config(passages={"sise": 3})
    refused(cli(command, "-q", "-c", config, stdin=""), config, "passages.sise", "did you mean 'size'?")
    assert not standing()


def test_wrong_types_are_all_named(cli, tiny_config, standing):
    config = tiny_config(seed="x", passages={"size": "many"}, eval={"bootstrap": 1})
    done = cli("index", "-q", "-c", config)
    refused(done, "seed", "passages.size", "eval.bootstrap", problems=3)
    assert not standing()


@pytest.mark.parametrize("override", ["passages.size", "passages.size=x", "passage.size=3", "=", "name.x=1"])
def test_bad_override(cli, tiny_config, standing, override):
    refused(cli("index", "-q", "-c", tiny_config(), "--set", override), f"--set {override}")
    assert not standing()


@pytest.mark.parametrize("command", ["eval", "check"])
@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"metrics": ["em", "rouge"]}, "eval.metrics: unknown metric 'rouge'"),
        ({"metrics": ["em"], "gates": {"f1": ">= 0.3"}}, "eval.gates: f1 is not among eval.metrics"),
        ({"metrics": ["em"], "gates": {"em": "good"}}, "eval.gates.em: cannot read 'good'"),
    ],
)
def test_unknown_metric_or_gate(cli, tiny_config, command, section, named):
    refused(cli(command, "-q", "-c", tiny_config(eval=section)), named)


# --- documents and questions


def corpus_problems(corpus):
    good = corpus.read_text()
    return {
        "broken line": (good + "{\n", [f"{corpus}:13: invalid JSON"]),
        "not utf8": (good.encode() + b'{"id": "x", "text": "caf\xe9"}\n', [f"{corpus}:13: not UTF-8"]),
        "same id": (good + good.splitlines()[0], [f"{corpus}:13: id 'kiln' stands already at {corpus}:1"]),
        "empty document": (good + '{"id": "x", "text": " "}\n', [f"{corpus}:13: document 'x' is empty"]),
        "no text": (good + '{"id": "x"}\n', [f"{corpus}:13: no field 'text'"]),
        "empty corpus": ("", [corpus, "no documents in the corpus"]),
        "gone": (None, [f"{corpus}: no such file or folder; set corpus.paths"]),
    }


PROBLEMS = ["broken line", "not utf8", "same id", "empty document", "no text", "empty corpus", "gone"]


@pytest.mark.parametrize("command", ["index", "check"])
def test_document_of_which_no_passage_comes_is_named_and_counted(cli, tiny_config, tiny_corpus, standing, command):
    """Zero width spaces are characters, of which the encoder makes no token."""
    lines = [json.dumps({"id": f"ghost{n}", "text": "\u200b\ufeff"}) for n in (1, 2)]
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text() + "\n".join(lines) + "\n")
    config = tiny_config(passages={"unit": "tokens"})
    named = "document 'ghost1' holds no tokens (passages.unit), and so no passage; mend it, or say corpus.on_error"
    refused(cli(command, "-q", "-c", config), f"{tiny_corpus.corpus}:13: {named}")
    assert not standing()
    done = cli(command, "-c", config, "--set", "corpus.on_error=skip")
    assert done.code == 0, done.err
    said = "".join(done.err.split())
    assert f"skipped{tiny_corpus.corpus}:14:document'ghost2'holdsnotokens" in said
    assert "2documentswithoutapassageskipped" in said


def spoil(path, content):
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("command", ["index", "check"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_corpus_that_cannot_be_used(cli, tiny_config, tiny_corpus, standing, problem, command):
    content, named = corpus_problems(tiny_corpus.corpus)[problem]
    spoil(tiny_corpus.corpus, content)
    refused(cli(command, "-q", "-c", tiny_config()), *named)
    assert not standing()


@pytest.mark.parametrize("problem", ["broken line", "same id", "gone"])
def test_index_in_use_stays_when_the_corpus_goes_bad(cli, indexed, tiny_corpus, standing, problem):
    config, before = indexed(), standing()
    content, named = corpus_problems(tiny_corpus.corpus)[problem]
    spoil(tiny_corpus.corpus, content)
    refused(cli("index", "-q", "-c", config), *named)
    assert standing() == before


def test_index_mends_itself_after_a_bad_corpus(cli, tiny_config, tiny_corpus):
    good, config = tiny_corpus.corpus.read_text(), tiny_config()
    tiny_corpus.corpus.write_text(good + "{")
    assert cli("index", "-q", "-c", config).code == 2
    tiny_corpus.corpus.write_text(good)
    done = cli("index", "-q", "--json", "-c", config)
    assert (done.code, json.loads(done.out)["passages"]) == (0, 24)


def test_finetune_without_training_data(cli, indexed, standing):
    config, before = indexed(data={"train": None}), standing()
    refused(cli("finetune", "-q", "-c", config), "data.train: no training questions are configured")
    assert standing() == before


def test_eval_without_the_split(cli, indexed):
    refused(cli("eval", "-q", "-c", indexed(data={"test": None, "dev": None})), "data.dev: no questions")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"question": "Who?"}\n', ":1: no 'answers'"),
        ("", ": no questions in this file"),
        ("{\n", ":1: invalid JSON"),
        (b"\xff", ":1: not UTF-8"),
        (None, ": no such question file"),
    ],
)
@pytest.mark.parametrize(
    ("command", "split"), [("finetune", "train"), ("finetune", "dev"), ("eval", "test"), ("check", "test")]
)
def test_question_file_that_cannot_be_used(cli, tiny_config, tiny_corpus, standing, command, split, content, named):
    path = getattr(tiny_corpus, split)
    spoil(path, content)
    refused(cli(command, "-q", "-c", tiny_config()), f"{path}{named}")
    assert not standing()


def test_answer_beyond_the_budget(cli, indexed, tiny_corpus, standing):
    tiny_corpus.train.write_text(json.dumps({"question": "What?", "answers": ["beech wood " * 20]}) + "\n")
    config, before = indexed(), standing()
    refused(cli("finetune", "-q", "-c", config), tiny_corpus.train, "generator.max_answer_tokens: 12")
    assert standing() == before


def test_question_that_leaves_no_room(cli, indexed):
    refused(cli("ask", "why " * 300, "-q", "-c", indexed()), "generator.max_input_tokens: 200")


@pytest.mark.parametrize("question", ["", "  "])
def test_empty_question(cli, tiny_config, question):
    refused(cli("ask", question, "-q", "-c", tiny_config()), "the question is empty")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_question_that_is_no_text(cli, indexed, tiny_config, flags):
    refused(cli("ask", "caf\udce9?", *flags, "-q", "-c", tiny_config()), "the question is not UTF-8; type it again")
    stdin = io.TextIOWrapper(io.BytesIO(b"Who?\n\nWhat?\ncaf\xe9?\nWhere?\n"), encoding="utf-8")
    done = cli("ask", *flags, "-q", "-c", indexed(), stdin=stdin)
    refused(done, "stdin:4: the question is not UTF-8; convert it, such as with iconv")


def test_question_that_is_no_text_does_not_end_a_conversation(cli, indexed):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    stdin = Terminal(io.BytesIO(b"caf\xe9?\nWho lights the kiln?\n"), encoding="utf-8")
    done = cli("ask", "-c", indexed(), stdin=stdin)
    assert (done.code, done.err.count("kiln#0"), done.err.count("not UTF-8")) == (0, 1, 1), done.err


def test_question_with_half_of_a_surrogate_pair_from_python(indexed):
    with pytest.raises(DataError, match="holds half of a surrogate pair, which is no text"):
        stages.ask(load_config(indexed()), "caf\udce9?")


# --- index and model


@pytest.mark.parametrize("arguments", [["index", "--stats"], ["ask", "Who?"], ["eval"], ["finetune"]])
def test_no_index(cli, tiny_config, standing, arguments):
    refused(cli(*arguments, "-q", "-c", tiny_config()), "runs/tiny/index: no index here; run: ragx index")
    assert not standing()


def damage_index(kind, index):
    manifest = index / "manifest.json"
    match kind:
        case "truncated vectors":
            (index / "vectors.npy").write_bytes((index / "vectors.npy").read_bytes()[:-5])
            return "vectors.npy"
        case "flipped byte":
            data = bytearray((index / "passages.sqlite").read_bytes())
            data[5000] ^= 1
            (index / "passages.sqlite").write_bytes(data)
            return "passages.sqlite"
        case "missing file":
            (index / "lexical" / "meta.json").unlink()
            return "meta.json: missing"
        case "truncated manifest":
            manifest.write_text(manifest.read_text()[:100])
            return "manifest.json: damaged"
        case "other format":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
            return "of format 99, this ragx reads ragx index of format 1"
        case "no manifest":
            manifest.unlink()
            return "no ragx index here"
        case _:
            shutil.rmtree(index)
            return "no ragx index here"


DAMAGE = [
    "truncated vectors",
    "flipped byte",
    "missing file",
    "truncated manifest",
    "other format",
    "no manifest",
    "gone",
]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("arguments", [["index", "--stats"], ["ask", "Who?"]])
def test_damaged_index_is_refused(cli, indexed, tmp_path, arguments, kind):
    config = indexed()
    named = damage_index(kind, tmp_path / "runs/tiny/index/v1")
    refused(cli(*arguments, "-q", "-c", config), named, "run: ragx index")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_index_is_built_anew(cli, indexed, tmp_path, kind):
    config = indexed()
    damage_index(kind, tmp_path / "runs/tiny/index/v1")
    assert cli("index", "-q", "-c", config).code == 0
    assert cli("ask", "Who?", "-q", "-c", config).code == 0


@pytest.mark.parametrize("pointer", [b"", b"\xff", b"x", b"v9\n"])
def test_damaged_pointer_to_the_index_is_refused_and_mended(cli, indexed, tmp_path, pointer):
    """Without encoding anything: the generation itself is whole."""
    config, folder = indexed(), tmp_path / "runs/tiny/index"
    (folder / "CURRENT").write_bytes(pointer)
    refused(cli("ask", "Who?", "-q", "-c", config), folder / "CURRENT", "run: ragx index")
    done = cli("index", "-q", "-c", config)
    assert done.code == 0, done.err
    assert "v1 is in use again" in " ".join(done.err.split())
    assert (folder / "CURRENT").read_bytes() == b"v1\n"
    assert cli("ask", "Who?", "-q", "-c", config).code == 0


@pytest.mark.parametrize("arguments", [["index"], ["index", "--update"], ["index", "--merge"]])
def test_pointer_to_an_index_that_is_gone_is_mended(cli, indexed, tmp_path, arguments):
    config, folder = indexed(), tmp_path / "runs/tiny/index"
    if "--merge" in arguments:
        assert cli("index", "--shard", "1/1", "-q", "-c", config).code == 0
    shutil.rmtree(folder / "v1")
    (folder / "CURRENT").write_bytes(b"v1")
    done = cli(*arguments, "-q", "-c", config)
    assert done.code == 0, done.err
    assert cli("ask", "Who?", "-q", "-c", config).code == 0


def other_encoder(tiny_models, tmp_path):
    folder = tmp_path / "other-encoder"
    shutil.copytree(tiny_models.encoder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classifier_dropout": 0.5}))
    return folder


@pytest.mark.parametrize("arguments", [["ask", "Who?"], ["eval"], ["finetune"]])
def test_index_of_another_encoder(cli, indexed, tiny_config, tiny_models, tmp_path, standing, arguments):
    indexed()
    before = standing()
    config = tiny_config(encoder={"model": str(other_encoder(tiny_models, tmp_path))})
    done = cli(*arguments, "-q", "-c", config)
    refused(done, "built with another encoder (weights: ", " then, ", " now); run: ragx index")
    assert standing() == before


def test_index_of_another_chunking(cli, indexed):
    done = cli("ask", "Who?", "-q", "-c", indexed(), "--set", "passages.size=13")
    refused(done, "built with another chunking (size: 12 then, 13 now); run: ragx index")


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("passage_prefix='passage: '", "passage_prefix: None then, passage:  now"),
        ("pooling=cls", "pooling: None then, cls now"),
        ("normalize=true", "normalize: None then, True now"),
        ("max_tokens=40", "max_tokens: 48 then, 40 now"),
    ],
)
def test_index_of_another_encoding(cli, indexed, override, difference):
    done = cli("ask", "Who?", "-q", "-c", indexed(), "--set", f"encoder.{override}")
    refused(done, f"built with another encoding ({difference}); run: ragx index")


def test_index_older_than_the_corpus(cli, indexed, tiny_corpus):
    config = indexed()
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text() + '{"id": "x", "text": "new"}\n')
    refused(cli("ask", "Who?", "-q", "-c", config), "built before corpus.jsonl changed; run: ragx index")


@pytest.mark.parametrize("reference", ["./nowhere", "nobody/nothing", "pypi:nothing", "pypi:nothing==1.0/x"])
def test_encoder_that_does_not_resolve(cli, tiny_config, standing, reference):
    done = cli("index", "-q", "-c", tiny_config(encoder={"model": reference}))
    refused(done, reference.removeprefix("./"))
    assert not standing()


@pytest.mark.parametrize("reference", ["./nowhere", "nobody/nothing"])
@pytest.mark.parametrize("arguments", [["ask", "Who?"], ["finetune"], ["eval"]])
def test_generator_that_does_not_resolve(cli, indexed, standing, arguments, reference):
    config = indexed({"model": reference})
    before = standing()
    refused(cli(*arguments, "-q", "-c", config), reference.removeprefix("./"))
    assert standing() == before


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        *("no config", "broken config", "no weights", "pickled", "broken weights", "other shapes", "odd config"),
        *("no tokenizer", "broken tokenizer", "tokenizer without model", "tokenizer of no object", "odd tokenizer"),
        *("more layers", "missing tensor"),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "generator"])
def test_damaged_pretrained_model(cli, indexed, tiny_config, tiny_models, tmp_path, standing, part, damage):
    indexed()
    before = standing()
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_models.encoder if part == "encoder" else tiny_models.causal, folder)
    match damage:
        case "no config":
            (folder / "config.json").unlink()
        case "broken config":
            (folder / "config.json").write_text("{")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "pickled":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "broken weights":
            (folder / "model.safetensors").write_bytes(b"\x08" + bytes(30))
        case "no tokenizer":
            for path in folder.glob("*token*"):
                path.unlink()
        case "other shapes":
            edit_json(folder / "config.json", hidden_size=64)
        case "more layers":
            edit_json(folder / "config.json", num_hidden_layers=12)
        case "missing tensor":
            tensors = load_file(folder / "model.safetensors")
            del tensors[min(name for name in tensors if "layer" in name)]
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        case "odd config":
            edit_json(folder / "config.json", hidden_size="wide")
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])
        case "tokenizer without model":
            edit_json(folder / "tokenizer.json", model=None)
        case "tokenizer of no object":
            (folder / "tokenizer.json").write_text("[]")
        case "odd tokenizer":
            (folder / "tokenizer_config.json").write_text("[]")
    config = tiny_config(**{part: {"model": str(folder)}})
    refused(cli(*(["index"] if part == "encoder" else ["ask", "Who?"]), "-q", "-c", config), folder)
    assert standing() == before


@pytest.mark.parametrize("model", [None, {"type": "Unheard"}])
def test_check_refuses_a_damaged_tokenizer(cli, tiny_config, tiny_models, tmp_path, model):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_models.causal, folder)
    edit_json(folder / "tokenizer.json", model=model)
    refused(cli("check", "-q", "-c", tiny_config({"model": str(folder)})), folder, "its tokenizer cannot be loaded")


@pytest.fixture
def tuned(cli, indexed):
    config = indexed(finetune={"lora": {"rank": 2, "alpha": 4}})
    assert cli("finetune", "-q", "-c", config).code == 0
    return config


def test_damaged_tuned_model_is_refused(cli, tuned, tmp_path):
    """Whichever of its files is cut, and whatever else is wrong with it: nothing is answered from it."""
    folder = tmp_path / "runs/tiny/model"
    names = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size > 1]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {path.name for path in names}
    for path in names:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(cli("ask", "Who?", "--json", "-q", "-c", tuned), path, "run: ragx finetune")
        path.write_bytes(whole)
    assert cli("ask", "Who?", "--json", "-q", "-c", tuned).code == 0


def test_more_passages_wanted_than_there_are(cli, indexed):
    done = cli("ask", "Who?", "-q", "-c", indexed(), "--set", "retrieval.top_k=25", "--set", "retrieval.candidates=25")
    refused(done, "retrieval.top_k: 25 passages wanted, the index holds 24")


def test_no_tuned_model(cli, indexed):
    refused(cli("ask", "Who?", "--model", "tuned", "-q", "-c", indexed()), "runs/tiny/model", "run: ragx finetune")


def edit_manifest(folder, **changes):
    """The manifest of a folder with other facts (None: without that one), sealed again."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | changes
    content = {name: value for name, value in manifest.items() if name != "seal" and value is not None}
    sealed = {**content, "seal": fingerprint(content)}
    (folder / "manifest.json").write_text(json.dumps(sealed), encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (None, "ask: ", "tuned with encoder.query_prefix: '', configured is 'ask: '"),
        ("ask: ", None, "tuned with encoder.query_prefix: 'ask: ', configured is ''"),
        ("ask: ", "find: ", "tuned with encoder.query_prefix: 'ask: ', configured is 'find: '"),
    ],
)
def test_tuned_with_another_query_prefix(cli, indexed, tiny_config, tmp_path, before, now, named):
    config = indexed("t5", encoder={"query_prefix": before})
    assert cli("finetune", "-q", "-c", config).code == 0
    assert cli("ask", "Who?", "-q", "-c", config).code == 0
    config = tiny_config("t5", encoder={"query_prefix": now})
    model = tmp_path / "runs/tiny/model"
    for arguments in (["ask", "Who?"], ["eval"]):
        refused(cli(*arguments, "-q", "-c", config), model, f"{named}; set it back, or run: ragx finetune")
    assert cli("ask", "Who?", "--model", "base", "-q", "-c", config).code == 0
    edit_manifest(model, query_prefix=None)  # as ragx wrote it before
    assert cli("ask", "Who?", "-q", "-c", config).code == 0


def test_the_models_own_query_prefix_said_in_other_words_is_the_same(cli, indexed):
    config = indexed("t5")
    assert cli("finetune", "-q", "-c", config).code == 0
    assert cli("ask", "Who?", "-q", "-c", config, "--set", "encoder.query_prefix=''").code == 0


@pytest.fixture
def spoiled(monkeypatch, tiny_models, tmp_path):
    """spoiled("encoder") -> a generator, after which the questions' vectors are NaN; spoiled("generator") -> one that
    gives NaN as soon as it reads or writes a certain word."""

    def spoil(part):
        if part == "encoder":
            own = Encoder.forward
            monkeypatch.setattr(Encoder, "forward", lambda self, texts: own(self, texts) * torch.nan)
            return "causal"
        folder = tmp_path / "spoiled"
        shutil.copytree(tiny_models.causal, folder)
        weights = load_file(folder / "model.safetensors")
        (token,) = AutoTokenizer.from_pretrained(folder)("Who")["input_ids"]
        weights["model.embed_tokens.weight"][token] = torch.nan
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return {"model": str(folder)}

    return spoil


@pytest.mark.parametrize(
    "flags", [[], ["--json"], ["--set", "rag.marginal=token"], ["--set", "retrieval.prior=corpus"]]
)
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_question_whose_vector_is_not_finite(cli, indexed, spoiled, kind, mode, flags):
    config = indexed(spoiled("encoder"), index={"kind": kind}, retrieval={"mode": mode})
    refused(
        cli("ask", "Who?", *flags, "-q", "-c", config), "vector of 'Who?' is not finite; name another encoder.model"
    )


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--json"],
        ["--set", "rag.marginal=token"],
        ["--set", "rag.decoding=fast", "--set", "rag.num_beams=2"],
        ["--set", "rag.decoding=mbr", "--set", "rag.num_beams=2"],
    ],
)
def test_answer_whose_probability_is_not_finite(cli, indexed, spoiled, flags):
    config = indexed(spoiled("generator"))
    assert cli("ask", "When?", *flags, "-q", "-c", config).code == 0
    done = cli("ask", "Who?", *flags, "-q", "-c", config)
    refused(
        done, "the generator gives probabilities that are no numbers; try dtype: float32, or another generator.model"
    )


@pytest.mark.parametrize(
    ("step", "flag"),
    [
        ("advance", "rag.marginal=sequence"),
        ("advance", "rag.marginal=token"),
        ("advance", "rag.num_beams=3"),
        ("score", "rag.marginal=sequence"),
        ("score", "rag.num_beams=3"),
    ],
)
def test_answer_that_breaks_while_it_is_written_or_scored(cli, indexed, monkeypatch, step, flag):
    config = indexed()
    own = getattr(CausalGenerator, step)

    def broken(self, state, tokens):
        found = own(self, state, tokens)
        if step == "score":
            return found[0] * torch.nan, found[1]
        return dataclasses.replace(found, log_probs=found.log_probs * torch.nan)

    monkeypatch.setattr(CausalGenerator, step, broken)
    done = cli("ask", "Who?", "-q", "-c", config, "--set", flag)
    refused(done, "the generator gives probabilities that are no numbers")


@pytest.mark.parametrize("part", ["encoder", "generator"])
def test_evaluation_of_a_model_that_gives_nan(cli, indexed, spoiled, standing, part):
    config = indexed(spoiled(part))
    refused(cli("eval", "-q", "--split", "train", "-c", config), "is not finite" if part == "encoder" else "no numbers")
    assert not standing("eval")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_baseline_that_cannot_be_read(cli, indexed, tmp_path, content):
    path = tmp_path / "test.base.report.json"
    if content is not None:
        path.write_text(content)
    refused(cli("eval", "-q", "--baseline", path, "-c", indexed()), path)


# --- machine


@pytest.mark.parametrize("command", ["index", "finetune", "eval"])
def test_full_disk_at_fsync(cli, indexed, tiny_config, standing, monkeypatch, command):
    config = tiny_config("t5") if command == "index" else indexed("t5")
    before = standing()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = cli(command, "-q", "-c", config)
    refused(done, "/runs/tiny/", ": No space left on device; nothing half written stands")
    assert standing() == before


@pytest.fixture
def file_limit():
    """Files cannot grow beyond some bytes, as on a disk that fills up."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("when", "size", "lexical", "named"),
    [
        ("the start", 100, "bm25", "runs/tiny/config.yaml: File too large"),
        ("store_passages", 6_000, "bm25", ".building/passages.sqlite: cannot be written"),
        ("_encode_here", 22_000, "bm25", ".building/shard-00000.safetensors: File too large"),
        ("write_vectors", 22_000, "bm25", ".building/vectors.npy: File too large"),
        ("write_lexical", 1_000, "bm25", ".v1.tmp/lexical: tantivy cannot write"),
        ("write_lexical", 1_000, "tfidf", "lexical/data.npy: File too large"),
        ("write_lexical", 100, "tfidf", "words.txt: File too large"),
        ("write_text", 1, "bm25", "index/CURRENT: File too large"),
    ],
)
def test_full_disk_while_indexing(cli, tiny_config, standing, file_limit, monkeypatch, when, size, lexical, named):
    config = tiny_config(passages={"size": 1}, index={"shard_size": 2048, "lexical": lexical})
    if when == "the start":
        file_limit(size)
    else:
        own = getattr(build, when)

        def fills_up(*arguments, **options):
            file_limit(size)
            return own(*arguments, **options)

        monkeypatch.setattr(build, when, fills_up)
    done = cli("index", "-q", "-c", config)
    file_limit(resource.RLIM_INFINITY)
    monkeypatch.undo()
    refused(done, named)
    assert not standing() or (when == "write_text" and "tiny/index/CURRENT" not in standing())
    assert cli("index", "-q", "-c", config).code == 0
    assert cli("ask", "Who?", "-q", "-c", config).code == 0


@pytest.mark.parametrize("short", [1, 0])
def test_disk_too_small_for_an_index_is_refused_before_encoding(cli, tiny_config, monkeypatch, tmp_path, short):
    """24 vectors of 32 dimensions as shards and once more in one file, and the passages."""
    config, needed, encode = tiny_config(), [], Encoder.encode_tokens

    def usage(path):
        needed.append(2 * 24 * 32 * 4 + (path / "passages.sqlite").stat().st_size)
        return SimpleNamespace(free=needed[0] - short)

    def watched(*arguments, **options):
        assert not short, "it encodes what finds no room"
        return encode(*arguments, **options)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(Encoder, "encode_tokens", watched)
    done = cli("index", "-q", "-c", config)
    size = f"{needed[0] / 1e6:.1f} MB"
    if short:
        refused(done, tmp_path / "runs/tiny/index", f"needs about {size}", f"{size} free", "output_dir")
    else:
        assert done.code == 0, done.err


def test_disk_holds_the_shards_that_are_made_already(cli, tiny_config, monkeypatch):
    config = tiny_config()
    assert cli("index", "--shard", "1/1", "-q", "-c", config).code == 0

    def usage(path):
        return SimpleNamespace(free=24 * 32 * 4 + (path / "passages.sqlite").stat().st_size)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert cli("index", "--merge", "-q", "-c", config).code == 0
    assert cli("index", "-q", "-c", config, "--set", "passages.size=9").code == 2


@pytest.mark.parametrize("command", ["index", "check"])
@pytest.mark.parametrize("home", [duplicates, readers])
def test_full_temporary_folder_is_named(cli, tiny_config, monkeypatch, tmp_path, standing, command, home):
    config, own = tiny_config(passages={"deduplicate": "near"}), home.open_scratch
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)

    def small(schema):
        database = own(f"PRAGMA page_size = 512; {schema}")
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    monkeypatch.setattr(home, "open_scratch", small)
    refused(cli(command, "-q", "-c", config), f"ragx: {tmp_path}: ", "database or disk is full", "TMPDIR")
    assert not standing()


def test_rests_that_cannot_be_removed_are_no_failure(cli, tiny_config, monkeypatch, tmp_path):
    """The new generation is in use by then."""
    remove = shutil.rmtree

    def stuck(path, *arguments, **options):
        if path.name == ".building" and not options.get("ignore_errors"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        remove(path, *arguments, **options)

    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stuck)
        done = cli("index", "-q", "-c", config)
    assert done.code == 0, done.err
    assert ".building: Input/output error" in "".join(done.err.splitlines())
    assert cli("ask", "Who?", "-q", "-c", config).code == 0
    assert cli("index", "--json", "-q", "-c", config, "--set", "passages.size=9").code == 0
    assert not (tmp_path / "runs/tiny/index/.building").exists()


def test_full_disk_while_training(cli, indexed, standing, file_limit):
    config = indexed("t5")
    before = standing()
    file_limit(60_000)
    done = cli("finetune", "-q", "-c", config)
    file_limit(resource.RLIM_INFINITY)
    refused(done)
    assert standing() == before


def test_full_disk_behind_a_tokenizer(tiny_models, file_limit, tmp_path):
    """tokenizers tells it by an exception without a class of its own."""
    encoder = Encoder(tiny_models.encoder, EncoderSettings(), role="query")
    assert (tiny_models.encoder / "tokenizer.json").stat().st_size > 5_000
    file_limit(5_000)
    with pytest.raises(RagxError, match=rf"{tmp_path}: cannot be written \(File too large .*is the disk full"):
        encoder.save_tokenizer(tmp_path)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_disk_that_refuses(cli, tiny_config, monkeypatch, error):
    def refuse(*_, **__):
        raise OSError(error, "the reason", "/some/file")

    monkeypatch.setattr(stages, "build_index", refuse)
    refused(cli("index", "-q", "-c", tiny_config()), "/some/file: the reason")


def too_much(kind):
    """Memory runs out, as Python, numpy, torch on a processor and on a GPU, and the system say it."""
    match kind:
        case "python":
            raise MemoryError
        case "numpy":
            np.empty(1 << 50, dtype=np.uint8)
        case "torch":
            torch.empty(1 << 50, dtype=torch.uint8)
        case "gpu":
            raise torch.OutOfMemoryError
        case "system":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize("kind", ["python", "numpy", "torch", "gpu", "system"])
def test_out_of_memory(cli, tiny_config, monkeypatch, kind):
    monkeypatch.setattr(stages, "build_index", lambda *_, **__: too_much(kind))
    refused(cli("index", "-q", "-c", tiny_config()), "out of memory; lower ", "encoder.batch_size")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["index"], "index.encoder.Encoder.encode_tokens"),
        (["ask", "Who?"], "rag.model.RagModel.answer"),
        (["eval"], "rag.model.RagModel.answer"),
        (["finetune"], "training.warmup.retriever_loss"),
        (["finetune"], "training.loop.dev_monitor"),
        (["finetune"], "training.loop.torch.optim.AdamW.step"),
        (["ask", "Who?"], "rag.generators.AutoModelForSeq2SeqLM.from_pretrained"),
    ],
    ids=["index", "ask", "eval", "warm-up", "dev set", "optimizer", "opening a model"],
)
def test_out_of_memory_anywhere(cli, indexed, tiny_config, standing, monkeypatch, command, where):
    config = tiny_config("t5") if command == ["index"] else indexed("t5", finetune={"warmup_epochs": 1})
    before = standing("index", "model")
    monkeypatch.setattr(f"ragx.{where}", lambda *_, **__: too_much("torch"))
    refused(cli(*command, "-q", "-c", config), "out of memory; lower ")
    assert standing("index", "model") == before


@pytest.mark.parametrize("stage", ["check", "build_index", "finetune", "evaluate", "Answerer"])
def test_interrupt_is_130(cli, tiny_config, monkeypatch, stage):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, stage, interrupt)
    command = {"build_index": "index", "evaluate": "eval", "Answerer": "ask"}.get(stage, stage)
    done = cli(command, "-q", "-c", tiny_config(), stdin="")
    assert (done.code, done.out) == (130, "")
    assert done.err.startswith("ragx: interrupted")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["check", "finetune"])
def test_termination_is_143_and_says_how_to_go_on(cli, tiny_config, monkeypatch, command):
    monkeypatch.setattr(stages, command, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    done = cli(command, "-c", tiny_config())
    assert (done.code, done.out) == (143, "")
    assert done.err == "ragx: terminated; the same command goes on from here (finetune: with --resume)\n"


def test_another_end_by_a_library_keeps_its_code(cli, tiny_config, monkeypatch):
    monkeypatch.setattr(stages, "check", lambda *_: sys.exit(7))
    done = cli("check", "-c", tiny_config())
    assert (done.code, done.err) == (7, "")


@pytest.mark.parametrize("error", [ZeroDivisionError, AssertionError, EOFError, RuntimeError, FileNotFoundError])
def test_bug_is_70_with_its_traceback(cli, tiny_config, monkeypatch, error):
    def fail(*_):
        raise error("the cause")

    monkeypatch.setattr(stages, "check", fail)
    done = cli("check", "-c", tiny_config())
    assert (done.code, done.out) == (70, "")
    assert "Traceback" in done.err
    assert "the cause" in done.err
    assert done.err.splitlines()[-1].startswith("ragx: this is a bug")


def panic(*_):
    """tantivy asserts in Rust that a limit is not 0."""
    schema = tantivy.SchemaBuilder().build()
    tantivy.Index(schema).searcher().search(tantivy.Query.all_query(), limit=0)


def test_panic_of_a_library_in_rust_is_no_failed_gate(cli, tiny_config, monkeypatch):
    """It reaches Python as a BaseException, which Python itself would end with 1."""
    monkeypatch.setattr(stages, "check", panic)
    done = cli("check", "-c", tiny_config())
    assert (done.code, done.out) == (70, "")
    assert "PanicException" in done.err
    assert done.err.splitlines()[-1].startswith("ragx: this is a bug")


def test_reader_that_went_away_is_no_failed_gate(cli, tiny_config, monkeypatch):
    def gone(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(stages, "check", gone)
    with warnings.catch_warnings():
        assert cli("check", "-c", tiny_config()).code != 1


# --- text of others

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202ekcab\u2066\x7f"


@pytest.fixture
def hostile_corpus(tiny_corpus):
    document = {"id": f"kiln{HOSTILE}", "title": f"Kiln{HOSTILE}", "text": f"Fire{HOSTILE} water zebra."}
    lines = tiny_corpus.corpus.read_text().splitlines()
    tiny_corpus.corpus.write_text("\n".join([*lines, json.dumps(document)]) + "\n", encoding="utf-8")
    return document


def raw(text):
    """What a terminal would act on: the characters `untrusted` drops, and escape sequences of our own styles aside."""
    return sorted({f"U+{ord(character):04X}" for character in text if not untrusted(character)})


@pytest.mark.parametrize("flags", [[], ["--json"], ["-v"]])
def test_ask_never_prints_control_characters_of_the_corpus(cli, indexed, hostile_corpus, flags):
    done = cli("ask", "zebra water", *flags, "-c", indexed())
    assert done.code == 0
    assert "Fire" in done.out + done.err
    assert raw(done.out + done.err) == []


def test_control_characters_of_the_model_never_reach_the_terminal(cli, indexed, monkeypatch):
    from ragx.rag.generator import Generator

    monkeypatch.setattr(Generator, "text", lambda *_: f"yes{HOSTILE}")
    config = indexed()
    for flags in ([], ["--json"]):
        done = cli("ask", "Who?", *flags, "-c", config)
        assert done.code == 0
        assert "yes" in done.out
        assert raw(done.out + done.err) == []


@pytest.mark.parametrize("command", ["index", "check"])
def test_error_messages_hold_no_control_characters(cli, tiny_config, tiny_corpus, hostile_corpus, command):
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text() + json.dumps(hostile_corpus) + "\n")
    done = cli(command, "-q", "-c", tiny_config())
    refused(done, f"{tiny_corpus.corpus}:14: id")
    assert raw(done.err) == []


def test_log_lines_hold_no_control_characters(cli, tiny_config, tiny_corpus):
    tiny_corpus.corpus.write_text(tiny_corpus.corpus.read_text() + json.dumps({f"no{HOSTILE}": 1}) + "\n")
    done = cli("check", "-c", tiny_config(corpus={"on_error": "skip"}))
    assert done.code == 0
    assert "skipped" in done.err
    assert raw(done.out + done.err) == []


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_check_holds_no_control_characters(cli, tiny_config, tiny_corpus, flags):
    extra = {"question": "Who?", "answers": ["x"], "doc_ids": [f"gone{HOSTILE}"]}
    tiny_corpus.test.write_text(json.dumps(extra) + "\n")
    done = cli("check", *flags, "-c", tiny_config())
    assert done.code == 0
    assert raw(done.out + done.err) == []


def test_a_split_that_is_none(cli, tiny_config):
    refused(
        cli("eval", "--split", "tets", "-c", tiny_config()),
        "Invalid value for '--split': 'tets' is not one of 'auto', 'train', 'dev', 'test'. See: ragx --help",
    )
