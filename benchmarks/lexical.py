"""BM25 against TF-IDF on a set of questions: recall of gold documents, build and search time, one Markdown row each.

    python -m benchmarks.lexical --corpus FILE.jsonl --questions FILE.jsonl

Passages of 100 words; recall@k is the share of questions with a passage of a gold document among the first k, with its
95 % percentile bootstrap over questions.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ragx.corpus.passages import passages_of
from ragx.corpus.questions import read_examples
from ragx.corpus.readers import Fields, read_documents
from ragx.index.lexical import Lexical, open_lexical, write_lexical

CUTS = (1, 5, 20)
KINDS: tuple[Lexical, ...] = ("bm25", "tfidf")


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
    print(f"{len(passages)} passages, {len(examples)} questions")
    print("| lexical | " + " | ".join(f"recall@{k}" for k in CUTS) + " | build s | top 20, ms | all scores, ms |")
    print("|---" * (len(CUTS) + 4) + "|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            write_lexical(Path(scratch) / "lexical", kind, passages)
            build = time.perf_counter() - started
            index = open_lexical(Path(scratch) / "lexical", kind, len(passages))
            assert index is not None
            found, top, whole = [], [], []
            for example in examples:
                started = time.perf_counter()
                hits = index.search(example.question, max(CUTS))
                top.append(time.perf_counter() - started)
                started = time.perf_counter()
                index.all_scores(example.question)
                whole.append(time.perf_counter() - started)
                found.append([passages[number].document_id in example.doc_ids for number, _ in hits])
            recalls = " | ".join(interval([any(row[:k]) for row in found]) for k in CUTS)
            milliseconds = [f"{1e3 * statistics.median(each):.1f}" for each in (top, whole)]
            print(f"| {kind} | {recalls} | {build:.1f} | {' | '.join(milliseconds)} |", flush=True)


if __name__ == "__main__":
    main()
