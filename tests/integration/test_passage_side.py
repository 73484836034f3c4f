"""Training of the passage encoder too: what it leaves, that it goes on exactly, in one process and in two."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from ragx import ask, build_index, evaluate, finetune, load_config
from ragx.corpus.questions import read_examples
from ragx.stages.job import prepare_training
from ragx.stages.models import open_index, open_model
from ragx.training import refresh
from ragx.training.reading import right_passages
from ragx.training.warmup import Supervised

BOTH = {
    "train": ["question_encoder", "passage_encoder", "generator"],
    "epochs": 3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "refresh_steps": 2,
    "refresh_cosine": 0.999,
    "checkpoint_steps": 1,
    "patience": 100,
    "learning_rate": 5e-3,
    "retriever_learning_rate": 1e-3,
    "warmup_epochs": 1,
}
FIGURES = ("nll_per_token", "nll", "p_gold", "unique", "prior_entropy", "kept", "cosine", "overlap", "passages")


def lines_of(config):
    path = config.run_dir / "training" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def weights_of(config):
    files = sorted((config.run_dir / "model").rglob("*.safetensors"))
    return {path.parent.name: path.read_bytes() for path in files}


def test_a_learning_encoder_is_not_compiled(tiny_config):
    """What is compiled keeps its weights: vectors made anew would be the old ones."""
    config = load_config(tiny_config("t5", encoder={"backend": "openvino"}, finetune=BOTH))
    build_index(config)
    retriever = open_model(config, "base", prepare=partial(prepare_training, few=False)).retriever
    passages = retriever.index.all_passages()[:3]
    before = refresh.encode(retriever, passages)
    with torch.no_grad():
        for weights in retriever.passage_side.module.parameters():
            weights += 0.1 * torch.randn_like(weights)
    assert np.abs(refresh.encode(retriever, passages) - before).max() > 1e-3


def test_what_is_read_is_chosen_by_the_encoder_as_it_is_now(tiny_config):
    """The index's vectors are those of the encoder before its warm-up; they come back."""
    config = load_config(tiny_config("t5", finetune=BOTH, retrieval={"mode": "dense"}))
    build_index(config)
    retriever = open_model(config, "base", prepare=partial(prepare_training, few=False)).retriever
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in retriever.passage_side.module.parameters():
            weights += 0.1 * torch.randn_like(weights)
    before, passages = retriever.index.all_vectors().copy(), retriever.index.all_passages()
    examples = read_examples(config.data.train)
    numbers = tuple(range(len(passages)))
    found = right_passages(retriever, examples, [Supervised(example, numbers) for example in examples])
    with torch.no_grad():
        queries = retriever.encoder.forward([example.question for example in examples]).numpy()
    now = (queries @ refresh.encode(retriever, passages).T).argmax(axis=1)
    assert found[:, 0].tolist() == now.tolist() != (queries @ before.T).argmax(axis=1).tolist()
    assert np.array_equal(retriever.index.all_vectors(), before)


