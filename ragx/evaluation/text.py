"""Text as metrics see it: words where a script writes spaces, characters where it does not."""

import unicodedata
from collections.abc import Iterable

import regex

from ragx.corpus.answers import UNSPACED, holds_answer, normalise_answer, unspaced

_PIECE = regex.compile(rf"{UNSPACED}\p{{M}}*|(?:(?!{UNSPACED})\S)+")
_PUNCTUATION = regex.compile(r"\p{P}+")
_WORD = regex.compile(rf"{UNSPACED}\p{{M}}*|(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+")
_LOOSE = regex.compile(r"[\p{M}\p{P}\p{Z}\p{C}\p{S}]+")


def units(text: str, by_character: bool) -> list[str]:
    """The units of a normalised answer: its words (SQuAD), or with `by_character` single characters of unspaced scripts
    and words of others, all punctuation dropped (MLQA's mixed segmentation; Lewis et al. 2020)."""
    words = normalise_answer(text)
    return _PIECE.findall(_PUNCTUATION.sub("", words)) if by_character else words.split()


def holds(text: str, answers: Iterable[str]) -> bool:
    """Whether a text holds one of the answers, both normalised: as whole words, where their script has words."""
    answers = list(answers)
    return holds_answer(text, answers) or any(
        normalise_answer(answer) in normalise_answer(text) for answer in answers if unspaced([answer])
    )


def words(text: str) -> list[str]:
    """Lower-case words of any script, characters where it writes no spaces; no punctuation."""
    return _WORD.findall(text.lower())


def loose(text: str) -> str:
    """What is left of an answer without case, accents, punctuation, symbols, spaces and English articles."""
    plain = unicodedata.normalize("NFKD", normalise_answer(text)).casefold()
    return str(_LOOSE.sub("", plain))
