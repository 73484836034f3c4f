"""Passage and question -> token ids of the generator's input.

Only the template may hold special tokens: title, passage and question are tokenised as plain text. The passage is cut
to fit; the question never is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from ragx.errors import ArtifactError, DataError
from ragx.records import Passage

_SLOT = re.compile("\ue000(title|passage|question)\ue001")


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """The prompt with {title}, {passage} and {question}, the system message, and the limit of the input in tokens."""

    prompt: str
    system: str | None
    max_input_tokens: int


class PromptTemplate:
    """The rendered template as token ids with slots, through the tokenizer's chat template when it has one."""

    def __init__(self, tokenizer: Any, settings: PromptSettings, *, chat: bool) -> None:
        """Raises ArtifactError when the chat template refuses the messages."""
        self._tokenizer = tokenizer
        self._limit = settings.max_input_tokens
        slotted = settings.prompt.replace("{", "\ue000").replace("}", "\ue001")
        text = self._chat(slotted, settings.system) if chat else slotted
        before, after = ([], []) if chat else special_ids(tokenizer)
        pieces = _SLOT.split(text)
        self._pieces: list[str | list[int]] = [before]
        for position, piece in enumerate(pieces):
            self._pieces.append(piece if position % 2 else self._encode(piece, special=chat))
        self._pieces.append(after)
        self.ends_with_space = text[-1:].isspace() or chat

    def ids(self, passage: Passage, question: str) -> list[int]:
        """The token ids of one prompt, the passage cut at its end so that all fits.

        Raises:
            DataError: the question leaves no room for a passage.
        """
        slots = {
            "title": self._encode(passage.title),
            "question": self._encode(question),
            "passage": self._encode(passage.text),
        }
        fixed = sum(len(piece) for piece in self._pieces if isinstance(piece, list))
        room = self._limit - fixed - len(slots["title"]) - len(slots["question"])
        if room < 1:
            raise DataError(
                f"the question {question[:60]!r} leaves no room for a passage within "
                f"generator.max_input_tokens: {self._limit}; raise it or shorten the question"
            )
        slots["passage"] = slots["passage"][:room]
        return [token for piece in self._pieces for token in (slots[piece] if isinstance(piece, str) else piece)]

    def _encode(self, text: str, special: bool = False) -> list[int]:
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, truncation=False, verbose=False
        )
        return list(encoded["input_ids"])

    def _chat(self, prompt: str, system: str | None) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise ArtifactError(
                f"the chat template refuses the prompt ({error}); try generator.system: null"
            ) from error
        return text


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a text by itself."""
    plain: Sequence[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    full: list[int] = list(tokenizer("x")["input_ids"])
    start = next(i for i in range(len(full)) if full[i : i + len(plain)] == list(plain))
    return full[:start], full[start + len(plain) :]
