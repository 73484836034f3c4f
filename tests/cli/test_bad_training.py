"""What stops a training, and what an earlier one left: one line that says why, exit code 2, the model as it was."""

import shutil
from pathlib import Path

import pytest
import torch

from ragx.config import load_config
from ragx.corpus.questions import read_examples
from ragx.errors import RagxError
from ragx.records import no_progress
from ragx.stages.models import open_model
from ragx.training import warmup


def refused(done, *named):
    """Exit code 2 and one `ragx:` line on stderr, which holds `named`."""
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("ragx: ") and done.err.count("\n") == 1, done.err
    assert [text for text in named if str(text) not in done.err] == [], done.err


@pytest.fixture
def run(tmp_path):
    """The run folder."""
    return tmp_path / "runs" / "tiny"


# --- a checkpoint that cannot be read


def spoil(run, damage):
    last = run / "training" / "checkpoints" / "last"
    last.mkdir(parents=True)
    if damage == "half removed":
        (last / "optimizer.pt").write_bytes(b"what rmtree had not come to")
    else:
        (last / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", ["half removed", "no manifest that can be read"])
def test_a_damaged_checkpoint_stops_only_who_wants_to_resume(cli, indexed, run, damage):
    config = indexed("t5")
    spoil(run, damage)
    refused(cli("finetune", "--resume", "-q", "-c", config), "checkpoints/last", "run: ragx finetune without --resume")
    assert (run / "training" / "checkpoints" / "last").is_dir()
    done = cli("finetune", "-c", config)
    assert done.code == 0, done.err
    assert "starting over" in done.err
    assert (run / "model" / "manifest.json").is_file()
    assert not (run / "training" / "checkpoints").exists()


def test_no_kill_while_checkpoints_are_removed_leaves_half_of_them(cli, indexed, run, monkeypatch):
    """What is removed has no name by which it could be taken for a checkpoint."""
    config, own = indexed("t5"), shutil.rmtree

    def killed(path, **options):
        if "checkpoints" in Path(path).name and Path(path).is_dir():
            raise KeyboardInterrupt
        own(path, **options)

    monkeypatch.setattr("ragx.artifacts.shutil.rmtree", killed)
    assert cli("finetune", "-q", "-c", config).code == 130
    assert (run / "model").is_dir() and not (run / "training" / "checkpoints").exists()
    monkeypatch.undo()
    assert cli("finetune", "-q", "-c", config).code == 0
    left = {path.name for path in (run / "training").iterdir()}
    assert left == {"metrics.jsonl", "samples.jsonl", "curves.png"}


# --- something else where the model is to stand


def put(kind, path, elsewhere):
    match kind:
        case "link":
            elsewhere.mkdir(parents=True)
            (elsewhere / "mine").write_text("mine")
            path.symlink_to(elsewhere)
        case "link to nothing":
            path.symlink_to(elsewhere)
        case _:
            path.write_text("mine")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "file"])
def test_what_stands_at_the_model_s_place_is_replaced_and_what_it_points_to_is_left(cli, indexed, run, tmp_path, kind):
    config, elsewhere = indexed("t5"), tmp_path / "elsewhere"
    for place in (run / "model", run / "training" / "checkpoints"):
        place.parent.mkdir(exist_ok=True)
        put(kind, place, elsewhere / place.name)
    for _ in range(2):
        done = cli("finetune", "-q", "-c", config)
        assert done.code == 0, done.err
        assert (run / "model" / "manifest.json").is_file() and not (run / "model").is_symlink()
        assert sorted(path.name for path in run.iterdir() if path.name.startswith(".model")) == []
    if kind == "link":
        assert [path.name for path in (elsewhere / "model").iterdir()] == ["mine"]


# --- more passages than there are


@pytest.mark.parametrize(
    "options",
    [(), ("--dry-run",), ("--set", "finetune.distractors=1"), ("--set", "finetune.cross_fit=2")],
    ids=["train", "dry run", "distractors", "cross-fit"],
)
def test_more_passages_to_train_on_than_there_are(cli, indexed, standing, options):
    config, before = indexed("t5"), standing()
    done = cli("finetune", "-q", "-c", config, "--set", "finetune.top_k=25", *options)
    refused(done, "finetune.top_k: 25 passages wanted, the index holds 24; lower it")
    assert standing() == before


# --- lines of an earlier training


def test_separators_in_a_question_do_not_end_a_resumed_training(cli, indexed, tiny_corpus, run, monkeypatch):
    for path in (tiny_corpus.train, tiny_corpus.dev):
        path.write_text(path.read_text().replace("?", r"\u2028no\u2029\u0085?"))
    config = indexed("t5")

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ragx.training.loop._Joint.end", stopping)
        assert cli("finetune", "-q", "-c", config).code == 130
    with (run / "training" / "samples.jsonl").open("ab") as file:
        file.write('{"step": 3, "answer": "é'.encode()[:-1])
    done = cli("finetune", "--resume", "-q", "-c", config)
    assert done.code == 0, done.err
    assert len((run / "training" / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 6


# --- a warm-up that gives NaN


@pytest.fixture
def spoil_warm_up(monkeypatch):
    """spoil_warm_up(5): the fifth batch of the warm-up's loss, dev ones counted, is NaN."""
    own, calls = warmup.retriever_loss, []

    def spoil(call):
        def spoiled(*given):
            calls.append(None)
            return own(*given) * (torch.nan if len(calls) == call else 1.0)

        monkeypatch.setattr(warmup, "retriever_loss", spoiled)

    return spoil


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (1, "before the first step: the loss of the dev set is not finite; try another encoder.model"),
        (2, "epoch 1: the loss is not finite; lower finetune.warmup_learning_rate"),
        (4, "epoch 1: the loss of the dev set is not finite; lower finetune.warmup_learning_rate"),
        (6, "epoch 2: the loss is not finite; lower finetune.warmup_learning_rate"),
    ],
    ids=["start", "first epoch", "dev set", "second epoch"],
)
def test_a_warm_up_that_gives_nan_is_refused(cli, indexed, run, spoil_warm_up, call, words):
    config = indexed("t5", finetune={"warmup_epochs": 3, "warmup_batch_size": 6})
    spoil_warm_up(call)
    refused(cli("finetune", "-q", "-c", config), f"retriever warm-up, {words}", "finetune.warmup_epochs: 0")
    assert not (run / "model").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_warm_up_that_fails_leaves_the_retriever_at_its_start(indexed, spoil_warm_up, monkeypatch, what):
    config = load_config(indexed("t5"))
    retriever = open_model(config, "base").retriever
    taught = warmup.supervise(read_examples(config.data.train), retriever.index.all_passages())
    start = warmup.snapshot(retriever)
    if what == "loss":
        spoil_warm_up(9)
    else:
        next(retriever.question_encoder.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    settings = warmup.WarmupSettings(4, 4, 1e-3, 1e-2, 0.0, 1.0, seed=5)
    with pytest.raises(RagxError, match=rf"epoch \d: the {what} is not finite"):
        warmup.warm_up(retriever, taught[:8], taught[8:], settings, no_progress)
    assert all(torch.equal(value, start[name]) for name, value in retriever.state_dict().items())
