"""Several processes that torchrun starts: one process's losses, one writer, and an end when one of them dies.

Losses of two processes are compared with those of one on the same batches to 1e-5 in float32: the sums of gradients run
in another order, and Adam carries such differences on.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from ragx import build_index, finetune, load_config

TRAINING = {
    "epochs": 2,
    "batch_size": 5,
    "micro_batch_size": 2,
    "checkpoint_steps": 2,
    "patience": 100,
    "learning_rate": 1e-3,
    "retriever_learning_rate": 1e-4,
    "warmup_epochs": 1,
}
FIGURES = ("nll_per_token", "nll", "p_gold", "unique", "prior_entropy", "kept")


def lines_of(run):
    path = run / "training" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def assert_same_figures(found, expected):
    assert [(line["step"], line["split"], line["questions"]) for line in found] == [
        (line["step"], line["split"], line["questions"]) for line in expected
    ]
    for one, two in zip(found, expected, strict=True):
        for name in FIGURES:
            assert one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-5), (one["step"], one["split"], name)


def two_runs(path, tmp_path):
    configs = [load_config(path, [f"output_dir={tmp_path / name}"]) for name in ("one", "two")]
    for config in configs:
        build_index(config)
    return configs


OPTIONS = {
    "posterior_mass": 0.9,
    "reading_epochs": 1,
    "cross_fit": 2,
    "distractors": 1,
    "distillation": 0.5,
    "answers": "drawn",
}


@pytest.mark.parametrize(
    ("kind", "options", "count"),
    [("causal", {"posterior_mass": 1.0, "reading_epochs": 1, "question_loss": 0.5}, 2), ("t5", OPTIONS, 3)],
    ids=["lora", "pruned"],
)
def test_losses_of_one_process(kind, options, count, tiny_config, tmp_path, ragx):
    """12 questions in batches of 5, the last of 2: shares are uneven, and one of three processes may have none."""
    path = tiny_config(kind, retrieval={"top_k": 3}, finetune={**TRAINING, **options})
    one, two = two_runs(path, tmp_path)
    finetune(one)
    done = ragx("finetune", "-c", path, "--set", f"output_dir={tmp_path / 'two'}", "--json", processes=count)
    (printed,) = done.stdout.splitlines()
    epochs = TRAINING["epochs"] + options.get("reading_epochs", 0)
    assert json.loads(printed)["steps"] == 3 * epochs
    assert f"by {count} processes" in " ".join(done.stderr.split())
    assert done.stderr.count("training 0.0M weights") == 1
    assert_same_figures(lines_of(two.run_dir), lines_of(one.run_dir))
    assert [line["questions"] for line in lines_of(one.run_dir) if line["split"] == "train"] == [5, 5, 2] * epochs
    written = [{p.relative_to(c.run_dir).as_posix() for p in c.run_dir.glob("[mt]*/**/*")} for c in (one, two)]
    assert written[0] == written[1]


def test_two_processes_killed_and_resumed(tiny_config, tmp_path, ragx, kill_when):
    """Resumed by two, byte for byte what two undisturbed ones leave; resumed by one, the same losses."""
    path = tiny_config("causal", finetune={**TRAINING, "epochs": 6, "checkpoint_steps": 1})
    whole, killed = two_runs(path, tmp_path)
    last = killed.run_dir / "training" / "checkpoints" / "last" / "manifest.json"

    def command(name):
        return "finetune", "-c", path, "--set", f"output_dir={tmp_path / name}"

    kill_when(lambda: len(lines_of(killed.run_dir)) >= 6 and last.is_file(), *command("two"), processes=2)
    assert 6 <= len(lines_of(killed.run_dir)) < 6 * 3 + 7 and not (killed.run_dir / "model").exists()
    shutil.copytree(tmp_path / "two", tmp_path / "copy")
    ragx(*command("copy"), "--resume")
    ragx(*command("two"), "--resume", processes=2)
    ragx(*command("one"), processes=2)
    expected = lines_of(whole.run_dir)
    assert lines_of(killed.run_dir) == expected
    names = [p.relative_to(whole.run_dir) for p in sorted((whole.run_dir / "model").rglob("*.safetensors"))]
    assert len(names) == 2
    assert all((killed.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes() for name in names)
    assert_same_figures(lines_of(tmp_path / "copy" / "tiny"), expected)


def test_when_one_process_is_killed_all_end_and_the_checkpoint_is_good(tiny_config, tmp_path, ragx):
    path = tiny_config("causal", finetune={**TRAINING, "epochs": 40, "checkpoint_steps": 1})
    config = load_config(path)
    build_index(config)
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ragx", "finetune"]
    process = subprocess.Popen(
        [sys.executable, *arguments, "-c", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    limit = time.monotonic() + 120
    while len(lines_of(config.run_dir)) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    (second,) = [one for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1"]
    second.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "this is a bug" not in errors
    assert not (config.run_dir / "model").exists()
    ragx("finetune", "-c", path, "--resume", "--set", "finetune.epochs=40")
    assert (config.run_dir / "model").is_dir()


TRAIN_AND_SCORE = (
    "import sys, ragx; c = ragx.load_config(sys.argv[1], [sys.argv[2]]); ragx.finetune(c); ragx.evaluate(c)"
)
SCORE = (
    "import sys, ragx; c = ragx.load_config(sys.argv[1], [sys.argv[2], 'eval.cache=false']); "
    "ragx.evaluate(c, which='tuned')"
)


def predicted(code, path, config, *, hash_seed, threads):
    """The predictions that another process writes."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", code, str(path), f"output_dir={config.output_dir}"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=170)
    return (config.run_dir / "eval" / "test.tuned.predictions.jsonl").read_bytes()


def backwards(tree):
    """A mapping with its keys, and those of mappings in it, in the opposite order."""
    return {key: backwards(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree


def test_hash_seed_threads_and_the_order_of_keys_change_no_prediction(tiny_config, tiny_corpus, tmp_path):
    path = tiny_config("causal", finetune={**TRAINING, "epochs": 1})
    one, two = two_runs(path, tmp_path)
    found = predicted(TRAIN_AND_SCORE, path, one, hash_seed=1, threads=1)
    assert found.count(b"\n") == 4
    assert predicted(TRAIN_AND_SCORE, path, two, hash_seed=2, threads=1) == found

    path.write_text(yaml.safe_dump(backwards(yaml.safe_load(path.read_text("utf-8"))), sort_keys=False), "utf-8")
    rows = [json.loads(line) for line in tiny_corpus.test.read_text("utf-8").splitlines()]
    tiny_corpus.test.write_text("".join(f"{json.dumps(backwards(row))}\n" for row in rows), "utf-8")
    assert list(backwards(rows[0])) == list(rows[0])[::-1] != list(rows[0])
    assert predicted(SCORE, path, two, hash_seed=3, threads=2) == found


def test_an_error_of_all_is_told_by_each_with_its_number(tiny_config, cli, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    path = tiny_config()
    build_index(load_config(path))
    done = cli("finetune", "-q", "-c", path)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("ragx, process 1: accelerate's FSDP mode is not supported")
