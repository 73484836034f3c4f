"""How long a generator's inputs and answers are: asked of its tokenizer alone, without its weights."""

import dataclasses
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from ragx.models import loading, require_tokenizer
from ragx.rag.prompts import Prompt, continuation_ids, make_template, target_ids
from ragx.records import Passage

_ENDLESS = 1 << 30


class Lengths:
    """Tokens of prompts and answers as `load_generator` would have them."""

    def __init__(self, folder: Path, prompt: Prompt) -> None:
        """Read the tokenizer of a generator's folder.

        Raises:
            ArtifactError: there is none, or its chat template refuses the prompt.
        """
        require_tokenizer(folder)
        with loading(folder, "its tokenizer cannot be loaded"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self._writes_on = not config.is_encoder_decoder
        chat = self._writes_on and tokenizer.chat_template is not None
        self._tokenizer = tokenizer
        self._template = make_template(tokenizer, dataclasses.replace(prompt, max_input_tokens=_ENDLESS), chat=chat)

    def prompt(self, passage: Passage, question: str) -> int:
        """Tokens of a prompt of which nothing is cut."""
        return len(self._template.ids(passage, question))

    def answer(self, answer: str) -> int:
        """Tokens of an answer with its end."""
        if self._writes_on:
            return len(continuation_ids(self._tokenizer, answer, after_space=self._template.ends_with_space)) + 1
        return len(target_ids(self._tokenizer, answer)) + 1
