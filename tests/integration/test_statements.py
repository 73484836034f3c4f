"""Where all questions are statements from the corpus, the generator learns from them and the retriever stays as it is,
unless its training is asked for."""

import json

import pytest
import torch

from ragx import build_index, finetune, load_config
from ragx.stages import synthetic
from ragx.stages.models import open_model

WANTED = 8
ALONE = {"data": {"train": None, "dev": None}, "passages": {"size": 60}}
OPEN = {
    "train": "auto",
    "warmup_epochs": "auto",
    "reading_epochs": 1,
    "epochs": 2,
    "learning_rate": 1e-2,
    "retriever_learning_rate": 1e-2,
    "dev_share": 0.25,
    "patience": 100,
    "synthetic": WANTED,
    "synthetic_f1": 0.0,
}
TOLD = "the generator alone learns, for statements share their words with their passage"
ASKED = ["Who lights the kiln?", "What does a small bowl cost?"]
ANSWERS = ["Marta Veld", "four crowns"]


@pytest.fixture
def prepared(tiny_config):
    """prepared("t5", warmup_epochs=1) -> a configuration on statements alone, its index built; with `sections` more."""

    def make(kind="t5", sections=None, **changed):
        sections = {"retrieval": {"top_k": 3}, **ALONE, **(sections or {})}
        config = load_config(tiny_config(kind, finetune={**OPEN, **changed}, **sections))
        build_index(config)
        return config

    return make


@pytest.fixture
def told(caplog):
    """told() -> the lines of the log so far."""
    caplog.set_level("INFO", logger="ragx")
    return lambda: [record.getMessage() for record in caplog.records]


def same(one, two):
    """Whether two modules have the same weights."""
    other = two.state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "retrieval", "changed"),
    [
        ("causal", {}, {}),
        ("t5", {"mode": "lexical"}, {"posterior_mass": 0.5, "distillation": 0.5}),
        ("bart", {"prior": "corpus"}, {"posterior_mass": 0.5, "cross_fit": 2}),
        ("t5", {}, {"train": ["generator"]}),
    ],
)
def test_the_generator_alone_learns(prepared, told, kind, retrieval, changed):
    config = prepared(kind, {"retrieval": {"top_k": 3, **retrieval}}, **changed)
    done = finetune(config)
    assert done["synthetic_questions"] == done["questions"] == WANTED - 2 and done["best_step"] > 0
    base, tuned = open_model(config, "base"), open_model(config, "tuned")
    assert done["prior"] == base.retriever.prior.values()
    assert tuned.retriever.prior.values() == pytest.approx(done["prior"], rel=1e-6)
    assert same(base.retriever.question_encoder, tuned.retriever.question_encoder)
    with torch.no_grad():
        before, after = (model(ASKED, ANSWERS) for model in (base, tuned))
    assert torch.allclose(before.retrieval.log_prior, after.retrieval.log_prior, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before.nll, after.nll, rtol=1e-3)
    lines = told()
    assert any(TOLD in line for line in lines)
    assert not any("warm-up" in line or "prior fitted" in line for line in lines)
    (plan,) = (line for line in lines if line.startswith("training 0.0M weights of the question encoder"))
    assert "lexical weight" not in plan


@pytest.mark.parametrize(
    ("changed", "encoder_learns"),
    [
        ({"train": ["question_encoder", "generator"]}, True),
        ({"train": ["question_encoder", "generator"], "warmup_epochs": 0}, True),
        ({"warmup_epochs": 1}, True),
        ({"train": ["generator"], "warmup_epochs": 1}, False),
    ],
)
def test_the_retriever_learns_where_that_is_asked_for(prepared, told, changed, encoder_learns):
    config = prepared(**changed)
    done = finetune(config)
    base, tuned = open_model(config, "base").retriever, open_model(config, "tuned").retriever
    assert same(base.question_encoder, tuned.question_encoder) is not encoder_learns
    assert done["prior"] != pytest.approx(base.prior.values(), rel=1e-4)
    assert not any(TOLD in line for line in told())
    assert any("and the prior's temperature and lexical weight, on" in line for line in told())
    assert any(line.startswith("prior fitted") for line in told()) is (changed.get("warmup_epochs") != 0)


def test_a_dry_run_tells_the_policy_of_the_run_before_and_after_it(prepared, told):
    config = prepared()
    first = finetune(config, dry_run=True)
    assert TOLD in first["policy"] and first["seconds"]["warm_up"] == 0
    assert first["trained_weights"]["question_encoder"] == 0 < first["trained_weights"]["generator"]
    finetune(config)
    assert told().count(first["policy"]) == 2
    assert finetune(config, dry_run=True)["policy"] == first["policy"]


def test_questions_proper_and_those_of_the_user_teach_the_retriever(prepared, tiny_corpus, monkeypatch):
    def learns(config):
        policy = finetune(config, dry_run=True)["policy"]
        return TOLD not in policy and "the encoder of questions learns on passages, too" in policy

    assert learns(prepared(sections={"data": {"train": str(tiny_corpus.train), "dev": None}}))
    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "ASKS_FROM", 0)
        assert learns(prepared("causal_chat")) and not learns(prepared("causal"))
    config = prepared()
    finetune(config)
    plan = config.run_dir / "training" / "synthetic.plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text(encoding="utf-8")), "kind": "questions"}))
    assert learns(config)


def test_a_stopped_training_goes_on(prepared):
    whole, stopped = prepared(), prepared(sections={"name": "stopped"})

    def stop(what, done, total):
        if done == 3 and "nll/token" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, progress=stop)
    one, two = finetune(whole), finetune(stopped, resume=True)
    assert one["dev_nll_per_token"] == two["dev_nll_per_token"] and one["steps"] == two["steps"] > 3


def test_two_processes_take_the_steps_of_one(prepared, tmp_path, ragx, read_metrics):
    one = prepared(posterior_mass=0.5)
    finetune(one)
    two = load_config(tmp_path / "ragx.yaml", [f"output_dir={tmp_path / 'two'}"])
    build_index(two)
    told = ragx("finetune", "-c", tmp_path / "ragx.yaml", "--set", f"output_dir={tmp_path / 'two'}", processes=2).stderr
    assert TOLD in " ".join(told.split()) and "by 2 processes" in " ".join(told.split())
    for split in ("train", "dev"):
        found, expected = ([r["nll_per_token"] for r in read_metrics(c.run_dir, split)] for c in (two, one))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
