"""Run folder, manifests, fingerprints and atomic writes: how files are put on disk and trusted again.

Everything is written beside its final place, fsynced and renamed, so that a kill at any instant leaves the old artefact
or the new one. A manifest, written last, holds the size and SHA-256 of every file of its folder: nothing below us
(faiss, safetensors, tantivy) notices flipped bits.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import regex
from filelock import FileLock, Timeout

from ragx.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
CHECKED = ".checked.json"
LARGE = 64 << 20
"""Bytes from which on a file that did not change since it was last compared is not compared again."""
_SETTLED = 2_000_000_000
_ESCAPED = json.JSONEncoder(ensure_ascii=True)
_UNSAFE = regex.compile(
    r"[\p{Cc}--[\n\t]]|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\U000e0000-\U000e007f]|\p{Cs}",
    regex.V1,
)


def untrusted(text: str) -> str:
    """Text of a corpus or a model made inert: no control characters but newline and tab, no bidi or tag characters."""
    return str(_UNSAFE.sub("", text.replace("\r\n", "\n")))


def untrusted_json(text: str) -> str:
    """JSON text with every character that `untrusted` drops escaped instead, which keeps its value."""
    return str(_UNSAFE.sub(lambda match: _ESCAPED.encode(match[0])[1:-1].replace("\x7f", "\\u007f"), text))


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: no half of a surrogate pair is in it, as which Python reads stray bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fingerprint(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_fingerprint(paths: list[Path]) -> str:
    """One fingerprint over the names and bytes of several files."""
    return fingerprint([[path.name, file_sha256(path)] for path in sorted(paths)])


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an error of writing or syncing the name of its file, which the system tells only of one that is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def fsync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically.

    Raises:
        OSError: the disk is full or the folder is read-only; the file stands whole, the old one or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically; NaN is refused."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@contextmanager
def new_folder(path: Path, kind: str, **facts: object) -> Iterator[Path]:
    """Fill a folder atomically: yields an empty folder beside `path`, then seals it with a manifest and renames it.

    `facts` go into the manifest. Whatever the block leaves is listed there with size and SHA-256. A link or a file that
    stands at `path` is replaced; what the link points to stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    _discard(beside)
    beside.mkdir()
    try:
        yield beside
        _seal(beside, kind, facts)
    except BaseException:
        _discard(beside)
        raise
    old = path.with_name(f".{path.name}.old")
    _discard(old)
    if os.path.lexists(path):
        path.rename(old)
    beside.rename(path)
    fsync(path.parent)
    _discard(old)


def recover_folder(path: Path) -> None:
    """Bring back the old folder where a kill fell between the two renames of `new_folder`."""
    old = path.with_name(f".{path.name}.old")
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)


def _discard(path: Path) -> None:
    """Remove what stands at a path, as far as can be: a folder, or a link or file alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, or the link to one, so that a kill leaves it whole or gone: its files lose their place before
    the first of them goes. What a kill left of them is removed the next time."""
    gone = path.with_name(f".{path.name}.gone")
    _discard(gone)
    if os.path.lexists(path):
        path.rename(gone)
        fsync(path.parent)
        _discard(gone)


def _seal(folder: Path, kind: str, facts: dict[str, object]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsync(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    for directory in [p for p in folder.rglob("*") if p.is_dir()]:
        fsync(directory)
    content = json.loads(json.dumps({"format": FORMAT, "kind": kind, **facts, "files": files}))
    write_json(folder / MANIFEST, {**content, "seal": fingerprint(content)})


def read_manifest(folder: Path, kind: str, remedy: str) -> dict[str, Any]:
    """The manifest of a sealed folder, every file of it checked by size and SHA-256.

    Raises:
        ArtifactError: the folder is missing, damaged, of another kind or of another format version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, version = manifest["kind"], manifest["format"]
        files = {str(name): (int(facts["size"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        seal = manifest.pop("seal", None)
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no {kind} here; run: {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged manifest ({error}); run: {remedy}") from error
    if version != FORMAT or found != kind:
        wanted = f"{kind} of format {FORMAT}"
        raise ArtifactError(f"{path}: {found} of format {version}, this ragx reads {wanted}; run: {remedy}")
    if seal != fingerprint(manifest):
        raise ArtifactError(f"{path}: damaged manifest (its facts changed since they were written); run: {remedy}")
    known = _read_checked(folder)
    for name, (size, sha256) in files.items():
        if known.get(name) != [sha256, *_identity(folder / name)]:
            _check_file(folder / name, size, sha256, remedy)
    _note_checked(folder, {name: sha256 for name, (_, sha256) in files.items()}, known)
    return dict(manifest)


def _identity(path: Path) -> list[int]:
    """What changes whenever a file is written to or replaced; empty where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_checked(folder: Path) -> dict[str, list[object]]:
    """The large files whose bytes were compared before: their SHA-256 then, and their identity."""
    try:
        found = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note_checked(folder: Path, hashes: dict[str, str], known: dict[str, list[object]]) -> None:
    """Note large files as compared, so that opening them again reads nothing; not those written just now, whose next
    change might bear the same time."""
    noted = {}
    for name, sha256 in hashes.items():
        identity = _identity(folder / name)
        if not identity:  # a writer removes this folder just now, and it must not come back
            return
        if identity[1] >= LARGE and time.time_ns() - identity[3] > _SETTLED:
            noted[name] = [sha256, *identity]
    if noted != known:
        with suppress(OSError):  # somebody else's read-only folder: compare every time
            write_json(folder / CHECKED, noted)


def _check_file(path: Path, size: int, sha256: str, remedy: str) -> None:
    try:
        found = path.stat().st_size
        sound = found == size and file_sha256(path) == sha256
    except (FileNotFoundError, IsADirectoryError):
        raise ArtifactError(f"{path}: missing; run: {remedy}") from None
    if found != size:
        raise ArtifactError(f"{path}: {found} bytes instead of {size}; run: {remedy}")
    if not sound:
        raise ArtifactError(f"{path}: its bytes changed since it was written; run: {remedy}")


@contextmanager
def lock(path: Path, what: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the only right to write at `path`, after waiting for it at most `wait_seconds`.

    Raises:
        ArtifactError: another process holds it; the message names its process id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = path.with_suffix(".owner")
    try:
        with FileLock(path, timeout=wait_seconds):
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
            owner.unlink(missing_ok=True)
    except Timeout:
        holder = "another process"
        with suppress(OSError):  # it may just have finished
            holder = owner.read_text(encoding="utf-8") or holder
        raise ArtifactError(f"{path}: {what} is being written by {holder}; wait for it or stop it") from None
