"""ragx.corpus.readers: every format, and every way in which a file can be wrong."""

import gzip
import json
import logging

import pytest

from ragx.corpus.readers import Fields, corpus_files, read_documents
from ragx.errors import DataError

GOOD = '{"id": "a", "title": "A", "text": "one"}\n{"id": "b", "title": "B", "text": "two"}\n'


def read(*paths, fields=Fields(), on_error="fail"):  # noqa: B008 - frozen
    return list(read_documents([str(path) for path in paths], fields, on_error))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", GOOD),
        ("c.JSONL", GOOD.replace("\n", "\r\n") + "\n\n"),
        ("c.csv", "id,title,text\na,A,one\nb,B,two\n"),
        ("c.csv", 'text,id,title,more\r\n"one",a,A,\r\n"two",b,B,x\r\n'),
        ("c.tsv", "id\ttitle\ttext\na\tA\tone\nb\tB\ttwo\n"),
    ],
)
def test_records(file, name, content, gz, mark):
    found = read(file(name + gz, mark + content))
    assert [(d.id, d.title, d.text) for d in found] == [("a", "A", "one"), ("b", "B", "two")]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_plain_text_and_markdown(file, tmp_path, gz):
    file(f"d/sea-shanty.txt{gz}", "\ufeffHeave\r\nho\n")
    file(f"d/deep/long-song.md{gz}", "\n# The Long Song\n\nFirst verse\n")
    file(f"d/no-title.md{gz}", "Just text\n# not first\n")
    found = {d.id: (d.title, d.text) for d in read(tmp_path / "d")}
    assert found == {
        f"deep/long-song.md{gz}": ("The Long Song", "First verse"),
        f"no-title.md{gz}": ("no title", "Just text\n# not first\n"),
        f"sea-shanty.txt{gz}": ("sea shanty", "Heave\r\nho\n"),
    }


def test_folder_is_read_in_order_without_hidden_and_unknown_files(file, tmp_path):
    for name in ("b.txt", "a.txt", ".hidden.txt", "image.png", "c/d.txt", "README"):
        file(f"d/{name}", "text")
    assert [d.id for d in read(tmp_path / "d")] == ["a.txt", "b.txt", "c/d.txt"]


def test_globs(file, tmp_path):
    for name in ("a/1.txt", "a/2.md", "b/c/3.txt"):
        file(name, "text")
    assert [name for _, name in corpus_files([f"{tmp_path}/**/*.txt"])] == ["a/1.txt", "b/c/3.txt"]
    assert [name for _, name in corpus_files([f"{tmp_path}/a/*"])] == ["1.txt", "2.md"]


def test_file_named_twice_is_read_once(file, tmp_path):
    path = file("a.txt", "text")
    assert len(read(path, tmp_path, f"{tmp_path}/*.txt")) == 1


def test_file_whose_name_looks_like_a_glob(file):
    assert [d.text for d in read(file("report[1].txt", "text"))] == ["text"]


@pytest.mark.parametrize("name", ["missing.jsonl", "nothing*.txt", "x" * 300])
def test_path_that_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match=r"corpus\.paths"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.jsonl", "nothing*.txt", "empty"])
def test_second_path_that_yields_nothing(file, tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name.replace("*", r"\*")):
        read(file("a.txt", "text"), tmp_path / name)


def test_unknown_format(file):
    with pytest.raises(DataError, match=r"a\.png: unknown format; ragx reads \.csv"):
        read(file("a.png", "x"))


