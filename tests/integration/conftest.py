"""A process that is killed, a tiny RAG checkpoint, and what a run left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_thread(request):
    """Tiny matrices gain nothing from threads, and lose much where cores are shared."""
    import torch

    before = torch.get_num_threads()
    if not request.node.get_closest_marker("slow"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
def tiny_rag(tiny_models, tmp_path, monkeypatch):
    """tiny_rag("sequence") -> folders of a RagSequenceForGeneration (DPR and BART) and of its DPR passage tower."""
    import torch
    import transformers

    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))

    def make(marginal):
        words = transformers.AutoTokenizer.from_pretrained(tiny_models.encoder)
        config = transformers.DPRConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=300,
            initializer_range=0.1,
        )
        with torch.random.fork_rng():
            torch.manual_seed(17)
            questions, passages = transformers.DPRQuestionEncoder(config), transformers.DPRContextEncoder(config)
        writer = transformers.AutoModelForSeq2SeqLM.from_pretrained(tiny_models.bart)
        kind = {"sequence": transformers.RagSequenceForGeneration, "token": transformers.RagTokenForGeneration}[
            marginal
        ]
        joint = transformers.RagConfig.from_question_encoder_generator_configs(config, writer.config, n_docs=5)
        checkpoint, tower = tmp_path / f"rag-{marginal}", tmp_path / "ctx"
        kind(config=joint, question_encoder=questions, generator=writer).save_pretrained(checkpoint)
        words.save_pretrained(checkpoint / "question_encoder_tokenizer")
        transformers.AutoTokenizer.from_pretrained(tiny_models.bart).save_pretrained(checkpoint / "generator_tokenizer")
        passages.save_pretrained(tower)
        words.save_pretrained(tower)
        return checkpoint, tower

    return make
