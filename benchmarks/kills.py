"""SIGKILL at random instants over builds and updates of an index, which must never be lost, torn or doubled.

    python -m benchmarks.kills [--kills 200] [--seed 0]

A tiny random encoder, three corpora in turn. After every kill the index in use must open and hold exactly the passages
and vectors of a whole build of one of the corpora; a process that ends first, every tenth at the least, must leave the
index of an undisturbed build: vectors bit for bit, or to 1e-5 after an update, whose batches are others.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from ragx import load_config, stages
from ragx.config import Config
from ragx.index.encoder import Vectors
from ragx.index.store import Index
from ragx.records import Passage

WORDS = ["kiln", "clay", "wheel", "glaze", "river", "market", "dog", "school", "train", "bread", "song", "museum"]
ROUND = 10

Contents = tuple[list[Passage], Vectors]


def write_encoder(folder: Path) -> None:
    """A BERT of two narrow layers, random weights, one token a letter or word."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    tokenizer = transformers.BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(7)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(pieces), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_corpus(path: Path, version: int) -> None:
    """A hundred and twenty documents; versions differ in some of them, in their number and in their order."""
    rows = []
    for number in range(120 + version):
        seed = version if number % 9 == 0 else 0
        words = " ".join(WORDS[(number * step + seed) % 12] + str(step % 7) for step in range(90))
        rows.append({"id": f"d{number}", "title": f"Paper {number}", "text": words})
    random.Random(version).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def contents(config: Config) -> Contents:
    """Passages and vectors of the index in use, its files checked."""
    index = Index(config.run_dir / "index", "ragx index")
    return index.all_passages(), np.array(index.all_vectors())


def same(found: Contents, expected: Contents, tolerance: float) -> bool:
    """Equal passages, and vectors equal to `tolerance`."""
    return found[0] == expected[0] and bool(np.abs(found[1] - expected[1]).max() <= tolerance)


def start(config: Config, update: bool) -> int:
    """The process id of a child that builds."""
    child = os.fork()
    if child == 0:
        try:
            stages.build_index(config, update=update)
        finally:
            os._exit(0)
    return child


def build_slowly(config: Config) -> tuple[Contents, float]:
    """An undisturbed build and its seconds."""
    started = time.perf_counter()
    os.waitpid(start(config, False), 0)
    return contents(config), time.perf_counter() - started


def main() -> None:
    """Kill, look, go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dice = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_encoder(folder / "encoder")
        sections = "corpus: {paths: [corpus.jsonl]}\npassages: {size: 30}\nindex: {shard_size: 16}\ndevice: cpu\n"
        (folder / "ragx.yaml").write_text(sections + "encoder: {model: ./encoder}\ndtype: float32\n", encoding="utf-8")
        config = load_config(folder / "ragx.yaml")
        expected = []
        for version in range(3):
            write_corpus(folder / "corpus.jsonl", version)
            whole, seconds = build_slowly(load_config(folder / "ragx.yaml", [f"name=whole{version}"]))
            expected.append(whole)
        kills = ended = version = done = 0
        updated = False
        write_corpus(folder / "corpus.jsonl", version)
        while kills < given.kills:
            last, update = done % ROUND == ROUND - 1, dice.random() < 0.5
            child = start(config, update)
            if not last:
                time.sleep(dice.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            kills, ended, done = kills + killed, ended + (not killed), done + 1
            updated = updated or update
            if (config.run_dir / "index" / "CURRENT").exists():
                found = contents(config)
                assert any(same(found, whole, 1e-5) for whole in expected), f"torn index after kill {kills}"
            if not killed:
                assert same(found, expected[version], 1e-5 if updated else 0.0), f"another index after kill {kills}"
                version, updated = (version + 1) % 3, False
                write_corpus(folder / "corpus.jsonl", version)
        print(json.dumps({"claim": "kills", "kills": kills, "ended": ended, "lost": 0}))


if __name__ == "__main__":
    main()
