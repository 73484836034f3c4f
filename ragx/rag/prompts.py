"""Passage and question -> token ids of the generator's input.

Only the template may hold special tokens: title, passage and question are tokenised as plain text. The passage is cut
to fit; the question never is, unless an input is wanted exactly as transformers' RagRetriever cuts it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError

from ragx.errors import ArtifactError, DataError
from ragx.records import Passage

TEXTS_KEPT = 16384
"""Texts whose token ids are remembered: the same passages are retrieved again and again, a question meets K of them."""
_SLOT = re.compile("\ue000(title|passage|question)\ue001")


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """The prompt with {title}, {passage} and {question}, the system message, and the limit of the input in tokens."""

    prompt: str
    system: str | None
    max_input_tokens: int


@dataclass(frozen=True, slots=True)
class RagFormat:
    """The input of transformers' RAG models: prefix, title, `title_sep`, text, `doc_sep` and question in one string.

    `question_text` is what becomes of a question before it is joined: they decode it from the question encoder's token
    ids. What exceeds the limit is cut from the passage, or as they do from the end, where the question stands.
    """

    title_sep: str
    doc_sep: str
    prefix: str
    max_input_tokens: int
    question_text: Callable[[str], str]
    truncation: Literal["passage", "end"] = "passage"


Prompt = PromptSettings | RagFormat


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
        slots = pieces[1::2]
        self.asks_last = slots.count("question") == 1 and slots.index("question") == len(slots) - 1
        self._plain_ids = lru_cache(TEXTS_KEPT)(self._encode)

    def ids(self, passage: Passage, question: str) -> list[int]:
        """The token ids of one prompt, the passage cut at its end so that all fits.

        Raises:
            DataError: the question leaves no room for a passage.
        """
        slots = {
            "title": self._plain_ids(passage.title),
            "question": self._plain_ids(question),
            "passage": self._plain_ids(passage.text),
        }
        fixed = sum(len(piece) for piece in self._pieces if isinstance(piece, list))
        room = self._limit - fixed - len(slots["title"]) - len(slots["question"])
        if room < 1:
            raise _no_room(question, self._limit)
        slots["passage"] = slots["passage"][:room]
        return [token for piece in self._pieces for token in (slots[piece] if isinstance(piece, str) else piece)]

    def before_question(self, passage: Passage, question: str) -> tuple[list[int], list[int]]:
        """The prompt up to its question, and the question, where `asks_last`; the passage cut as in the whole prompt.

        Raises:
            DataError: the question leaves no room for a passage.
        """
        whole, asked = self.ids(passage, question), self._plain_ids(question)
        after = sum(len(piece) for piece in self._pieces[self._pieces.index("question") + 1 :])
        return whole[: len(whole) - after - len(asked)], asked

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


class RagTemplate:
    """The joined string of a `RagFormat` as token ids."""

    ends_with_space = True

    def __init__(self, tokenizer: Any, form: RagFormat) -> None:
        """Raises ArtifactError when the tokenizer does not say where in a text its tokens stand."""
        if not tokenizer.is_fast:
            raise ArtifactError(
                f"{tokenizer.name_or_path}: no tokenizer.json, without which no passage can be cut to fit; "
                "say rag.input_format: prompt"
            )
        self._tokenizer = tokenizer
        self.form = form

    def ids(self, passage: Passage, question: str) -> list[int]:
        """The token ids of one input, cut to the limit.

        Raises:
            DataError: the question leaves no room for a passage.
        """
        limit, asked = self.form.max_input_tokens, self.form.question_text(question)
        if self.form.truncation == "end":
            return self._encode(self._joined(passage.title, passage.text, asked), truncation=True, max_length=limit)
        ids = self._encode(self._joined(passage.title, passage.text, asked))
        if len(ids) <= limit:
            return ids
        starts = self._token_starts(passage.text)
        kept = len(starts)
        while len(ids) > limit:  # the end of a cut passage may join its neighbour in other tokens: rarely twice
            kept -= len(ids) - limit
            if kept < 1:
                raise _no_room(question, limit)
            ids = self._encode(self._joined(passage.title, passage.text[: starts[kept]].rstrip(), asked))
        return ids

    def room(self, passage: Passage) -> int:
        """The tokens that an uncut passage leaves for the question; below 0 where it alone exceeds the limit."""
        return self.form.max_input_tokens - len(self._encode(self._joined(passage.title, passage.text, "")))

    def _joined(self, title: str, text: str, question: str) -> str:
        form, bare = self.form, title.removeprefix('"').removesuffix('"')
        return f"{form.prefix}{bare}{form.title_sep}{text}{form.doc_sep}{question}".replace("  ", " ")

    def _encode(self, text: str, **cut: Any) -> list[int]:
        return list(self._tokenizer(text, split_special_tokens=True, verbose=False, **cut)["input_ids"])

    def _token_starts(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]


def make_template(tokenizer: Any, prompt: Prompt, *, chat: bool) -> PromptTemplate | RagTemplate:
    """The template of either kind of prompt."""
    if isinstance(prompt, RagFormat):
        return RagTemplate(tokenizer, prompt)
    return PromptTemplate(tokenizer, prompt, chat=chat)


def _no_room(question: str, limit: int) -> DataError:
    return DataError(
        f"the question {question[:60]!r} leaves no room for a passage within "
        f"generator.max_input_tokens: {limit}; raise it or shorten the question"
    )


def continuation_ids(tokenizer: Any, answer: str, *, after_space: bool) -> list[int]:
    """The ids of an answer that continues a prompt, without an end."""
    text = answer if after_space else f" {answer}"
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def target_ids(tokenizer: Any, answer: str) -> list[int]:
    """The ids of an answer that a decoder begins, without an end."""
    return list(tokenizer(text_target=answer, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a text by itself."""
    plain: Sequence[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    full: list[int] = list(tokenizer("x")["input_ids"])
    start = next(i for i in range(len(full)) if full[i : i + len(plain)] == list(plain))
    return full[:start], full[start + len(plain) :]
