"""Every metric against the tool the field reports it with, on at least 1,000 random questions each.

em, f1: torchmetrics' SQuAD. rouge: rouge-score. bleu, chrf: sacrebleu's corpus and sentence scores. Ranking: trec_eval
by pytrec_eval. ece: scikit-learn's calibration bins. Figures are a few float64 operations: equal to 1e-9 (torchmetrics
counts in float32: 1e-6).
"""

import random
import string

import numpy as np
import pytest

from ragx.evaluation.metrics import parse_metrics
from ragx.records import Evidence, Prediction

CASES = 1000
WORDS = """
the a an The cat sat on mat dog's 1,000 $5 U.S. naïve Straße x-ray -- don't ... (b) 3.14 red green été blue, one. two!
Three? four; the: 'five' "six" Paris London of in river bridge ship captain
""".split()  # noqa: SIM905 - it reads as text


def text(source, least=0, most=9, words=WORDS):
    return " ".join(source.choice(words) for _ in range(source.randint(least, most)))


def near(source, reference):
    """An answer that shares words with a reference, often."""
    kept = [word for word in reference.split() if source.random() < 0.8]
    extra = text(source, 0, 3).split()
    return " ".join(kept + extra if source.random() < 0.5 else extra + kept)


def questions(seed, words=WORDS, most=4):
    source = random.Random(seed)
    found = []
    for number in range(CASES):
        references = tuple(text(source, 1, 12, words) for _ in range(source.randint(1, most)))
        answer = source.choice([near(source, source.choice(references)), text(source, 0, 12, words), references[0]])
        found.append(Prediction(str(number), "?", references, answer))
    return found


def measured(name, predictions):
    (metric,) = parse_metrics([name])
    return metric.measure(predictions)


def figure(found, predictions):
    return float(found.statistic(np.ones((1, len(predictions))))[0])


@pytest.fixture(scope="module")
def squad():
    return pytest.importorskip("torchmetrics.functional.text").squad


@pytest.mark.parametrize("seed", [1, 2])
def test_em_and_f1_vs_torchmetrics_squad(seed, squad):
    predictions = questions(seed)
    em, f1 = measured("em", predictions), measured("f1", predictions)
    for row, prediction in enumerate(predictions):
        answers = {"text": list(prediction.answers), "answer_start": [0] * len(prediction.answers)}
        theirs = squad([{"prediction_text": prediction.answer, "id": "q"}], [{"answers": answers, "id": "q"}])
        assert em.scores[row] == float(theirs["exact_match"]) / 100, prediction
        nothing = not prediction.answer.lower().translate(str.maketrans("", "", string.punctuation)).strip()
        if not nothing:  # of an empty side SQuAD 2.0's rule is kept, torchmetrics has 1.1's, which scores 0
            assert f1.scores[row] == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6), prediction


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_vs_rouge_score(name):
    from rouge_score.rouge_scorer import RougeScorer

    predictions = questions(3)
    scorer = RougeScorer([name])
    theirs = [scorer.score_multi(list(p.answers), p.answer)[name].fmeasure for p in predictions]
    assert measured(name, predictions).scores == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("references", [1, 4])
@pytest.mark.parametrize("name", ["bleu", "chrf", "chrf++"])
def test_corpus_scores_vs_sacrebleu(name, references):
    """The whole set, and resamples of it: sacrebleu is given each question as often as it was drawn."""
    import sacrebleu

    predictions = questions(5, most=references)
    ours = measured(name, predictions)
    draw = np.random.default_rng(1)
    corpus = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf, "chrf++": sacrebleu.corpus_chrf}[name]
    options = {"word_order": 2} if name == "chrf++" else {}
    for counts in (np.ones(CASES, dtype=int), draw.multinomial(CASES, np.full(CASES, 1 / CASES))):
        drawn = [p for p, count in zip(predictions, counts, strict=True) for _ in range(count)]
        longest = max(len(p.answers) for p in drawn)
        streams = [[p.answers[n] if n < len(p.answers) else None for p in drawn] for n in range(longest)]
        theirs = corpus([p.answer for p in drawn], streams, **options).score / 100
        assert float(ours.statistic(counts[None].astype(float))[0]) == pytest.approx(theirs, abs=1e-9)
    sentence = sacrebleu.sentence_bleu if name == "bleu" else sacrebleu.sentence_chrf
    theirs = [sentence(p.answer, list(p.answers), **options).score / 100 for p in predictions]
    assert ours.scores == pytest.approx(theirs, abs=1e-9)


