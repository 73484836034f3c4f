"""HTML -> one document: the page's main text as Markdown, by trafilatura."""

from collections.abc import Iterator
from pathlib import Path

from trafilatura import extract, extract_metadata, load_html
from trafilatura.settings import use_config

from ragx.corpus.markdown import sections_of
from ragx.corpus.parsers.serve import read_whole, serve
from ragx.corpus.streams import Limits, Problem
from ragx.corpus.tables import Record

LARGEST = 20_000_000
"""Bytes beyond which trafilatura reads nothing and says nothing."""


def parse(path: Path, name: str, fields: list[str], limits: Limits) -> Iterator[Record | Problem]:
    """One document without navigation and footers; headings stay as sections."""
    data = read_whole(path, limits)
    if len(data) > LARGEST:
        yield Problem(str(path), f"larger than {LARGEST // 1_000_000} MB, the most that is read of one page")
        return
    if b"<html" not in data[:5000].lower():
        data = b"<html><body>" + data
    tree = load_html(data)
    text = None if tree is None else _main_text(tree)
    if tree is None or not text:
        yield Problem(str(path), "no text found in this page: empty, nested too deep, or made by scripts")
        return
    metadata = extract_metadata(tree)
    title = str((metadata and metadata.title) or "").strip()
    text = text.replace("**", "")
    yield str(path), {"id": name, "title": title, "text": text, "sections": sections_of(text)}


def _main_text(tree: object) -> str | None:
    settings = use_config()
    for key in ("MIN_EXTRACTED_SIZE", "MIN_OUTPUT_SIZE"):
        settings["DEFAULT"][key] = "1"  # short pages too keep their structure
    found: str | None = extract(
        tree, output_format="markdown", include_comments=False, include_tables=True, favor_recall=True, config=settings
    )
    return found


if __name__ == "__main__":
    serve(parse)
