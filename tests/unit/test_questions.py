"""ragx.corpus.questions: question files."""

import gzip
import logging

import pytest

from ragx.corpus.questions import read_examples
from ragx.errors import DataError
from ragx.records import Example

GOOD = '{"id": "a", "question": "Who?", "answers": ["me", "I"], "doc_ids": ["d", 3]}\n'


@pytest.fixture
def file(tmp_path):
    def write(text, name="q.jsonl"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_all_fields(file, name):
    assert read_examples(file("\ufeff" + GOOD, name)) == [Example("a", "Who?", ("me", "I"), ("d", "3"))]


def test_least_fields_and_default_ids(file):
    found = read_examples(file('{"question": " Who? ", "answer": " me "}\n\n{"question": "What?", "answers": "it"}\n'))
    assert found == [Example("1", "Who?", ("me",)), Example("2", "What?", ("it",))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "invalid JSON"),
        ('"text"', "expected an object, found str"),
        ('{"answers": ["x"]}', "no 'question'"),
        ('{"question": " ", "answers": ["x"]}', "no 'question'"),
        ('{"question": 3, "answers": ["x"]}', "no 'question'"),
        ('{"question": "Who?"}', "no 'answers'"),
        ('{"question": "Who?", "answers": []}', "no 'answers'"),
        ('{"question": "Who?", "answers": {"text": "x"}}', "no 'answers'"),
        ('{"question": "Who?", "answers": ["x", " "]}', "text that is not empty"),
        ('{"question": "Who?", "answers": [3]}', "text that is not empty"),
        ('{"question": "Who?", "answer": "x", "doc_ids": "d"}', "'doc_ids' must be a list"),
        ('{"question": "Who?", "answer": "x", "doc_ids": [[1]]}', "'doc_ids' must be a list"),
        ('{"id": "a", "question": "Who?", "answer": "x"}', "id 'a' stands here twice"),
        ('{"question": "Who\\ud800?", "answer": "x"}', "surrogate"),
        ('{"question": "Who?", "answer": "\\udc00"}', "surrogate"),
    ],
)
class TestBadLine:
    def test_is_named_with_its_number(self, file, line, reason):
        with pytest.raises(DataError, match=rf"q\.jsonl:2: .*{reason}.*; mend it, or say data\.on_error: skip"):
            read_examples(file(GOOD + line))

    def test_is_listed_when_skipped(self, file, caplog, line, reason):
        with caplog.at_level(logging.WARNING, "ragx"):
            assert len(read_examples(file(GOOD + line), on_error="skip")) == 1
        assert "q.jsonl:2" in caplog.text


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such question file"):
        read_examples(tmp_path / "q.jsonl")


def test_other_format(file):
    with pytest.raises(DataError, match=r"questions are read from \.jsonl"):
        read_examples(file("x", "q.docx"))


def test_no_questions(file):
    with pytest.raises(DataError, match="no questions in this file"):
        read_examples(file("{\n"), on_error="skip")


SQUAD = """{"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [
 {"id": "s1", "question": "Who?", "answers": [{"text": "me", "answer_start": 0}, {"text": "me"}, {"text": "I"}]},
 {"id": "s2", "question": "Why?", "answers": [], "is_impossible": true}]}]}]}"""


def test_squad(file):
    path = file(SQUAD, "dev.json")
    assert read_examples(path, on_error="skip") == [Example("s1", "Who?", ("me", "I"))]
    with pytest.raises(DataError, match=r"dev\.json:data\[0\]\.paragraphs\[0\]\.qas\[1\]: no 'answers'"):
        read_examples(path)


def test_list_in_json(file):
    assert read_examples(file(f"[{GOOD}]", "q.json")) == [Example("a", "Who?", ("me", "I"), ("d", "3"))]


def test_kilt(file):
    output = '[{"answer": "me", "provenance": [{"wikipedia_id": "7"}, {"wikipedia_id": "7"}]}, {"provenance": []}]'
    path = file(f'{{"id": "k", "input": "Who?", "output": {output}}}\n')
    assert read_examples(path) == [Example("k", "Who?", ("me",), ("7",))]


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.csv.gz"])
def test_tables(file, name):
    delimiter = "\t" if "tsv" in name else ","
    rows = [["question", "answers", "doc_ids"], ["Who?", '"[""me"", ""I""]"', "d"], ["What?", "it", ""]]
    path = file("".join(delimiter.join(row) + "\n" for row in rows), name)
    assert read_examples(path) == [Example("1", "Who?", ("me", "I"), ("d",)), Example("2", "What?", ("it",))]


def test_source_and_target(file):
    path = file("Who?\nWhat?\n", "train.source")
    with pytest.raises(DataError, match=r"the answers must stand beside it, in train\.target"):
        read_examples(path)
    file("me\nit\n", "train.target")
    assert read_examples(path) == [Example("1", "Who?", ("me",)), Example("2", "What?", ("it",))]
    for lines in ("me\n", "me\nit\nmore\n"):
        file(lines, "train.target")
        with pytest.raises(DataError, match=r"train\.(source|target).*one answer a line"):
            read_examples(path)
