"""A training that collapses is caught and goes back to its best weights; so is one that meets NaN or lacks memory."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ragx import build_index, evaluate, finetune, load_config
from ragx.errors import RagxError
from ragx.rag.generator import Generator
from ragx.rag.model import RagModel
from ragx.rag.seq2seq import Seq2SeqGenerator
from ragx.training import checkpoints
from ragx.training.processes import Processes

CALM = {
    "epochs": 4,
    "batch_size": 4,
    "micro_batch_size": 4,
    "checkpoint_steps": 3,
    "patience": 100,
    "learning_rate": 1e-3,
    "retriever_learning_rate": 1e-4,
    "warmup_epochs": 1,
}


@pytest.fixture
def training(tiny_config, tmp_path, caplog):
    """training(retrieval={...}, learning_rate=...) -> the configuration, what finetune returned, and its warnings."""
    caplog.set_level("INFO", logger="ragx")

    def run(retrieval=None, name="run", **section):
        path = tiny_config("t5", retrieval={"top_k": 3, **(retrieval or {})}, finetune={**CALM, **section})
        config = load_config(path, [f"output_dir={tmp_path / name}"])
        build_index(config)
        caplog.clear()
        done = finetune(config)
        return config, done, [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    return run


def weights_of(config):
    return [load_file(path) for path in (config.run_dir / "model").rglob("*.safetensors")]


def are_finite(config):
    found = weights_of(config)
    return bool(found) and all(bool(value.isfinite().all()) for part in found for value in part.values())


COLLAPSES = {
    "temperature": (
        {"mode": "dense", "temperature": 0.02},
        {"prior_learning_rate": 3.0, "warmup_epochs": 0, "learning_rate": 1e-8, "retriever_learning_rate": 1e-8},
        "the prior became flat",
    ),
    "learning rate": ({}, {"learning_rate": 30.0}, "answers became less likely"),
}


@pytest.mark.parametrize("cause", COLLAPSES)
def test_a_run_driven_into_collapse_is_caught_and_rolled_back(cause, training, read_metrics):
    retrieval, section, words = COLLAPSES[cause]
    config, done, warnings = training(retrieval, **section)
    caught = [line for line in warnings if "back to the weights of step" in line]
    assert words in caught[0] and "at half the learning rates" in caught[0]
    assert 1 <= done["rollbacks"] <= 2
    assert are_finite(config)
    dev = read_metrics(config.run_dir, "dev")
    assert done["dev_nll_per_token"] == min(line["nll_per_token"] for line in dev) < dev[0]["nll_per_token"] + 0.1
    assert evaluate(config, split="dev").metrics["nll"].value == pytest.approx(done["dev_nll_per_token"], rel=1e-4)


def test_no_rollback_left_ends_with_the_best_weights(training):
    _, done, warnings = training(learning_rate=30.0, rollbacks=0)
    assert any("the training ends with them" in line for line in warnings)
    assert done["steps"] < 12 and done["rollbacks"] == 0


def test_a_calm_run_raises_no_alarm(training, read_metrics):
    config, done, warnings = training()
    assert (done["rollbacks"], done["steps"], warnings) == (0, 12, [])
    assert [line["step"] for line in read_metrics(config.run_dir, "dev")] == [0, 3, 6, 9, 12]


@pytest.fixture
def poison(monkeypatch):
    """poison("Who?"): the generator gives NaN for that question, when it trains."""
    own = Seq2SeqGenerator.token_log_probs

    def spoil(question):
        def poisoned(self, pairs, answers):
            log_probs, mask = own(self, pairs, answers)
            bad = torch.is_grad_enabled() and any(asked == question for asked, _ in pairs)
            return (log_probs * torch.nan if bad else log_probs), mask

        monkeypatch.setattr(Seq2SeqGenerator, "token_log_probs", poisoned)

    return spoil


POISONED = "What metal does green glaze hold?", "q2"


@pytest.mark.parametrize("dev", [True, False], ids=["dev", "no dev"])
def test_nan_goes_back_and_names_the_questions(dev, tiny_config, caplog, poison):
    poison(POISONED[0])
    data = {} if dev else {"data": {"dev": None}}
    config = load_config(tiny_config("t5", finetune={**CALM, "epochs": 2, "micro_batch_size": 1}, **data))
    build_index(config)
    done = finetune(config)
    (first, second) = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert f"the loss is not finite (questions {POISONED[1]}); back to the weights of step " in first
    assert (done["rollbacks"], done["steps"]) == (2, 6) and second
    assert are_finite(config)


def test_nan_without_rollback_is_an_error_and_keeps_the_checkpoint(cli, tiny_config, tmp_path, poison):
    path = tiny_config("t5", finetune={**CALM, "checkpoint_steps": 1, "rollbacks": 0})
    cli("index", "-q", "-c", path)
    poison(POISONED[0])
    done = cli("finetune", "-q", "-c", path)
    assert done.code == 2
    assert "the loss is not finite" in done.err and POISONED[1] in done.err and "learning_rate" in done.err
    run = tmp_path / "runs" / "tiny"
    kept = load_file(run / "training" / "checkpoints" / "last" / "model.safetensors")
    assert kept and all(bool(value.isfinite().all()) for value in kept.values())
    assert not (run / "model").exists()


def test_a_model_that_gives_nan_from_the_start_is_refused(cli, tiny_config, tmp_path, monkeypatch):
    path = tiny_config("t5", finetune=CALM)
    cli("index", "-q", "-c", path)
    own = Seq2SeqGenerator.token_log_probs
    monkeypatch.setattr(Seq2SeqGenerator, "token_log_probs", lambda *a: (own(*a)[0] * torch.nan, own(*a)[1]))
    done = cli("finetune", "-q", "-c", path)
    assert done.code == 2
    assert "before the first step: dev: the loss is not finite; try dtype: float32" in done.err
    assert not (tmp_path / "runs" / "tiny" / "model").exists()


def test_a_gradient_that_is_not_finite_changes_no_weight(training, monkeypatch):
    own, calls = Processes.sum_gradients, []

    def spoiled(self, parameters):
        own(self, parameters)
        calls.append(None)
        if len(calls) == 5:
            next(p for p in parameters if p.grad is not None).grad.fill_(torch.inf)

    monkeypatch.setattr(Processes, "sum_gradients", spoiled)
    config, done, warnings = training()
    (line,) = [line for line in warnings if "back to the weights" in line]
    assert line.startswith("step 5: the gradient is not finite (questions q")
    assert done["rollbacks"] == 1 and are_finite(config)


def of_a_gpu():
    raise torch.OutOfMemoryError


def of_the_machine():
    torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize("out_of_memory", [of_a_gpu, of_the_machine])
def test_out_of_memory_takes_fewer_questions_at_once(out_of_memory, training, monkeypatch, read_metrics):
    """T5 in float32: the losses are those of the undisturbed run to 1e-5, for only the order of sums differs."""
    config, _, warnings = training(epochs=2)
    assert warnings == []
    own = RagModel.forward

    looks = []

    def scarce(self, questions, *rest):
        if torch.is_grad_enabled() and len(questions) > 1:
            out_of_memory()
        looks.extend([] if torch.is_grad_enabled() else [len(questions)])
        return own(self, questions, *rest)

    monkeypatch.setattr(RagModel, "forward", scarce)
    other, _, warnings = training(epochs=2, name="scarce")
    assert warnings == [f"out of memory with {n} questions at once; going on with {n // 2}" for n in (4, 2)]
    for split in ("train", "dev"):
        for one, two in zip(read_metrics(config.run_dir, split), read_metrics(other.run_dir, split), strict=True):
            assert one["nll"] == pytest.approx(two["nll"], rel=1e-5, abs=1e-5)
    assert looks == [4] + [1] * 8, "the dev set at the start, then one question at once after each of two epochs"


def test_out_of_memory_with_one_question_is_an_error(cli, tiny_config, monkeypatch):
    path = tiny_config("t5", finetune=CALM)
    cli("index", "-q", "-c", path)

    def scarce(self, *_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Generator, "answer_ids", lambda self, answer: [1])
    monkeypatch.setattr("ragx.training.loop._Joint._score_dev", lambda self: None)
    monkeypatch.setattr(RagModel, "forward", scarce)
    done = cli("finetune", "-q", "-c", path)
    assert done.code == 2
    assert "out of memory with one question at once; say finetune.gradient_checkpointing: true" in done.err


def test_what_a_run_shows(training, caplog):
    config, _, _ = training(epochs=2)
    folder = config.run_dir / "training"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in samples] == [0] * 3 + [3] * 3 + [6] * 3
    assert all({"id", "question", "answer", "reference"} <= row.keys() for row in samples)
    assert samples[0]["question"] in caplog.text
    assert "min to the end" in caplog.text and "min left" in caplog.text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (config.run_dir / "model" / "README.md").read_text(encoding="utf-8")
    manifest = json.loads((config.run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
    for words in ("12 questions", "12 documents", "| 6 | 4 |", manifest["plan"], manifest["index"], '"top_k": 3'):
        assert words in card
    assert str(config.output_dir) not in card


def test_without_matplotlib_there_is_a_line_instead_of_curves(training, caplog, monkeypatch):
    stage = importlib.import_module("ragx.stages.tuned")
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    config, _, _ = training(epochs=1)
    assert "install ragx[plots]" in caplog.text
    assert not (config.run_dir / "training" / "curves.png").exists()


OPERATIONS = [(os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (torch, "save")]


@pytest.mark.parametrize(("owner", "name"), OPERATIONS, ids=[name for _, name in OPERATIONS])
def test_a_crash_at_any_write_of_a_checkpoint_leaves_one_that_loads(owner, name, tmp_path, monkeypatch):
    """The first checkpoint is whole; the second is broken off at the first, second, ... call of an operation."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    folder, crashes = tmp_path / "last", 0
    for broken_call in range(1, 30):
        checkpoints.save(folder, "plan", model, checkpoints.Position(step=1), optimizer)
        calls, own = [], getattr(owner, name)
        with monkeypatch.context() as patch:

            def failing(*args, _own=own, _calls=calls, _broken=broken_call, **options):
                _calls.append(None)
                if len(_calls) == _broken:
                    raise KeyboardInterrupt
                return _own(*args, **options)

            patch.setattr(owner, name, failing)
            try:
                checkpoints.save(folder, "plan", model, checkpoints.Position(step=2), optimizer)
            except KeyboardInterrupt:
                crashes += 1
        plan, position = checkpoints.load(folder, model, optimizer)
        assert plan == "plan" and position.step in (1, 2)
        if len(calls) < broken_call:
            assert position.step == 2
            break
    assert crashes >= 1


def test_only_unfinished_checkpoints_are_refused(tmp_path):
    with pytest.raises(RagxError, match="no ragx checkpoint here"):
        checkpoints.load(tmp_path / "none", torch.nn.Linear(1, 1))
