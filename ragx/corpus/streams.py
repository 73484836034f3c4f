"""Bytes on disk -> lines and texts in UTF-8, decompressed and within limits, whatever the file claims to be.

Encodings: a byte order mark of UTF-8, UTF-16 or UTF-32 is believed; without one the configured encoding holds,
strictly. Nothing is guessed: Latin-1 and its kin cannot be told apart by looking.
"""

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ragx.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
if sys.version_info < (3, 14):
    from backports import zstd

COMPRESSED = (".gz", ".zst")
_CHUNK = 1 << 20
_RATIO_FROM = 1 << 26
"""Decompressed bytes from which a compression ratio says anything: 64 MB."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost: megabytes (10^6 bytes) of one document and of one file decompressed, the compression
    ratio, and processor seconds a document and memory of the parsers' child processes."""

    document_mb: int = 50
    file_mb: int = 100_000
    ratio: int = 200
    seconds: int = 60
    memory_mb: int = 2048

    @property
    def document_bytes(self) -> int:
        """The limit of one document in bytes."""
        return self.document_mb * 1_000_000

    @property
    def too_long(self) -> str:
        """What to say of a document beyond the limit."""
        return f"longer than corpus.limits.document_mb: {self.document_mb}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a document, or the rest of a file, cannot be read, and where it stands."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class _Within(io.RawIOBase):
    """The bytes of a file, decompressed; refused beyond the limits on size and compression ratio."""

    def __init__(self, file: IO[bytes], path: Path, limits: Limits) -> None:
        self._file, self._path, self._limits = file, path, limits
        self._size = path.stat().st_size
        self._compressed = path.suffix.lower() in COMPRESSED
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._count += len(chunk)
        if self._count > self._limits.file_mb * 1_000_000:
            raise DataError(f"{self._path}: larger than corpus.limits.file_mb: {self._limits.file_mb}, decompressed")
        if self._compressed and self._count > max(_RATIO_FROM, self._limits.ratio * self._size):
            limit = f"corpus.limits.ratio: {self._limits.ratio}"
            raise DataError(f"{self._path}: expands to more than {limit} times its size; is it a decompression bomb?")
        return len(chunk)


class _Recoded(io.RawIOBase):
    """The bytes of a file in another encoding, as UTF-8."""

    def __init__(self, file: io.BufferedIOBase, encoding: str, path: Path) -> None:
        self._texts = decoded(file, encoding, path)
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = next(self._texts, "").encode()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def decoded(file: io.BufferedIOBase, encoding: str, path: Path) -> Iterator[str]:
    """The text of a file in pieces, none of them empty.

    Raises:
        DataError: it is not of this encoding; with the byte.
    """
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    position = 0
    while True:
        chunk = file.read(_CHUNK)
        waiting = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(chunk, final=not chunk)
            piece.encode()
        except UnicodeError as error:
            where = position - waiting + getattr(error, "start", 0)
            reason = getattr(error, "reason", error)
            raise DataError(f"{path}: not {encoding.upper()} ({reason} at byte {where})") from None
        if piece:
            yield piece
        if not chunk:
            return
        position += len(chunk)


@contextmanager
def open_bytes(path: Path, limits: Limits) -> "Iterator[io.BufferedReader[Any]]":
    """Open a file, decompressing .gz and .zst.

    Raises:
        DataError: it cannot be opened, is no whole .gz or .zst file, or goes beyond the limits.
    """
    kind = path.suffix.lower().removeprefix(".")
    opener: Any = {"gz": gzip.open, "zst": zstd.open}.get(kind, Path.open)
    try:
        with opener(path, "rb") as file, io.BufferedReader(_Within(file, path, limits), _CHUNK) as within:
            yield within
    except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise DataError(f"{path}: not a whole .{kind} file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


@contextmanager
def open_utf8(path: Path, limits: Limits, encoding: str = "utf-8") -> Iterator[io.BufferedIOBase]:
    """Open a text file of any encoding as UTF-8 bytes without byte order mark.

    Raises:
        DataError: as `open_bytes`; while reading also when the bytes are not of the encoding.
    """
    with open_bytes(path, limits) as file:
        start = file.peek(4)[:4]
        mark, found = next(((mark, name) for mark, name in _MARKS if start.startswith(mark)), (b"", encoding))
        file.read(len(mark))
        if codecs.lookup(found).name == "utf-8":
            yield file
        else:
            with io.BufferedReader(_Recoded(file, found, path), _CHUNK) as recoded:
                yield recoded


def read_lines(file: io.BufferedIOBase, limits: Limits) -> Iterator[tuple[int, str | Problem]]:
    """Every line with its number from 1: its text, or a problem whose place is the number."""
    number, position = 0, 0
    while line := file.readline(limits.document_bytes + 1):
        number += 1
        if len(line) > limits.document_bytes:
            length = len(line)
            while not line.endswith(b"\n") and (line := file.readline(_CHUNK)):
                length += len(line)
            yield number, Problem(str(number), f"a line of {length} bytes, {limits.too_long}")
        else:
            length = len(line)
            yield number, _decoded(line, position, str(number))
        position += length


def read_up_to(file: io.BufferedIOBase, most: int) -> bytes:
    """At most so many bytes; unlike `read`, which makes room for all of them first."""
    data = bytearray()
    while len(data) < most and (chunk := file.read(min(_CHUNK, most - len(data)))):
        data += chunk
    return bytes(data)


def read_text(file: io.BufferedIOBase, path: Path, limits: Limits) -> str | Problem:
    """A whole file as one text."""
    data = read_up_to(file, limits.document_bytes + 1)
    if len(data) > limits.document_bytes:
        return Problem(str(path), limits.too_long)
    return _decoded(data, 0, str(path))


def _decoded(data: bytes, position: int, place: str) -> str | Problem:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        where = f"byte {position + error.start}, 0x{data[error.start]:02x}"
        remedy = "convert it, or set corpus.encoding: cp1252 or what it is"
        return Problem(place, f"not UTF-8 ({error.reason} at {where}); {remedy}")
    if "\x00" in text:
        where = f"byte {position + data.index(0)}"
        return Problem(place, f"holds a NUL ({where}): a binary file, or UTF-16 without a mark?")
    return text
