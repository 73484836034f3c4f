"""Recall@5 on test questions of the untuned retriever, after a warm-up of its question side, and of both sides.

    python -m benchmarks.passage_side --corpus FILE.jsonl --train FILE.jsonl --dev FILE.jsonl --test FILE.jsonl

MiniLM in bfloat16, hybrid with BM25; one Markdown row each, with the 95 % interval over questions, and the interval of
the paired difference to the untuned one.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.index import MINILM
from benchmarks.recall import interval
from ragx.corpus.passages import passages_of
from ragx.corpus.questions import read_examples
from ragx.corpus.readers import Fields, read_documents
from ragx.index.build import Settings, Source, build, facts_of
from ragx.index.encoder import BATCH_TOKENS, Encoder, EncoderSettings
from ragx.index.kinds import Wanted
from ragx.index.store import Index
from ragx.models import resolve
from ragx.rag.retriever import RetrievalSettings, Retriever, starting_prior
from ragx.records import Example, no_progress
from ragx.training.processes import Processes
from ragx.training.refresh import refresh
from ragx.training.warmup import WarmupSettings, supervise, warm_up

K = 5


def recalled(retriever: Retriever, examples: list[Example]) -> list[bool]:
    """Whether a passage of a gold document is among the first K, for each question."""
    with torch.no_grad():
        found = [row for e in examples for row in retriever([e.question], K).passages]
    return [any(p.document_id in e.doc_ids for p in row) for e, row in zip(examples, found, strict=True)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "train", "dev", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--questions", type=int, help="training questions")
    parser.add_argument("--size", type=int, default=100, help="words of a passage")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4], help="learning rates")
    parser.add_argument("--mode", choices=("hybrid", "dense"), default="hybrid")
    given = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    passages = list(passages_of(read_documents([given.corpus], Fields("id", "title", "text"), "fail"), size=given.size))
    train, dev, test = (read_examples(path, "fail") for path in (given.train, given.dev, given.test))
    train = train[: given.questions]
    folder = resolve(MINILM, sha256=None, allow_pickle=False)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Encoder(folder, EncoderSettings(), role="document")
        settings = Settings(Wanted(), "bm25", BATCH_TOKENS, 2048, torch.bfloat16)
        build(Path(scratch), facts_of(Source({}, {}, {}), encoder, settings), settings, passages, encoder, no_progress)
        print(f"{len(passages)} passages, {len(train)} / {len(dev)} / {len(test)} questions, {given.mode}")
        print("| what | recall@5 | difference to untuned | warm-up, s | passages anew, s |\n|---|---|---|---|---|")
        start: np.ndarray | None = None
        rows = [("untuned", 0, 0.0), *((f"question side, {r:g}", 1, r) for r in given.rates)]
        for name, sides, rate in [*rows, *((f"both sides, {r:g}", 2, r) for r in given.rates)]:
            questions = Encoder(folder, EncoderSettings(), role="query")
            tied = Encoder(folder, EncoderSettings(), role="document")
            tied.share_weights(questions)
            retrieval = RetrievalSettings(given.mode, K, 50)
            prior = starting_prior(questions, given.mode)
            index = Index(Path(scratch), "ragx index")
            retriever = Retriever(questions, prior, index, retrieval, tied if sides == 2 else None)
            started, renewed = time.perf_counter(), 0.0
            if sides:
                lesson = [supervise(split, passages, neutral=sides == 2) for split in (train, dev)]
                how = WarmupSettings(given.epochs, 32, rate, 1e-2, 0.01, 1.0, 13)
                warm_up(retriever, *lesson, how, no_progress)
            seconds = time.perf_counter() - started
            if sides == 2:
                renewed = refresh(retriever, Processes("cpu"), [], K, whole_below=1.1, seed=13).seconds
            found = np.array(recalled(retriever, test), dtype=float)
            start = found if start is None else start
            draws = np.random.default_rng(13).integers(0, len(test), size=(2000, len(test)))
            low, high = np.percentile((found - start)[draws].mean(axis=1), [2.5, 97.5])
            difference = f"{(found - start).mean():+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"| {name} | {interval(found.tolist())} | {difference} | {seconds:.0f} | {renewed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
