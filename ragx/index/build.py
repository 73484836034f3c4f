"""Documents -> passages -> vector shards -> one sealed index generation; resumable at any kill.

index/.building/   plan.json, passages.sqlite, shard-00000.safetensors ...              while unfinished
index/v1, v2 ...   passages.sqlite, vectors.npy, vectors.faiss, lexical/, manifest.json
index/CURRENT      the name of the generation in use; the one before it stays for those who still read it
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ragx.artifacts import FORMAT, fingerprint, new_folder, write_json, write_text
from ragx.errors import ArtifactError, RagxError
from ragx.index.encoder import Encoder, Vectors
from ragx.index.generations import KIND, current_generation, generation_numbers, preparing
from ragx.index.kinds import Wanted, write_approximate
from ragx.index.lexical import Lexical, write_lexical
from ragx.index.passages import (
    PASSAGES,
    count_left_out,
    kept_numbers,
    lengths,
    open_passages,
    read_passages,
    store_passages,
)
from ragx.index.shards import Plan, encode_part, is_intact, read_shard, shard_path, write_shard
from ragx.index.vectors import APPROXIMATE, FAISS_VERSION, METRIC, VECTORS, open_vectors, write_vectors
from ragx.records import Passage, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What an index is made from: fingerprintable facts of corpus files and reader, of chunking, and what the
    configuration says of encoding (the encoder's own answer to it stands in its fingerprint)."""

    corpus: dict[str, object]
    chunking: dict[str, object]
    encoding: dict[str, object]


@dataclass(frozen=True, slots=True)
class Settings:
    """How passages are encoded and what is built over them."""

    vectors: Wanted
    lexical: Lexical
    batch_tokens: int
    shard_size: int
    dtype: torch.dtype
    backend: str = "torch"


@dataclass(frozen=True, slots=True)
class Base:
    """An older generation, whose vectors an update keeps: its folder and the shape [N, D] of its vectors."""

    folder: Path
    shape: tuple[int, int]


Encode = Callable[[Path, Plan, list[int]], None]
"""Called with the folder of the unfinished build, the plan and the numbers of the shards to write there."""


def facts_of(source: Source, encoder: Encoder, settings: Settings) -> dict[str, object]:
    """What a generation must agree with to be that of a configuration; its manifest holds all of them."""
    return {
        **dataclasses.asdict(source),
        "encoder": encoder.fingerprint,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "backend": settings.backend,
        "wanted": dataclasses.asdict(settings.vectors),
        "lexical": settings.lexical,
    }


def decides_vectors(facts: dict[str, object]) -> dict[str, object]:
    """Those facts that passages and vectors depend on."""
    return {name: value for name, value in facts.items() if name not in ("wanted", "lexical")}


def build(
    folder: Path,
    facts: dict[str, object],
    settings: Settings,
    passages: Iterable[Passage],
    encoder: Encoder,
    progress: Progress,
    *,
    base: Base | None = None,
    encode: Encode | None = None,
    left_out: Callable[[], int] = lambda: 0,
) -> Path:
    """Build the next generation in `folder` and make it current, as its `only_writer`; shards of an interrupted build
    are reused.

    Passages that `base` holds too keep their vectors. `encode` may compute the others elsewhere. `left_out` is asked,
    when all passages are read, how many duplicates they went without.

    Raises:
        DataError: there is no passage.
        RagxError: the disk is too small, or a vector is not finite.
    """
    plan = _plan(facts, settings, None if base is None else base.folder.name)
    building = _building(folder, plan)
    documents, count = store_passages(building / PASSAGES, passages, progress, left_out)
    missing = _missing(building, plan, count)
    _require_room(folder, sum(_rows(plan, number, count) for number in missing), count, encoder.dimension)
    if base is not None:
        _encode_changed(building, plan, count, missing, base, encoder, progress)
    elif encode is not None and missing:
        encode(building, plan, missing)
    else:
        _encode_here(building, plan, encoder, set(missing), count, progress)
    return _commit(folder, building, plan, settings, facts, (documents, count, encoder.dimension), progress)


