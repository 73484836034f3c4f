"""p(y_t|x,z,y_<t): causal and encoder-decoder generators behind one interface.

Only gold-token log-probabilities are computed: the hidden states at answer positions are gathered and projected to the
vocabulary in slices, each recomputed in the backward pass, so that no [N, T, V] tensor exists. For decoding, a prompt
runs through the model once; its key-values or encoder states serve generation and every rescoring.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
)
from transformers.cache_utils import DynamicLayer

from ragx.errors import ArtifactError, RagxError
from ragx.models import require_tokenizer, require_weights
from ragx.rag.prompts import PromptSettings, PromptTemplate, special_ids
from ragx.records import Passage

SLICE = 512
"""Rows of hidden states projected to the vocabulary at once."""

Pair = tuple[str, Passage]
"""A question and a passage that may answer it."""
Layers = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class State:
    """N prompts that went through the model, with what was written after each.

    log_probs [N, V] of the next token; keys and values of the decoder (and of the cross-attention); the attention mask
    [N, L] over the prompt, for causal models grown by what was written; next position [N].
    """

    log_probs: Tensor
    layers: Layers
    attention: Tensor
    positions: Tensor
    cross: Layers = ()
    encoder_states: Tensor | None = None

    def select(self, rows: Tensor) -> "State":
        """The state whose row i is this one's row `rows[i]`."""
        return State(
            self.log_probs[rows],
            tuple((keys[rows], values[rows]) for keys, values in self.layers),
            self.attention[rows],
            self.positions[rows],
            tuple((keys[rows], values[rows]) for keys, values in self.cross),
            None if self.encoder_states is None else self.encoder_states[rows],
        )


