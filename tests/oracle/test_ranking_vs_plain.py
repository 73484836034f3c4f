"""recall@k, mrr@k and ndcg@k against their textbook formulas, over random runs with repeated documents.

The figures are a few float64 operations: equal to 1e-9.
"""

import math
import random

import pytest

from ragx.evaluation.metrics import parse_metrics
from ragx.records import Evidence, Prediction


def plain(kind, cutoff, ranked, gold):
    """`ranked`: documents of the first `cutoff` passages, each at the place of its best passage."""
    relevant = [rank for rank, document in enumerate(ranked, start=1) if document in gold]
    if kind == "recall":
        return len(relevant) / len(gold)
    if kind == "mrr":
        return 1 / relevant[0] if relevant else 0.0
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(gold), cutoff) + 1))
    return sum(1 / math.log2(rank + 1) for rank in relevant) / best


def score(metric, documents, gold=(), holds=()):
    flags = holds or [False] * len(documents)
    hits = tuple(Evidence(d, d, held, held) for d, held in zip(documents, flags, strict=True))
    (value,) = metric.measure([Prediction("q", "?", ("x",), "x", doc_ids=tuple(gold), hits=hits)]).scores
    return value


def without_repeats(documents):
    return [document for place, document in enumerate(documents) if document not in documents[:place]]


@pytest.mark.parametrize("seed", range(25))
def test_gold_documents(seed):
    source = random.Random(seed)
    names = [f"d{n}" for n in range(12)]
    documents = tuple(source.choice(names) for _ in range(source.randint(1, 20)))
    gold = tuple(source.sample(names, source.randint(1, 4)))
    for kind in ("recall", "mrr", "ndcg"):
        for cutoff in (1, 2, 5, 10, 20):
            (metric,) = parse_metrics([f"{kind}@{cutoff}"])
            expected = plain(kind, cutoff, without_repeats(documents[:cutoff]), gold)
            assert score(metric, documents, gold) == pytest.approx(expected, abs=1e-9), (metric.name, documents, gold)


@pytest.mark.parametrize("seed", range(25))
def test_without_gold_documents_the_first_passage_with_an_answer_counts(seed):
    source = random.Random(seed)
    holds = tuple(source.random() < 0.2 for _ in range(source.randint(1, 20)))
    for cutoff in (1, 2, 5, 20):
        first = next((rank for rank, found in enumerate(holds[:cutoff], start=1) if found), None)
        expected = {
            "recall": float(first is not None),
            "mrr": 1 / first if first else 0.0,
            "ndcg": 1 / math.log2(first + 1) if first else 0.0,
        }
        for kind, value in expected.items():
            (metric,) = parse_metrics([f"{kind}@{cutoff}"])
            assert score(metric, ["same"] * len(holds), holds=holds) == pytest.approx(value, abs=1e-9), (
                metric.name,
                holds,
            )


def test_ten_documents_keep_their_places():
    """Ids sort as text in some tools (10 before 2); places must not."""
    documents = tuple(f"d{n}" for n in range(1, 13))
    (mrr,) = parse_metrics(["mrr@20"])
    assert [score(mrr, documents, [d]) for d in documents] == pytest.approx([1 / rank for rank in range(1, 13)])
