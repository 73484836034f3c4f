"""ragx.index.lexical: BM25 scores relative to the best hit; questions are never query syntax."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragx.errors import ArtifactError
from ragx.index.lexical import LexicalIndex, write_lexical
from ragx.records import Passage

TEXTS = [
    ("Kiln", "The kiln burns beech wood and the kiln smokes."),
    ("Glaze", "Green glaze holds copper."),
    ("", "Blue glaze holds cobalt and some copper wood."),
    ("Title", "Nothing of the kind."),
    ("Kiln", "Potters open the kiln on Friday."),
    ("", "Same words."),
    ("", "Same words."),
    ("", "Same words."),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lexical") / "index"
    write_lexical(folder, [Passage(n, str(n), title, text, f"{n}#0") for n, (title, text) in enumerate(TEXTS)])
    return LexicalIndex(folder, len(TEXTS))


def test_best_hit_scores_one_and_order_falls(index):
    hits = index.search("Which kiln burns wood?", 8)
    assert hits[0] == (0, 1.0)
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
    assert {number for number, _ in hits} == {0, 2, 4}


def test_titles_count_and_words_are_stemmed(index):
    assert {number for number, _ in index.search("glazes", 8)} == {1, 2}
    assert [number for number, _ in index.search("titles", 8)] == [3]


@pytest.mark.parametrize("question", ["kiln wood", "copper glaze kiln words", "green", "nothing same", "zzz"])
@pytest.mark.parametrize("numbers", [[0], [3, 1, 2], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_scores_of_given_passages_equal_those_of_search(index, question, numbers):
    found = dict(index.search(question, len(TEXTS)))
    expected = np.array([found.get(number, 0.0) for number in numbers], np.float32)
    np.testing.assert_allclose(index.scores(question, numbers), expected, rtol=1e-6)
    np.testing.assert_allclose(index.all_scores(question)[numbers], expected, rtol=1e-6)


def test_scores_do_not_depend_on_how_many_are_wanted(index):
    assert index.search("copper glaze kiln", 2) == index.search("copper glaze kiln", 8)[:2]


def test_ties_go_to_the_lowest_number(index):
    assert index.search("same words", 8) == [(5, 1.0), (6, 1.0), (7, 1.0)]
    assert index.search("same words", 2) == [(5, 1.0), (6, 1.0)]


@pytest.mark.parametrize("question", ["", " ", "?!", "zzz", "\x00", "🏺"])
def test_no_known_word_no_hit(index, question):
    assert index.search(question, 3) == []
    assert index.scores(question, [0, 1]).tolist() == [0.0, 0.0]
    assert not index.all_scores(question).any()


@pytest.mark.parametrize(
    "hostile",
    [
        "title:kiln",
        "text:(kiln",
        "kiln^1000",
        '"kiln',
        "kiln AND NOT kiln",
        "-kiln",
        "+kiln -wood",
        "kiln*",
        "kiln~2",
        "/kiln/",
        "[kiln TO kiln]",
        "title: IN [kiln]",
        "number:0 kiln",
        "*",
        "\\kiln\\",
        "kiln" * 5000,
        "kiln " * 5000,
    ],
    ids=lambda text: text[:20],
)
def test_query_syntax_is_words(index, hostile):
    import regex

    plain = " ".join(regex.findall(r"\w+", hostile)).lower()
    assert index.search(hostile, 8) == index.search(plain, 8)


def test_operators_do_not_exclude(index):
    assert {number for number, _ in index.search("-kiln wood", 8)} == {0, 2, 4}
    assert {number for number, _ in index.search("kiln AND NOT copper", 8)} >= {0, 1, 2, 4}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_a_question(index, question):
    hits = index.search(question, 3)
    assert not hits or hits[0][1] == 1.0
    assert index.scores(question, [0, 7]).max() <= 1.0


def test_index_of_another_number_of_passages(tmp_path):
    write_lexical(tmp_path / "l", [Passage(0, "a", "", "text", "a#0")])
    with pytest.raises(ArtifactError, match="holds 1 passages, expected 2"):
        LexicalIndex(tmp_path / "l", 2)


def test_damaged_folder(tmp_path):
    write_lexical(tmp_path / "l", [Passage(0, "a", "", "text", "a#0")])
    (tmp_path / "l" / "meta.json").write_text("{")
    with pytest.raises(ArtifactError, match="tantivy cannot read it"):
        LexicalIndex(tmp_path / "l", 1)


def test_missing_folder(tmp_path):
    with pytest.raises(ArtifactError, match="tantivy cannot read it"):
        LexicalIndex(tmp_path / "none", 1)
