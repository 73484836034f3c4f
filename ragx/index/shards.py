"""Shard files: the vectors of some consecutive passages, the interface between machines.

shard-00007.safetensors says in itself for which plan it was made and what its vectors' SHA-256 is, so that it may be
made anywhere, copied, cut short or flipped, and is either right or refused.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ragx.artifacts import fingerprint, naming
from ragx.errors import ArtifactError, StaleIndexError
from ragx.index.encoder import Encoder, Tokens, Vectors
from ragx.records import Passage, Progress

_REMEDY = "make it again: ragx index --shard i/n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the vectors, and how they are cut into shards: `facts` of the corpus, chunking and encoder."""

    facts: dict[str, object]
    shard_size: int
    batch_tokens: int
    dtype: torch.dtype

    @property
    def fingerprint(self) -> str:
        """What a shard must agree with; what is computed together counts, for rounding."""
        return fingerprint([self.facts, self.shard_size, self.batch_tokens, str(self.dtype)])


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, plan: Plan, vectors: Vectors) -> None:
    """Write the vectors [n, D] of a shard atomically, also where another process writes the same one."""
    facts = {"plan": plan.fingerprint, "sha256": hashlib.sha256(vectors.tobytes()).hexdigest()}
    beside = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    with naming(path):
        beside.write_bytes(save({"vectors": vectors}, metadata=facts))
    beside.replace(path)


def read_shard(path: Path, plan: Plan, rows: int) -> Vectors:
    """The vectors [rows, D] of a shard.

    Raises:
        ArtifactError: the file is missing or damaged.
        StaleIndexError: it was made for another corpus, chunking, encoder or cut.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            vectors: Vectors = file.get_tensor("vectors")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such shard; {_REMEDY}") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: damaged shard ({error}); {_REMEDY}") from error
    if facts.get("plan") != plan.fingerprint:
        raise StaleIndexError(
            f"{path}: made for plan {facts.get('plan')}, this is plan {plan.fingerprint}: corpus, chunking, encoder or "
            f"shard_size differ; {_REMEDY}"
        )
    if facts.get("sha256") != hashlib.sha256(vectors.tobytes()).hexdigest() or len(vectors) != rows:
        raise ArtifactError(f"{path}: its bytes changed since it was written; {_REMEDY}")
    return vectors


def is_intact(path: Path, plan: Plan, rows: int) -> bool:
    """Whether a shard is there and right."""
    try:
        read_shard(path, plan, rows)
    except ArtifactError:
        return False
    return True


def encode_part(
    folder: Path,
    plan: Plan,
    passages: Iterable[Passage],
    encoder: Encoder,
    mine: Callable[[int], bool],
    progress: Progress,
) -> Iterator[Path]:
    """Encode the shards whose number is `mine`, out of all passages in order; whole ones stay. Yields their files."""
    shards = (list(group) for n, group in groupby(passages, key=lambda p: p.number // plan.shard_size) if mine(n))
    for shard, tokens in _tokenized_ahead(folder, plan, shards, encoder):
        path = shard_path(folder, shard[0].number // plan.shard_size)
        if tokens is not None:
            vectors = encoder.encode_tokens(tokens, batch_tokens=plan.batch_tokens, dtype=plan.dtype)
            write_shard(path, plan, vectors)
        progress("encoding passages", shard[-1].number + 1, None)
        yield path


def _tokenized_ahead(
    folder: Path, plan: Plan, shards: Iterable[list[Passage]], encoder: Encoder
) -> Iterator[tuple[list[Passage], Tokens | None]]:
    """Each shard with its tokens, those of the next being made while this one is computed; None where it is whole."""

    def tokens_of(shard: list[Passage]) -> Tokens | None:
        path = shard_path(folder, shard[0].number // plan.shard_size)
        return None if is_intact(path, plan, len(shard)) else encoder.tokenize_passages(shard)

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: tuple[list[Passage], Future[Tokens | None]] | None = None
        for shard in shards:
            following = (shard, thread.submit(tokens_of, shard))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
