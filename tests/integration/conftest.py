"""A process that is killed, a tiny RAG checkpoint, and what a run left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def _environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def ragx():
    """ragx("index", "-c", path): the command line in a process of its own, finished; its output on failure."""

    def run(*arguments):
        command = [sys.executable, "-m", "ragx", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=170, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def kill_when():
    """kill_when(condition, "index", "-c", path): start the command, SIGKILL it once `condition()` holds."""

    def run(condition, *arguments):
        command = [sys.executable, "-m", "ragx", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
        )
        try:
            limit = time.monotonic() + 120
            while not condition():
                assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
                assert time.monotonic() < limit, "the moment to kill it never came"
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
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
