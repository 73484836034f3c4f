"""Peak memory and time of `ragx index` over corpora of growing size, and of opening and searching what it wrote.

    python -m benchmarks.memory [--quick] [--json] [--sizes 100000 1000000]

Synthetic documents of eight words, one passage each, a tiny random encoder made on the spot, BM25, everything else as
by default. Each build, and each opening with a hundred hybrid searches, is a process of its own, whose resident memory
at its highest is the kernel's figure (VmHWM): code, libraries and memory-mapped files count, vectors among them. Each
size is compared with the smallest: `beyond_mib` is the growth of the peak, `time_ratio` that of processor seconds, a
passage for builds and a search for searches.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.common import machine
from ragx import load_config, stages
from ragx.stages.models import open_index

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = 20_000
QUESTIONS = 100


def words() -> list[str]:
    """Made-up words of three to nine letters."""
    dice = random.Random(1)
    return sorted({"".join(dice.choices(LETTERS, k=dice.randint(3, 9))) for _ in range(VOCABULARY)})


def write_encoder(folder: Path) -> None:
    """A BERT of one narrow layer, random weights, one token a word."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *words()]
    tokenizer = transformers.BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(7)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(pieces), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_corpus(path: Path, count: int) -> None:
    """Documents of eight words, few of them frequent and many rare, as in texts."""
    dice, vocabulary = random.Random(2), words()
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(vocabulary))))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(dice.choices(vocabulary, cum_weights=weights, k=8))
            file.write(json.dumps({"id": f"d{number}", "title": f"Note {number}", "text": text}) + "\n")


def work(what: str, config_file: Path) -> dict[str, Any]:
    """What a child does: build the index, or open and search it; its seconds and peak memory."""
    config = load_config(config_file)
    started, busy = time.perf_counter(), time.process_time()
    if what == "build":
        stages.build_index(config)
    else:
        index = open_index(config)
        dice, vocabulary = random.Random(3), words()
        questions = [" ".join(dice.choices(vocabulary, k=4)) for _ in range(QUESTIONS)]
        numbers = [[dice.randrange(index.passages_count)] for _ in questions]
        started, busy = time.perf_counter(), time.process_time()
        for question, number in zip(questions, numbers, strict=True):
            queries = index.all_vectors()[number]
            found = index.candidates(queries, [question], "hybrid", 50)
            index.passages(found.ids[0])
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"seconds": seconds, "cpu_seconds": busy, "mib": kilobytes / 1024}


def child(what: str, config_file: Path) -> dict[str, Any]:
    """`work` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", what, str(config_file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """One JSON line for each size and each of building and searching."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten and twenty thousand passages")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="passages, smallest first")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(work(given.child[0], Path(given.child[1]))))
        return
    least: dict[str, dict[str, Any]] = {}
    for count in [10_000, 20_000] if given.quick else given.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_encoder(folder / "encoder")
            write_corpus(folder / "corpus.jsonl", count)
            lines = "corpus: {paths: [corpus.jsonl]}\ndevice: cpu\nencoder: {model: ./encoder}\n"
            (folder / "ragx.yaml").write_text(lines, encoding="utf-8")
            for what in ("build", "search"):
                found = child(what, folder / "ragx.yaml")
                first = least.setdefault(what, {**found, "passages": count})
                growth = found["cpu_seconds"] / first["cpu_seconds"]
                facts = {
                    "claim": f"memory_{what}",
                    "passages": count,
                    "peak_mib": round(found["mib"]),
                    "beyond_mib": round(found["mib"] - first["mib"]),
                    "vectors_mib": round(count * 32 * 4 / 2**20),
                    "seconds": round(found["seconds"], 2),
                    "cpu_seconds": round(found["cpu_seconds"], 2),
                    "time_ratio": round(growth / (count / first["passages"] if what == "build" else 1), 2),
                    "machine": machine(),
                }
                print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
