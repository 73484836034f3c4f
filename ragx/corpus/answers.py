"""Answers compared as the field does: SQuAD's normalisation (Rajpurkar et al. 2016)."""

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text holds one of the answers as whole words, both normalised."""
    inside = f" {normalise_answer(text)} "
    return any(f" {answer} " in inside for answer in map(normalise_answer, answers) if answer)