def test_all_commands_with_shared_weights(tiny_config, cli):
    """No dev set, so that the last weights are kept; the base model and its index stay as they were."""
    path = tiny_config("t5", finetune=BOTH, data={"dev": None})
    config = load_config(path)
    assert cli("index", "-c", path).code == 0
    before = open_index(config).all_vectors().copy()
    untouched = cli("ask", "-c", path, "--model", "base", "--json", "Who lights the kiln?").out
    run = cli("finetune", "-c", path, "--json")
    done = json.loads(run.out)
    assert done["steps"] == 9 and done["refresh"]["passages"] >= len(before) and done["refresh"]["index_seconds"] >= 0
    assert "question and passage encoder, which are one" in run.err
    assert "passages encoded anew in" in run.err and "top-2 overlap" in run.err
    refreshed = [line for line in lines_of(config) if line["split"] == "refresh"]
    assert [line["step"] for line in refreshed] == [0, 2, 4, 6, 8]
    assert all(line["cosine"] < 1 and 0 <= line["overlap"] <= 1 for line in refreshed)
    assert refreshed[0]["passages"] == len(before)  # the warm-up moved them all
    model = config.run_dir / "model"
    assert weights_of(config)["question_encoder"] == weights_of(config)["passage_encoder"]

    tuned = open_index(config, "tuned")
    assert tuned.folder.parent.name == "tuned" and np.abs(tuned.all_vectors() - before).max() > 1e-3
    assert tuned.manifest["encoder"] == json.loads((model / "manifest.json").read_text())["passage_encoder"]
    assert np.array_equal(open_index(config).all_vectors(), before)
    assert cli("ask", "-c", path, "--model", "base", "--json", "Who lights the kiln?").out == untouched
    hits = {hit.passage.number: hit.score for hit in ask(config, "Who lights the kiln?").hits}
    opened = open_model(config, "tuned").retriever
    assert opened.index.folder == tuned.folder and list(hits) == [
        p.number for p in opened(["Who lights the kiln?"]).passages[0]
    ]
    for which in ("base", "tuned"):
        assert json.loads(cli("eval", "-c", path, "--model", which, "--json").out)["model"] == which


def test_both_indexes_follow_the_corpus(tiny_config, tiny_corpus, cli, caplog):
    caplog.set_level("INFO", logger="ragx")
    path = tiny_config("t5", finetune={**BOTH, "epochs": 1})
    config = load_config(path)
    build_index(config)
    finetune(config)
    old = open_index(config, "tuned")
    texts = [passage.text for passage in old.all_passages()]
    with tiny_corpus.corpus.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "new", "title": "New", "text": "Rye bread is baked on Sundays."}) + "\n")
    stale = cli("ask", "-c", path, "Who?")
    assert stale.code == 2 and "changed; run: ragx index" in stale.err
    assert cli("index", "--update", "-c", path).code == 0
    assert cli("ask", "-c", path, "Who?").code == 0
    tuned, base = open_index(config, "tuned"), open_index(config)
    assert (tuned.passages_count, base.passages_count) == (old.passages_count + 1,) * 2
    assert np.array_equal(tuned.all_vectors()[: len(texts)], old.all_vectors())
    fresh = open_model(config, "tuned").retriever.index.manifest["encoder"]
    assert fresh == old.manifest["encoder"] != base.manifest["encoder"]


def test_without_its_index_the_tuned_model_names_the_command_and_the_base_model_answers(tiny_config, cli):
    path = tiny_config("t5", finetune={**BOTH, "epochs": 1})
    config = load_config(path)
    build_index(config)
    finetune(config)
    (config.run_dir / "index" / "tuned" / "CURRENT").unlink()
    done = cli("ask", "-c", path, "Who lights the kiln?")
    (line,) = done.err.splitlines()
    assert done.code == 2 and line.endswith("tuned: no index here; run: ragx index")
    assert cli("ask", "-c", path, "--model", "base", "Who lights the kiln?").code == 0
    assert cli("index", "-c", path).code == 0
    assert cli("ask", "-c", path, "Who lights the kiln?").code == 0
    finetune(load_config(path, ["finetune.train=[question_encoder, generator]"]))
    assert not (config.run_dir / "index" / "tuned").exists()
    assert cli("ask", "-c", path, "Who lights the kiln?").code == 0


@pytest.mark.parametrize("stop", [3, 5])
def test_a_training_that_was_stopped_goes_on_exactly(stop, tiny_config, stopped_and_whole):
    """Steps 2, 4, 6 refresh, step 3 ends an epoch; the checkpoint is that of the step before `stop`."""
    path = tiny_config("causal", finetune={**BOTH, "refresh_cosine": 0.9999})
    stopped, whole = stopped_and_whole(path, stop)
    assert lines_of(stopped) == lines_of(whole)
    assert {line["split"] for line in lines_of(whole)} == {"train", "dev", "refresh"}
    assert weights_of(stopped) == weights_of(whole)
    one, two = (open_index(config, "tuned").all_vectors() for config in (stopped, whole))
    assert np.array_equal(one, two)


