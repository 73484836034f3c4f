"""p(y_t|x,z,y_<t): what every generator can do, whatever its architecture.

Only gold-token log-probabilities are computed: the hidden states at answer positions are gathered and projected to the
vocabulary in slices (`ragx.rag.head`), so that no [N, T, V] tensor exists. Pairs run in batches of like length, so that
little is padding, or packed without any (`ragx.rag.packing`). For decoding, a prompt runs through the model once; its
key-values or encoder states serve generation and every rescoring.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import peft
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ragx.errors import ArtifactError
from ragx.models import saving
from ragx.rag.head import accumulator, gold_log_probs
from ragx.rag.prompts import Prompt, make_template
from ragx.rag.state import State
from ragx.records import Passage

BUDGETS = {"cpu": 4096, "cuda": 65536}
"""Tokens that a batch of like length may have, padding included."""
CPU_OVERHEAD = 64
"""What one batch more costs on a processor, in tokens: weights are read and their gradients added once more."""
LAUNCH_FLOP = 2e13
"""What a GPU could compute while one batch more is being launched: small models want few and large batches."""

Pair = tuple[str, Passage]
"""A question and a passage that may answer it."""


class Generator(ABC):
    """A generator with its tokenizer and prompt. `model` is the torch module that training changes."""

    chats: ClassVar[bool] = False
    """Whether the tokenizer's chat template, where it has one, wraps the prompt."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompt: Prompt, max_answer_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_answer_tokens = max_answer_tokens
        self.stop_ids = _stop_ids(model, tokenizer)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.stop_ids)
        chat = self.chats and tokenizer.chat_template is not None
        self.template = make_template(tokenizer, prompt, chat=chat)
        self.recompute = False
        self.label_smoothing = 0.0
        self._scale = 1.0

    def answer_ids(self, answer: str) -> list[int]:
        """The token ids of an answer with the end token."""
        return [*self._plain_answer_ids(answer), self.end_id]

    def fitting_ids(self, answer: str) -> list[int]:
        """Like `answer_ids`, cut to `max_answer_tokens` with the end."""
        return [*self._plain_answer_ids(answer)[: self.max_answer_tokens - 1], self.end_id]

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids up to the first end token."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)).strip()

    def token_log_probs(self, pairs: Sequence[Pair], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Gold-token log-probabilities [N, T] in float32 and their mask [N, T], with gradient when it is enabled.

        With `recompute`, what a batch needs for its backward pass is computed again there instead of kept. With
        `label_smoothing` only the gradient is that of smoothed labels.
        """
        return self._log_probs_after([self.template.ids(passage, question) for question, passage in pairs], answers)

    def question_log_probs(self, pairs: Sequence[Pair]) -> Tensor:
        """log p(x|z) in nats of N questions after their passages, [N] in float32 (Sachan et al. 2022, equation 2, but
        summed over the question's tokens)."""
        prompts, questions = zip(*(self._asked(passage, question) for question, passage in pairs), strict=True)
        return self._log_probs_after(prompts, questions)[0].sum(-1)

    def reading_log_probs(
        self, pairs: Sequence[Pair], answers: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`token_log_probs` with their mask, and `question_log_probs`, from one pass of a generator that
        `weighs_as_it_reads`; with gradient when it is enabled."""
        asked = [self._asked(passage, question) for question, passage in pairs]
        wholes = [self.template.ids(passage, question) for question, passage in pairs]
        prompts = [before for before, _ in asked]
        texts = [
            [*whole[len(before) :], *answer] for whole, before, answer in zip(wholes, prompts, answers, strict=True)
        ]
        found, _ = self._log_probs_after(prompts, texts)
        columns = torch.arange(found.shape[1], device=self.device)
        ends = torch.tensor([[len(question)] for _, question in asked], device=self.device)
        starts = [[len(text) - len(answer)] for text, answer in zip(texts, answers, strict=True)]
        mask = self._answers(answers)[1]
        places = torch.tensor(starts, device=self.device) + columns[: mask.shape[1]]
        answered = found.gather(1, places.clamp(max=found.shape[1] - 1)).masked_fill(~mask, 0.0)
        return answered, mask, found.masked_fill(columns >= ends, 0.0).sum(-1)

    def _log_probs_after(self, prompts: Sequence[list[int]], texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """log p [N, T] of the tokens of N texts after their prompts, and their mask [N, T]."""
        gold, mask = self._answers(texts)
        lengths = [len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)]
        hidden = self._in_batches(lengths, self._before_answers(prompts, texts))
        found = self._gold(hidden[mask], gold[mask])
        return torch.zeros(gold.shape, device=self.device).masked_scatter(mask, found), mask

    @abstractmethod
    def _asked(self, passage: Passage, question: str) -> tuple[list[int], list[int]]:
        """A prompt without its question, and the question's ids as the model would write them after it."""

    @property
    @abstractmethod
    def writes_questions(self) -> bool:
        """Whether the prompt lets p(x|z) be computed."""

    @property
    @abstractmethod
    def weighs_as_it_reads(self) -> bool:
        """Whether p(x|z) falls out of the pass that reads the prompt."""

    @abstractmethod
    def _before_answers(
        self, prompts: Sequence[list[int]], answers: Sequence[Sequence[int]]
    ) -> Callable[[list[int]], Tensor]:
        """Computes for some rows the hidden states [n, t, H] that the tokens of their answers follow from."""

    def _embedded(self, model: Any, rows: Sequence[Sequence[int]]) -> "Embedded":
        """The embeddings of all rows; their gradient holds the rows looked up, not one for every word there is, and is
        added to a gradient that holds all."""
        ids, mask = pad_rows(rows, self.pad_id, self.device)
        table = model.get_input_embeddings()
        table.sparse = self.device.type != "mps"
        if torch.is_grad_enabled() and table.weight.requires_grad:
            accumulator(table.weight)
        return Embedded(table(ids), mask, [len(row) for row in rows])

    @abstractmethod
    def start(self, pairs: Sequence[Pair], *, weigh: bool = False) -> State:
        """Run N prompts through the model; with `weigh` also what `question_log_probs` says of them."""

    @abstractmethod
    def advance(self, state: State, tokens: Tensor) -> State:
        """The state after one more token [N] was written to each row."""

    def score(self, state: State, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Like `token_log_probs`, but from a state just started: only the answers run through the model."""
        gold, mask = self._answers(answers)
        found = state.log_probs.gather(-1, gold[:, :1])
        if gold.shape[1] > 1:
            hidden = self._hidden(state, gold[:, :-1])
            rest = self._gold(hidden.reshape(-1, hidden.shape[-1]), gold[:, 1:].reshape(-1))
            found = torch.cat([found, rest.reshape(len(gold), -1)], dim=-1)
        return found.masked_fill(~mask, 0.0), mask

    @abstractmethod
    def _hidden(self, state: State, tokens: Tensor) -> Tensor:
        """The last hidden states [N, t, H] of t tokens [N, t] written after a state."""

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        on_cpu = self.device.type == "cpu"
        overhead = CPU_OVERHEAD if on_cpu else int(LAUNCH_FLOP / (2 * self.parameters_count))
        return length_batches(lengths, BUDGETS["cpu" if on_cpu else "cuda"], overhead)

    def _in_batches(self, lengths: Sequence[int], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """`compute(rows)` [n, L, ...] for batches of rows, put together as [N, longest L, ...]."""
        recompute = self.recompute and torch.is_grad_enabled()
        batches = self._batches(lengths)
        parts = [checkpoint(compute, rows, use_reentrant=False) if recompute else compute(rows) for rows in batches]
        longest = max(part.shape[1] for part in parts)
        padded = [nn.functional.pad(part, [0, 0] * (part.ndim - 2) + [0, longest - part.shape[1]]) for part in parts]
        places = torch.tensor([row for rows in batches for row in rows], device=self.device).argsort()
        return torch.cat(padded)[places]

    @abstractmethod
    def _plain_answer_ids(self, answer: str) -> list[int]: ...

    @property
    def base(self) -> Any:
        """The transformers model, also where an adapter wraps it."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter wraps the model."""
        return isinstance(self.model, peft.PeftModel)

    @property
    def width(self) -> int:
        """The units of its hidden states."""
        return int(self.base.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def parameters_count(self) -> int:
        """Weights of the whole generator."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def save(self, folder: Path) -> None:
        """Write the adapter, where there is one, else the whole generator with its tokenizer."""
        wrapper: Any = self.model
        with saving(folder):
            wrapper.save_pretrained(folder)
            if not self.is_adapted:
                self.tokenizer.save_pretrained(folder)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self.tokenizer.eos_token_id
        return int(end) if end is not None else min(self.stop_ids)

    def _logits(self, hidden: Tensor) -> Tensor:
        head = self.base.get_output_embeddings()
        return nn.functional.linear(hidden * self._scale, head.weight, self._head_bias())

    def _head_bias(self) -> Tensor | None:
        """What is added to the logits [V], by the head or by the model around it."""
        around = getattr(self.base, "final_logits_bias", None)
        own: Tensor | None = self.base.get_output_embeddings().bias
        return own if around is None else around.reshape(-1)

    def _gold(self, hidden: Tensor, gold: Tensor) -> Tensor:
        """log p of gold tokens [R] from hidden states [R, H]; float32."""
        weight = self.base.get_output_embeddings().weight
        return gold_log_probs(hidden * self._scale, weight, self._head_bias(), gold, self.label_smoothing)

    def _next(self, hidden: Tensor) -> Tensor:
        """log p [N, V] of the next token from the last hidden states [N, H]."""
        return torch.log_softmax(self._logits(hidden).float(), dim=-1)

    def _answers(self, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Answers right-padded [N, T] and their mask."""
        return pad_rows(answers, self.pad_id, self.device)

    def calibrate(self, hidden: Tensor, logits: Tensor, name: str) -> None:
        """Find how this model scales hidden states before its vocabulary head, by comparing with its own logits.

        Raises:
            ArtifactError: its logits are made in a way that `_logits` does not reproduce.
        """
        plain = type(self.base.get_output_embeddings()) is nn.Linear
        for scale in (1.0, hidden.shape[-1] ** -0.5) if plain else ():
            self._scale = scale
            if torch.allclose(self._logits(hidden).float(), logits.float(), rtol=2e-2, atol=2e-2):
                return
        raise ArtifactError(f"{name}: unsupported architecture {type(self.base).__name__}: its vocabulary head differs")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings [N, L, H] of N rows of tokens, their mask [N, L] and their lengths."""

    vectors: Tensor
    mask: Tensor
    lengths: Sequence[int]

    def of(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embeddings and mask of n of the rows, no longer than the longest of these."""
        longest = max(self.lengths[row] for row in rows)
        index = torch.tensor(rows, device=self.mask.device)
        return self.vectors[:, :longest].index_select(0, index), self.mask[:, :longest].index_select(0, index)

    def packed(self, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Embeddings [1, sum of lengths, H] of n of the rows, one behind the other, and the lengths."""
        vectors, mask = self.of(rows)
        return vectors[mask].unsqueeze(0), [self.lengths[row] for row in rows]


def _stop_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}
    if not found:
        raise ArtifactError(f"{tokenizer.name_or_path}: the generator's tokenizer has no end-of-text token (eos_token)")
    return frozenset(found)


def length_batches(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Rows sorted by length, longest first, in the batches whose padded tokens, and `overhead` tokens for each, are
    fewest; every padded batch is within `budget`, where a single row is."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    longest = np.array([lengths[row] for row in order])
    cost, begins = np.zeros(len(order) + 1), [0]
    for end in range(1, len(order) + 1):  # the last batch of the first `end` rows begins where all of it costs least
        padded = (end - np.arange(end)) * longest[:end]
        padded[:-1][padded[:-1] > budget] = np.iinfo(np.int64).max // 2
        total = cost[:end] + padded + overhead
        begins.append(int(total.argmin()))
        cost[end] = total[begins[end]]
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.insert(0, order[begins[end] : end])
        end = begins[end]
    return batches


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows padded to the longest [N, L], and the mask of what is no padding."""
    length = max(map(len, rows))
    fill = [[pad] * (length - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, fill, strict=True)]
    places = torch.arange(length)
    first = torch.tensor([length - len(row) if left else 0 for row in rows]).unsqueeze(-1)
    last = torch.tensor([length if left else len(row) for row in rows]).unsqueeze(-1)
    return torch.tensor(ids, dtype=torch.long).to(device), ((first <= places) & (places < last)).to(device)
