"""ROUGE, BLEU and chrF of longer answers and translations, by the libraries the field reports them with."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ragx.corpus.answers import unspaced
from ragx.evaluation.statistic import Floats, Measured, averaged
from ragx.evaluation.text import words

_OTHER_LETTERS = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)


class _Words:
    """A tokenizer in rouge-score's manner that keeps the letters of every script."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(name: str, answers: Sequence[str], references: Sequence[Sequence[str]], *, by_script: bool) -> Measured:
    """ROUGE F-measures 0-1, the best of a question's references (Lin 2004).

    rouge-score keeps ASCII letters and digits only; with `by_script`, sets of other scripts get words that keep theirs.
    """
    other = by_script and any(_OTHER_LETTERS.search(text) for texts in references for text in texts)
    scorer = RougeScorer([name], use_stemmer=False, tokenizer=_Words() if other else None)
    pairs = zip(answers, references, strict=True)
    return averaged([float(scorer.score_multi(list(texts), answer)[name].fmeasure) for answer, texts in pairs])


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, by_script: bool) -> Measured:
    """BLEU of the whole set, 0-1 (Papineni et al. 2002); a question's own score uses the orders it reaches."""
    tokenize = bleu_tokenizer(references) if by_script else "13a"
    sentence = BLEU(tokenize=tokenize, effective_order=True)
    return _corpus_level(BLEU(tokenize=tokenize), sentence, answers, references)


def bleu_tokenizer(references: Sequence[Sequence[str]]) -> str:
    """The name of sacrebleu's tokenizer for a set: single characters where the script writes no spaces."""
    return "char" if unspaced(text for texts in references for text in texts) else "13a"


def chrf(name: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """chrF2 of the whole set, 0-1 (Popovic 2015); `chrf++` counts word pairs too."""
    metric = CHRF(word_order=2 if name == "chrf++" else 0)
    return _corpus_level(metric, metric, answers, references)


def _corpus_level(metric: Any, sentence: Any, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    """A figure of the summed n-gram statistics of the questions: resampling sums them anew, tokenises nothing twice."""
    streams = list(zip_longest(*references))
    found = metric._extract_corpus_statistics(list(answers), streams)
    statistics = np.asarray(found, dtype=np.float64).reshape(len(answers), -1)

    def of(judge: Any, row: Floats) -> float:
        return float(judge._compute_score_from_stats([int(value) for value in row]).score) / 100

    def figure(counts: Floats) -> Floats:
        return np.array([of(metric, row) for row in counts @ statistics])

    return Measured([of(sentence, row) for row in statistics], figure)
