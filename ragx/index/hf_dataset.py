"""An opened index -> what transformers' RagRetriever opens: a folder of the datasets library and a FAISS file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from ragx.index.encoder import Vectors
from ragx.index.store import Index
from ragx.index.vectors import Ids, write_flat
from ragx.records import Progress

BATCH = 1000
PASSAGES, VECTORS = "passages", "passages.faiss"


def write_dataset(folder: Path, index: Index, scale: float, progress: Progress) -> None:
    """Write all passages with their vectors times `scale` to `folder`/passages, and an exact index of them beside it.

    Raises:
        RagxError: FAISS cannot write.
    """
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "document_id", "title", "text")}
        | {"embeddings": datasets.List(datasets.Value("float32"), length=index.manifest["dimension"])}
    )
    factor = np.float32(scale)

    def rows() -> Iterator[dict[str, object]]:
        for ids in _batches(index):
            found = index.passages(ids.tolist())
            for number, vector in zip(ids.tolist(), index.vectors(ids) * factor, strict=True):
                passage = found[number]
                yield {
                    "id": passage.id,
                    "document_id": passage.document_id,
                    "title": passage.title,
                    "text": passage.text,
                    "embeddings": vector,
                }
            progress("exporting passages", int(ids[-1]) + 1, index.passages_count)

    def vectors() -> Iterator[Vectors]:
        for ids in _batches(index):
            yield index.vectors(ids) * factor

    datasets.disable_progress_bars()
    scratch = folder / ".scratch"
    facts = {"features": features, "cache_dir": str(scratch), "fingerprint": str(index.manifest["fingerprint"])}
    datasets.Dataset.from_generator(rows, **facts).save_to_disk(folder / PASSAGES)
    shutil.rmtree(scratch)
    write_flat(folder / VECTORS, vectors(), index.manifest["dimension"])


def _batches(index: Index) -> Iterator[Ids]:
    for first in range(0, index.passages_count, BATCH):
        yield np.arange(first, min(first + BATCH, index.passages_count))