class Generator(ABC):
    """A generator with its tokenizer and prompt. `model` is the torch module that training changes."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompt: PromptSettings, max_answer_tokens: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_answer_tokens = max_answer_tokens
        self.stop_ids = _stop_ids(model, tokenizer)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.stop_ids)
        chat = isinstance(self, CausalGenerator) and tokenizer.chat_template is not None
        self.template = PromptTemplate(tokenizer, prompt, chat=chat)
        self._scale = 1.0

    def answer_ids(self, answer: str) -> list[int]:
        """The token ids of an answer with the end token."""
        return [*self._plain_answer_ids(answer), self._end_id]

    def fitting_ids(self, answer: str) -> list[int]:
        """Like `answer_ids`, cut to `max_answer_tokens` with the end."""
        return [*self._plain_answer_ids(answer)[: self.max_answer_tokens - 1], self._end_id]

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids up to the first end token."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)).strip()

    @abstractmethod
    def token_log_probs(self, pairs: Sequence[Pair], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Gold-token log-probabilities [N, T] in float32 and their mask [N, T], with gradient when it is enabled."""

    @abstractmethod
    def start(self, pairs: Sequence[Pair]) -> State:
        """Run N prompts through the model."""

    @abstractmethod
    def advance(self, state: State, tokens: Tensor) -> State:
        """The state after one more token [N] was written to each row."""

    @abstractmethod
    def score(self, state: State, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Like `token_log_probs`, but from a state just started: only the answers run through the model."""

    @abstractmethod
    def _plain_answer_ids(self, answer: str) -> list[int]: ...

    @property
    def base(self) -> Any:
        """The transformers model, also where an adapter wraps it."""
        return self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model

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
        try:
            wrapper.save_pretrained(folder)
        except SafetensorError as error:
            raise RagxError(f"{folder}: cannot be written ({error}); is the disk full?") from error
        if wrapper is self.base:
            self.tokenizer.save_pretrained(folder)

    @property
    def _end_id(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(end) if end is not None else min(self.stop_ids)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.base.get_output_embeddings()(hidden * self._scale)
        bias = getattr(self.base, "final_logits_bias", None)
        return logits if bias is None else logits + bias

    def _gold(self, hidden: Tensor, gold: Tensor) -> Tensor:
        """log p of gold tokens [R] from hidden states [R, H], in slices; float32."""

        def project(rows: Tensor, tokens: Tensor) -> Tensor:
            log_probs = torch.log_softmax(self._logits(rows).float(), dim=-1)
            return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

        slices = zip(torch.split(hidden, SLICE), torch.split(gold, SLICE), strict=True)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(project, rows, tokens, use_reentrant=False) for rows, tokens in slices])
        return torch.cat([project(rows, tokens) for rows, tokens in slices])

    def _next(self, hidden: Tensor) -> Tensor:
        """log p [N, V] of the next token from the last hidden states [N, H]."""
        return torch.log_softmax(self._logits(hidden).float(), dim=-1)

    def _answers(self, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Answers right-padded [N, T] and their mask."""
        return _pad(answers, self.pad_id, self.device)

    def _calibrate(self, hidden: Tensor, logits: Tensor, name: str) -> None:
        """Find how this model scales hidden states before its vocabulary head, by comparing with its own logits.

        Raises:
            ArtifactError: its logits are made in a way that `_logits` does not reproduce.
        """
        for scale in (1.0, hidden.shape[-1] ** -0.5):
            self._scale = scale
            if torch.allclose(self._logits(hidden).float(), logits.float(), rtol=2e-2, atol=2e-2):
                return
        raise ArtifactError(f"{name}: unsupported architecture {type(self.base).__name__}: its vocabulary head differs")


class CausalGenerator(Generator):
    """Decoder-only models: the prompt and the answer are one sequence."""

    def token_log_probs(self, pairs: Sequence[Pair], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        prompts = [self.template.ids(passage, question) for question, passage in pairs]
        sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        ids, mask = _pad(sequences, self.pad_id, self.device)
        hidden = self.base.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        gold, answer_mask = self._answers(answers)
        starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        rows, columns = answer_mask.nonzero(as_tuple=True)
        found = self._gold(hidden[rows, starts[rows] + columns], gold[answer_mask])
        return torch.zeros(gold.shape, device=self.device).masked_scatter(answer_mask, found), answer_mask

    def start(self, pairs: Sequence[Pair]) -> State:
        prompts = [self.template.ids(passage, question) for question, passage in pairs]
        ids, mask = _pad(prompts, self.pad_id, self.device, left=True)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.base.base_model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=True, past_key_values=None
        )
        log_probs = self._next(output.last_hidden_state[:, -1])
        return State(log_probs, _layers(output.past_key_values), mask, mask.long().sum(-1))

    def advance(self, state: State, tokens: Tensor) -> State:
        hidden, layers, attention = self._continue(state, tokens.unsqueeze(-1))
        return dataclasses.replace(
            state,
            log_probs=self._next(hidden[:, -1]),
            layers=layers,
            attention=attention,
            positions=state.positions + 1,
        )

    def score(self, state: State, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        gold, mask = self._answers(answers)
        first = state.log_probs.gather(-1, gold[:, :1])
        if gold.shape[1] == 1:
            return first.masked_fill(~mask, 0.0), mask
        hidden, _, _ = self._continue(state, gold[:, :-1])
        rest = self._gold(hidden.reshape(-1, hidden.shape[-1]), gold[:, 1:].reshape(-1)).reshape(len(gold), -1)
        return torch.cat([first, rest], dim=-1).masked_fill(~mask, 0.0), mask

    def _continue(self, state: State, tokens: Tensor) -> tuple[Tensor, Layers, Tensor]:
        """Hidden states [N, t, H] of t more tokens, and the grown cache and mask."""
        attention = torch.cat([state.attention, torch.ones_like(tokens, dtype=torch.bool)], dim=-1)
        output = self.base.base_model(
            input_ids=tokens,
            attention_mask=attention.long(),
            position_ids=state.positions.unsqueeze(-1) + torch.arange(tokens.shape[1], device=tokens.device),
            past_key_values=_cache(state.layers),
            use_cache=True,
        )
        return output.last_hidden_state, _layers(output.past_key_values), attention

    def _plain_answer_ids(self, answer: str) -> list[int]:
        text = answer if self.template.ends_with_space else f" {answer}"
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


class Seq2SeqGenerator(Generator):
    """Encoder-decoder models: the prompt goes to the encoder; the decoder starts from its start token (and BOS, where
    the tokenizer begins texts with one: it is given, not scored)."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompt: PromptSettings, max_answer_tokens: int) -> None:
        super().__init__(model, tokenizer, prompt, max_answer_tokens)
        start = self.base.config.decoder_start_token_id
        if start is None:
            raise ArtifactError(f"{self.base.config.name_or_path}: its config names no decoder_start_token_id")
        self.decoder_prefix = [int(start), *special_ids(tokenizer)[0]]

    def token_log_probs(self, pairs: Sequence[Pair], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        states, attention = self._encode(pairs)
        gold, mask = self._answers(answers)
        inputs = torch.cat([self._prefix(len(gold)), gold[:, :-1]], dim=-1)
        hidden = self._decode(inputs, states, attention, None).last_hidden_state[:, len(self.decoder_prefix) - 1 :]
        found = self._gold(hidden[mask], gold[mask])
        return torch.zeros(gold.shape, device=self.device).masked_scatter(mask, found), mask

    def start(self, pairs: Sequence[Pair]) -> State:
        states, attention = self._encode(pairs)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = self._decode(self._prefix(len(pairs)), states, attention, cache)
        return self._state(output, states, attention)

    def advance(self, state: State, tokens: Tensor) -> State:
        output = self._resume(state, tokens.unsqueeze(-1))
        return self._state(output, state.encoder_states, state.attention)

    def score(self, state: State, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        gold, mask = self._answers(answers)
        first = state.log_probs.gather(-1, gold[:, :1])
        if gold.shape[1] == 1:
            return first.masked_fill(~mask, 0.0), mask
        hidden = self._resume(state, gold[:, :-1]).last_hidden_state
        rest = self._gold(hidden.reshape(-1, hidden.shape[-1]), gold[:, 1:].reshape(-1)).reshape(len(gold), -1)
        return torch.cat([first, rest], dim=-1).masked_fill(~mask, 0.0), mask

    def _encode(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        prompts = [self.template.ids(passage, question) for question, passage in pairs]
        ids, mask = _pad(prompts, self.pad_id, self.device)
        return self.base.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask

    def _decode(self, ids: Tensor, states: Tensor | None, attention: Tensor, cache: EncoderDecoderCache | None) -> Any:
        return self.base.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=states,
            encoder_attention_mask=attention.long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )

    def _resume(self, state: State, ids: Tensor) -> Any:
        cache = EncoderDecoderCache(_cache(state.layers), _cache(state.cross))
        return self._decode(ids, state.encoder_states, state.attention, cache)

    def _state(self, output: Any, states: Tensor | None, attention: Tensor) -> State:
        cache = output.past_key_values
        layers, cross = _layers(cache.self_attention_cache), _layers(cache.cross_attention_cache)
        log_probs = self._next(output.last_hidden_state[:, -1])
        return State(log_probs, layers, attention, attention.long().sum(-1), cross, states)

    def _prefix(self, rows: int) -> Tensor:
        return torch.tensor([self.decoder_prefix], device=self.device).expand(rows, -1)

    def _plain_answer_ids(self, answer: str) -> list[int]:
        encoded = self.tokenizer(text_target=answer, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])


def load_generator(
    folder: Path,
    prompt: PromptSettings,
    max_answer_tokens: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
    adapter: Path | None = None,
) -> Generator:
    """Load a causal or encoder-decoder generator, with a LoRA adapter when one is given.

    Raises:
        ArtifactError: the folder holds none, its architecture is unsupported, or its context is too short.
    """
    require_weights(folder, allow_pickle)
    require_tokenizer(folder)
    source = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **source)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=not allow_pickle, **source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        model = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: cannot be loaded as a generator ({str(error).splitlines()[0]})") from error
    limit = getattr(config, "max_position_embeddings", None)
    wanted = prompt.max_input_tokens + (0 if config.is_encoder_decoder else max_answer_tokens)
    if limit is not None and wanted > limit:
        raise ArtifactError(
            f"{folder}: its context holds {limit} tokens, {wanted} are configured; lower generator.max_input_tokens"
        )
    kind = Seq2SeqGenerator if config.is_encoder_decoder else CausalGenerator
    generator = kind(model.to(device).eval(), tokenizer, prompt, max_answer_tokens)
    _check_head(generator, str(folder))
    return generator


def add_lora(generator: Generator, *, rank: int, alpha: int) -> None:
    """Freeze the generator and wrap it with trainable low-rank adapters in all its linear layers (Hu et al. 2021).

    Without dropout: the posterior and the gradient come from two passes that must see the same model.
    """
    task = "SEQ_2_SEQ_LM" if generator.base.config.is_encoder_decoder else "CAUSAL_LM"
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type=task)
    generator.model = peft.get_peft_model(generator.base, lora).eval()


def _check_head(generator: Generator, name: str) -> None:
    """Compare our projection with the model's own logits on a few tokens."""
    ids = torch.tensor([[generator.pad_id, *sorted(generator.stop_ids)[:1]]], device=generator.device)
    with torch.no_grad():
        extra = {"decoder_input_ids": ids} if generator.base.config.is_encoder_decoder else {}
        output = generator.base(input_ids=ids, output_hidden_states=True, **extra)
        states = output.decoder_hidden_states if extra else output.hidden_states
        generator._calibrate(states[-1], output.logits, name)


def _stop_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}
    if not found:
        raise ArtifactError("the generator's tokenizer has no end-of-text token (eos_token)")
    return frozenset(found)


def _pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows padded to the longest [N, L], and the mask of what is no padding."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = True
    return ids.to(device), mask.to(device)


def _layers(cache: Any) -> Layers:
    """Keys and values of every layer of a transformers cache."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def _cache(layers: Layers) -> DynamicCache:
    """A transformers cache that holds the given tensors themselves: its constructor would copy them."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
