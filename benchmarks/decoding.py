"""Decoding against transformers' RagSequenceForGeneration and RagTokenForGeneration, on the same random weights.

    python -m benchmarks.decoding [--quick] [--json] [--device cuda] [--dtype bfloat16] [--claims NAME ...]

BART-base size, K = 5 contexts of 120-200 tokens a question, 16 new tokens. Weights are drawn with deviation 0.1, with
which about four of a question's five candidates differ (0.02 makes them all equal); none is so sure of itself that
ragx could leave another unscored, as it can with tuned models. ragx takes 8 questions a batch, as `ragx eval` does. The
peers are run as their users run them: one question at a time, contexts padded to 300 tokens; claims named `_trimmed`
give them contexts trimmed to the longest, `_batched` all questions at once (which changes nothing for their sequence
model: it takes them one by one in any case). Greedy, but for `_4_beams`, the default of transformers' evaluation
script, which gets half of the questions. They let candidates attend to padding, so answers can differ: compared is
log p of ragx's answer, recomputed by the peer from the true masks.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import alternate, matrix_peak, print_claim, ratio, share_of_peak
from benchmarks.rag_peer import PADDED, Size, bart_generator, contexts, labels, questions, rag_model
from ragx.rag.decoding import Decoded, decode
from ragx.rag.generator import Pair
from ragx.rag.seq2seq import Seq2SeqGenerator

Rows = list[list[Pair]]

K = 5
NEW_TOKENS = 16
CLAIMS = (
    ("decoding_thorough", "sequence", 1, PADDED),
    ("decoding_thorough_trimmed", "sequence", 1, None),
    ("decoding_thorough_4_beams", "sequence", 4, PADDED),
    ("decoding_token", "token", 1, PADDED),
    ("decoding_token_trimmed", "token", 1, None),
    ("decoding_token_batched", "token", 1, PADDED),
)
"""Name, marginal, beams, and length of the peer's contexts."""


@torch.no_grad()
def agree(
    peer: Any, generator: Seq2SeqGenerator, pairs: list[Pair], prior: Tensor, text: str, log_probability: float | None
) -> bool:
    """Whether the peer's parts, put together as the paper does, give ragx's log p of ragx's answer."""
    target = labels(generator, [generator.fitting_ids(text)])
    inputs = contexts(generator, pairs, None)
    logits = peer(**inputs, doc_scores=prior[None], decoder_input_ids=target).logits.float()
    start = len(generator.decoder_prefix)
    gold = target[0, start:]
    found = torch.log_softmax(logits[:, start - 1 : -1], dim=-1)[:, torch.arange(len(gold)), gold]
    if "Token" in type(peer).__name__:
        total = torch.logsumexp(prior[:, None] + found, dim=0).sum()
    else:
        total = torch.logsumexp(prior + found.sum(-1), dim=0)
    tolerance = 1e-2 if next(peer.parameters()).dtype == torch.float32 else 0.1 + 0.03 * abs(float(total))
    return log_probability is not None and abs(float(total) - log_probability) < tolerance


def tokens_of(generator: Seq2SeqGenerator, rows: Rows) -> int:
    """Tokens of all prompts, and NEW_TOKENS written after each."""
    return sum(len(generator.template.ids(passage, question)) + NEW_TOKENS for row in rows for question, passage in row)


@torch.no_grad()
def main() -> None:
    """Print one JSON line a claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two questions, three pairs")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--questions", type=int, default=8, help="questions in a batch")
    names = [claim for claim, *_ in CLAIMS]
    parser.add_argument("--claims", nargs="+", choices=names, default=names, help="only these")
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype, size = getattr(torch, options.dtype), Size(init_std=0.1)
    generator = bart_generator(size, NEW_TOKENS, options.device)
    generator.model.to(dtype)
    everything = questions(2 if options.quick else options.questions, K, size.words)
    scores = torch.randn(len(everything), K, device=options.device)
    found: list[Decoded] = []

    def ours(rows: Rows, priors: Tensor, marginal: str, beams: int) -> None:
        state = generator.start([pair for row in rows for pair in row])
        found[:] = decode(generator, state, priors, marginal=marginal, decoding="thorough", num_beams=beams)

    def theirs(rows: Rows, priors: Tensor, peer: Any, beams: int, length: int | None, at_once: int) -> None:
        for start in range(0, len(rows), at_once):
            inputs = contexts(generator, [pair for row in rows[start : start + at_once] for pair in row], length)
            scores = priors[start : start + at_once]
            peer.generate(**inputs, doc_scores=scores, n_docs=K, num_beams=beams, max_new_tokens=NEW_TOKENS)

    peak = matrix_peak(dtype, device=options.device)
    for claim, marginal, beams, length in (each for each in CLAIMS if each[0] in options.claims):
        rows = everything[: len(everything) // (1 if beams == 1 else 2)]
        priors = torch.log_softmax(scores[: len(rows)], dim=-1)
        at_once = len(rows) if claim.endswith("batched") else 1
        peer = rag_model(generator.base, K, marginal)
        both = partial(ours, rows, priors, marginal, beams), partial(theirs, rows, priors, peer, beams, length, at_once)
        seconds = alternate(*both, 3 if options.quick else 7)
        checked = zip(rows, priors, found, strict=True)
        print_claim(
            claim,
            ratio(*seconds),
            peer=f"transformers {type(peer).__name__}.generate",
            same_result=all(agree(peer, generator, r, p, each.text, each.log_probability) for r, p, each in checked),
            n=len(seconds[0]),
            seconds_ours=round(statistics.median(seconds[0]), 3),
            seconds_peer=round(statistics.median(seconds[1]), 3),
            questions=len(rows),
            dtype=options.dtype,
            tokens_a_second=round(tokens_of(generator, rows) / statistics.median(seconds[0])),
            peak_gflops=round(peak),
            share_of_peak=share_of_peak(both[0], statistics.median(seconds[0]), peak),
            share_of_peak_peer=share_of_peak(both[1], statistics.median(seconds[1]), peak),
        )


if __name__ == "__main__":
    main()
