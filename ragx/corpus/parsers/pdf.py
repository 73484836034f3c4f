"""PDF -> one document: the text of its pages, by pypdf."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pypdf
from pypdf.errors import PyPdfError

from ragx.corpus.parsers.serve import read_whole, serve
from ragx.corpus.streams import Limits, Problem
from ragx.corpus.tables import Record

_BROKEN = (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
"""What pypdf raises on files that are none."""


def parse(path: Path, name: str, fields: list[str], limits: Limits) -> Iterator[Record | Problem]:
    """One document; its title is the file's own, where it says one."""
    data = read_whole(path, limits)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            yield Problem(str(path), "encrypted: save it without a password")
            return
        title = str((reader.metadata and reader.metadata.title) or "").strip()
        pages: list[str] = []
        length = 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            length += len(pages[-1])
            if length > limits.document_bytes:
                yield Problem(str(path), limits.too_long)
                return
    except pypdf.errors.DependencyError as error:
        yield Problem(str(path), f"encrypted: save it without a password ({error})")
        return
    except (*_BROKEN, struct.error, zlib.error) as error:
        yield Problem(str(path), f"no PDF that can be read ({type(error).__name__}: {error})")
        return
    text = "\n\n".join(page for page in pages if page)
    if not text:
        yield Problem(str(path), f"holds no text on its {len(pages)} pages: scanned? run it through OCR first")
        return
    yield str(path), {"id": name, "title": title, "text": text}


if __name__ == "__main__":
    serve(parse)
