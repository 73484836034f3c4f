"""Question files -> examples."""

import logging
from pathlib import Path
from typing import Any

from ragx.corpus.readers import open_text, read_json_lines
from ragx.errors import DataError
from ragx.records import Example

log = logging.getLogger(__name__)

OWN = ("id", "question", "answer", "answers", "doc_ids")
"""The fields ragx reads; others are kept as text, for slices."""


def read_examples(path: str | Path, on_error: str = "fail") -> list[Example]:
    """The questions of a .jsonl file: `question`, `answers` or `answer`, optional `id` and `doc_ids`.

    Raises:
        DataError: with file, line and reason, or because no question was found; `on_error="skip"` logs and counts
            bad lines instead.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such question file")
    if path.name.removesuffix(".gz").rpartition(".")[2].lower() != "jsonl":
        raise DataError(f"{path}: questions are read from .jsonl files")
    examples: dict[str, Example] = {}
    skipped = 0
    with open_text(path) as file:
        for place, value in read_json_lines(file, path):
            outcome = value if isinstance(value, str) else _example(value, str(len(examples) + skipped + 1))
            if isinstance(outcome, Example) and outcome.id in examples:
                outcome = f"id {outcome.id!r} stands here twice"
            if isinstance(outcome, Example):
                examples[outcome.id] = outcome
            elif on_error == "fail":
                raise DataError(f"{place}: {outcome}; mend it, or say data.on_error: skip")
            else:
                skipped += 1
                log.warning("skipped %s: %s", place, outcome)
    if not examples:
        raise DataError(f"{path}: no questions in this file")
    return list(examples.values())


def _example(record: dict[str, Any], default_id: str) -> Example | str:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        return "no 'question'"
    answers = record.get("answers", record.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers:
        return "no 'answers'"
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return "'answers' must hold text that is not empty"
    doc_ids = record.get("doc_ids") or []
    if not isinstance(doc_ids, list) or not all(isinstance(item, str | int) for item in doc_ids):
        return "'doc_ids' must be a list of document ids"
    identity = str(record.get("id", default_id))
    try:
        "".join([identity, question, *answers, *map(str, doc_ids)]).encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no text"
    fields = {name: str(value) for name, value in record.items() if name not in OWN and isinstance(value, str | int)}
    return Example(identity, question.strip(), tuple(a.strip() for a in answers), tuple(map(str, doc_ids)), fields)
