"""Questions -> predictions: retrieval for all at once, answers in batches of like length, nothing computed twice."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ragx.artifacts import fingerprint, untrusted
from ragx.errors import RagxError
from ragx.evaluation.cache import PredictionCache
from ragx.evaluation.predictions import NUMBERS, attached
from ragx.evaluation.text import holds
from ragx.evaluation.why import supported
from ragx.index.store import Index
from ragx.rag.model import Answered, RagModel
from ragx.rag.retriever import Retrieval
from ragx.records import NOTHING, Evidence, Example, Passage, Prediction, Progress

RETRIEVED_AT_ONCE = 20_000
"""Passages looked up in one go."""


@dataclass(frozen=True, slots=True)
class HowToAnswer:
    """Decoding, questions a batch, passages retrieved a question, whether the reader is also asked without any, the
    fingerprint of all that an answer depends on besides its question, and whether every answer is to be timed: then
    none comes from the cache."""

    decoding: str
    num_beams: int
    batch_size: int
    depth: int
    closed_book: bool
    fingerprint: str
    timed: bool = False


@torch.no_grad()
def predict(
    open_model: Callable[[], RagModel],
    examples: Sequence[Example],
    how: HowToAnswer,
    cache: PredictionCache,
    progress: Progress,
) -> list[Prediction]:
    """A prediction for every example; those computed now with their seconds, each batch's time shared equally.

    The model is opened only when the cache lacks something. Batches are made over all examples, cached or not, so that
    a run that was stopped and goes on computes the same figures as one that was not.
    """
    keys = [fingerprint([how.fingerprint, e.question, e.answers, e.doc_ids]) for e in examples]
    known = {} if how.timed else cache.read(keys)
    if len(known) < len(set(keys)):
        model = open_model()
        started = time.monotonic()
        deep = _retrieve(model, examples, how.depth)
        retrieving = (time.monotonic() - started) / len(examples)
        done = len(examples) - sum(key not in known for key in keys)
        for batch in _batches(examples, deep, how.batch_size):
            rows = [row for row in batch if keys[row] not in known]
            if not rows:
                continue
            found = _answer(model, [examples[row] for row in rows], _rows(deep, rows), how, retrieving)
            _require_numbers(found)
            cache.write(fresh := dict(zip((keys[row] for row in rows), found, strict=True)))
            known |= fresh
            done += len(rows)
            progress("answering", done, len(examples))
    return [attached(known[key], example) for key, example in zip(keys, examples, strict=True)]


def _require_numbers(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        for name in NUMBERS:
            value = getattr(prediction, name)
            if value is not None and not math.isfinite(value):
                raise RagxError(f"{name} of question {prediction.id} is not a number; the model is damaged")


def with_support(predictions: Sequence[Prediction], index: Index) -> list[Prediction]:
    """The predictions with whether an answer of theirs stands anywhere in the corpus: what no retriever can mend."""
    unseen = {p.id: p.answers for p in predictions if not any(hit.holds_answer for hit in p.hits or ())}
    found = supported(unseen, _all_passages(index)) if unseen else set()
    return [dataclasses.replace(p, answer_in_corpus=p.id not in unseen or p.id in found) for p in predictions]


def _all_passages(index: Index) -> Iterator[Passage]:
    for start in range(0, index.passages_count, 1000):
        yield from index.passages(range(start, min(start + 1000, index.passages_count))).values()


def _retrieve(model: RagModel, examples: Sequence[Example], depth: int) -> Retrieval:
    """The `depth` best passages of every question."""
    at_once = max(1, RETRIEVED_AT_ONCE // depth)
    parts = [
        model.retriever([example.question for example in examples[start : start + at_once]], depth)
        for start in range(0, len(examples), at_once)
    ]
    return Retrieval(
        [row for part in parts for row in part.passages],
        torch.cat([part.scores for part in parts]),
        torch.cat([part.log_prior for part in parts]),
    )


def _rows(retrieval: Retrieval, rows: list[int]) -> Retrieval:
    return Retrieval([retrieval.passages[row] for row in rows], retrieval.scores[rows], retrieval.log_prior[rows])


def _batches(examples: Sequence[Example], deep: Retrieval, batch_size: int) -> list[list[int]]:
    """Rows in batches of like prompt length: little padding."""
    lengths = [
        len(example.question) + max(len(passage.text) for passage in row)
        for example, row in zip(examples, deep.passages, strict=True)
    ]
    order = sorted(range(len(examples)), key=lambda row: lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _answer(
    model: RagModel, examples: Sequence[Example], deep: Retrieval, how: HowToAnswer, retrieving: float
) -> list[Prediction]:
    """Predictions of a batch; their seconds hold those of retrieval, but not the question without passages."""
    started = time.monotonic()
    questions, references = [e.question for e in examples], [e.answers[0] for e in examples]
    answered = model.answer(
        questions,
        decoding=how.decoding,
        num_beams=how.num_beams,
        retrieval=model.retriever.first(deep, model.width),
        references=references,
    )
    seconds = retrieving + (time.monotonic() - started) / len(examples)
    alone = _closed_book(model, questions, references) if how.closed_book else None
    ranked = deep.passages
    if model.rerank is not None:
        ranked = [[*new, *old[model.width :]] for new, old in zip(answered.hits.passages, ranked, strict=True)]
    return [
        _prediction(example, row, ranked[row], answered, seconds, None if alone is None else alone[row])
        for row, example in enumerate(examples)
    ]


def _closed_book(model: RagModel, questions: Sequence[str], references: Sequence[str]) -> list[float]:
    """-log p(y|x) in nats of the references when the reader is shown an empty passage."""
    ids = [model.generator.answer_ids(reference) for reference in references]
    log_probs, mask = model.generator.token_log_probs([(question, NOTHING) for question in questions], ids)
    nll: list[float] = (-log_probs.masked_fill(~mask, 0.0).sum(-1)).tolist()
    return nll


def _prediction(
    example: Example, row: int, passages: Sequence[Passage], answered: Answered, seconds: float, alone: float | None
) -> Prediction:
    assert answered.reference_nll is not None and answered.reference_tokens is not None
    decoded, priors = answered.decoded[row], answered.retrieval.log_prior[row].exp().tolist()
    real = len(answered.retrieval.passages[row]) - answered.retrieval.passages[row].count(NOTHING)
    read = list(zip(priors, decoded.posterior, strict=True))[:real]
    return Prediction(
        id=example.id,
        question=example.question,
        answers=example.answers,
        answer=untrusted(decoded.text),
        log_probability=decoded.log_probability,
        reference_nll=answered.reference_nll[row],
        reference_tokens=answered.reference_tokens[row],
        closed_book_nll=alone,
        seconds=seconds,
        hits=tuple(
            _evidence(example, passage, read[rank] if rank < len(read) else None)
            for rank, passage in enumerate(passages)
        ),
    )


def _evidence(example: Example, passage: Passage, weights: tuple[float, float] | None) -> Evidence:
    held = holds(passage.text, example.answers)
    supports = held or passage.document_id in example.doc_ids
    if weights is None:
        return Evidence(passage.id, passage.document_id, supports, held)
    title, text = untrusted(passage.title), untrusted(passage.text)
    return Evidence(passage.id, passage.document_id, supports, held, *weights, title, text)