def build_part(
    folder: Path,
    facts: dict[str, object],
    settings: Settings,
    passages: Iterable[Passage],
    encoder: Encoder,
    progress: Progress,
    *,
    part: int,
    parts: int,
) -> list[Path]:
    """Encode every `parts`-th shard, from number `part` - 1 on, for `merge` to join, as the part's `only_maker`.

    Parts of one plan are made side by side.

    Raises:
        ArtifactError: another process is building a whole index here, or took the folder for another plan.
        DataError: there is no passage.
    """
    plan = _plan(facts, settings, None)
    with preparing(folder):
        building = _building(folder, plan)
    made = encode_part(building, plan, passages, encoder, lambda shard: shard % parts == part - 1, progress)
    return list(_while_of_plan(building, plan, made, f"run ragx index --shard {part}/{parts} again"))


def _while_of_plan(building: Path, plan: Plan, made: Iterator[Path], remedy: str) -> Iterator[Path]:
    """The shards of a part, as long as nobody else empties or removes their folder: a part does not lock it."""
    taken = ArtifactError(f"{building}: another build has taken this folder from under a running part; {remedy}")
    try:
        for path in made:
            if not _is_of_plan(building, plan):
                raise taken
            yield path
    except FileNotFoundError as error:
        if _is_of_plan(building, plan):
            raise
        raise taken from error


def merge(
    folder: Path,
    facts: dict[str, object],
    settings: Settings,
    passages: Iterable[Passage],
    dimension: int,
    progress: Progress,
    *,
    left_out: Callable[[], int] = lambda: 0,
) -> Path:
    """Join the shards of all parts into the next generation and make it current, as `only_writer` of `folder`.

    Raises:
        ArtifactError: shards are missing, damaged or of another plan; those that are right stay.
        RagxError: the disk is too small.
    """
    plan = _plan(facts, settings, None)
    building = folder / ".building"
    building.mkdir(parents=True, exist_ok=True)
    if not _is_of_plan(building, plan):
        (building / PASSAGES).unlink(missing_ok=True)
        write_json(building / "plan.json", {"plan": plan.fingerprint})
    documents, count = store_passages(building / PASSAGES, passages, progress, left_out)
    absent = [number for number in range(_shards(plan, count)) if not shard_path(building, number).is_file()]
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        raise ArtifactError(
            f"{building}: {len(absent)} of {_shards(plan, count)} shards are missing ({shown}); "
            "run ragx index --shard i/n for every i first"
        )
    _require_room(folder, 0, count, dimension)
    return _commit(folder, building, plan, settings, facts, (documents, count, dimension), progress)


def _plan(facts: dict[str, object], settings: Settings, base: str | None) -> Plan:
    relevant = {"format": FORMAT, "base": base, **decides_vectors(facts)}
    return Plan(relevant, settings.shard_size, settings.batch_tokens, settings.dtype)


