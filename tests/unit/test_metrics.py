"""ragx.evaluation.metrics and its families: every metric by hand; names that round-trip."""

import math

import pytest

from ragx.errors import ConfigError, DataError
from ragx.evaluation.matching import exact_match, f1
from ragx.evaluation.metrics import KNOWN, parse_metrics, require_facts, require_scorable
from ragx.evaluation.text import holds, loose, units, words
from ragx.records import Evidence, Example, Prediction


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


@pytest.mark.parametrize(
    ("answer", "reference", "em", "overlap"),
    [
        ("東京都", "東京", 0, 4 / 5),
        ("東京。", "東京", 1, 1),
        ("東 京", "東京", 1, 1),
        ("ｘ東京", "東京", 0, 4 / 5),
        ("1950年", "1950 年", 1, 1),
        ("スーパー", "スープ", 0, 4 / 7),
        ("กรุงเทพ", "กรุงเทพ", 1, 1),
        ("New York", "紐約", 0, 0),
    ],
)
def test_scripts_without_spaces_count_characters(answer, reference, em, overlap):
    prediction = answered(answer, reference)
    assert one("em", prediction) == em
    assert one("f1", prediction) == pytest.approx(overlap)
    assert one("f1", prediction, tokens="words") in (0.0, 1.0, pytest.approx(2 / 3))


def test_characters_by_the_references_not_by_the_answer():
    assert units("東京 tower", by_character=False) == ["東京", "tower"]
    assert one("f1", answered("東京 tower", "tower")) == pytest.approx(2 / 3)


def test_words_of_every_script():
    assert words("Ünder 東京, Мир! don't") == ["ünder", "東", "京", "мир", "don", "t"]


@pytest.mark.parametrize(
    ("one", "two"), [("Café", "cafe"), ("10 %", "10%"), ("St. John's", "st johns"), ("x-y", "x y")]
)
def test_loose_form(one, two):
    assert loose(one) == loose(two)


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [("in Rome.", "Rome", True), ("Romeo", "Rome", False), ("我住在東京。", "東京", True), ("東", "東京", False)],
)
def test_holds(text, answer, held):
    assert holds(text, [answer]) == held


def answered(answer, *references, **facts):
    return Prediction("q", "?", references, answer, **facts)


def one(name, prediction, tokens="auto"):
    (metric,) = parse_metrics([name], tokens)
    (value,) = metric.measure([prediction]).scores
    return value


def score(name, documents="", gold=(), held=(), answer="x", nll=0.0, tokens=1):
    flags = held or [False] * len(documents)
    hits = tuple(Evidence(f"{d}#{n}", d, held, held) for n, (d, held) in enumerate(zip(documents, flags, strict=True)))
    facts = {"doc_ids": tuple(gold), "hits": hits, "reference_nll": nll, "reference_tokens": tokens}
    return one(name, answered(answer, "x", **facts))


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
        ("hit@3", "abc", "cz", 1),
        ("hit@2", "abc", "cz", 0),
        ("mrr@3", "abc", "c", 1 / 3),
        ("mrr@3", "aac", "c", 1 / 2),
        ("mrr@2", "abc", "c", 0),
        ("map@3", "abc", "ac", (1 + 2 / 3) / 2),
        ("ndcg@3", "abc", "b", 1 / math.log2(3)),
        ("ndcg@3", "abc", "ab", 1),
        ("recall@5", "", "a", 0),
        ("rprecision", "abc", "ab", 1),
        ("rprecision", "abc", "ac", 0.5),
        ("rprecision", "aab", "b", 0),
        ("rprecision", "", "b", 0),
    ],
)
def test_retrieval_by_gold_documents(name, documents, gold, value):
    assert score(name, documents, gold) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "held", "value"),
    [
        ("recall@2", [False, True, True], 1),
        ("recall@1", [False, True, True], 0),
        ("hit@2", [False, True, True], 1),
        ("mrr@3", [False, True, True], 1 / 2),
        ("recall@3", [False, False, False], 0),
        ("mrr@3", [False, False, False], 0),
    ],
)
def test_without_gold_documents_a_passage_with_the_answer_counts(name, held, value):
    assert score(name, "abc", held=held) == pytest.approx(value)


def whole(name, predictions):
    import numpy as np

    (metric,) = parse_metrics([name])
    return float(metric.measure(predictions).statistic(np.ones((1, len(predictions))))[0])


def sure(*pairs):
    """Predictions of (confidence, whether right)."""
    return [answered("x" if right else "y", "x", log_probability=math.log(p)) for p, right in pairs]


@pytest.mark.parametrize(
    ("name", "pairs", "value"),
    [
        ("ece", [(0.95, True), (0.95, True)], 0.05),
        ("ece", [(0.95, True), (0.95, False)], 0.45),
        ("ece", [(0.95, True), (0.15, False)], (0.05 + 0.15) / 2),
        ("ece", [(1.0, True)], 0.0),
        ("selective_em@50", [(0.9, True), (0.2, False)], 1.0),
        ("selective_em@100", [(0.9, True), (0.2, False)], 0.5),
        ("selective_em@50", [(0.9, False), (0.2, True)], 0.0),
        ("selective_em@75", [(0.9, True), (0.2, False)], 1 / 1.5),
        ("aurc", [(0.9, True), (0.2, False)], (0 + 1 / 2) / 2),
        ("aurc", [(0.9, False), (0.2, True)], (1 + 1 / 2) / 2),
    ],
)
def test_confidence_by_hand(name, pairs, value):
    assert whole(name, sure(*pairs)) == pytest.approx(value)


