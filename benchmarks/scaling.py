"""How a training step and an answer grow with passages, questions and vocabulary.

    python -m benchmarks.scaling [--quick] [--json] [--device cuda] [--dtype bfloat16]

A BART of 2 + 2 layers of width 256 with random weights. Cost should be linear in K and in the batch size, and the
vocabulary should hardly show in memory. The claims: `scaling_k` and `scaling_batch` are the cost a passage at the
smallest setting over that at the largest; `scaling_vocabulary_memory` is the memory that the step's full logits
[B, K, T, V] alone would take over all that the step takes above its weights at the largest vocabulary.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.common import machine, matrix_peak, peak_mib, print_claim, share_of_peak
from benchmarks.rag_peer import FixedRetriever, Size, bart_generator, questions, random_text
from ragx.rag.model import RagModel

ANSWER = 16


def measure(k: int, batch: int, words: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of a step and of thorough answers, and MiB of a step above weights and gradients; tokens of prompts and
    answers a second of a step, and the share of the measured matrix peak that it computes at."""
    torch.manual_seed(0)
    size = Size(width=256, layers=2, words=words)
    generator = bart_generator(size, ANSWER, device)
    generator.model.to(dtype)
    rows = questions(batch, k, words)
    retriever: Any = FixedRetriever(rows, torch.zeros(batch, k, device=device))
    model = RagModel(retriever, generator, "sequence")
    asked = [row[0][0] for row in rows]
    answers = [random_text(words, ANSWER - 1, torch.Generator().manual_seed(row)) for row in range(batch)]
    for parameter in generator.model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        model(asked, answers).nll.sum().backward()

    def answer() -> None:
        model.answer(asked, decoding="thorough", num_beams=1)

    generator.model.zero_grad(set_to_none=False)
    found: dict[str, float] = {"k": k, "batch": batch, "vocabulary": words, "step_mib": round(peak_mib(step, device))}
    for name, work in (("step_seconds", step), ("answer_seconds", answer)):
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        found[name] = round(statistics.median(seconds), 3)
    tokens = sum(len(generator.template.ids(passage, question)) + ANSWER for row in rows for question, passage in row)
    found["tokens_a_second"] = round(tokens / found["step_seconds"])
    found["share_of_peak"] = share_of_peak(step, found["step_seconds"], matrix_peak(dtype, device=device))
    return found


def main() -> None:
    """Print one JSON line a setting and one a claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the ends of each range only")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of all weights")
    parser.add_argument("--one", help="measure K,B,V and stop: each setting has a process of its own")
    options = parser.parse_args()
    if options.one:
        k, batch, words = map(int, options.one.split(","))
        print(json.dumps(measure(k, batch, words, options.device, getattr(torch, options.dtype))))
        return

    def table(settings: list[tuple[int, int, int]]) -> list[dict[str, float]]:
        found = []
        for setting in settings[:: len(settings) - 1] if options.quick else settings:
            one = ["--one", ",".join(map(str, setting)), "--device", options.device, "--dtype", options.dtype]
            command = [sys.executable, "-m", "benchmarks.scaling", *one]
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            found.append(json.loads(run.stdout))
            print(json.dumps({**found[-1], "machine": machine()}), flush=True)
        return found

    by_k = table([(k, 4, 30_000) for k in (1, 2, 5, 10, 20, 50)])
    by_batch = table([(5, batch, 30_000) for batch in (1, 2, 4, 8, 16, 32)])
    by_words = table([(5, 4, words) for words in (30_000, 60_000, 120_000, 250_000)])
    for claim, rows, size in (("scaling_k", by_k, "k"), ("scaling_batch", by_batch, "batch")):
        small, large = (row["step_seconds"] / row[size] for row in (rows[0], rows[-1]))
        print_claim(claim, (small / large,) * 3, peer="ragx, smallest setting", same_result=True, n=3)
    largest = by_words[-1]
    logits = largest["k"] * largest["batch"] * ANSWER * largest["vocabulary"] * 4 / 2**20
    grown = {"mib_at_30k": by_words[0]["step_mib"], "mib_at_250k": largest["step_mib"], "mib_of_full_logits": logits}
    share = (logits / largest["step_mib"],) * 3
    print_claim("scaling_vocabulary_memory", share, peer="the full logits alone", same_result=True, n=1, **grown)


if __name__ == "__main__":
    main()
