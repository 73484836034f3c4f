"""SIGKILL at any moment: a resumed training equals an uninterrupted one, and an index is the old one or the new one."""

import json

import numpy as np
import pytest

from ragx import ask, build_index, finetune, load_config
from ragx.errors import ArtifactError
from ragx.index.encoder import Encoder
from ragx.stages.models import open_index

TRAINING = {
    "epochs": 8,
    "batch_size": 4,
    "micro_batch_size": 2,
    "checkpoint_steps": 1,
    "patience": 100,
    "learning_rate": 5e-3,
    "retriever_learning_rate": 1e-3,
    "warmup_epochs": 2,
}


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def model_files(run):
    """Every file of the model but those that say when and where it was made."""
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted((run / "model").rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith(("manifest.json", "README.md"))}


LORA = {"rank": 4, "alpha": 8}


def assert_same_training(resumed, whole):
    """Metrics and model files are equal byte for byte, and so is all that the manifests say of them."""
    metrics = [lines_of(config.run_dir / "training" / "metrics.jsonl") for config in (resumed, whole)]
    differing = [pair for pair in zip(*metrics, strict=True) if pair[0] != pair[1]]
    assert differing[:1] == []
    one, two = model_files(resumed.run_dir), model_files(whole.run_dir)
    assert one.keys() == two.keys() and any(name.endswith(".safetensors") for name in one)
    assert [name for name in one if one[name] != two[name]] == []
    facts = []
    for config in (resumed, whole):
        manifest = json.loads((config.run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
        of_files = ("files", "seal")  # among them the card, which tells its minutes
        facts.append({key: value for key, value in manifest.items() if key not in of_files})
    assert facts[0] == facts[1]


def test_training_killed_and_resumed_equals_an_uninterrupted_one(tiny_config, tmp_path, ragx, kill_when):
    """The two live in different processes, so that nothing may hang on the order of a set either."""
    path = tiny_config("causal", finetune={**TRAINING, "lora": LORA})
    killed = load_config(path, [f"output_dir={tmp_path / 'killed'}"])
    whole = load_config(path, [f"output_dir={tmp_path / 'whole'}"])
    for config in (killed, whole):
        build_index(config)
    metrics = killed.run_dir / "training" / "metrics.jsonl"
    last = killed.run_dir / "training" / "checkpoints" / "last" / "manifest.json"
    arguments = ["finetune", "-c", path, "--set", f"output_dir={tmp_path / 'killed'}"]
    kill_when(lambda: len(lines_of(metrics)) >= 6 and last.is_file(), *arguments)
    assert 6 <= len(lines_of(metrics)) < 24 + 9 and not (killed.run_dir / "model").exists()
    ragx(*arguments, "--resume")
    finetune(whole)
    assert len(lines_of(metrics)) == 24 + 9
    assert_same_training(killed, whole)


@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize(("kind", "lora"), [("causal", LORA), ("t5", False)])
def test_training_stopped_after_any_step_goes_on_exactly(kind, lora, stop, tiny_config, stopped_and_whole):
    """The checkpoint is that of the step before `stop`; step 3 ends an epoch with a look at the dev set."""
    path = tiny_config(kind, finetune={**TRAINING, "epochs": 3, "lora": lora})
    stopped, whole = stopped_and_whole(path, stop)
    assert_same_training(stopped, whole)


def test_resume_refuses_another_plan_and_keeps_the_checkpoint(tiny_config):
    path = tiny_config("t5", finetune=TRAINING)
    config = load_config(path)
    build_index(config)
    last = config.run_dir / "training" / "checkpoints" / "last" / "manifest.json"

    def stopping(what, done, total):
        if last.is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config, progress=stopping)
    with pytest.raises(ArtifactError, match="another configuration"):
        finetune(load_config(path, ["finetune.learning_rate=1e-3"]), resume=True)
    assert last.is_file()


@pytest.fixture
def long_corpus(tmp_path):
    """Two hundred documents of three hundred words: a second or two of work for a tiny encoder, one shard at a time."""
    words = ["kiln", "clay", "wheel", "glaze", "river", "market", "dog", "school", "train", "bread", "song", "museum"]
    rows = [
        {"id": f"d{n}", "title": f"Paper {n}", "text": " ".join(words[(n * i) % 12] + str(i % 7) for i in range(300))}
        for n in range(200)
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(config):
    index = open_index(config)
    return index.all_vectors(), index.all_passages()


def test_interrupted_index_goes_on_and_equals_an_uninterrupted_one(
    long_corpus, tiny_config, tmp_path, kill_when, monkeypatch
):
    path = tiny_config(corpus={"paths": [str(long_corpus)]}, passages={"size": 60}, index={"shard_size": 4})
    killed = load_config(path, [f"output_dir={tmp_path / 'killed'}"])
    building = killed.run_dir / "index" / ".building"
    kill_when(
        lambda: len(list(building.glob("shard-*.safetensors"))) >= 5,
        *("index", "-c", path, "--set", f"output_dir={tmp_path / 'killed'}"),
    )
    made = len(list(building.glob("shard-*.safetensors")))
    assert 5 <= made < 250 and not (killed.run_dir / "index" / "CURRENT").exists()

    calls = []
    own = Encoder.encode_tokens

    def counted(self, tokens, **options):
        calls.append(len(tokens.texts))
        return own(self, tokens, **options)

    monkeypatch.setattr(Encoder, "encode_tokens", counted)
    assert build_index(killed)["passages"] == 1000
    assert len(calls) == 250 - made
    assert not building.exists()
    monkeypatch.undo()
    whole = load_config(path, [f"output_dir={tmp_path / 'whole'}"])
    build_index(whole)
    (vectors, passages), (expected_vectors, expected_passages) = contents(killed), contents(whole)
    assert np.array_equal(vectors, expected_vectors)
    assert passages == expected_passages
    question = "kiln3 wheel5"
    ours, theirs = (open_index(c).candidates(None, [question], "lexical", 20) for c in (killed, whole))
    assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.lexical, theirs.lexical)


def test_killed_build_leaves_the_old_generation_usable(long_corpus, tiny_config, kill_when):
    path = tiny_config(corpus={"paths": [str(long_corpus)]}, passages={"size": 100}, index={"shard_size": 4})
    old = load_config(path)
    build_index(old)
    vectors, passages = contents(old)
    answer = ask(old, "kiln3 wheel5")
    index = old.run_dir / "index"
    change = ("--set", "passages.size=60")
    kill_when(lambda: len(list((index / ".building").glob("shard-*.safetensors"))) >= 3, "index", "-c", path, *change)
    assert (index / "CURRENT").read_text(encoding="utf-8").strip() == "v1"
    again, found = contents(old)
    assert np.array_equal(again, vectors) and found == passages
    assert ask(old, "kiln3 wheel5") == answer
    new = load_config(path, [change[1]])
    assert build_index(new)["passages"] == 1000
    assert (index / "CURRENT").read_text(encoding="utf-8").strip() == "v2"
    assert ask(new, "kiln3 wheel5").hits
