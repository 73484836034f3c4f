"""Questions a second of `ragx eval` against a plain loop over transformers' RagSequenceForGeneration.generate.

    python -m benchmarks.evaluation [--quick] [--json]

The same random BART-base-sized weights, the same K = 5 passages a question, greedy candidates, 16 new tokens, float32.
ragx does what `ragx eval` does with them: batches, answers, the likelihood of the reference. The peer answers one
question after another, contexts padded to 300 tokens as its users do. It lets candidates attend to padding, so compared
is log p of ragx's answer, recomputed by the peer from the true masks.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from benchmarks.common import alternate, print_claim, ratio
from benchmarks.decoding import NEW_TOKENS, PADDED, K, agree, padded, peer_model, questions, tokenizer
from ragx.evaluation.cache import PredictionCache
from ragx.evaluation.predict import HowToAnswer, predict
from ragx.rag.decoding import Decoded
from ragx.rag.generator import Pair
from ragx.rag.model import RagModel
from ragx.rag.prompts import PromptSettings
from ragx.rag.retriever import Retrieval, RetrievalSettings, Retriever
from ragx.rag.seq2seq import Seq2SeqGenerator
from ragx.records import Example, Prediction, no_progress


class _Given(nn.Module):
    """A retriever whose hits are given: both sides read the same passages."""

    def __init__(self, rows: list[list[Pair]], priors: torch.Tensor) -> None:
        super().__init__()
        self.rows = {row[0][0]: number for number, row in enumerate(rows)}
        self.passages = [[passage for _, passage in row] for row in rows]
        self.priors = priors
        self.settings = RetrievalSettings(top_k=K)

    def forward(self, asked: Sequence[str], k: int | None = None) -> Retrieval:
        """The K hits of some questions."""
        numbers = [self.rows[question] for question in asked]
        return Retrieval([self.passages[n] for n in numbers], self.priors[numbers], self.priors[numbers])

    def first(self, retrieval: Retrieval, k: int) -> Retrieval:
        """All of them: there are just K."""
        return retrieval


@torch.no_grad()
def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four questions, three pairs")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    words = tokenizer()
    layers = {"encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(words), d_model=768, **layers)).eval()
    generator = Seq2SeqGenerator(bart, words, PromptSettings("{passage} {question}", None, PADDED), NEW_TOKENS)
    peer = peer_model(bart)
    rows = questions(4 if quick else 8)
    priors = torch.log_softmax(torch.randn(len(rows), K), dim=-1)
    model = RagModel(cast(Retriever, _Given(rows, priors)), generator, "sequence")
    examples = [Example(str(number), row[0][0], ("w1 w2 w3",)) for number, row in enumerate(rows)]
    how = HowToAnswer("thorough", 1, 4, K, closed_book=False, fingerprint="")
    found: list[Prediction] = []

    def ours() -> None:
        found[:], _ = predict(lambda: model, examples, how, PredictionCache(None), no_progress)

    def theirs() -> None:
        for pairs, prior in zip(rows, priors, strict=True):
            inputs = padded(generator, pairs, PADDED)
            peer.generate(**inputs, doc_scores=prior[None], n_docs=K, num_beams=1, max_new_tokens=NEW_TOKENS)

    seconds = alternate(ours, theirs, 3 if quick else 7)
    decoded = [Decoded(p.answer, p.log_probability or 0.0, 0, ()) for p in found]
    print_claim(
        "evaluation_questions_a_second",
        ratio(*seconds),
        peer="a loop over transformers RagSequenceForGeneration.generate",
        same_result=all(agree(peer, generator, *each) for each in zip(rows, priors, decoded, strict=True)),
        n=len(seconds[0]),
        questions=len(rows),
        seconds_ours=round(statistics.median(seconds[0]), 3),
        seconds_peer=round(statistics.median(seconds[1]), 3),
    )


if __name__ == "__main__":
    main()