def test_two_processes_have_the_losses_of_one(tiny_config, tmp_path, ragx):
    """float32, 1e-5: sums of gradients, and batches of passages, run in another order."""
    path = tiny_config("t5", finetune={**BOTH, "learning_rate": 1e-3, "retriever_learning_rate": 1e-4, "epochs": 2})
    one, two = (load_config(path, [f"output_dir={tmp_path / name}"]) for name in ("one", "two"))
    for config in (one, two):
        build_index(config)
    finetune(one)
    ragx("finetune", "-c", path, "--set", f"output_dir={tmp_path / 'two'}", processes=2)
    found, expected = lines_of(two), lines_of(one)
    assert [(line["step"], line["split"]) for line in found] == [(line["step"], line["split"]) for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        for name in [name for name in FIGURES if name in line]:
            assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), (line["step"], name)
    assert open_index(two, "tuned").passages_count == open_index(one).passages_count


def test_a_rag_checkpoint_with_its_own_passage_tower(tiny_rag, tiny_config, cli):
    """Two towers: both learn, titles stay apart, and the tower is saved as transformers' own."""
    import transformers

    checkpoint, tower = tiny_rag("sequence")
    path = tiny_config(
        {},
        rag={"checkpoint": str(checkpoint)},
        encoder={"passage_model": str(tower)},
        retrieval={"mode": "dense"},
        data={"dev": None},
        finetune={**BOTH, "epochs": 1},
    )
    config = load_config(path)
    build_index(config)
    dry = json.loads(cli("finetune", "--dry-run", "-c", path, "--json").out)
    assert dry["trained_weights"]["passage_encoder"] > 0 and dry["seconds"]["refreshes"] >= 0
    finetune(config)
    weights = weights_of(config)
    assert weights["question_encoder"] != weights["passage_encoder"] != (tower / "model.safetensors").read_bytes()
    index = open_index(config, "tuned")
    passage = index.all_passages()[0]
    saved = transformers.DPRContextEncoder.from_pretrained(config.run_dir / "model" / "passage_encoder").eval()
    words = transformers.AutoTokenizer.from_pretrained(tower)
    expected = saved(**words(passage.title, passage.text, return_tensors="pt")).pooler_output[0].detach().numpy()
    np.testing.assert_allclose(index.all_vectors()[0], expected, rtol=0, atol=1e-5)
    assert np.isfinite(evaluate(config).metrics["nll"].value)


def test_passage_encoder_alone(tiny_config):
    path = tiny_config("t5", finetune={**BOTH, "epochs": 1, "train": ["passage_encoder"]}, data={"dev": None})
    config = load_config(path)
    build_index(config)
    base = open_model(config, "base").retriever.question_encoder.state_dict()
    finetune(config)
    tuned = open_model(config, "tuned").retriever.question_encoder.state_dict()
    assert all(bool((base[name] == tuned[name]).all()) for name in base)
    assert not np.array_equal(open_index(config, "tuned").all_vectors(), open_index(config).all_vectors())


REFUSED = {
    "retrieval.mode=lexical": "retrieval.mode: lexical uses no vectors, yet finetune.train holds passage_encoder",
    "retrieval.prior=corpus": "to train passage_encoder say retrieval.prior: topk",
    "encoder.passage_model=.": "finetune.tie_encoders: true, yet passages have an encoder of their own; say false",
    "finetune.train=[passage_encoder]": "finetune.tie_encoders: true trains question_encoder too",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_contradicts_it_is_one_line(change, tiny_config, cli):
    path = tiny_config("t5", finetune={**BOTH, "tie_encoders": True})
    done = cli("finetune", "-c", path, "--set", change)
    (line,) = done.err.splitlines()
    assert done.code == 2 and REFUSED[change] in line
