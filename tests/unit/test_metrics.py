"""ragx.evaluation.metrics: every metric by hand; names that round-trip."""

import math

import pytest

from ragx.errors import ConfigError
from ragx.evaluation.metrics import Outcome, exact_match, f1, parse_metrics
from ragx.records import Example


@pytest.mark.parametrize(
    ("answer", "references", "em", "overlap"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("black cat", ["cat", "dog"], 0, 2 / 3),
        ("cat", ["dog", "black cat"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),
        ("the", ["cat"], 0, 0),
    ],
)
def test_em_and_f1(answer, references, em, overlap):
    assert exact_match(answer, references) == em
    assert f1(answer, references) == pytest.approx(overlap)


def score(name, documents="", gold=(), holds=(), answer="x", nll=0.0, tokens=1):
    (metric,) = parse_metrics([name])
    outcome = Outcome(answer, tuple(documents), tuple(holds or [False] * len(documents)), nll, tokens)
    return metric.score(outcome, Example("q", "?", ("x",), tuple(gold)))


def test_nll_is_per_token():
    assert score("nll", nll=6.0, tokens=3) == 2.0


def test_answer_metrics_look_at_the_answer():
    assert (score("em", answer="x"), score("f1", answer="x y")) == (1.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("name", "documents", "gold", "value"),
    [
        ("recall@1", "abc", "a", 1),
        ("recall@1", "abc", "b", 0),
        ("recall@2", "abc", "b", 1),
        ("recall@2", "aab", "b", 0),
        ("recall@3", "abc", "cz", 0.5),
        ("recall@9", "abc", "abc", 1),
        ("mrr@3", "abc", "c", 1 / 3),
        ("mrr@3", "aac", "c", 1 / 2),
        ("mrr@2", "abc", "c", 0),
        ("ndcg@3", "abc", "b", 1 / math.log2(3)),
        ("ndcg@3", "abc", "ab", 1),
        ("recall@5", "", "a", 0),
    ],
)
def test_retrieval_by_gold_documents(name, documents, gold, value):
    assert score(name, documents, gold) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "holds", "value"),
    [
        ("recall@2", [False, True, True], 1),
        ("recall@1", [False, True, True], 0),
        ("mrr@3", [False, True, True], 1 / 2),
        ("recall@3", [False, False, False], 0),
        ("mrr@3", [False, False, False], 0),
    ],
)
def test_without_gold_documents_a_passage_with_the_answer_counts(name, holds, value):
    assert score(name, "abc", holds=holds) == pytest.approx(value)


@pytest.mark.parametrize("name", ["em", "f1", "nll", "recall@1", "recall@20", "mrr@10", "ndcg@10"])
def test_names_round_trip(name):
    (metric,) = parse_metrics([name])
    assert metric.name == name
    assert metric.cutoff == (int(name.partition("@")[2]) if "@" in name else None)
    assert metric.lower_is_better == (name == "nll")


def test_unknown_names_are_reported_all_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        parse_metrics(["F1", "recal@5", "em", "recall", "recall@0", "zzzz"])
    problems = caught.value.problems
    assert [problem.split("'")[1] for problem in problems] == ["F1", "recal@5", "recall", "recall@0", "zzzz"]
    assert problems[0] == "eval.metrics: unknown metric 'F1'; did you mean 'f1'?"
    assert "known: em, f1, nll" in problems[-1]
