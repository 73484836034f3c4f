"""Questions a second of `ragx eval` against a plain loop over transformers' RagSequenceForGeneration.generate.

    python -m benchmarks.evaluation [--quick] [--json] [--questions 8] [--dtype bfloat16]

Random weights of BART-base's size as in benchmarks/decoding.py, K = 5 passages a question, greedy candidates, 16 new
tokens. ragx does what `ragx eval` does with them: batches, answers, the likelihood of the reference. The peer answers
one question after another, contexts padded to 300 tokens as its users do, in float32, its default; `--dtype` is
ragx's, whose own default is bfloat16 where the processor computes it natively. The peer lets candidates attend to
padding, so compared is log p of ragx's answer, recomputed by the peer from the true masks in ragx's dtype.
"""

import argparse
import copy
import statistics
from typing import Any

import torch

from benchmarks.common import alternate, print_claim, ratio
from benchmarks.decoding import NEW_TOKENS, K, agree
from benchmarks.rag_peer import PADDED, FixedRetriever, Size, bart_generator, contexts, questions, rag_model
from ragx.evaluation.cache import PredictionCache
from ragx.evaluation.predict import HowToAnswer, predict
from ragx.rag.model import RagModel
from ragx.records import Example, Prediction, no_progress


@torch.no_grad()
def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four questions, three pairs")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    quick, dtype = arguments.quick, getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    size = Size(init_std=0.1)
    generator = bart_generator(size, NEW_TOKENS)
    peer = rag_model(copy.deepcopy(generator.base), K)
    generator.model.to(dtype)
    rows = questions(4 if quick else arguments.questions, K, size.words)
    retriever: Any = FixedRetriever(rows, torch.randn(len(rows), K))
    priors = torch.log_softmax(retriever.scores, dim=-1)
    model = RagModel(retriever, generator, "sequence")
    examples = [Example(str(number), row[0][0], ("w1 w2 w3",)) for number, row in enumerate(rows)]
    how = HowToAnswer("thorough", 1, len(rows), K, closed_book=False, fingerprint="")
    found: list[Prediction] = []

    def ours() -> None:
        found[:] = predict(lambda: model, examples, how, PredictionCache(None), no_progress)

    def theirs() -> None:
        for pairs, prior in zip(rows, priors, strict=True):
            inputs = contexts(generator, pairs, PADDED)
            peer.generate(**inputs, doc_scores=prior[None], n_docs=K, num_beams=1, max_new_tokens=NEW_TOKENS)

    seconds = alternate(ours, theirs, 3 if quick else 7)
    peer.to(dtype)
    checked = zip(rows, priors, found, strict=True)
    print_claim(
        "evaluation_questions_a_second",
        ratio(*seconds),
        peer="a loop over transformers RagSequenceForGeneration.generate",
        same_result=all(
            agree(peer, generator, pairs, prior, p.answer, p.log_probability) for pairs, prior, p in checked
        ),
        n=len(seconds[0]),
        questions=len(rows),
        dtype=arguments.dtype,
        seconds_ours=round(statistics.median(seconds[0]), 3),
        seconds_peer=round(statistics.median(seconds[1]), 3),
    )


if __name__ == "__main__":
    main()