def test_bleu_of_chinese_vs_sacrebleu_char():
    import sacrebleu

    predictions = questions(7, words=["東京", "都", "是", "日本", "的", "首", "。", "1950", "年", "大", "城市"])
    longest = max(len(p.answers) for p in predictions)
    streams = [[p.answers[n] if n < len(p.answers) else None for p in predictions] for n in range(longest)]
    theirs = sacrebleu.corpus_bleu([p.answer for p in predictions], streams, tokenize="char").score / 100
    assert figure(measured("bleu", predictions), predictions) == pytest.approx(theirs, abs=1e-9)


def rankings(seed):
    source = random.Random(seed)
    names = [f"d{n}" for n in range(30)]
    found = []
    for number in range(CASES):
        ranked = source.sample(names, source.randint(1, 20))
        gold = tuple(source.sample(names, source.randint(1, 5)))
        hits = tuple(Evidence(f"{name}#0", name, False, False) for name in ranked)
        found.append(Prediction(str(number), "?", ("x",), "x", doc_ids=gold, hits=hits))
    return found


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("recall@5", "recall_5"),
        ("hit@5", "success_5"),
        ("mrr@20", "recip_rank"),
        ("ndcg@10", "ndcg_cut_10"),
        ("map@10", "map_cut_10"),
        ("rprecision", "Rprec"),
    ],
)
def test_ranking_vs_trec_eval(name, measure):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    predictions = rankings(11)
    qrels = {p.id: dict.fromkeys(p.doc_ids, 1) for p in predictions}
    run = {p.id: {hit.document_id: 100.0 - rank for rank, hit in enumerate(p.hits)} for p in predictions}
    family = measure.rpartition("_")[0] if measure[-1].isdigit() else measure
    asked = {f"{family}.{measure.rpartition('_')[2]}"} if measure[-1].isdigit() else {measure}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    assert measured(name, predictions).scores == pytest.approx([theirs[p.id][measure] for p in predictions], abs=1e-9)


def test_ties_cannot_matter():
    """Equal retrieval scores: the order of the hits alone is judged."""
    hits = tuple(Evidence(f"{name}#0", name, False, False) for name in "zyx")
    prediction = Prediction("q", "?", ("x",), "x", doc_ids=("x",), hits=hits)
    assert measured("mrr@3", [prediction]).scores == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("seed", range(20))
def test_ece_vs_scikit_learn(seed):
    from sklearn.calibration import calibration_curve

    draw = np.random.default_rng(seed)
    sure = draw.random(CASES)
    right = draw.random(CASES) < sure**2
    predictions = [
        Prediction(str(n), "?", ("x",), "x" if ok else "y", log_probability=float(np.log(p)))
        for n, (p, ok) in enumerate(zip(sure, right, strict=True))
    ]
    share, mean = calibration_curve(right, np.exp(np.log(sure)), n_bins=10)
    held = np.bincount(np.minimum((sure * 10).astype(int), 9), minlength=10)
    expected = float((np.abs(share - mean) * held[held > 0]).sum() / CASES)
    assert figure(measured("ece", predictions), predictions) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_selection_vs_sorting(seed):
    """AURC and selective EM from their definitions, in plain Python."""
    source = random.Random(seed)
    pairs = [(source.random(), source.random() < 0.5) for _ in range(100)]
    predictions = [
        Prediction(str(n), "?", ("x",), "x" if ok else "y", log_probability=float(np.log(p)))
        for n, (p, ok) in enumerate(pairs)
    ]
    ordered = [ok for _, ok in sorted(pairs, key=lambda pair: -pair[0])]
    risks = [ordered[:count].count(False) / count for count in range(1, 101)]
    assert figure(measured("aurc", predictions), predictions) == pytest.approx(sum(risks) / 100, abs=1e-9)
    assert figure(measured("selective_em@30", predictions), predictions) == pytest.approx(sum(ordered[:30]) / 30)
