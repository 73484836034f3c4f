"""The generations of an index: which one is in use, and who may write the next.

The right to write is taken before the corpus is read or the encoder loaded, so that a second job is refused at once.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ragx.artifacts import lock, write_text
from ragx.errors import ArtifactError

log = logging.getLogger(__name__)

KIND = "ragx index"
WHAT = "this index"
PART_WAIT_SECONDS = 60
"""How long a part waits while another one prepares the folder that all of them write to."""


def current_generation(folder: Path) -> Path | None:
    """The folder of the generation in use, or None."""
    pointer = folder / "CURRENT"
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{pointer}: damaged ({error}); run: ragx index") from error
    if not (name.startswith("v") and name[1:].isdigit()):
        raise ArtifactError(f"{pointer}: damaged, names {name[:20]!r}; run: ragx index")
    return folder / name


def _mend_current(folder: Path) -> None:
    """Where CURRENT is damaged or names nothing that is there, the newest generation is the one in use again: its
    vectors need not be made a second time."""
    pointer = folder / "CURRENT"
    try:
        generation = current_generation(folder)
        if generation is None or generation.is_dir():
            return
        reason = f"{pointer}: names {generation.name}, which is gone"
    except ArtifactError as error:
        reason = str(error).removesuffix("; run: ragx index")
    if numbers := generation_numbers(folder):
        write_text(pointer, f"v{max(numbers)}\n")
        log.warning("%s; v%d is in use again", reason, max(numbers))
    else:
        pointer.unlink()
        log.warning("%s; building it anew", reason)


def generation_numbers(folder: Path) -> list[int]:
    """The numbers of the generations that are there."""
    return [int(path.name[1:]) for path in folder.glob("v*") if path.name[1:].isdigit()]


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """The right to write generations in `folder`, for whoever is about to build or merge. A damaged CURRENT is mended.

    Raises:
        ArtifactError: another process has it.
    """
    with lock(folder / ".lock", WHAT):
        _mend_current(folder)
        yield


@contextmanager
def only_maker(folder: Path, part: int, parts: int) -> Iterator[None]:
    """The right to make one part of several in `folder`; other parts are made beside it.

    Raises:
        ArtifactError: another process has it.
    """
    with lock(folder / f".lock-{part}-of-{parts}", f"part {part} of {parts}"):
        yield


@contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """The right to prepare the folder that all parts write to, for the moment it takes: other parts wait for it.

    Raises:
        ArtifactError: it is not to be had, because a whole index is being built here.
    """
    with lock(folder / ".lock", WHAT, wait_seconds=PART_WAIT_SECONDS):
        yield
