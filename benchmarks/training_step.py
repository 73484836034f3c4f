"""One training step, forward and backward, against transformers' RagSequenceForGeneration and a plain causal loop.

    python -m benchmarks.training_step [--quick] [--json] [--device cuda] [--dtype bfloat16] [--only PART]
                                       [--claims NAME ...]

BART-base size: 4 questions (`--questions`) with K = 5 contexts of 120-200 tokens and answers of 4-16, on the same
random weights, all of them trained. The peer is run as its users run it (contexts padded to 300 tokens); claims named
`_trimmed` give it contexts trimmed to the longest. SmolLM2 size: the peer is the same loss written plainly on
LlamaForCausalLM (all logits of all prompts, padded to the longest), for transformers' RAG takes no causal model.

`_exact` keeps all posterior mass. `_pruned` keeps 99 % of a posterior which a tuned retriever's prior concentrates
(0.995 on the first of five passages); `_flat` is the same setting on a flat prior, against ragx's own exact step: it
must cost no more. `_exact_bfloat16` and `_exact_bfloat16_trimmed` are exact steps with both sides under bfloat16
autocast, ragx's dtype by default; `_default_dtype` is ragx's against the peer's float32, `_default` also pruned, as
ragx trains by default. `training_step_memory` compares peak memory above weights and gradients, with
answers of 64 tokens, where ragx takes the step in the pieces of its default (`micro_batch_size: auto`), `_whole` in
one, `_recompute` with `finetune.gradient_checkpointing` too. `_exact_pieces` and `_exact_recompute` have the cost in
time.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import alternate, matrix_peak, peak_mib, print_claim, ratio, share_of_peak
from benchmarks.rag_peer import (
    PADDED,
    FixedRetriever,
    Size,
    bart_generator,
    contexts,
    labels,
    questions,
    rag_model,
    random_text,
    word_tokenizer,
)
from ragx.rag.causal import CausalGenerator
from ragx.rag.generator import Generator, Pair, pad_rows
from ragx.rag.generators import choose_attention
from ragx.rag.model import RagModel
from ragx.rag.prompts import PromptSettings
from ragx.stages.job import PAIRS_A_PASS
from ragx.training.batches import cut

K = 5
CONCENTRATED = (6.0, 0.0, -0.5, -1.0, -1.5)
"""Scores whose softmax begins with 0.995: what the sample domain's tuned retriever gives to training questions."""

MASS = 0.99
"""`finetune.posterior_mass` by default."""

MEMORY = {
    "pieces": "training_step_memory",
    "whole": "training_step_memory_whole",
    "recompute": "training_step_memory_recompute",
}
"""Ways to take a step whose memory is compared, and the claims of it."""

Step = Callable[[], float]


def at_once(device: str) -> int:
    """Questions that go through the generator at once when `finetune.micro_batch_size: auto`."""
    return PAIRS_A_PASS["cpu" if device == "cpu" else "cuda"] // K