def test_statistics_count_questions_as_often_as_they_are_drawn():
    import numpy as np

    few = sure((0.9, True), (0.8, False), (0.3, True), (0.25, False))
    few = [
        Prediction(**{**{f: getattr(p, f) for f in p.__slots__}, "reference_nll": n, "reference_tokens": n + 1})
        for n, p in enumerate(few)
    ]
    counts = [2, 0, 3, 1]
    drawn = [p for p, count in zip(few, counts, strict=True) for _ in range(count)]
    for name in ("em", "f1", "nll", "rouge1", "rougeL", "bleu", "chrf", "chrf++", "ece", "selective_em@50"):
        (metric,) = parse_metrics([name])
        at_once = metric.measure(few).statistic(np.array([counts], dtype=float))[0]
        assert at_once == pytest.approx(whole(name, drawn)), name


@pytest.mark.parametrize("name", [*KNOWN, "recall@1", "recall@20", "mrr@10", "ndcg@10", "selective_em@100"])
def test_names_round_trip(name):
    (metric,) = parse_metrics([name])
    assert metric.name == name
    if "@" in name and not name.startswith("selective"):
        assert metric.cutoff == int(name.partition("@")[2])
    assert metric.lower_is_better == (name in ("nll", "ece", "aurc", "latency_p95"))


@pytest.mark.parametrize(("name", "value"), [("latency_p50", 2.0), ("latency_p95", 4.0), ("latency_p1", 1.0)])
def test_latency_is_a_nearest_rank_percentile(name, value):
    assert whole(name, [answered("x", "x", seconds=seconds) for seconds in (3.0, 1.0, 4.0, 2.0)]) == value


def test_latency_of_resamples():
    import numpy as np

    (metric,) = parse_metrics(["latency_p50"])
    found = metric.measure([answered("x", "x", seconds=seconds) for seconds in (3.0, 1.0, 2.0)])
    assert list(found.statistic(np.array([[3.0, 0, 0], [0, 2, 1], [1, 1, 1]]))) == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("name", ["latency", "latency_95", "latency_p0", "latency_p100", "latency_p9.5"])
def test_other_percentiles_are_unknown(name):
    with pytest.raises(ConfigError, match="did you mean 'latency_p95'"):
        parse_metrics([name])


def test_unknown_names_are_reported_all_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        parse_metrics(["F1", "recal@5", "em", "recall", "recall@0", "rougel", "selective_em@101", "qqqq"])
    problems = caught.value.problems
    named = [problem.split("'")[1] for problem in problems]
    assert named == ["F1", "recal@5", "recall", "recall@0", "rougel", "selective_em@101", "qqqq"]
    assert problems[0] == "eval.metrics: unknown metric 'F1'; did you mean 'f1'?"
    assert problems[4] == "eval.metrics: unknown metric 'rougel'; did you mean 'rougeL'?"
    assert "known: em, f1, nll" in problems[-1]


def test_a_metric_that_stands_twice():
    with pytest.raises(ConfigError, match=r"eval\.metrics: em stands there twice"):
        parse_metrics(["em", "f1", "em"])


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        (("The", "..."), "normalise to nothing ('The')"),
        (("x" * 100_001,), "100001 characters"),
    ],
)
def test_references_that_cannot_be_judged(answers, named):
    examples = [Example("q1", "?", ("fine",)), Example("q2", "?", answers)]
    metrics = parse_metrics(["em"])
    with pytest.raises(DataError) as caught:
        require_scorable(examples, metrics, "auto", "test.jsonl")
    assert "test.jsonl" in str(caught.value) and "q2" in str(caught.value) and named in str(caught.value)


def test_references_of_nothing_are_no_matter_to_other_metrics():
    require_scorable([Example("q", "?", ("The",))], parse_metrics(["recall@1", "chrf"]), "auto", "x")


@pytest.mark.parametrize(
    ("name", "facts", "named"),
    [
        ("nll", {}, "question q has no reference_nll in its prediction; leave nll out"),
        ("ece", {}, "question q has no log_probability"),
        ("latency_p95", {}, "question q has no seconds in its prediction; leave latency_p95 out"),
        ("latency_p95", {"missing": True}, "question q has no prediction; leave latency_p95 out"),
        ("recall@5", {}, "question q has no hits"),
        ("nll", {"missing": True, "hits": ()}, "question q has no prediction; leave nll out"),
        ("recall@30", {"hits": tuple(Evidence(f"d#{n}", "d", False, False) for n in range(20))}, "holds 20 passages"),
    ],
)
def test_facts_that_are_missing(name, facts, named):
    with pytest.raises(DataError, match=named):
        require_facts(parse_metrics([name]), [answered("x", "y", **facts)], "p.jsonl")


def test_missing_predictions_count_as_wrong():
    metrics = parse_metrics(["em", "recall@5", "selective_em@50", "ece", "bleu", "rougeL"])
    gone = [answered("", "x", missing=True, hits=())]
    require_facts(metrics, gone, "p.jsonl")
    assert [whole(metric.name, gone) for metric in metrics] == [0, 0, 0, 0, 0, 0]
