"""Answers compared as the field does: SQuAD's normalisation (Rajpurkar et al. 2016)."""

import re
import string
from collections.abc import Iterable

import regex

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""A letter of a script that writes no spaces between words, as a regular expression."""
_UNSPACED = regex.compile(UNSPACED)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def unspaced(texts: Iterable[str]) -> bool:
    """Whether one of the texts is of a script that writes no spaces between words."""
    return any(_UNSPACED.search(text) for text in texts)


def holds_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text holds one of the answers as whole words, both normalised."""
    inside = f" {normalise_answer(text)} "
    return any(f" {answer} " in inside for answer in map(normalise_answer, answers) if answer)
