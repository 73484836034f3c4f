"""Encoder-decoder generators: BART and T5."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ragx.errors import ArtifactError
from ragx.rag.generator import Generator, Pair, State, cache_of, layers_of, pad_rows
from ragx.rag.prompts import Prompt, special_ids


class Seq2SeqGenerator(Generator):
    """Encoder-decoder models: the prompt goes to the encoder; the decoder starts from its start token (and BOS, where
    the tokenizer begins texts with one: it is given, not scored)."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompt: Prompt, max_answer_tokens: int) -> None:
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
        ids, mask = pad_rows(prompts, self.pad_id, self.device)
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
        cache = EncoderDecoderCache(cache_of(state.layers), cache_of(state.cross))
        return self._decode(ids, state.encoder_states, state.attention, cache)

    def _state(self, output: Any, states: Tensor | None, attention: Tensor) -> State:
        cache = output.past_key_values
        layers, cross = layers_of(cache.self_attention_cache), layers_of(cache.cross_attention_cache)
        log_probs = self._next(output.last_hidden_state[:, -1])
        return State(log_probs, layers, attention, attention.long().sum(-1), cross, states)

    def _prefix(self, rows: int) -> Tensor:
        return torch.tensor([self.decoder_prefix], device=self.device).expand(rows, -1)

    def _plain_answer_ids(self, answer: str) -> list[int]:
        encoded = self.tokenizer(text_target=answer, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])
