"""Exact match and F1 against figures computed by hand with the rules SQuAD published.

Rules (SQuAD 1.1 and 2.0 evaluation): lower case; drop ASCII punctuation; drop the words a, an, the; join what white
space separates. EM compares the strings, F1 is 2 * common / (tokens of one + tokens of the other) over token multisets;
the best of several references counts. An empty side (2.0): 1 where both are empty, else 0. Fractions are exact:
compared to 1e-12.
"""

import pytest

from ragx.corpus.answers import normalise_answer
from ragx.evaluation.matching import exact_match, f1

CASES = [
    # answer, references, EM, F1
    ("Denver Broncos", ["Denver Broncos"], 1, 1.0),
    ("denver broncos", ["Denver Broncos"], 1, 1.0),
    ("the Denver Broncos", ["Denver Broncos"], 1, 1.0),
    ("Denver Broncos.", ["Denver Broncos"], 1, 1.0),
    ("  Denver \t Broncos\n", ["Denver Broncos"], 1, 1.0),
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),
    ("Denver Broncos won", ["Denver Broncos"], 0, 4 / 5),
    ("Broncos Denver", ["Denver Broncos"], 0, 1.0),
    ("Carolina Panthers", ["Denver Broncos"], 0, 0.0),
    ("a cat and an apple", ["cat and apple"], 1, 1.0),
    ("another theatre", ["other atre"], 0, 0.0),
    ("U.S.", ["US"], 1, 1.0),
    ("U. S.", ["US"], 0, 0.0),
    ("twenty-four", ["twenty four"], 0, 0.0),
    ("twenty-four", ["twentyfour"], 1, 1.0),
    ("$1,000", ["1000"], 1, 1.0),
    ("3.14", ["314"], 1, 1.0),
    ("it's", ["its"], 1, 1.0),
    ("Café", ["café"], 1, 1.0),
    ("Café", ["cafe"], 0, 0.0),
    ("“quoted”", ["quoted"], 0, 0.0),
    ("1914–1918", ["19141918"], 0, 0.0),
    ("ÉTÉ 1936", ["été"], 0, 2 / 3),
    ("", ["Denver"], 0, 0.0),
    ("The", ["Denver"], 0, 0.0),
    ("the", ["a"], 1, 1.0),
    ("...", ["an!"], 1, 1.0),
    ("Denver", ["Paris", "Denver Broncos", "denver"], 1, 1.0),
    ("the old mill", ["an old water mill", "mill"], 0, 4 / 5),
    ("to be or not to be", ["to be"], 0, 4 / 8),
    ("to to to", ["to be to"], 0, 4 / 6),
    ("a the a b c", ["b c d"], 0, 4 / 5),
    ("東京", ["東京"], 1, 1.0),
]


@pytest.mark.parametrize(("answer", "references", "em", "score"), CASES, ids=[f"{c[0]!r}-{c[1][0]!r}" for c in CASES])
def test_by_hand(answer, references, em, score):
    assert exact_match(answer, references) == em
    assert f1(answer, references) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  quick, brown fox!", "quick brown fox"),
        ("An apple a day", "apple day"),
        ("theology", "theology"),
        ("a-b the_end", "ab theend"),
        ("Thé a", "thé"),
        ("A.", ""),
        ("the.a.an", "theaan"),
        ("non\u00a0breaking", "non breaking"),
    ],
)
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(("answer", "references", "em", "score"), CASES, ids=[f"{c[0]!r}-{c[1][0]!r}" for c in CASES])
def test_one_reference_is_symmetric(answer, references, em, score):
    if len(references) == 1:
        assert exact_match(references[0], [answer]) == em
        assert f1(references[0], [answer]) == pytest.approx(score, abs=1e-12)
