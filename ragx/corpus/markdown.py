"""The structure of Markdown that helps retrieval: title and sections."""

from itertools import pairwise

import regex
from markdown_it import MarkdownIt

Sections = tuple[tuple[int, str], ...]
"""Where each section starts, as a character offset, and its headings from the outermost on: (120, "Firing > Wood")."""

SEPARATOR = " > "
_FRONT = regex.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", regex.DOTALL | regex.MULTILINE)
_TITLE = regex.compile(r"^title:[ \t]*+(\S.*)$", regex.MULTILINE)
_HEADING = regex.compile(r"^(?: {0,3}#{1,6}[ \t]|[ \t]*(?:=+|-+)[ \t]*$)", regex.MULTILINE)
_BLOCKS = MarkdownIt("zero").enable(["heading", "lheading", "fence", "code"])
_BLOCKS.core.ruler.disable("inline")


def title_and_body(text: str) -> tuple[str, str]:
    """A page without its YAML front matter and its leading `# ` line, and the title that stands there, or ""."""
    title = ""
    if front := _FRONT.match(text):
        text = text[front.end() :]
        if named := _TITLE.search(front[1]):
            title = named[1].rstrip().strip("'\"")
    first, _, rest = text.lstrip().partition("\n")
    if first.startswith("# "):
        return title or first[2:].strip(" #\r"), rest.strip("\n")
    return title, text


def sections_of(text: str) -> Sections:
    """The sections of a Markdown text; what stands before the first heading belongs to none."""
    if not _HEADING.search(text):
        return ()
    starts = [0, *(match.end() for match in regex.finditer("\n", text))]
    path: list[tuple[int, str]] = []
    found = []
    tokens = _BLOCKS.parse(text.replace("\r\n", " \n").replace("\r", " "))
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.map and inline.content.strip():
            level = int(opening.tag[1])
            path = [*((n, heading) for n, heading in path if n < level), (level, inline.content.strip())]
            found.append((starts[opening.map[0]], SEPARATOR.join(heading for _, heading in path)))
    return tuple(found)
