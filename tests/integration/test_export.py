"""A folder saved by transformers -> ragx -> export -> transformers: same weights, same hits, same answers.

Weights are equal to the bit. Scores and losses are float32 sums in another order: 1e-5 relative, 1e-4 absolute on some
hundred nats.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ragx import load_config, stages
from ragx.errors import ConfigError
from ragx.stages.models import open_model

CONFIGS = Path(__file__).parents[2] / "configs"
ASKED = [
    "Who lights the kiln?",
    "What metal does green glaze hold?",
    "When is red clay dug?",
    "What is the dog called?",
]
ANSWERS = ["Marta Veld", "copper", "May", "Biscuit"]


@pytest.fixture
def run(tiny_rag, tiny_corpus, tmp_path, cli):
    """run("token", "bart", *overrides): a function that runs a command over the checkpoint, and returns its output."""
    pytest.importorskip("datasets", reason="what ragx[export] installs")

    def prepare(marginal, generator, *overrides):
        checkpoint, tower = tiny_rag(marginal, generator)
        values = {
            "rag.checkpoint": checkpoint,
            "encoder.passage_model": tower,
            "corpus.paths": f"[{tiny_corpus.corpus}]",
            **{f"data.{split}": getattr(tiny_corpus, split) for split in ("train", "dev", "test")},
            "output_dir": tmp_path / "runs",
            "passages.size": 12,
            "dtype": "float32",
            "device": "cpu",
            "allow_pickle_weights": "false",
            "generator.max_input_tokens": 90,
            "generator.max_answer_tokens": 12,
            "rag.num_beams": 2,
        }
        path = CONFIGS / f"rag-{marginal}-nq.yaml"
        chosen = [*(f"{key}={value}" for key, value in values.items()), *overrides]

        def command(*arguments, stdin=None):
            options = [part for override in chosen for part in ("--set", override)]
            done = cli(arguments[0], "-c", path, *options, *arguments[1:], stdin=stdin)
            assert done.code == 0, done.err
            return done.out

        command.config = load_config(path, chosen)
        command.checkpoint = checkpoint
        command("index", "-q")
        return command

    return prepare


@pytest.fixture
def snippet():
    """snippet(folder): the function question -> (answer, names) that the folder's README shows."""

    def read(folder):
        code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)[1]
        code = code.replace('folder = "."', f"folder = {str(folder)!r}")
        opening, asking = code.split("inputs = ")
        names = {}
        exec(opening, names)

        def answer(question):
            exec("inputs = " + asking.replace('"Your question?"', repr(question)), names)
            return names["answer"]

        return answer, names

    return read


def weights(folder, name):
    model = getattr(transformers, name).from_pretrained(folder)
    return {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}


def nll(model, ids, labels):
    """Their -log p(y|x), RAG-Token's without the begin-of-text token, which RAG-Sequence leaves out by itself."""
    with torch.no_grad():
        if type(model).__name__ == "RagSequenceForGeneration":
            return model(ids, labels=labels, exclude_bos_score=True)
        given = model.config.generator.bos_token_id
        masked = torch.where((labels == given) & (labels != labels[:, :1]), model.config.generator.pad_token_id, labels)
        return model(ids, decoder_input_ids=labels, labels=masked)


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_round_trip(marginal, generator, run, snippet, tmp_path):
    """Nothing trained, a prior temperature of 2: same weights; hits, prior and loss of every question are ragx's."""
    command = run(marginal, generator, "retrieval.temperature=2.0")
    done = json.loads(command("export", tmp_path / "out", "-q", "--json"))
    assert (done["model"], done["temperature"], done["passages"]) == ("base", pytest.approx(2.0), 24)
    before, after = (weights(folder, done["class"]) for folder in (command.checkpoint, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")

    _, names = snippet(tmp_path / "out")
    theirs, tokenizer, retriever = names["model"].eval(), names["tokenizer"], names["retriever"]
    ours = open_model(command.config, "base")
    with torch.no_grad():
        found = ours(ASKED, ANSWERS)
    labels = [[*ours.generator.decoder_prefix, *ours.generator.answer_ids(answer)] for answer in ANSWERS]
    for row, question in enumerate(ASKED):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            vector = theirs.question_encoder(ids)[0].numpy()
        joined = retriever(ids.tolist(), vector, n_docs=5, return_tensors="pt")
        assert joined["doc_ids"][0].tolist() == [passage.number for passage in found.retrieval.passages[row]]
        kept = joined["context_attention_mask"].bool()
        contexts = [line[mask].tolist() for line, mask in zip(joined["context_input_ids"], kept, strict=True)]
        assert contexts == [ours.generator.template.ids(p, question) for p in found.retrieval.passages[row]]
        output = nll(theirs, ids, torch.tensor([labels[row]]))
        np.testing.assert_allclose(output.doc_scores[0], found.retrieval.scores[row], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(output.loss, found.nll[row : row + 1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("marginal", "generator", "lora", "beams"),
    [
        ("sequence", "bart", "true", 2),
        ("sequence", "t5", "false", 1),  # their beam search fills a T5's shorter beams with ends, which they then score
        ("token", "t5", "true", 2),
    ],
)
def test_tuned_and_back(marginal, generator, lora, beams, run, snippet, tmp_path):
    """Tuned with or without an adapter: their answers to every question are ours, and ragx opens the export again."""
    command = run(
        marginal,
        generator,
        f"rag.num_beams={beams}",
        f"finetune.lora={lora}",
        "finetune.epochs=30",
        "finetune.learning_rate=8e-3",
        "finetune.batch_size=4",
        "finetune.patience=100",
        "finetune.warmup_epochs=1",
    )
    command("finetune", "-q")
    asked = "".join(f"{question}\n" for question in ASKED)
    expected = command("ask", "-q", stdin=asked).splitlines()
    assert generator == "bart" or len(set(expected)) > 1
    assert command("export", tmp_path / "out").startswith(f"{tmp_path / 'out'}: Rag{marginal.capitalize()}")
    answer, _ = snippet(tmp_path / "out")
    assert [" ".join(answer(question).split()) for question in ASKED] == expected
    again = ["--model", "base", "--set", f"rag.checkpoint={tmp_path / 'out'}"]
    temperature = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["temperature"]
    again += ["--set", f"retrieval.temperature={temperature}"]
    assert command("ask", "-q", *again, stdin=asked).splitlines() == expected


def test_what_a_training_has_learnt_to_reorder_is_refused(run, tmp_path):
    command = run("sequence", "t5", "finetune.epochs=1")
    command("finetune", "-q", "--set", "retrieval.rerank=6")
    with pytest.raises(ConfigError, match=r"retrieval\.rerank: auto: their prior is of vectors alone; say 0"):
        stages.export(command.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert command("export", tmp_path / "out", "-q", "--set", "retrieval.rerank=0")
