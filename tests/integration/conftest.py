"""A process that is killed, a tiny RAG checkpoint, and what a run left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def _environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _command(processes):
    """What starts ragx in one process, or in several that torchrun joins."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(several if processes > 1 else []), "-m", "ragx"]


@pytest.fixture
def stopped_and_whole(tmp_path):
    """stopped_and_whole(path, stop) -> (a run stopped after `stop` of its 9 steps and resumed, one never stopped)"""
    from ragx import build_index, finetune, load_config

    def run(path, stop):
        stopped, whole = (load_config(path, [f"output_dir={tmp_path / name}"]) for name in ("stopped", "whole"))

        def stopping(what, done, total):
            if total == 9 and done == stop:
                raise KeyboardInterrupt

        for config in (stopped, whole):
            build_index(config)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, progress=stopping)
        finetune(stopped, resume=True)
        finetune(whole)
        return stopped, whole

    return run


@pytest.fixture
def ragx():
    """ragx("index", "-c", path): the command line in a process of its own (with processes=2, in two that torchrun
    starts), finished; its output on failure."""

    def run(*arguments, processes=1):
        command = [*_command(processes), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=170, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def _kill(process):
    """A process and those it started, which for torchrun live in sessions of their own."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()


@pytest.fixture
def kill_when():
    """kill_when(condition, "index", "-c", path): start the command, SIGKILL it once `condition()` holds; of several
    processes all at once, as when a machine goes down."""

    def run(condition, *arguments, processes=1):
        command = [*_command(processes), *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        try:
            limit = time.monotonic() + 120
            while not condition():
                assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
                assert time.monotonic() < limit, "the moment to kill it never came"
                time.sleep(0.002)
            _kill(process)
        finally:
            if process.poll() is None:
                _kill(process)
        assert process.returncode == -signal.SIGKILL

    return run


@pytest.fixture
def read_metrics():
    """read_metrics(run folder): the lines of metrics.jsonl."""

    def read(folder: Path, split="train"):
        lines = (folder / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["split"] == split]

    return read


@pytest.fixture
def tiny_rag(tiny_models, draw_dpr, save_rag, tmp_path, monkeypatch):
    """tiny_rag("sequence", "bart") -> folders of a RAG checkpoint and of its DPR passage tower."""
    import transformers

    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))

    def make(marginal, generator="bart"):
        source = getattr(tiny_models, generator)
        writer = transformers.AutoModelForSeq2SeqLM.from_pretrained(source)
        letters = transformers.AutoTokenizer.from_pretrained(source)
        questions, passages, words = draw_dpr(17, initializer_range=0.1)
        checkpoint, tower = tmp_path / f"rag-{marginal}", tmp_path / "ctx"
        save_rag(checkpoint, marginal, (questions, words), (writer, letters))
        passages.save_pretrained(tower)
        words.save_pretrained(tower)
        return checkpoint, tower

    return make
