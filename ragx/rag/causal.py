"""Decoder-only generators: Llama, Qwen, SmolLM and their kin."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from ragx.rag.generator import Generator, Pair, pad_rows
from ragx.rag.prompts import PromptTemplate, continuation_ids
from ragx.rag.state import Layers, State, cache_of, joined, layers_of
from ragx.records import Passage


class CausalGenerator(Generator):
    """Decoder-only models: the prompt and the answer are one sequence."""

    chats = True

    def _before_answers(
        self, prompts: Sequence[list[int]], answers: Sequence[Sequence[int]]
    ) -> Callable[[list[int]], Tensor]:
        texts = self._embedded(self.base, [[*p, *a[:-1]] for p, a in zip(prompts, answers, strict=True)])

        starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)

        def compute(rows: list[int]) -> Tensor:
            text, attention = texts.of(rows)
            output = self.base.base_model(inputs_embeds=text, attention_mask=attention.long(), use_cache=False)
            columns = torch.arange(max(len(answers[row]) for row in rows), device=self.device)
            places = (starts[rows].unsqueeze(-1) + columns).clamp(max=text.shape[1] - 1)
            hidden: Tensor = output.last_hidden_state
            return hidden.take_along_dim(places.unsqueeze(-1), dim=1)

        return compute

    def start(self, pairs: Sequence[Pair], *, weigh: bool = False) -> State:
        prompts = [self.template.ids(passage, question) for question, passage in pairs]
        asked = [self._asked(passage, question) for question, passage in pairs] if weigh else []
        attention = pad_rows(prompts, self.pad_id, self.device, left=True)[1]
        batches = self._batches([len(prompt) for prompt in prompts])
        parts, last, likely = [], [], []
        for rows in batches:
            ids, mask = pad_rows([prompts[row] for row in rows], self.pad_id, self.device, left=True)
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
            output = self.base.base_model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                use_cache=True,
                past_key_values=DynamicCache(),
            )
            parts.append(layers_of(output.past_key_values))
            last.append(output.last_hidden_state[:, -1])
            if weigh:
                before = [ids.shape[1] - len(prompts[row]) + len(asked[row][0]) - 1 for row in rows]
                likely.append(self._question(output.last_hidden_state, before, [asked[row][1] for row in rows]))
        length = attention.shape[1]
        places = torch.tensor([row for rows in batches for row in rows], device=self.device).argsort()
        return State(
            log_probs=self._next(torch.cat(last)[places]),
            layers=joined(parts, batches, length, self.max_answer_tokens),
            filled=length,
            attention=attention,
            positions=attention.long().sum(-1),
            question=torch.cat(likely)[places] if weigh else None,
        )

    def _question(self, hidden: Tensor, before: Sequence[int], questions: Sequence[Sequence[int]]) -> Tensor:
        """log p [n] of questions within the texts behind hidden states [n, L, H], each after its place `before`."""
        gold, mask = self._answers(questions)
        places = torch.tensor(before, device=self.device).unsqueeze(-1) + torch.arange(
            gold.shape[1], device=self.device
        )
        states = hidden.take_along_dim(places.clamp(max=hidden.shape[1] - 1).unsqueeze(-1), dim=1)
        found = self._gold(states[mask], gold[mask])
        return torch.zeros(gold.shape, device=self.device).masked_scatter(mask, found).sum(-1)

    def advance(self, state: State, tokens: Tensor) -> State:
        hidden, layers, attention = self._continue(state, tokens.unsqueeze(-1))
        return dataclasses.replace(
            state,
            log_probs=self._next(hidden[:, -1]),
            layers=layers,
            filled=state.filled + 1,
            attention=attention,
            positions=state.positions + 1,
        )

    def _hidden(self, state: State, tokens: Tensor) -> Tensor:
        return self._continue(state, tokens)[0]

    def _continue(self, state: State, tokens: Tensor) -> tuple[Tensor, Layers, Tensor]:
        """Hidden states [N, t, H] of t more tokens, and the grown cache and mask."""
        attention = torch.cat([state.attention, torch.ones_like(tokens, dtype=torch.bool)], dim=-1)
        output = self.base.base_model(
            input_ids=tokens,
            attention_mask=attention.long(),
            position_ids=state.positions.unsqueeze(-1) + torch.arange(tokens.shape[1], device=tokens.device),
            past_key_values=cache_of(state.layers, state.filled),
            use_cache=True,
        )
        return output.last_hidden_state, layers_of(output.past_key_values), attention

    @property
    def writes_questions(self) -> bool:
        return isinstance(self.template, PromptTemplate) and self.template.asks_last

    @property
    def weighs_as_it_reads(self) -> bool:
        return self.writes_questions

    def _asked(self, passage: Passage, question: str) -> tuple[list[int], list[int]]:
        assert isinstance(self.template, PromptTemplate)
        return self.template.before_question(passage, question)

    def _plain_answer_ids(self, answer: str) -> list[int]:
        return continuation_ids(self.tokenizer, answer, after_space=self.template.ends_with_space)
