"""ragx.corpus.passages: windows of words with overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragx.corpus.duplicates import Deduplicator
from ragx.corpus.markdown import sections_of, title_and_body
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


def test_unspaced_scripts_are_no_giant_words():
    assert split("窑炉在星期一点火。陶工唱歌。", size=5) == ["窑炉在星期", "一点火。陶工", "唱歌。"]
    assert split("かまどは ブナ材 abc", size=4) == ["かまどは", "ブナ材 abc"]
    assert len(split("ภาษาไทยเขียนติดกันโดยไม่มีช่องว่าง" * 10, size=20)) > 2


@given(st.text("窑炉。ภาษาก้ abc\u0301\n", max_size=80), st.integers(1, 6))
def test_unspaced_pieces_cover_all_words(text, size):
    pieces = split(text, size=size)
    assert [word for piece in pieces for word in words_of(piece)] == words_of(text)


def words_of(text):
    return [text[start:end] for start, end in word_spans(text)]


def cut_texts(text, sections=(), **how):
    document = Document("d", "D", text, "f", sections)
    return [(p.title, p.text) for p in passages_of([document], **how)]


def test_sentences_are_packed_whole():
    text = "Mr. Hale came in. He saw 3.5 m of it. Why? One very long sentence which nobody can pack at all.\n\nEnd"
    found = [piece for _, piece in cut_texts(text, unit="sentences", size=6)]
    assert found == [
        "Mr. Hale came in.",
        "He saw 3.5 m of it.",
        "Why?",
        "One very long sentence which nobody",
        "can pack at all.\n\nEnd",
    ]
    assert [p for _, p in cut_texts("aa bb. Cc dd. Ee ff.", unit="sentences", size=4, overlap=2)] == [
        "aa bb. Cc dd.",
        "Cc dd. Ee ff.",
    ]


@given(
    st.text("ab. ?!\n。Z", max_size=80),
    st.integers(2, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
)
def test_sentence_passages_cover_all_words_within_size(text, window):
    size, overlap = window
    found = [piece for _, piece in cut_texts(text, unit="sentences", size=size, overlap=overlap)]
    assert all(0 < len(words_of(piece)) <= size for piece in found)
    if not overlap:
        assert "".join("".join(found).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("title", "titles"),
    [("section", ["D", "D > Wood", "D > Wood > Beech"]), ("document", ["D"] * 3), ("none", [""] * 3)],
)
def test_sections_and_their_titles(title, titles):
    text = "intro here\n## Wood\nburns well\n### Beech\nbest"
    found = cut_texts(text, sections_of(text), unit="sections", size=50, title=title)
    pieces = ["intro here", "## Wood\nburns well", "### Beech\nbest"]
    assert found == list(zip(titles, pieces, strict=True))


def test_sections_longer_than_size_are_cut():
    text = "# A\none two three four\n# B\nfive"
    found = cut_texts(text, sections_of(text), unit="sections", size=3)
    assert found == [("D > A", "# A\none"), ("D > A", "two three four"), ("D > B", "# B\nfive")]


def test_headings_in_code_and_front_matter_are_none():
    title, body = title_and_body('---\ntitle: "Kilns"\ndraft: no\n---\nText\n\n```\n# code\n```\n\nFiring\n------\nx\n')
    assert title == "Kilns"
    assert sections_of(body) == ((body.index("Firing"), "Firing"),)


WORDS = "the kiln at orrin burns beech wood and marta veld lights it on monday so that it cools by friday evening"


def test_duplicates():
    near = WORDS.replace("friday", "saturday") + " again"
    texts = [WORDS, f"  {WORDS.upper()}! ", WORDS + ".", f"{WORDS} {WORDS[::-1]}", " ".join(WORDS.split()[::-1])]
    exact, fuzzy = Deduplicator("exact"), Deduplicator("near")
    assert [exact.is_new(text) for text in texts] == [True, False, False, True, True]
    long = " ".join(f"{word}{n}" for n in range(9) for word in WORDS.split())
    assert [fuzzy.is_new(text) for text in [long, long + " one more", near, long[::-1]]] == [True, False, True, True]
    assert (exact.removed, fuzzy.removed) == (2, 1)


def test_duplicates_are_left_out_and_numbers_stay_dense():
    documents = [Document(name, "", text, "f") for name, text in (("x", "a b"), ("y", "A  b!"), ("z", "c"))]
    found = list(passages_of(documents, size=5, is_new=Deduplicator("exact").is_new))
    assert [(p.number, p.id) for p in found] == [(0, "x#0"), (1, "z#0")]
