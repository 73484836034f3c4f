"""Encoder-decoder generators: BART and T5."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ragx.errors import ArtifactError
from ragx.rag.generator import Embedded, Generator, Pair, pad_rows
from ragx.rag.packing import packable, packed_batches, packing, unpacked
from ragx.rag.prompts import Prompt, special_ids, target_ids
from ragx.rag.state import State, cache_of, layers_of, with_room
from ragx.records import Passage


class Seq2SeqGenerator(Generator):
    """Encoder-decoder models: the prompt goes to the encoder; the decoder starts from its start token (and BOS, where
    the tokenizer begins texts with one: it is given, not scored)."""

    def __init__(self, model: nn.Module, tokenizer: Any, prompt: Prompt, max_answer_tokens: int) -> None:
        super().__init__(model, tokenizer, prompt, max_answer_tokens)
        start = self.base.config.decoder_start_token_id
        if start is None:
            raise ArtifactError(f"{self.base.config.name_or_path}: its config names no decoder_start_token_id")
        self.decoder_prefix = [int(start), *special_ids(tokenizer)[0]]

    def _before_answers(
        self, prompts: Sequence[list[int]], answers: Sequence[Sequence[int]]
    ) -> Callable[[list[int]], Tensor]:
        contexts = self._embedded(self.base.get_encoder(), prompts)
        texts = self._embedded(self.base.get_decoder(), [[*self.decoder_prefix, *answer[:-1]] for answer in answers])
        given = len(self.decoder_prefix) - 1

        def padded(rows: list[int]) -> Tensor:
            states, attention = self._states(contexts, rows)
            hidden: Tensor = self._decode(None, states, attention, None, texts.of(rows)[0]).last_hidden_state
            return hidden[:, given:]

        def packed(rows: list[int]) -> Tensor:
            states, sources = self._packed_states(contexts, rows)
            text, lengths = texts.packed(rows)
            decoder = self.base.get_decoder()
            with packing(self.base, decoder, lengths):
                output = decoder(
                    inputs_embeds=text, encoder_hidden_states=states, rows=lengths, sources=sources, use_cache=False
                )
            return unpacked(output.last_hidden_state, lengths)[:, given:]

        return packed if self._packs else padded

    @property
    def _packs(self) -> bool:
        return packable(self.base)

    def _states(self, contexts: Embedded, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Encoder states [n, L, H] of some rows and their attention mask [n, L]."""
        context, attention = contexts.of(rows)
        states = self.base.get_encoder()(inputs_embeds=context, attention_mask=attention.long()).last_hidden_state
        return states, attention

    def _packed_states(self, contexts: Embedded, rows: list[int]) -> tuple[Tensor, list[int]]:
        """Encoder states [1, sum of lengths, H] of some rows, one behind the other, and the lengths."""
        context, lengths = contexts.packed(rows)
        encoder = self.base.get_encoder()
        with packing(self.base, encoder, lengths):
            return encoder(inputs_embeds=context, rows=lengths).last_hidden_state, lengths

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        return packed_batches(lengths) if self._packs else super()._batches(lengths)

    def start(self, pairs: Sequence[Pair], *, weigh: bool = False) -> State:
        states, attention = self._encode(pairs)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = self._decode(self._prefix(len(pairs)), states, attention, cache)
        state = self._state(output, states, attention)
        return dataclasses.replace(
            state,
            layers=tuple(with_room(*layer, self.max_answer_tokens) for layer in state.layers),
            question=self.question_log_probs(pairs) if weigh else None,
        )

    def advance(self, state: State, tokens: Tensor) -> State:
        output = self._resume(state, tokens.unsqueeze(-1))
        return self._state(output, state.encoder_states, state.attention)

    def _hidden(self, state: State, tokens: Tensor) -> Tensor:
        hidden: Tensor = self._resume(state, tokens).last_hidden_state
        return hidden

    def _encode(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Encoder states [N, L, H] and the attention mask [N, L], the encoder run in batches."""
        prompts = [self.template.ids(passage, question) for question, passage in pairs]

        def compute(rows: list[int]) -> Tensor:
            contexts = self._embedded(self.base.get_encoder(), [prompts[row] for row in rows])
            whole = list(range(len(rows)))
            return unpacked(*self._packed_states(contexts, whole)) if self._packs else self._states(contexts, whole)[0]

        states = self._in_batches([len(prompt) for prompt in prompts], compute)
        return states, pad_rows(prompts, self.pad_id, self.device)[1]

    def _decode(
        self,
        ids: Tensor | None,
        states: Tensor | None,
        attention: Tensor,
        cache: EncoderDecoderCache | None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        return self.base.get_decoder()(
            input_ids=ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=states,
            encoder_attention_mask=attention.long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )

    def _resume(self, state: State, ids: Tensor) -> Any:
        cache = EncoderDecoderCache(
            cache_of(state.layers, state.filled), cache_of(state.cross, state.attention.shape[1])
        )
        return self._decode(ids, state.encoder_states, state.attention, cache)

    def _state(self, output: Any, states: Tensor | None, attention: Tensor) -> State:
        own, cross = output.past_key_values.self_attention_cache, output.past_key_values.cross_attention_cache
        return State(
            log_probs=self._next(output.last_hidden_state[:, -1]),
            layers=layers_of(own),
            filled=own.get_seq_length(),
            attention=attention,
            positions=attention.long().sum(-1),
            cross=layers_of(cross),
            encoder_states=states,
        )

    def _prefix(self, rows: int) -> Tensor:
        return torch.tensor([self.decoder_prefix], device=self.device).expand(rows, -1)

    @property
    def writes_questions(self) -> bool:
        return True

    @property
    def weighs_as_it_reads(self) -> bool:
        return False

    def _asked(self, passage: Passage, question: str) -> tuple[list[int], list[int]]:
        return self.template.ids(passage, ""), target_ids(self.tokenizer, question)

    def _plain_answer_ids(self, answer: str) -> list[int]:
        return target_ids(self.tokenizer, answer)
