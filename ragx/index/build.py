"""Documents -> passages -> vector shards -> one sealed index generation; resumable at any kill.

index/.building/   plan.json, passages.sqlite, shard-00000.npy ...   while unfinished
index/v1, v2 ...   passages.sqlite, vectors.faiss, lexical/, manifest.json
index/CURRENT      the name of the generation in use
"""

import io
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ragx.artifacts import FORMAT, fingerprint, lock, new_folder, write_json, write_text
from ragx.errors import DataError, RagxError
from ragx.index.encoder import Encoder, Vectors
from ragx.index.lexical import write_lexical
from ragx.index.vectors import write_flat
from ragx.records import Passage, Progress

KIND = "ragx index"
_SCHEMA = """
CREATE TABLE passages (number INTEGER PRIMARY KEY, document_id TEXT, title TEXT, text TEXT, id TEXT);
CREATE INDEX by_document ON passages (document_id);
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What an index is made from: fingerprintable facts of corpus files and reader, of chunking, and what the
    configuration says of encoding (the encoder's own answer to it stands in its fingerprint)."""

    corpus: dict[str, object]
    chunking: dict[str, object]
    encoding: dict[str, object]


def build(
    folder: Path,
    source: Source,
    passages: Iterable[Passage],
    encoder: Encoder,
    *,
    lexical: bool,
    batch_size: int,
    shard_size: int,
    dtype: torch.dtype,
    progress: Progress,
) -> Path:
    """Build the next generation in `folder` and make it current; shards of an interrupted build are reused.

    Raises:
        ArtifactError: another process is building here.
        DataError: there is no passage.
        RagxError: a vector is not finite.
    """
    with lock(folder / ".lock", "this index"):
        facts: dict[str, object] = {
            "corpus": source.corpus,
            "chunking": source.chunking,
            "encoding": source.encoding,
            "encoder": encoder.fingerprint,
            "lexical": "bm25" if lexical else "none",
            "dtype": str(dtype).removeprefix("torch."),
        }
        building = _building(folder, fingerprint([FORMAT, facts, shard_size]))
        database = building / "passages.sqlite"
        documents, count = _store_passages(database, passages, progress)
        shards = _encode_shards(building, database, count, encoder, batch_size, shard_size, dtype, progress)
        facts |= {"documents": documents, "passages": count, "dimension": encoder.dimension, "kind_of_index": "flat"}
        facts["fingerprint"] = fingerprint([FORMAT, facts])
        generation = _commit(folder, database, shards, lexical, facts, progress)
        shutil.rmtree(building)
        return generation


def current_generation(folder: Path) -> Path | None:
    """The folder of the generation in use, or None."""
    pointer = folder / "CURRENT"
    return folder / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def read_passages(database: sqlite3.Connection, first: int, count: int) -> list[Passage]:
    """`count` passages from number `first` on."""
    query = "SELECT number, document_id, title, text, id FROM passages WHERE number >= ? ORDER BY number LIMIT ?"
    return [Passage(*row) for row in database.execute(query, (first, count))]


def _building(folder: Path, plan: str) -> Path:
    """The folder of the unfinished build, emptied unless it was started for the same plan."""
    building = folder / ".building"
    marker = building / "plan.json"
    try:
        same = json.loads(marker.read_text(encoding="utf-8"))["plan"] == plan
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        same = False
    if not same:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        write_json(marker, {"plan": plan})
    return building


def _store_passages(path: Path, passages: Iterable[Passage], progress: Progress) -> tuple[int, int]:
    """Write all passages to SQLite unless that was finished; returns the numbers of documents and passages."""
    if not path.exists():
        beside = path.with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(beside)) as database:
                database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
                for batch in _batches(passages, 1000):
                    rows = [(p.number, p.document_id, p.title, p.text, p.id) for p in batch]
                    database.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", rows)
                    progress("reading passages", batch[-1].number + 1, None)
                database.commit()
        except sqlite3.OperationalError as error:
            raise RagxError(f"{path}: cannot be written ({error}); is the disk full?") from error
        beside.replace(path)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        documents, count = database.execute("SELECT count(DISTINCT document_id), count(*) FROM passages").fetchone()
    if not count:
        raise DataError("no passages in the corpus")
    return documents, count


def _batches(items: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _encode_shards(
    building: Path,
    database: Path,
    count: int,
    encoder: Encoder,
    batch_size: int,
    shard_size: int,
    dtype: torch.dtype,
    progress: Progress,
) -> list[Path]:
    """Encode shard by shard; a shard file that stands is whole, because it was renamed into place."""
    shards = []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for first in range(0, count, shard_size):
            path = building / f"shard-{first // shard_size:05d}.npy"
            if not path.exists():
                batch = read_passages(connection, first, shard_size)
                vectors = encoder.encode_passages(batch, batch_size=batch_size, dtype=dtype)
                beside = path.with_suffix(".tmp")
                content = io.BytesIO()  # np.save to a file would not tell a full disk from a bug
                np.save(content, vectors, allow_pickle=False)
                beside.write_bytes(content.getbuffer())
                beside.replace(path)
            shards.append(path)
            progress("encoding passages", min(first + shard_size, count), count)
    return shards


def _commit(
    folder: Path, database: Path, shards: list[Path], lexical: bool, facts: dict[str, object], progress: Progress
) -> Path:
    numbers = [int(path.name[1:]) for path in folder.glob("v*") if path.name[1:].isdigit()]
    generation = folder / f"v{max(numbers, default=0) + 1}"
    progress("writing the index", 0, 1)
    with new_folder(generation, KIND, **facts) as beside:
        shutil.copyfile(database, beside / "passages.sqlite")
        dimension = int(str(facts["dimension"]))
        try:
            write_flat(beside / "vectors.faiss", _load(shards), dimension)
        except RuntimeError as error:
            raise RagxError(f"{generation}: FAISS cannot write ({str(error).splitlines()[0]})") from error
        if lexical:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                try:
                    write_lexical(beside / "lexical", read_passages(connection, 0, -1))
                except ValueError as error:
                    raise RagxError(f"{generation}: tantivy cannot write ({error})") from error
    write_text(folder / "CURRENT", generation.name + "\n")
    for number in sorted(numbers)[:-1]:
        shutil.rmtree(folder / f"v{number}", ignore_errors=True)
    progress("writing the index", 1, 1)
    return generation


def _load(shards: list[Path]) -> Iterator[Vectors]:
    for path in shards:
        yield np.load(path, allow_pickle=False)
