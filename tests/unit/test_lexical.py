"""ragx.index.lexical: BM25 and TF-IDF scores relative to the best hit; questions are never query syntax."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragx.errors import ArtifactError
from ragx.index.lexical import open_lexical, write_lexical
from ragx.index.words import separate
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


KINDS = ["bm25", "tfidf"]


@pytest.fixture(scope="module", params=KINDS)
def index(request, tmp_path_factory):
    return opened(tmp_path_factory.mktemp("lexical") / "index", request.param, TEXTS)


def opened(folder, kind, texts):
    write_lexical(folder, kind, [Passage(n, str(n), title, text, f"{n}#0") for n, (title, text) in enumerate(texts)])
    return open_lexical(folder, kind, len(texts))


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
    opened(tmp_path / "l", "bm25", TEXTS[:1])
    with pytest.raises(ArtifactError, match="holds 1 passages, expected 2"):
        open_lexical(tmp_path / "l", "bm25", 2)


def test_damaged_folder(tmp_path):
    opened(tmp_path / "l", "bm25", TEXTS[:1])
    (tmp_path / "l" / "meta.json").write_text("{")
    with pytest.raises(ArtifactError, match="tantivy cannot read it"):
        open_lexical(tmp_path / "l", "bm25", 1)


@pytest.mark.parametrize("name", ["words.txt", "idf.npy", "data.npy", "indices.npy", "indptr.npy"])
@pytest.mark.parametrize("data", [None, b"", b"\xff\xfe"])
def test_damaged_tfidf(tmp_path, name, data):
    opened(tmp_path / "l", "tfidf", TEXTS)
    (tmp_path / "l" / name).unlink() if data is None else (tmp_path / "l" / name).write_bytes(data)
    with pytest.raises(ArtifactError, match="TF-IDF index cannot be read"):
        open_lexical(tmp_path / "l", "tfidf", len(TEXTS))


@pytest.mark.parametrize(("kind", "named"), [("bm25", "tantivy"), ("tfidf", "TF-IDF")])
def test_missing_folder(tmp_path, kind, named):
    with pytest.raises(ArtifactError, match=f"{named}.* cannot"):
        open_lexical(tmp_path / "none", kind, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_without_a_word(tmp_path, kind):
    index = opened(tmp_path / "l", kind, [("", "!?"), ("", "...")])
    assert index.search("anything at all", 2) == []
    assert index.all_scores("anything").tolist() == [0.0, 0.0]


UNSPACED = [
    ("", "我的猫喜欢吃鱼，也喜欢睡觉。"),
    ("", "东京是日本的首都，人口很多。"),
    ("", "公司的年度报告在三月发布。"),
    ("", "แมวชอบกินปลา"),
    ("", "犬は公園で遊ぶのが好きです。"),
    ("", "Plain English about a kiln."),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("猫", 0),
        ("喜欢", 0),
        ("首都", 1),
        ("日本的首都是哪里？", 1),
        ("年度报告", 2),
        ("ปลา", 3),
        ("公園", 4),
        ("kilns", 5),
    ],
)
def test_single_words_of_scripts_without_spaces(tmp_path, kind, question, best):
    index = opened(tmp_path / "l", kind, UNSPACED)
    assert index.search(question, 6)[0] == (best, 1.0)


def test_spaced_text_is_left_alone():
    assert separate("A kiln, naïve Überraschung 42") == "A kiln, naïve Überraschung 42"
    assert separate("x猫a") == "x 猫 a"
    assert separate("喜欢鱼").split() == ["喜", "欢", "鱼", "喜欢", "欢鱼"]
