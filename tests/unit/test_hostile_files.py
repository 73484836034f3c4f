"""ragx.corpus: files that lie, break, hang or explode. Each is one problem with its reason; the others are read."""

import gzip
import io
import logging
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import psutil
import pypdf
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from ragx.corpus.readers import Fields, corpus_files, read_documents
from ragx.corpus.sandbox import Sandbox
from ragx.corpus.streams import Limits
from ragx.errors import DataError


def read(*paths, on_error="skip", **options):
    return list(read_documents([str(path) for path in paths], Fields(), on_error, **options))


def pdf(text, password=None, content=None):
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    stream = StreamObject()
    stream.set_data(content or f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font = DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def docx(body, prologue=""):
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    kinds = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{kinds}"><Default Extension="xml" ContentType="text/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{relations}"><Relationship Id="r" Type="{office}" '
        'Target="word/document.xml"/></Relationships>',
        "word/styles.xml": f'<w:styles xmlns:w="{space}">'
        + "".join(
            f'<w:style w:type="paragraph" w:styleId="H{n}"><w:name w:val="heading {n}"/></w:style>' for n in (1, 2)
        )
        + "</w:styles>",
        "word/document.xml": f'{prologue}<w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>',
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def paragraph(text, style=None):
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "'
    + "&a;" * 1000
    + '"><!ENTITY c "'
    + "&b;" * 1000
    + '"><!ENTITY d "'
    + "&c;" * 1000
    + '">]>'
)
HOSTILE = {
    "truncated.pdf": (lambda: pdf("x")[:300], "no PDF that can be read"),
    "encrypted.pdf": (lambda: pdf("x", "secret"), "encrypted: save it without a password"),
    "empty.pdf": (lambda: pdf("x", content=b" "), "holds no text on its 1 pages"),
    "text.pdf": (lambda: b"not a PDF", "no PDF that can be read"),
    "bomb.pdf": (lambda: pdf("x", content=bytes(300_000_000)), "no PDF that can be read|memory_mb|seconds|no text"),
    "bomb.docx": (lambda: docx(paragraph("x" * 60_000_000)), "corpus.limits.document_mb: 50"),
    "ratio.docx": (lambda: docx(paragraph("x" * 20_000_000)), "corpus.limits.ratio: 200"),
    "entities.docx": (lambda: docx(paragraph("&d;"), ENTITIES), "no .docx that can be read"),
    "old.docx": (lambda: b"\xd0\xcf\x11\xe0old", "an old .doc, or protected by a password"),
    "zip.docx": (lambda: docx("")[:0] + _zip_in_zip(), "no Word document in this archive"),
    "divs.html": (lambda: b"<html><body>" + b"<div>" * 100_000 + b"x", "no text found in this page"),
    "large.html": (lambda: b"<html><body><p>" + b"word " * 4_200_000, "larger than 20 MB"),
    "bomb.jsonl.gz": (lambda: gzip.compress(bytes(100_000_000)), "longer than|expands to more than"),
    "bomb.txt.zst": (lambda: zstd.compress(b"x" * 60_000_000), "corpus.limits.document_mb: 50"),
    "truncated.txt.zst": (lambda: zstd.compress(b"x" * 1000)[:-3], "not a whole .zst file"),
    "truncated.txt.gz": (lambda: gzip.compress(b"x" * 1000)[:-3], "not a whole .gz file"),
    "binary.txt": (lambda: b"GIF89a\x00\x01", "holds a NUL"),
    "broken.parquet": (lambda: b"PAR1 no PAR1", "no parquet file that can be read"),
}


def _zip_in_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner.zip", docx(paragraph("x")))
    return file.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_one_skip_with_its_reason(tmp_path, caplog, name):
    make, reason = HOSTILE[name]
    (tmp_path / name).write_bytes(make())
    (tmp_path / "zz.txt").write_text("good")
    with caplog.at_level(logging.WARNING, "ragx"):
        assert [d.id for d in read(tmp_path)] == ["zz.txt"]
    (listed, counted) = caplog.messages
    assert listed.startswith(f"skipped {tmp_path / name}")
    assert any(part in listed for part in reason.split("|")), listed
    assert counted == "1 records skipped"


