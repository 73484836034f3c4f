"""What went wrong, and where: outcomes of questions, slices, the worst losses."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from ragx.corpus.answers import unspaced
from ragx.corpus.search import Finder
from ragx.errors import ConfigError
from ragx.evaluation.statistic import Statistic
from ragx.evaluation.text import holds, loose
from ragx.records import Example, Passage, Prediction, Slice

MEANINGS = {
    "correct": "the answer equals a reference",
    "normalisation": "right but for accents, symbols or more words around it",
    "reader miss": "a passage that was read supports the reference; the reader wrote something else",
    "retrieval miss": "the corpus has the answer; no passage that was read supports it",
    "unanswerable in corpus": "no passage of the corpus holds the answer",
}
OUTCOMES = tuple(MEANINGS)
BUILT_IN = ("document_kind", "question_length", "answer_length")
_EDGES = {"question_length": (8, 14), "answer_length": (1, 3)}
_BUCKETS = {"question_length": ("1-8", "9-14", "over 14"), "answer_length": ("1", "2-3", "over 3")}
_OTHER = "(none)"


def outcome(prediction: Prediction, correct: bool) -> str:
    """How a question ended.

    normalisation: the answer equals a reference but for accents, punctuation, symbols and spaces, or holds one as whole
    words. reader miss: a passage the reader saw supports the reference, and it wrote something else. retrieval miss:
    none did, though one of the corpus does, or a document
    is said to. Where nothing is known of passages every error is the reader's.
    """
    if correct:
        return "correct"
    bare = loose(prediction.answer)
    same = any(bare and bare == loose(text) for text in prediction.answers)
    if same or holds(prediction.answer, prediction.answers):
        return "normalisation"
    read = [hit for hit in prediction.hits or () if hit.posterior is not None]
    if prediction.hits is None or any(hit.supports for hit in read):
        return "reader miss"
    gone = prediction.answer_in_corpus is False and not prediction.doc_ids
    return "unanswerable in corpus" if gone else "retrieval miss"


def supported(wanted: Mapping[str, Sequence[str]], passages: Iterable[Passage]) -> set[str]:
    """The keys of `wanted` one of whose answers stands in a passage, as whole words, both normalised."""
    finder = Finder((key, answer) for key, answers in wanted.items() for answer in answers)
    return {key for passage in passages for key in finder.within(passage.text)}


def retrieval_hurts(predictions: Sequence[Prediction]) -> float | None:
    """The share of questions whose reference the generator finds likelier without any passage; None where unknown."""
    known = [
        (p.closed_book_nll, p.reference_nll)
        for p in predictions
        if p.closed_book_nll is not None and p.reference_nll is not None
    ]
    return sum(alone < together for alone, together in known) / len(known) if known else None


def require_slices(names: Sequence[str], examples: Sequence[Example], place: str) -> None:
    """Check that every slice is built in or a field of some question.

    Raises:
        ConfigError: naming it and the fields there are.
    """
    there = sorted({name for example in examples for name in example.fields})
    for name in names:
        if name not in BUILT_IN and name not in there:
            known = ", ".join([*BUILT_IN, *there])
            raise ConfigError(f"eval.slices: no question of {place} has a field {name!r}; there are: {known}")


def slices(
    names: Sequence[str],
    predictions: Sequence[Prediction],
    statistics: Mapping[str, Statistic],
    before: Mapping[str, Statistic] | None,
) -> tuple[Slice, ...]:
    """For each field the questions of each of its values, larger slices first; lengths from the short ones on."""
    found = []
    for name in names:
        values = [_value(name, prediction) for prediction in predictions]
        for value, count in sorted(
            Counter(values).items(), key=lambda item: (_place(name, item[0]), -item[1], item[0])
        ):
            rows = np.array([[float(each == value) for each in values]])
            now = {metric: float(statistic(rows)[0]) for metric, statistic in statistics.items()}
            then = {metric: float(statistic(rows)[0]) for metric, statistic in (before or {}).items()}
            found.append(Slice(name, value, count, now, then if before is not None else None))
    return tuple(found)


def ranked_losses(
    predictions: Sequence[Prediction], before: Sequence[Prediction], metric: str, lower_is_better: bool
) -> list[tuple[float, Prediction, Prediction]]:
    """(gain, before, after) of the questions whose score changed, the worst losses first."""
    sign = -1.0 if lower_is_better else 1.0
    changed = [
        (sign * (new.scores[metric] - old.scores[metric]), old, new)
        for old, new in zip(before, predictions, strict=True)
        if new.scores[metric] != old.scores[metric]
    ]
    return sorted(changed, key=lambda each: (each[0], each[2].id))


def _value(name: str, prediction: Prediction) -> str:
    if name in prediction.fields:
        return prediction.fields[name]
    match name:
        case "document_kind":
            return _kind_of(prediction)
        case "question_length":
            return _bucket(_length(prediction.question), name)
        case "answer_length":
            return _bucket(min(map(_length, prediction.answers)), name)
    return _OTHER


def _kind_of(prediction: Prediction) -> str:
    """Folder and extension of the document the answer is in: the gold one, else the first passage's that holds it."""
    documents = [*prediction.doc_ids, *(hit.document_id for hit in prediction.hits or () if hit.supports)]
    if not documents:
        return _OTHER
    path = PurePosixPath(documents[0])
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z]{1,5}", path.suffix) else ""
    return f"{path.parent}/*{suffix}" if len(path.parts) > 1 else f"*{suffix}" if suffix else _OTHER


def _place(name: str, value: str) -> int:
    """Of a bucket among the others of its slice."""
    buckets = _BUCKETS.get(name, ())
    return buckets.index(value) if value in buckets else len(buckets)


def _length(text: str) -> int:
    """Words, or characters where the script writes no spaces."""
    count: Callable[[str], int] = (lambda t: len(t)) if unspaced([text]) else (lambda t: len(t.split()))
    return count(text)


def _bucket(length: int, name: str) -> str:
    return _BUCKETS[name][sum(length > edge for edge in _EDGES[name])]
