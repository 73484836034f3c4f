"""Tiny models on CPU through all stages: index -> finetune -> ask -> eval."""

import json
import math

import pytest

from ragx import ask, build_index, evaluate, finetune, load_config
from ragx.stages import Answerer

KINDS = ["causal", "causal_chat", "t5", "bart"]
QUICK = {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "retriever_learning_rate": 1e-3, "patience": 100}


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_index_finetune_ask_eval(kind, marginal, tiny_config, read_metrics):
    config = load_config(tiny_config(kind, rag={"marginal": marginal, "num_beams": 2}, finetune=QUICK))
    stats = build_index(config)
    assert stats["documents"] == 12 and stats["passages"] > 12 and stats["lexical"] == "bm25"
    before = evaluate(config, which="base")
    done = finetune(config)
    assert done["questions"] == 12 and done["steps"] == 18
    train, dev = read_metrics(config.run_dir), read_metrics(config.run_dir, "dev")
    assert [line["step"] for line in train] == list(range(1, 19)) and len(dev) == 7
    first, last = (sum(line["nll_per_token"] for line in part) / 3 for part in (train[:3], train[-3:]))
    assert last < (0.97 if kind.startswith("causal") else 0.8) * first  # adapters on a random frozen model learn little
    assert done["dev_nll_per_token"] == min(line["nll_per_token"] for line in dev)
    assert not (config.run_dir / "training" / "checkpoints").exists()

    answer = ask(config, "Who lights the kiln?")
    assert (
        answer.log_probability < 0 and len(answer.tokens) == len(answer.token_posterior) >= 1 and len(answer.hits) == 2
    )
    assert sum(hit.prior for hit in answer.hits) == pytest.approx(1, abs=1e-5)
    assert sum(hit.posterior for hit in answer.hits) == pytest.approx(1, abs=1e-5)
    assert answer.hits[0].score >= answer.hits[1].score

    after = evaluate(config)
    assert (before.model, after.model, after.n) == ("base", "tuned", 4)
    assert after.metrics["nll"].value < before.metrics["nll"].value
    assert all(0 <= after.metrics[name].value <= 1 for name in ("em", "f1", "recall@2"))
    report = json.loads((config.run_dir / "eval" / "test.tuned.report.json").read_text(encoding="utf-8"))
    assert report["metrics"]["nll"]["value"] == after.metrics["nll"].value
    lines = (config.run_dir / "eval" / "test.tuned.predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
@pytest.mark.parametrize("prior", ["topk", "corpus"])
def test_every_retrieval(mode, prior, tiny_config):
    retrieval = {"mode": mode, "prior": prior, "top_k": 3}
    config = load_config(tiny_config("t5", retrieval=retrieval, finetune={**QUICK, "epochs": 1}))
    build_index(config)
    finetune(config)
    assert math.isfinite(evaluate(config).metrics["nll"].value)


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_batches_of_questions_are_answered_as_alone(marginal, tiny_config):
    config = load_config(tiny_config("bart", rag={"marginal": marginal, "num_beams": 2}, finetune=QUICK))
    build_index(config)
    finetune(config)
    answerer = Answerer(config)
    questions = ["Who lights the kiln?", "Sile?", "What does a small bowl cost on the square every Thursday?"]
    together = answerer.answer(questions)
    for question, found in zip(questions, together, strict=True):
        (alone,) = answerer.answer([question])
        assert alone.text == found.text
        assert alone.log_probability == pytest.approx(found.log_probability, rel=1e-4, abs=1e-4)
        assert [hit.passage.id for hit in alone.hits] == [hit.passage.id for hit in found.hits]


def test_lexical_retrieval_of_questions_with_few_common_words(tiny_config):
    """One question shares a word with one passage, another with many: both get K passages, no matter the batch."""
    config = load_config(tiny_config("causal", retrieval={"mode": "lexical", "top_k": 4, "candidates": 8}))
    build_index(config)
    answerer = Answerer(config)
    questions = ["Biscuit", "Who lights the kiln that burns beech wood in the long room?", "xyzzy"]
    for batch in (questions, *([question] for question in questions)):
        for answer in answerer.answer(batch):
            assert len(answer.hits) == 4
            assert sum(hit.prior for hit in answer.hits) == pytest.approx(1, abs=1e-5)
    assert "Biscuit" in answerer.answer(questions)[0].hits[0].passage.text


@pytest.mark.parametrize("kind", ["causal", "bart"])
def test_same_seed_same_bytes(kind, tiny_config, tmp_path):
    """Two runs leave the same metrics and weights; another seed leaves others."""
    path = tiny_config(kind, finetune={**QUICK, "epochs": 2}, eval={"bootstrap": 200})
    found = []
    for name, seed in (("one", 13), ("two", 13), ("other", 14)):
        config = load_config(path, [f"output_dir={tmp_path / name}", f"seed={seed}"])
        build_index(config)
        finetune(config)
        evaluate(config)
        run = config.run_dir
        weights = {p.relative_to(run): p.read_bytes() for p in sorted((run / "model").rglob("*.safetensors"))}
        assert weights
        metrics = (run / "training" / "metrics.jsonl").read_bytes()
        predictions = (run / "eval" / "test.tuned.predictions.jsonl").read_bytes()
        found.append((metrics, weights, predictions))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


@pytest.mark.parametrize("kind", KINDS)
def test_dev_and_final_scores_agree(kind, tiny_config):
    """The dev figure that picks the best weights is that of the model that is kept."""
    config = load_config(tiny_config(kind, finetune={**QUICK, "epochs": 2}))
    build_index(config)
    done = finetune(config)
    assert evaluate(config, split="dev").metrics["nll"].value == pytest.approx(done["dev_nll_per_token"], rel=1e-4)


def test_training_only_one_part_leaves_the_other(tiny_config, tmp_path):
    from ragx.models import model_fingerprint
    from ragx.stages.models import open_model

    for part, untouched in (("question_encoder", "generator"), ("generator", "question_encoder")):
        section = {**QUICK, "epochs": 1, "train": [part]}
        path = tiny_config("bart", finetune=section, data={"dev": None})  # else the start may be the best
        config = load_config(path, [f"output_dir={tmp_path / part}"])
        build_index(config)
        base, done = open_model(config, "base"), finetune(config)
        tuned = open_model(config, "tuned")
        assert done["steps"] == 3
        modules = {"generator": "generator_module", "question_encoder": "retriever.question_encoder"}
        for name in (part, untouched):
            one, two = base.get_submodule(modules[name]).state_dict(), tuned.get_submodule(modules[name]).state_dict()
            same = all(bool((one[key] == two[key]).all()) for key in one)
            assert same == (name == untouched), (name, part)
        assert model_fingerprint(config.run_dir / "model" / "generator")


@pytest.mark.parametrize("mass", [1.0, 0.9])
def test_loss_falls_with_and_without_pruning(mass, tiny_config, read_metrics):
    section = {**QUICK, "posterior_mass": mass, "micro_batch_size": 2}
    config = load_config(tiny_config("t5", finetune=section, retrieval={"top_k": 4}))
    build_index(config)
    finetune(config)
    train = read_metrics(config.run_dir)
    assert train[-1]["nll_per_token"] < 0.8 * train[0]["nll_per_token"]
