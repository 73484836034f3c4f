"""Build, open and search time and recall of the kinds of index, one Markdown row each.

    python -m benchmarks.search [--quick] [--sizes 10000 100000] [--kinds flat hnsw ivf ivfpq] [--dimension 384]
                                [--folder FOLDER]

Vectors are drawn around clusters, as those of texts lie: recall on structureless random vectors says nothing of either.
Questions are drawn from the same clusters and asked one at a time. Recall@10 is against exact search of the same
vectors. What stands in `--folder` from an earlier run is not built again.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ragx.index.encoder import Vectors
from ragx.index.kinds import Built, Wanted, write_approximate
from ragx.index.vectors import APPROXIMATE, VECTORS, VectorIndex, open_vectors, write_vectors
from ragx.records import no_progress

QUESTIONS = 200


def clustered(count: int, dimension: int, seed: int) -> Vectors:
    """Unit vectors around centres, a hundred to each, in a space of 48 dimensions turned into `dimension`."""
    space = np.random.default_rng(0)
    turn = space.standard_normal((48, dimension)).astype(np.float32)
    centres = space.standard_normal((4000, 48)).astype(np.float32)
    random = np.random.default_rng(seed)
    chosen = centres[random.integers(0, len(centres), count)]
    vectors = (chosen + 0.7 * random.standard_normal((count, 48), dtype=np.float32)) @ turn
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def built_once(folder: Path, kind: Any, shape: tuple[int, int]) -> tuple[Built, float]:
    """One kind, built in `folder` beside its vectors unless it is there, and the seconds that took."""
    facts = folder / "built.json"
    if not facts.exists():
        started = time.perf_counter()
        built = write_approximate(folder, Wanted(kind), shape, no_progress)
        found = {"built": dataclasses.asdict(built), "seconds": time.perf_counter() - started}
        facts.write_text(json.dumps(found), encoding="utf-8")
    found = json.loads(facts.read_text(encoding="utf-8"))
    return Built(**found["built"]), found["seconds"]


def row(folder: Path, kind: Any, shape: tuple[int, int], questions: Vectors, exact: Any) -> str:
    """Build, open and ask one kind."""
    built, build_seconds = built_once(folder, kind, shape)
    VectorIndex(folder, *shape, exact=built.kind == "flat", search=built.search)
    started = time.perf_counter()
    index = VectorIndex(folder, *shape, exact=built.kind == "flat", search=built.search)
    open_seconds = time.perf_counter() - started
    index.search(questions[:20], 10)
    seconds, found = [], []
    for question in questions:
        started = time.perf_counter()
        found.append(index.search(question[None], 10)[0])
        seconds.append(time.perf_counter() - started)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(np.array(found).tolist(), exact.tolist(), strict=True)])
    path = folder / APPROXIMATE
    size = 0 if built.kind == "flat" else path.stat().st_size / shape[0]
    description = " ".join([built.factory, *(f"{name}={value}" for name, value in built.search.items())])
    return (
        f"| {shape[0]} | {built.kind} | {description} | {build_seconds:.1f} | {1e3 * open_seconds:.1f} | "
        f"{1e3 * statistics.median(seconds):.2f} | {1e3 * np.percentile(seconds, 95):.2f} | {recall:.3f} | {size:.0f} |"
    )


def vectors_folder(folder: Path, shape: tuple[int, int]) -> Path:
    """The folder of the vectors of one size, written unless it is there."""
    folder = folder / str(shape[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / VECTORS).exists():
        parts = (clustered(min(50_000, shape[0] - i), shape[1], 1 + i) for i in range(0, shape[0], 50_000))
        write_vectors(folder / "unfinished", parts, shape)
        (folder / "unfinished").rename(folder / VECTORS)
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten thousand vectors only")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "hnsw", "ivf", "ivfpq"])
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--folder", type=Path, help="where vectors and indexes are kept")
    given = parser.parse_args()
    print("| vectors | kind | factory | build s | open ms | search ms | p95 ms | recall@10 | bytes/vector |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in [10_000] if given.quick else given.sizes:
            shape = (count, given.dimension)
            folder = vectors_folder(given.folder or Path(scratch), shape)
            questions = clustered(QUESTIONS, given.dimension, -1 % 2**32)
            metric = faiss.METRIC_INNER_PRODUCT
            _, exact = faiss.knn(questions, open_vectors(folder / VECTORS, shape), 10, metric=metric)
            for kind in given.kinds:
                (folder / kind).mkdir(exist_ok=True)
                if not (folder / kind / VECTORS).exists():
                    (folder / kind / VECTORS).hardlink_to(folder / VECTORS)
                print(row(folder / kind, kind, shape, questions, exact), flush=True)


if __name__ == "__main__":
    main()
