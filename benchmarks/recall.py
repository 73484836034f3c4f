"""Recall of BM25, TF-IDF, dense and hybrid retrieval, untrained, on a set of questions: one Markdown row each.

    python -m benchmarks.recall --corpus FILE.jsonl --questions FILE.jsonl

MiniLM in bfloat16, passages of 100 words, the prior a training starts from; recall@k is the share of questions with a
passage of a gold document among the first k, with its 95 % percentile bootstrap over questions.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.index import MINILM
from ragx.corpus.passages import passages_of
from ragx.corpus.questions import read_examples
from ragx.corpus.readers import Fields, read_documents
from ragx.index.build import Base, Settings, Source, build, facts_of
from ragx.index.encoder import BATCH_TOKENS, Encoder, EncoderSettings
from ragx.index.kinds import Wanted
from ragx.index.lexical import Lexical
from ragx.index.store import Index, Mode
from ragx.models import resolve
from ragx.rag.retriever import RetrievalSettings, Retriever, starting_prior
from ragx.records import no_progress

CUTS = (1, 5, 20)
ROWS: tuple[tuple[Lexical, tuple[Mode, ...]], ...] = (
    ("bm25", ("dense", "lexical", "hybrid")),
    ("tfidf", ("lexical", "hybrid")),
)


def interval(hits: list[bool]) -> str:
    """Mean and 95 % interval."""
    draws = np.random.default_rng(13).choice(np.array(hits, float), size=(1000, len(hits))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{np.mean(hits):.3f} ({low:.3f} - {high:.3f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    given = parser.parse_args()
    documents = read_documents([str(given.corpus)], Fields("id", "title", "text"), "fail")
    passages = list(passages_of(documents, size=100))
    examples = read_examples(str(given.questions), "fail")
    encoder = Encoder(resolve(MINILM, sha256=None, allow_pickle=False), EncoderSettings(), role="document")
    print(f"{len(passages)} passages, {len(examples)} questions")
    print("| mode | lexical | " + " | ".join(f"recall@{k}" for k in CUTS) + " | ms a question |")
    print("|---" * (len(CUTS) + 3) + "|")
    base = None
    with tempfile.TemporaryDirectory() as scratch:
        for lexical, modes in ROWS:
            settings = Settings(Wanted(), lexical, BATCH_TOKENS, 2048, torch.bfloat16)
            facts = facts_of(Source({}, {}, {}), encoder, settings)
            generation = build(Path(scratch), facts, settings, iter(passages), encoder, no_progress, base=base)
            base = Base(generation, (len(passages), encoder.dimension))
            index = Index(Path(scratch), "ragx index")
            for mode in modes:
                prior = starting_prior(encoder, mode)
                retriever = Retriever(encoder, prior, index, RetrievalSettings(mode, max(CUTS), 50))
                started = time.perf_counter()
                with torch.no_grad():
                    found = retriever([example.question for example in examples]).passages
                each = 1e3 * (time.perf_counter() - started) / len(examples)
                right = [[p.document_id in e.doc_ids for p in row] for row, e in zip(found, examples, strict=True)]
                recalls = " | ".join(interval([any(row[:k]) for row in right]) for k in CUTS)
                print(f"| {mode} | {'' if mode == 'dense' else lexical} | {recalls} | {each:.1f} |", flush=True)


if __name__ == "__main__":
    main()
