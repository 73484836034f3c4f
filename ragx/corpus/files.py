"""Paths, folders and globs -> the files of the corpus, sorted, one directory in memory at a time."""

import glob
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from ragx.corpus.streams import COMPRESSED, Problem
from ragx.errors import DataError

FORMATS = {
    ".csv": "table",
    ".docx": "docx",
    ".htm": "html",
    ".html": "html",
    ".json": "json",
    ".jsonl": "jsonl",
    ".md": "markdown",
    ".parquet": "parquet",
    ".pdf": "pdf",
    ".tsv": "table",
    ".txt": "plain",
}
"""File name suffix -> format; all but .parquet may be compressed, as .gz or .zst."""
EXTRAS = {"pdf": ("pypdf", "docs"), "html": ("trafilatura", "docs"), "docx": ("mammoth", "docs")} | {
    "parquet": ("pyarrow", "parquet")
}
"""Format -> the library that reads it and ragx's extra that installs it."""


def format_of(name: str) -> str | None:
    """The format of a file by its name, or None where ragx reads none such."""
    stem = name.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    suffix = Path(stem).suffix
    return None if suffix == ".parquet" and stem != name.lower() else FORMATS.get(suffix)


def corpus_files(paths: Iterable[str]) -> list[tuple[Path, str]]:
    """Every file that `paths` name, sorted, with its name relative to the folder or glob it came from.

    Raises:
        DataError: a path does not exist, a glob matches nothing, or a named file has an unknown format.
    """
    return [found for found in find_files(paths) if not isinstance(found, Problem)]


def find_files(paths: Iterable[str]) -> Iterator[tuple[Path, str] | Problem]:
    """As `corpus_files`, streamed, with a problem for each link or folder that cannot be followed."""
    paths = list(paths)
    seen: set[str] = set()
    for text in paths:
        empty = True
        for found in _files_of(Path(text), text):
            empty = False
            if not isinstance(found, Problem) and len(paths) > 1:
                if str(found[0]) in seen:
                    continue
                seen.add(str(found[0]))
            yield found
        if empty:
            raise DataError(f"{text}: no file that ragx can read; set corpus.paths")


def require_extras(formats: Iterable[str]) -> None:
    """Refuse formats whose library is not installed.

    Raises:
        DataError: with the command that installs it.
    """
    for name in formats:
        library, extra = EXTRAS.get(name, ("ragx", ""))
        if find_spec(library) is None:
            raise DataError(f"{library} is not installed; to read .{name} files: pip install 'ragx[{extra}]'")


def _files_of(path: Path, text: str) -> Iterator[tuple[Path, str] | Problem]:
    """The files of one path, folder or glob, with their names."""
    try:
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{text[:80]}: {getattr(error, 'strerror', error)}; set corpus.paths") from error
    if path.is_dir():
        yield from _walk(path)
    elif exists:
        if not format_of(path.name):
            raise DataError(f"{path}: unknown format; ragx reads {', '.join(sorted(FORMATS))}, most also .gz and .zst")
        if not path.is_file():
            raise DataError(f"{path}: no regular file; set corpus.paths")
        yield path, path.name
    elif not glob.has_magic(text):
        raise DataError(f"{path}: no such file or folder; set corpus.paths")
    else:
        yield from _matches(path)


def _walk(root: Path) -> Iterator[tuple[Path, str] | Problem]:
    """The files of a folder in the order of their paths; links to folders are not followed, hidden files not read."""
    folder = str(root)
    stack = [folder]
    while stack:
        here = stack.pop()
        path = Path(here)
        if here == folder or (path.is_dir() and not path.is_symlink()):
            try:
                with os.scandir(here) as entries:
                    inside = [e.path for e in entries if e.name[0] != "." and _is_wanted(e)]
            except OSError as error:
                yield Problem(here, f"{error.strerror}")
                continue
            stack.extend(sorted(inside, reverse=True))
        elif (found := _followed(path, root)) is not None:
            yield found


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or entry.is_symlink() or format_of(entry.name) is not None


def _matches(pattern: Path) -> Iterator[tuple[Path, str] | Problem]:
    parts = pattern.parts
    count = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:count])
    wanted = [*parts[count:], *(["*"] if parts[-1] == "**" else [])]
    for path in sorted(root.glob("/".join(wanted))):
        name = path.relative_to(root)
        if not any(part[0] == "." for part in name.parts) and (found := _followed(path, root)) is not None:
            yield found


def _followed(path: Path, root: Path) -> tuple[Path, str] | Problem | None:
    """A file with its name; a problem where it is a link that leads nowhere or out; None where it is not to be read."""
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError:
            return Problem(str(path), "a link to nothing")
        except (OSError, RuntimeError):
            return Problem(str(path), "a link that leads round in a circle")
        if not target.is_relative_to(root.resolve()):
            return Problem(str(path), f"links out of the corpus, to {target}; name that in corpus.paths")
    if not path.is_file() or not format_of(path.name):
        return None
    return path, path.relative_to(root).as_posix()
