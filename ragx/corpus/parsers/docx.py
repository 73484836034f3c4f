"""DOCX -> one document: headings, paragraphs, lists and tables as Markdown, by mammoth."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.parsers.expat import ExpatError

import mammoth
from lxml import html

from ragx.corpus.markdown import sections_of, title_and_body
from ragx.corpus.parsers.serve import read_whole, serve
from ragx.corpus.streams import Limits, Problem
from ragx.corpus.tables import Record


def parse(path: Path, name: str, fields: list[str], limits: Limits) -> Iterator[Record | Problem]:
    """One document; a leading Heading 1 is its title."""
    file = io.BytesIO(read_whole(path, limits))
    try:
        with zipfile.ZipFile(file) as archive:
            if reason := _refused(archive, limits):
                yield Problem(str(path), reason)
                return
        found = mammoth.convert_to_html(file, convert_image=mammoth.images.img_element(lambda image: {}))
    except zipfile.BadZipFile as error:
        yield Problem(str(path), f"no .docx ({error}): damaged, an old .doc, or protected by a password")
        return
    except (ExpatError, KeyError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        yield Problem(str(path), f"no .docx that can be read ({type(error).__name__}: {error})")
        return
    title, text = title_and_body(_markdown(found.value))
    if not text.strip():
        yield Problem(str(path), "holds no text")
        return
    yield str(path), {"id": name, "title": title, "text": text, "sections": sections_of(text)}


def _refused(archive: zipfile.ZipFile, limits: Limits) -> str | None:
    """Why the archive is no document to unpack: all XML that mammoth may read is summed up before it reads any."""
    members = [info for info in archive.infolist() if info.filename.endswith((".xml", ".rels"))]
    if "word/document.xml" not in {info.filename for info in members}:
        return "no Word document in this archive"
    if any(info.flag_bits & 1 for info in members):
        return "encrypted: save it without a password"
    size, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if size > limits.document_bytes:
        return f"its XML is {size // 1_000_000} MB unpacked, {limits.too_long}"
    if size > max(10_000_000, limits.ratio * packed):
        return f"its XML expands to more than corpus.limits.ratio: {limits.ratio} times its size"
    return None


def _markdown(page: str) -> str:
    """mammoth's plain HTML as Markdown."""
    if not page.strip():
        return ""
    lines = []
    for element in html.fragment_fromstring(page, create_parent="div"):
        text = " ".join(element.text_content().split())
        match element.tag:
            case "h1" | "h2" | "h3" | "h4" | "h5" | "h6":
                lines.append(f"{'#' * int(element.tag[1])} {text}" if text else "")
            case "ul" | "ol":
                lines.append("\n".join(f"- {' '.join(item.text_content().split())}" for item in element.iter("li")))
            case "table":
                lines.append("\n".join(_row(row) for row in element.iter("tr")))
            case _:
                lines.append(text)
    return "\n\n".join(line for line in lines if line.strip())


def _row(row: html.HtmlElement) -> str:
    return "| " + " | ".join(" ".join(cell.text_content().split()) for cell in row) + " |"


if __name__ == "__main__":
    serve(parse)