READ = """
import resource, sys
from pathlib import Path
from ragx.corpus.readers import Fields, read_documents
found = [document.id for document in read_documents([sys.argv[1]], Fields(), "skip")]
status = Path("/proc/self/status").read_text()
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(",".join(found), status.partition("VmHWM:")[2].split()[0], children)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is Linux's to tell")
def test_bombs_and_giant_lines_cost_bounded_memory(tmp_path):
    """A line of 200 MB included; kilobytes at the peak, of the reader and of its largest parser."""
    for name in ("bomb.pdf", "bomb.docx", "entities.docx", "bomb.jsonl.gz", "bomb.txt.zst", "divs.html", "large.html"):
        (tmp_path / name).write_bytes(HOSTILE[name][0]())
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.write(b'{"id": 1, "text": "')
        file.writelines(b"x" * 1_000_000 for _ in range(200))
    (tmp_path / "zz.txt").write_text("good")
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    found, parent, child = done.stdout.split()
    assert found == "zz.txt"
    assert int(parent) < 300_000
    assert int(child) < 2_048_000


def test_hostile_file_fails_with_the_remedy(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("x", "secret"))
    with pytest.raises(DataError, match=r"a\.pdf: encrypted: .*; mend it, or say corpus\.on_error: skip"):
        read(tmp_path, on_error="fail")


def test_pdf_docx_html_with_titles_and_sections(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("The kiln burns beech"))
    body = paragraph("The wheels", "H1") + paragraph("Nine.") + paragraph("Oldest", "H2") + paragraph("Built 1912.")
    (tmp_path / "b.docx").write_bytes(docx(body))
    page = "<html><head><title>Glazes</title></head><body><nav><a href='/'>Home</a></nav><main><h2>Green</h2>"
    (tmp_path / "c.html.gz").write_bytes(gzip.compress(f"{page}<p>Green glaze holds copper.</p></main>".encode()))
    found = read(tmp_path, on_error="fail")
    assert [(d.title, d.text) for d in found[:2]] == [
        ("a", "The kiln burns beech"),
        ("The wheels", "Nine.\n\n## Oldest\n\nBuilt 1912."),
    ]
    assert found[1].sections == ((7, "Oldest"),)
    assert found[2].title == "Glazes"
    assert "copper" in found[2].text
    assert "Home" not in found[2].text
    assert found[2].sections == ((0, "Green"),)


def test_parquet_rows_with_places_and_problems(tmp_path, caplog):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "c.parquet"
    rows = {"key": [1, 2, 3], "text": ["one", None, "three"], "other": [b"x", b"y", b"z"]}
    parquet.write_table(pyarrow.table(rows), path)
    fields = Fields("key", "title", "text")
    found = list(read_documents([str(path)], fields, "skip"))
    assert [(d.id, d.text, d.source) for d in found] == [("1", "one", f"{path}:row 1"), ("3", "three", f"{path}:row 3")]
    assert "c.parquet:row 2: 'text' and 'title' must be text" in caplog.text


def test_many_files_for_parsers_keep_their_order(tmp_path):
    for n in range(12):
        (tmp_path / f"{n:02}.{'pdf' if n % 3 else 'txt'}").write_bytes(pdf(f"page {n}") if n % 3 else b"plain")
    assert [d.id[:2] for d in read(tmp_path, on_error="fail")] == [f"{n:02}" for n in range(12)]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_parser_that_is_killed_costs_its_file_only(tmp_path, monkeypatch, name):
    import signal

    from ragx.corpus import sandbox

    paths = [tmp_path / f"{n}.pdf" for n in range(3)]
    for path in paths:
        path.write_bytes(pdf("fine"))
    ask = sandbox._Child.ask

    def shot(child, request):
        if request["name"] == "1.pdf":
            child._process.send_signal(getattr(signal, name))
            child._process.wait()
        return ask(child, request)

    monkeypatch.setattr(sandbox._Child, "ask", shot)
    with Sandbox(Limits()) as parsers:
        found = [list(parsers.read("pdf", path, path.name, [])) for path in paths]
    assert [isinstance(outcomes[0], tuple) for outcomes in found] == [True, False, True]
    assert str(found[1][0]) == f"{paths[1]}: its parser was killed by {name}"


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """A corpus whose first document is read at once, and whose parsers never come to an end."""
    library, corpus = tmp_path / "library", tmp_path / "corpus"
    library.mkdir()
    corpus.mkdir()
    (library / "pypdf.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(library))
    for n in range(12):
        (corpus / f"{n:02}.pdf").write_bytes(b"")
    (corpus / "00.txt").write_text("good")
    return corpus


def parsers():
    """The command lines of the parsers at work."""
    lines = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [line for line in lines if "ragx.corpus.parsers" in line]


def wait_for_parsers():
    """They are started by threads, some time after the first document is there."""
    deadline = time.monotonic() + 120
    while not parsers():
        assert time.monotonic() < deadline, "no parser was started"
        time.sleep(0.01)


def test_reading_that_is_given_up_waits_for_no_parser(hanging):
    (hanging / "00.pdf").unlink()
    with closing(read_documents([str(hanging)], Fields())) as documents:
        assert next(documents).text == "good"
        wait_for_parsers()
        started = time.monotonic()
    assert time.monotonic() - started < 120  # not the ten minutes that parsers take
    assert parsers() == []


def test_reading_that_fails_waits_for_no_parser(hanging):
    (hanging / "00.pdf").unlink()
    (hanging / "00.txt").write_bytes(b"\x00")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"00\.txt: holds a NUL"):
        read(hanging, on_error="fail")
    assert time.monotonic() - started < 120  # not the ten minutes that parsers take
    assert parsers() == []


def test_line_beyond_the_limit_is_named_and_the_rest_is_read(tmp_path, caplog):
    path = tmp_path / "c.jsonl"
    path.write_text(
        '{"id": 1, "text": "one"}\n{"id": 2, "text": "' + "x" * 3_000_000 + '"}\n{"id": 3, "text": "three"}'
    )
    assert [d.id for d in read(path, limits=Limits(document_mb=1))] == ["1", "3"]
    assert f"{path}:2: a line of 3000022 bytes, longer than corpus.limits.document_mb: 1" in caplog.text


def test_file_beyond_the_limit(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": 1, "text": "one"}\n' * 100_000)
    with pytest.raises(DataError, match=r"larger than corpus\.limits\.file_mb: 1"):
        read(tmp_path, limits=Limits(file_mb=1), on_error="fail")


@pytest.mark.parametrize("content", ['{"id": 1, "id": 2, "text": "x"}', '{"id": 1, "x": NaN, "text": "x"}'])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"occurs twice|NaN is no JSON"):
        read(tmp_path, on_error="fail")


@pytest.mark.parametrize(
    "content", ['[{"id": "a", "text": "1"}, {"id": "b", "text": "2"}]', '{"id": "a", "text": "1"}']
)
def test_json_list_or_object(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    assert [d.id for d in read(tmp_path, on_error="fail")] == ["a", "b"][: content.count("id")]


@pytest.mark.parametrize("content", ["[", "[{}", "[{} {}]", '[{"id": 1', "[" * 100_000, "{", "]", "[1]"])
def test_broken_json_ends_in_a_reason(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(DataError, match=r"c\.json"):
        read(tmp_path, on_error="fail")


def test_configured_encoding(tmp_path):
    (tmp_path / "c.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"at byte 3, 0xe9\); convert it, or set corpus\.encoding"):
        read(tmp_path, on_error="fail")
    assert read(tmp_path, encoding="latin-1")[0].text == "café"


def test_links_are_followed_nowhere_outside_and_never_in_a_circle(tmp_path, caplog):
    corpus, secret = tmp_path / "corpus", tmp_path / "secret.txt"
    (corpus / "deep").mkdir(parents=True)
    secret.write_text("secret")
    (corpus / "a.txt").write_text("a")
    (corpus / "deep" / "up").symlink_to(corpus)
    (corpus / "b.txt").symlink_to(secret)
    (corpus / "c.txt").symlink_to(corpus / "gone")
    (corpus / "d.txt").symlink_to(corpus / "d.txt")
    assert [d.text for d in read(corpus)] == ["a"]
    assert [d.text for d in read(f"{corpus}/**/*.txt")] == ["a"]
    assert f"b.txt: links out of the corpus, to {secret}; name that in corpus.paths" in caplog.text
    assert "c.txt: a link to nothing" in caplog.text
    assert "d.txt: a link that leads round in a circle" in caplog.text


def test_ten_thousand_files_are_found_in_order(tmp_path):
    for n in range(10_000):
        (tmp_path / f"{n:05}.txt").touch()
    assert [name for _, name in corpus_files([str(tmp_path)])] == [f"{n:05}.txt" for n in range(10_000)]


def test_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(b"")
    monkeypatch.setattr("ragx.corpus.files.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pypdf is not installed; .* pip install 'ragx\[docs\]'"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.md", "c.txt", "c.txt.gz", "c.txt.zst"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.text('{}[]",:# \n\\x=-`', max_size=60).map(str.encode))
def test_any_bytes_are_documents_or_a_data_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    try:
        found = read(tmp_path)
    except DataError as error:
        assert "no documents in the corpus" in str(error)
    else:
        assert all(document.text.strip() for document in found)
        assert all(0 <= offset < len(d.text) for d in found for offset, _ in d.sections)