class Problem:
    """One batch: questions with their passages, answers, and a generator of either kind."""

    def __init__(self, generator: Generator, size: Size, tokens: tuple[int, int], device: str, count: int = 4) -> None:
        draw = torch.Generator().manual_seed(1)
        self.generator = generator
        self.rows = questions(count, K, size.words)
        lengths = torch.randint(tokens[0], tokens[1] + 1, (count,), generator=draw).tolist()
        self.answers = [random_text(size.words, length - 1, draw) for length in lengths]
        self.flat = torch.zeros(count, K, device=device)
        self.concentrated = torch.tensor(CONCENTRATED, device=device).expand(count, K).clone()
        generator.model.requires_grad_(True)
        for parameter in generator.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @property
    def pairs(self) -> list[Pair]:
        """All (question, passage) pairs, question by question."""
        return [pair for row in self.rows for pair in row]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers, without padding."""
        generator = self.generator
        prompts = sum(len(generator.template.ids(passage, question)) for question, passage in self.pairs)
        return prompts + K * sum(len(generator.answer_ids(answer)) for answer in self.answers)

    def gradient(self) -> Tensor:
        """The generator's gradient as one vector."""
        found = [p.grad.reshape(-1).float() for p in self.generator.model.parameters() if p.grad is not None]
        return torch.cat(found)

    def ours(
        self, scores: Tensor, mass: float = 1.0, dtype: torch.dtype = torch.float32, at_once: int | None = None
    ) -> Step:
        """ragx's step, on `at_once` questions after another where it is given."""
        retriever: Any = FixedRetriever(self.rows, scores.clone())
        model = RagModel(retriever, self.generator, "sequence")
        asked = [row[0][0] for row in self.rows]
        parts = cut(len(asked), at_once or len(asked), 1)

        def step() -> float:
            choose_attention(self.generator, dtype, PADDED + self.generator.max_answer_tokens)
            self.generator.model.zero_grad(set_to_none=False)
            total, kept = 0.0, 0.0
            for part in parts:
                with torch.autocast(scores.device.type, dtype, enabled=dtype != torch.float32):
                    loss = model([asked[row] for row in part], [self.answers[row] for row in part], None, mass)
                loss.nll.sum().backward()
                total, kept = total + float(loss.nll.detach().sum()), kept + float(loss.kept.sum())
            model.kept_share = kept / len(asked)  # as the training loop tells it after every step
            self.generator.base.set_attn_implementation("sdpa")  # for the peer, who has the same weights
            return total

        return step

    def rag(self, scores: Tensor, length: int | None, dtype: torch.dtype = torch.float32) -> Step:
        """The step of transformers' RagSequenceForGeneration."""
        peer: Any = rag_model(self.generator.base, K)
        scores = scores.clone().requires_grad_()
        inputs = contexts(self.generator, self.pairs, length)  # type: ignore[arg-type]
        target = labels(self.generator, [self.generator.answer_ids(answer) for answer in self.answers])  # type: ignore[arg-type]
        options = {"exclude_bos_score": True, "reduce_loss": True}

        def step() -> float:
            self.generator.model.zero_grad(set_to_none=False)
            with torch.autocast(scores.device.type, dtype, enabled=dtype != torch.float32):
                loss = peer(**inputs, doc_scores=scores, decoder_input_ids=target, labels=target, **options).loss
            loss.backward()
            return float(loss.detach())

        return step

    def plain(self, scores: Tensor) -> Step:
        """The same loss on a causal model as one writes it at first: all logits of all prompts."""
        scores = scores.clone().requires_grad_()
        generator = self.generator
        prompts = [generator.template.ids(passage, question) for question, passage in self.pairs]
        answers = [generator.answer_ids(answer) for answer in self.answers for _ in range(K)]
        ids, mask = pad_rows([p + a for p, a in zip(prompts, answers, strict=True)], generator.pad_id, generator.device)
        gold = torch.zeros_like(mask)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            gold[row, len(prompt) : len(prompt) + len(answer)] = True

        def step() -> float:
            generator.model.zero_grad(set_to_none=False)
            logits = generator.base(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
            found = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            by_passage = (found * gold[:, 1:]).sum(-1).reshape(len(self.rows), K)
            loss = -torch.logsumexp(torch.log_softmax(scores, -1) + by_passage, -1).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        return step


def llama_generator(size: Size, device: str) -> CausalGenerator:
    """A randomly initialised model of SmolLM2-135M's shape."""
    config = LlamaConfig(
        vocab_size=size.words + 4,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    return CausalGenerator(model, word_tokenizer(size.words), PromptSettings("{passage} {question}", None, PADDED), 64)


@dataclass(frozen=True)
class Comparison:
    """What all claims on one generator share: its name, the pairs of runs, the dtype, and the device's peak in it."""

    problem: Problem
    kind: str
    pairs: int
    dtype: torch.dtype
    device: str
    wanted: frozenset[str]

    def claim(self, claim: str, ours: Step, peer: Step, name: str, mixed: str = "", **more: object) -> None:
        """Time both in turn, compare their losses, print the claim; `mixed` says of an autocast which it is."""
        if self.wanted and claim not in self.wanted:
            return
        exact = self.dtype == torch.float32 and not mixed
        close = abs(ours() - (theirs := peer())) < (1e-4 if exact else 2e-2) * abs(theirs)
        seconds = alternate(ours, peer, self.pairs)
        taken, theirs_taken = (statistics.median(each) for each in seconds)
        peak = matrix_peak(torch.bfloat16 if mixed else self.dtype, device=self.device)
        print_claim(
            claim,
            ratio(*seconds),
            peer=name,
            same_result=close,
            n=self.pairs,
            seconds_ours=round(taken, 3),
            seconds_peer=round(theirs_taken, 3),
            generator=self.kind,
            dtype=mixed or str(self.dtype).removeprefix("torch."),
            questions=len(self.problem.rows),
            tokens_a_second=round(self.problem.tokens / taken),
            peak_gflops=round(peak),
            share_of_peak=share_of_peak(ours, taken, peak),
            **more,
        )

    def all(self) -> None:
        """All claims of time."""
        problem, causal = self.problem, self.kind != "bart-base"
        tuned, flat = problem.concentrated, problem.flat
        if causal:
            name, suffix, peer = "the loss written plainly on LlamaForCausalLM", "_causal", problem.plain(tuned)
            self.claim("training_step_exact_causal", problem.ours(tuned), peer, name)
        else:
            name, suffix, peer = "transformers RagSequenceForGeneration", "", problem.rag(tuned, PADDED)
            self.claim("training_step_exact", problem.ours(flat), problem.rag(flat, PADDED), name)
            self.claim("training_step_exact_trimmed", problem.ours(flat), problem.rag(flat, None), name)
            halves = problem.ours(flat, at_once=at_once(self.device))
            self.claim("training_step_exact_pieces", halves, problem.rag(flat, PADDED), name)
            problem.generator.recompute = True
            self.claim("training_step_exact_recompute", problem.ours(flat), problem.rag(flat, PADDED), name)
            problem.generator.recompute = False
        exact, pruned = problem.ours(tuned), problem.ours(tuned, MASS)
        exact()
        wanted = problem.gradient()
        pruned()  # learns the share kept
        pruned()
        error = round(float((problem.gradient() - wanted).norm() / wanted.norm()), 5)
        self.claim(f"training_step_pruned{suffix}", pruned, peer, name, gradient_error=error)
        if self.dtype == torch.float32:
            mixed, default = (problem.ours(tuned, mass, torch.bfloat16) for mass in (1.0, MASS))
            if not causal:
                both = "bfloat16 autocast"
                for claim, length in (("exact_bfloat16", PADDED), ("exact_bfloat16_trimmed", None)):
                    same = problem.rag(tuned, length, torch.bfloat16)
                    self.claim(f"training_step_{claim}", mixed, same, name, mixed=both)
            against = "bfloat16 autocast against float32"
            self.claim(f"training_step_default_dtype{suffix}", mixed, peer, name, mixed=against)
            default()  # learns the share kept
            self.claim(f"training_step_default{suffix}", default, peer, name, mixed=against)
        if not causal:
            self.claim("training_step_flat", problem.ours(flat, MASS), problem.ours(flat), "ragx, exact")


def peak_memory(which: str, device: str) -> float:
    """MiB that one step with answers of 64 tokens needs above weights and gradients; run in a process of its own."""
    problem = Problem(bart_generator(Size(), 64, device), Size(), (64, 64), device)
    problem.generator.recompute = which == "recompute"
    if which == "peer":
        step = problem.rag(problem.flat, PADDED)
    else:
        step = problem.ours(problem.flat, at_once=None if which == "whole" else at_once(device))
    problem.generator.model.zero_grad(set_to_none=False)
    return peak_mib(step, device)


def memory_claims(device: str) -> None:
    """The claims of memory, each side in a fresh process."""

    def measured(which: str) -> float:
        command = [sys.executable, "-m", "benchmarks.training_step", "--memory", which, "--device", device]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout)

    peer = measured("peer")
    for which, claim in MEMORY.items():
        own = measured(which)
        name = "transformers RagSequenceForGeneration"
        figures = (peer / own,) * 3
        print_claim(claim, figures, peer=name, same_result=True, n=1, mib_ours=round(own), mib_peer=round(peer))


def main() -> None:
    """Print one JSON line a claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three pairs, BART only")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of all weights")
    parser.add_argument("--questions", type=int, default=4, help="questions in a batch")
    parser.add_argument("--only", choices=["bart-base", "smollm2-135m", "memory"], help="one part of the claims")
    parser.add_argument("--claims", nargs="+", default=[], help="only these of the claims of time")
    parser.add_argument("--memory", choices=["peer", *MEMORY], help="print one side's MiB and stop")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.memory:
        print(peak_memory(options.memory, options.device))
        return
    dtype, pairs = getattr(torch, options.dtype), 3 if options.quick else 7
    size = Size()
    kinds: dict[str, Callable[[], Generator]] = {"bart-base": partial(bart_generator, size, 64, options.device)}
    if not options.quick:
        kinds["smollm2-135m"] = partial(llama_generator, size, options.device)
    for kind, opened in ((each, kinds[each]) for each in kinds if options.only in (None, each)):
        generator = opened()
        generator.model.to(dtype)
        problem = Problem(generator, size, (4, 16), options.device, options.questions)
        wanted = frozenset(options.claims)
        Comparison(problem, kind, pairs, dtype, options.device, wanted).all()
    if options.only in (None, "memory"):
        memory_claims(options.device)


if __name__ == "__main__":
    main()