def test_field_names(file):
    path = file("a.jsonl", '{"key": 7, "body": "text"}\n')
    (document,) = read(path, fields=Fields("key", "name", "body"))
    assert (document.id, document.title, document.text, document.source) == ("7", "", "text", f"{path}:1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ('{"id": ' + "1" * 5000 + ', "text": "x"}', "invalid JSON|digits"),
        ("[1]", "expected an object, found list"),
        ("null", "expected an object, found NoneType"),
        ('{"id": "x"}', "no field 'text'; fields here: id"),
        ('{"text": "x"}', "no field 'id'"),
        ('{"id": "x", "text": null}', "must be text"),
        ('{"id": "x", "text": 3}', "must be text"),
        ('{"id": "x", "title": ["t"], "text": "x"}', "must be text"),
        ('{"id": "", "text": "x"}', "must be text or a whole number"),
        ('{"id": 1.5, "text": "x"}', "must be text or a whole number"),
        ('{"id": null, "text": "x"}', "must be text or a whole number"),
        ('{"id": "x", "text": ""}', "document 'x' is empty"),
        ('{"id": "x", "text": " \\n\\t"}', "document 'x' is empty"),
        ('{"id": "a", "text": "again"}', r"id 'a' stands already at .*c\.jsonl:1"),
        ('{"id": "x", "text": "\\ud800"}', "surrogate"),
        ('{"id": "x", "title": "\\udfff", "text": "x"}', "surrogate"),
        ('{"id": "\\ud800", "text": "x"}', "surrogate"),
    ],
    ids=lambda value: value[:40],
)
class TestBadLine:
    def test_is_named_with_its_number(self, file, line, reason):
        with pytest.raises(DataError, match=rf"c\.jsonl:4: .*({reason}).*; mend it, or say corpus\.on_error: skip"):
            read(file("c.jsonl", GOOD + "\n" + line + "\n"))

    def test_is_counted_and_listed_when_skipped(self, file, caplog, line, reason):
        path = file("c.jsonl", GOOD + line + '\n{"id": "c", "text": "three"}\n')
        with caplog.at_level(logging.WARNING, "ragx"):
            assert [d.id for d in read(path, on_error="skip")] == ["a", "b", "c"]
        assert [r.getMessage() for r in caplog.records][1:] == ["1 records skipped"]
        assert f"{path}:3" in caplog.records[0].getMessage()


def test_same_id_in_two_files(file):
    one, two = file("1.jsonl", GOOD), file("2.jsonl", GOOD)
    with pytest.raises(DataError, match=r"2\.jsonl:1: id 'a' stands already at .*1\.jsonl:1"):
        read(one, two)


@pytest.mark.parametrize("content", ["", "\n\n", '{"id": "a", "text": ""}\n'])
def test_no_documents(file, content):
    with pytest.raises(DataError, match="no documents in the corpus"):
        read(file("c.jsonl", content), on_error="skip")


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.txt", "c.md", "c.jsonl.gz"])
def test_not_utf8(file, name):
    content = "id,text\na,one\n" if name == "c.csv" else GOOD
    with pytest.raises(DataError, match=rf"{name}(:3)?: not UTF-8 \(invalid continuation byte at byte \d+, 0xe9\)"):
        read(file(name, content.encode() + b'{"id": "c", "text": "caf\xe9"}\n'))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_byte_order_mark_is_believed(file, encoding):
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    found = read(file("c.jsonl", (mark + GOOD).encode(encoding)))
    assert [d.text for d in found] == ["one", "two"]


def damaged_gzip(kind):
    whole = gzip.compress("".join(json.dumps({"id": n, "text": f"{n * 7919}"}) + "\n" for n in range(2000)).encode())
    middle = len(whole) // 2
    return {
        "truncated": whole[:middle],
        "flipped": whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 20]) + whole[middle + 20 :],
        "checksum": whole[:-8] + bytes(8),
        "no gzip": b"plain text\n",
    }[kind]


@pytest.mark.parametrize("kind", ["truncated", "flipped", "checksum", "no gzip"])
def test_damaged_gzip(tmp_path, kind):
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(damaged_gzip(kind))
    with pytest.raises(DataError, match=r"c\.jsonl\.gz"):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("id,title,text\na,A,one\nb,B\n", r"c\.csv:3: 3 columns in the header, another number"),
        ("id,title,text\na,A,one,more\n", r"c\.csv:2: 3 columns in the header, another number"),
        ("id,name\na,A\n", r"c\.csv:2: no field 'text'; fields here: id, name"),
        ('id,text\na,"one"x\n', r"c\.csv:2: broken table"),
        ('id,text\na,"one\nb,two\n', r"c\.csv:\d+: broken table"),
        ("id,text\na,\n", r"c\.csv:2: document 'a' is empty"),
        ("id,text\n,one\n", r"c\.csv:2: 'id' must be text"),
        ("id,text\n", "no documents in the corpus"),
        ("", "no documents in the corpus"),
    ],
)
def test_bad_table(file, content, reason):
    with pytest.raises(DataError, match=reason):
        read(file("c.csv", content))


def test_table_with_quoted_lines_commas_and_a_long_field(file):
    long = "word " * 50_000
    found = read(file("c.csv", f'id,text\na,"one, ""two""\nthree"\nb,{long}\n'))
    assert [d.text for d in found] == ['one, "two"\nthree', long]
    assert [d.source[-2:] for d in found] == [":3", ":4"]


def test_rows_after_a_broken_one_are_not_lost_when_skipping(file):
    path = file("c.csv", 'id,text\na,one\nb,"two"x\nc,three\nd\ne,five\n')
    assert [d.id for d in read(path, on_error="skip")] == ["a", "c", "e"]
