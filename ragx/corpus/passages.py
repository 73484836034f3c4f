"""Documents -> passages: windows of words, or of the passage encoder's tokens, with overlap."""

from collections.abc import Callable, Iterable, Iterator

import regex

from ragx.records import Document, Passage

Spans = Callable[[str], list[tuple[int, int]]]
"""Text -> the (start, end) character offsets of its units, in order."""

_WORD = regex.compile(r"\S+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """The character offsets of the words of a text: runs without white space."""
    return [match.span() for match in _WORD.finditer(text)]


def split(text: str, *, size: int, overlap: int = 0, spans: Spans = word_spans) -> list[str]:
    """Cut a text into windows of `size` units, each starting `size - overlap` units after the one before.

    The pieces are exact substrings. The last window is not repeated when it lies wholly inside the one before.
    """
    units = spans(text)
    step = size - overlap
    starts = range(0, max(len(units) - overlap, 1), step)
    windows = [units[start : start + size] for start in starts]
    return [text[window[0][0] : window[-1][1]] for window in windows if window]


def passages_of(
    documents: Iterable[Document], *, size: int, overlap: int = 0, spans: Spans = word_spans
) -> Iterator[Passage]:
    """The passages of all documents, numbered from 0; ids are `document#n`."""
    number = 0
    for document in documents:
        for position, text in enumerate(split(document.text, size=size, overlap=overlap, spans=spans)):
            yield Passage(number, document.id, document.title, text, f"{document.id}#{position}")
            number += 1
