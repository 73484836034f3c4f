"""ragx.corpus.answers: SQuAD's normalisation."""

import pytest

from ragx.corpus.answers import holds_answer, normalise_answer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat.", "cat"),
        ("an A the", ""),
        ("U.S.A.", "usa"),
        ("a-b", "ab"),
        ("Theatre", "theatre"),
        ("«café»", "«café»"),
        ("3,000 m\n", "3000 m"),
        ("", ""),
    ],
)
def test_normalise(text, normalised):
    assert normalise_answer(text) == normalised


@pytest.mark.parametrize(
    ("text", "answers", "holds"),
    [
        ("It was the Red Fox!", ["red fox"], True),
        ("It was predator", ["red"], False),
        ("scatter", ["cat"], False),
        ("cat", ["dog", "A cat."], True),
        ("anything", ["the"], False),
        ("anything", [], False),
        ("", ["x"], False),
    ],
)
def test_holds_answer_as_whole_words(text, answers, holds):
    assert holds_answer(text, answers) is holds