def _is_of_plan(building: Path, plan: Plan) -> bool:
    try:
        found = json.loads((building / "plan.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(found == {"plan": plan.fingerprint})


def _building(folder: Path, plan: Plan) -> Path:
    """The folder of the unfinished build, emptied unless it was started for the same plan."""
    building = folder / ".building"
    if not _is_of_plan(building, plan):
        shutil.rmtree(building, ignore_errors=True)  # a part of the other plan may be writing there
        building.mkdir(parents=True, exist_ok=True)
        (building / PASSAGES).unlink(missing_ok=True)  # which, unlike a shard, does not say what it was made for
        write_json(building / "plan.json", {"plan": plan.fingerprint})
    return building


def _shards(plan: Plan, count: int) -> int:
    return -(-count // plan.shard_size)


def _rows(plan: Plan, number: int, count: int) -> int:
    return min(plan.shard_size, count - number * plan.shard_size)


def _missing(building: Path, plan: Plan, count: int) -> list[int]:
    """The numbers of the shards that are not there whole; a shard that was damaged is made again."""
    shards = range(_shards(plan, count))
    missing = [n for n in shards if not is_intact(shard_path(building, n), plan, _rows(plan, n, count))]
    if len(missing) < len(shards):
        log.info("going on: %d of %d shards are done", len(shards) - len(missing), len(shards))
    return missing


def _require_room(folder: Path, missing: int, count: int, dimension: int) -> None:
    """Refuse what cannot end well before hours of encoding: shards of the `missing` vectors must find room, then all
    `count` once more and a copy of the passages. The lexical and an approximate index come on top, and are not known.

    Raises:
        RagxError: there is less.
    """
    building = folder / ".building"
    needed = 4 * dimension * (missing + count) + (building / PASSAGES).stat().st_size
    rests = (building / VECTORS, building / APPROXIMATE, *folder.glob(".v*.tmp/**/*"))  # which a kill left, to go first
    free = shutil.disk_usage(building).free + sum(path.stat().st_size for path in rests if path.is_file())
    if needed > free:
        sizes = f"needs about {needed / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB free"
        raise RagxError(f"{folder}: {sizes}; make room, or set output_dir to another disk")


def _encode_here(
    building: Path, plan: Plan, encoder: Encoder, missing: set[int], count: int, progress: Progress
) -> None:
    def shown(what: str, done: int, _: int | None) -> None:
        progress(what, done, count)

    with closing(open_passages(building / PASSAGES)) as database:
        passages = read_passages(database, 0, -1)
        for _ in encode_part(building, plan, passages, encoder, missing.__contains__, shown):
            pass


def _encode_changed(
    building: Path, plan: Plan, count: int, missing: list[int], base: Base, encoder: Encoder, progress: Progress
) -> None:
    """Copy the vectors of passages that the base holds too, encode the others."""
    kept = kept_numbers(building / PASSAGES, base.folder / PASSAGES, count)
    before = open_vectors(base.folder / VECTORS, base.shape)
    new = int((kept < 0).sum())
    dropped = base.shape[0] - len(np.unique(kept[kept >= 0]))
    log.info("update: %d passages kept, %d to encode, %d dropped", count - new, new, dropped)
    with closing(open_passages(building / PASSAGES)) as database:
        for number in missing:
            first, rows = number * plan.shard_size, _rows(plan, number, count)
            numbers = kept[first : first + rows]
            vectors = before[np.maximum(numbers, 0)]
            shard = [p for p in read_passages(database, first, rows) if kept[p.number] < 0]
            if shard:
                encoded = encoder.encode_passages(shard, batch_tokens=plan.batch_tokens, dtype=plan.dtype)
                vectors[numbers < 0] = encoded
            write_shard(shard_path(building, number), plan, vectors)
            progress("encoding passages", first + rows, count)


def _commit(
    folder: Path,
    building: Path,
    plan: Plan,
    settings: Settings,
    facts: dict[str, object],
    counts: tuple[int, int, int],
    progress: Progress,
) -> Path:
    """Write the generation and make it current; `counts` are documents, passages N and dimension D."""
    documents, count, dimension = counts
    facts = {**facts, "documents": documents, "passages": count, "dimension": dimension}
    facts["fingerprint"] = fingerprint([FORMAT, facts])
    facts["lengths"], facts["left_out"] = lengths(building / PASSAGES), count_left_out(building / PASSAGES)
    progress("writing the index", 0, 1)
    write_vectors(building / VECTORS, _vectors(building, plan, count), (count, dimension))
    built = write_approximate(building, settings.vectors, (count, dimension), progress)
    facts |= {"kind_of_index": built.kind, "factory": built.factory, "search": built.search}
    facts |= {"recall@10": round(built.recall, 4), "metric": METRIC, "faiss": FAISS_VERSION}
    before = current_generation(folder)
    numbers = generation_numbers(folder)
    generation = folder / f"v{max(numbers, default=0) + 1}"
    with new_folder(generation, KIND, **facts) as beside:
        shutil.copyfile(building / PASSAGES, beside / PASSAGES)
        for name in (VECTORS, APPROXIMATE) if built.kind != "flat" else (VECTORS,):
            (building / name).replace(beside / name)
        with closing(open_passages(building / PASSAGES)) as database:
            write_lexical(beside / "lexical", settings.lexical, read_passages(database, 0, -1))
    write_text(folder / "CURRENT", generation.name + "\n")
    progress("writing the index", 1, 1)
    for old in [folder / f"v{number}" for number in numbers]:
        if old != before:
            shutil.rmtree(old, ignore_errors=True)
    _remove(building)
    return generation


def _remove(building: Path) -> None:
    """The new generation is in use by now, so that rests are no failure; what is left is of no other plan's use."""
    try:
        shutil.rmtree(building)
    except OSError as error:
        log.warning("%s: %s; what is left there may be removed", building, error.strerror)


def _vectors(building: Path, plan: Plan, count: int) -> Iterator[Vectors]:
    for number in range(_shards(plan, count)):
        yield read_shard(shard_path(building, number), plan, _rows(plan, number, count))
