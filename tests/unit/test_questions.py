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
        read_examples(file("x", "q.csv"))


def test_no_questions(file):
    with pytest.raises(DataError, match="no questions in this file"):
        read_examples(file("{\n"), on_error="skip")
