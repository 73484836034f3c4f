"""Predictions on disk, ours or another system's, matched to the questions of a split."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragx.artifacts import write_text
from ragx.errors import ArtifactError
from ragx.evaluation.metrics import LONGEST
from ragx.records import Evidence, Example, Prediction

NUMBERS = ("log_probability", "reference_nll", "reference_tokens", "closed_book_nll")


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """One JSON object a line."""
    lines = [json.dumps(record_of(p), ensure_ascii=False, allow_nan=False) for p in predictions]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_predictions(path: Path, examples: Sequence[Example]) -> list[Prediction]:
    """A prediction for every example, from lines with `id` and `answer` at least; those without one are `missing`.

    Raises:
        ArtifactError: the file is missing, damaged, or of other questions; with its line.
    """
    wanted = {example.id: example for example in examples}
    found: dict[str, Prediction] = {}
    for place, record in _records(path):
        identity = record.get("id")
        if not isinstance(identity, str | int) or not isinstance(record.get("answer"), str):
            raise ArtifactError(f"{place}: a prediction needs 'id' and 'answer'")
        example = wanted.get(str(identity))
        if example is None:
            raise ArtifactError(f"{place}: question {identity} is not in this split; these are predictions of another")
        if example.id in found:
            raise ArtifactError(f"{place}: a second prediction of question {identity}")
        if record.get("question", example.question) != example.question:
            raise ArtifactError(f"{place}: question {identity} is another one in this split")
        if len(record["answer"]) > LONGEST:
            raise ArtifactError(f"{place}: an answer of {len(record['answer'])} characters, over {LONGEST}")
        found[example.id] = _read(record, place)
    if not found:
        raise ArtifactError(f"{path}: no predictions in this file")
    return [attached(found.get(example.id) or _missing(example), example) for example in examples]


def attached(prediction: Prediction, example: Example) -> Prediction:
    """The prediction with the question's own facts as they are now."""
    facts = {name: getattr(example, name) for name in ("id", "question", "answers", "doc_ids", "fields")}
    return dataclasses.replace(prediction, **facts)


def record_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it is kept: without the seconds it took, so that the same run leaves the same bytes."""
    return {name: value for name, value in dataclasses.asdict(prediction).items() if name != "seconds"}


def prediction_of(record: Mapping[str, Any]) -> Prediction:
    """A record as `record_of` gives it, turned back. Raises TypeError or KeyError where it is none."""
    hits = record.get("hits")
    return Prediction(
        **{
            "question": "",
            **record,
            "id": str(record["id"]),
            "answers": tuple(record.get("answers", ())),
            "doc_ids": tuple(record.get("doc_ids", ())),
            "hits": None if hits is None else tuple(Evidence(**hit) for hit in hits),
        }
    )


def _missing(example: Example) -> Prediction:
    return Prediction(example.id, example.question, example.answers, "", hits=(), missing=True)


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); expected a .predictions.jsonl") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}:{number}: damaged predictions ({error})") from error
        if not isinstance(record, dict):
            raise ArtifactError(f"{path}:{number}: damaged predictions (no object)")
        found.append((f"{path}:{number}", record))
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _read(record: dict[str, Any], place: str) -> Prediction:
    try:
        prediction = prediction_of(record)
        prediction.answer.encode()
        for name in NUMBERS:
            value = getattr(prediction, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"{name} is no number")
        return dataclasses.replace(prediction, missing=False, seconds=None, scores={}, outcome="")
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"{place}: damaged predictions ({error})") from error
