"""ragx.corpus.passages: windows of words with overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragx.corpus.passages import passages_of, split, word_spans
from ragx.records import Document


@pytest.mark.parametrize(
    ("size", "overlap", "pieces"),
    [
        (2, 0, ["a b", "c d", "e"]),
        (3, 1, ["a b c", "c d e"]),
        (2, 1, ["a b", "b c", "c d", "d e"]),
        (5, 4, ["a b c d e"]),
        (9, 0, ["a b c d e"]),
        (1, 0, ["a", "b", "c", "d", "e"]),
    ],
)
def test_windows(size, overlap, pieces):
    assert split("a b c d e", size=size, overlap=overlap) == pieces


@pytest.mark.parametrize("text", ["", " ", "\n\t\u00a0\u3000"])
def test_no_words_no_pieces(text):
    assert split(text, size=3) == []


def test_pieces_keep_their_white_space():
    assert split(" a\n\nb\tc ", size=2) == ["a\n\nb", "c"]


@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab \n\u2003", max_size=60),
    st.integers(1, 8).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))),
)
def test_pieces_are_substrings_and_cover_all_words(text, window):
    size, overlap = window
    words = [text[start:end] for start, end in word_spans(text)]
    pieces = [
        [piece[start:end] for start, end in word_spans(piece)] for piece in split(text, size=size, overlap=overlap)
    ]
    assert all(piece in text for piece in split(text, size=size, overlap=overlap))
    assert [word for n, piece in enumerate(pieces) for word in piece[overlap if n else 0 :]] == words
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(overlap < len(piece) <= size for piece in pieces[1:])


def test_passages_are_numbered_over_the_corpus():
    documents = [Document("x", "X", "a b c", "f"), Document("y", "Y", "d", "f")]
    found = [(p.number, p.id, p.document_id, p.title, p.text) for p in passages_of(documents, size=2)]
    assert found == [(0, "x#0", "x", "X", "a b"), (1, "x#1", "x", "X", "c"), (2, "y#0", "y", "Y", "d")]


def test_other_units():
    assert split("abcdef", size=2, spans=lambda text: [(i, i + 1) for i in range(len(text))]) == ["ab", "cd", "ef"]
