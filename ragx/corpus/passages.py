"""Documents -> passages: windows of words, of the encoder's tokens, of whole sentences or inside of sections."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, assert_never

import regex

from ragx.corpus.markdown import SEPARATOR
from ragx.corpus.streams import Problem
from ragx.records import Document, Passage

Span = tuple[int, int]
Spans = Callable[[str], list[Span]]
"""Text -> the (start, end) character offsets of its units, in order."""

Unit = Literal["words", "tokens", "sentences", "sections"]
TitleKind = Literal["section", "document", "none"]

_ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_TOGETHER = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(
    rf"{_ALONE}[\p{{M}}\p{{Pe}}\p{{Pf}}\p{{Po}}]*+|(?:{_TOGETHER}\p{{M}}*+){{1,4}}"
    rf"|(?:[^\s\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}])++"
)
_SENTENCE_END = regex.compile(
    r"""(?<![.!?…]{2}|[\s.]\p{L}|\b(?:Mr|Ms|Dr|St|No|vs|cf|al|Mrs|Prof|Fig|etc|e\.g|i\.e))"""
    r"""[.!?…]++["'”’)\]]*\s+(?=["'“‘(\[]*[^\p{Ll}\s])|[。！？]++[”’」』）]*|\n\s*\n""",
    regex.VERSION1,
)


def word_spans(text: str) -> list[Span]:
    """The character offsets of the words of a text: runs without white space; in scripts written without spaces,
    characters one by one (Chinese, Japanese) or four by four (Thai, Lao, Khmer, Burmese)."""
    return [match.span() for match in _WORD.finditer(text)]


def sentence_spans(text: str) -> list[Span]:
    """The character offsets of the sentences of a text; an empty line ends one too."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return [span for span in zip([0, *ends], [*ends, len(text)], strict=True) if text[slice(*span)].strip()]


def split(text: str, *, size: int, overlap: int = 0, spans: Spans = word_spans) -> list[str]:
    """Cut a text into windows of `size` units, each starting `size - overlap` units after the one before.

    The pieces are exact substrings. The last window is not repeated when it lies wholly inside the one before.
    """
    return [text[start:end] for start, end in _windows(spans(text), size, overlap)]


def cut(document: Document, *, unit: Unit, size: int, overlap: int, spans: Spans) -> Iterator[Span]:
    """The character offsets of a document's passages, of at most `size` of what `spans` finds.

    Sentences are packed whole until `size` is reached; one longer than that is cut. A section is a passage, or several.
    """
    text = document.text
    match unit:
        case "words" | "tokens":
            yield from _windows(spans(text), size, overlap)
        case "sentences":
            sentences = [_shifted(spans(text[start:end]), start) for start, end in sentence_spans(text)]
            pieces = [words[at : at + size] for words in sentences for at in range(0, len(words), size)]
            yield from _packed(pieces, size, overlap)
        case "sections":
            borders = sorted({0, *(offset for offset, _ in document.sections), len(text)})
            for start, end in pairwise(borders):
                yield from _windows(_shifted(spans(text[start:end]), start), size, overlap)
        case _:
            assert_never(unit)


def passages_of(
    documents: Iterable[Document],
    *,
    size: int,
    overlap: int = 0,
    spans: Spans = word_spans,
    unit: Unit = "words",
    title: TitleKind = "section",
    is_new: Callable[[str], bool] | None = None,
    reject: Callable[[Problem], None] | None = None,
) -> Iterator[Passage]:
    """The passages of all documents, numbered from 0; ids are `document#n`.

    `title` is the document's, with the headings of the section in which the passage starts, or empty. Passages whose
    text `is_new` denies are left out. `reject` is told of documents in which there is no unit.
    """
    number = 0
    for document in documents:
        spans_of_passages = cut(document, unit=unit, size=size, overlap=overlap, spans=spans)
        position = -1
        for position, (start, end) in enumerate(spans_of_passages):
            text = document.text[start:end]
            if is_new is None or is_new(text):
                yield Passage(number, document.id, _title(document, start, title), text, f"{document.id}#{position}")
                number += 1
        if position < 0 and reject is not None:
            why = f"document {document.id!r} holds no {unit} (passages.unit), and so no passage"
            reject(Problem(document.source, why))


def _title(document: Document, start: int, kind: TitleKind) -> str:
    match kind:
        case "none":
            return ""
        case "document":
            return document.title
        case "section":
            at = bisect_right(document.sections, start, key=lambda section: section[0])
            heading = document.sections[at - 1][1] if at else ""
            return SEPARATOR.join(dict.fromkeys(part for part in (document.title, heading) if part))
        case _:
            assert_never(kind)


def _windows(units: list[Span], size: int, overlap: int) -> list[Span]:
    starts = range(0, max(len(units) - overlap, 1), size - overlap)
    windows = [units[start : start + size] for start in starts]
    return [(window[0][0], window[-1][1]) for window in windows if window]


def _packed(pieces: list[list[Span]], size: int, overlap: int) -> Iterator[Span]:
    """Neighbouring pieces joined up to `size` units; the next begins with as many of the last as fit in `overlap`."""
    group: list[list[Span]] = []
    count = 0
    for piece in pieces:
        if group and count + len(piece) > size:
            yield group[0][0][0], group[-1][-1][1]
            while group and (count > overlap or count + len(piece) > size):
                count -= len(group.pop(0))
        group.append(piece)
        count += len(piece)
    if group:
        yield group[0][0][0], group[-1][-1][1]


def _shifted(spans: list[Span], by: int) -> list[Span]:
    return [(start + by, end + by) for start, end in spans]
