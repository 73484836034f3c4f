"""Question files -> examples: .jsonl (ragx's own, KILT), .json (SQuAD or a list), .csv, .tsv, .source with .target."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ragx.artifacts import is_text
from ragx.corpus.streams import COMPRESSED, Limits, Problem, open_utf8, read_lines
from ragx.corpus.tables import Record, read_json, read_json_lines, read_table
from ragx.errors import DataError
from ragx.records import Example

log = logging.getLogger(__name__)

OWN = ("id", "question", "answer", "answers", "doc_ids")
"""The fields ragx reads; others are kept as text, for slices."""
LIMITS = Limits(document_mb=500)
"""SQuAD's file is one JSON object."""


def read_examples(path: str | Path, on_error: str = "fail") -> list[Example]:
    """The questions of a file: `question`, `answers` or `answer`, optional `id` and `doc_ids`.

    Raises:
        DataError: with file, line and reason, or because no question was found; `on_error="skip"` logs and counts
            bad lines instead.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such question file; data: in the config names train, dev and test")
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise DataError(f"{path}: questions are read from {', '.join(_READERS)} files, each also .gz and .zst")
    examples: dict[str, Example] = {}
    skipped = 0
    with open_utf8(path, LIMITS) as file:
        for found in reader(file, path):
            number = len(examples) + skipped + 1
            outcome = found if isinstance(found, Problem) else _example(*found, default_id=str(number))
            if isinstance(outcome, Example) and outcome.id in examples:
                outcome = Problem(found[0] if isinstance(found, tuple) else "", f"id {outcome.id!r} stands here twice")
            if isinstance(outcome, Example):
                examples[outcome.id] = outcome
            elif on_error == "fail":
                raise DataError(f"{outcome}; mend it, or say data.on_error: skip")
            else:
                skipped += 1
                log.warning("skipped %s", outcome)
    if not examples:
        raise DataError(f"{path}: no questions in this file")
    return list(examples.values())


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def _json_lines(file: io.BufferedIOBase, path: Path) -> Iterator[Record | Problem]:
    for found in read_json_lines(file, path, LIMITS):
        yield found if isinstance(found, Problem) else (found[0], _from_kilt(found[1]))


def _json(file: io.BufferedIOBase, path: Path) -> Iterator[Record | Problem]:
    for found in read_json(file, path, LIMITS):
        if isinstance(found, Problem) or not isinstance(found[1].get("data"), list):
            yield found
        else:
            yield from _squad(path, found[1]["data"])


def _table(file: io.BufferedIOBase, path: Path) -> Iterator[Record | Problem]:
    """Rows, whose `answers` and `doc_ids` may be JSON lists; empty cells count as none."""
    for found in read_table(file, path, LIMITS):
        if isinstance(found, Problem):
            yield found
        else:
            place, row = found
            yield place, {name: _cell(name, value) for name, value in row.items() if value}


def _source(file: io.BufferedIOBase, path: Path) -> Iterator[Record | Problem]:
    """The pairs of the old RAG scripts: a question a line, its answer on the same line of the .target file."""
    beside = path.with_name(path.name.replace(".source", ".target"))
    if not beside.is_file():
        raise DataError(f"{path}: the answers must stand beside it, in {beside.name}")
    with open_utf8(beside, LIMITS) as other:
        answers = read_lines(other, LIMITS)
        for number, question in read_lines(file, LIMITS):
            _, answer = next(answers, (0, None))
            place = f"{path}:{number}"
            if answer is None:
                raise DataError(f"{place}: {beside.name} has {number - 1} lines, {path.name} more; one answer a line")
            problem = next((text for text in (question, answer) if isinstance(text, Problem)), None)
            yield Problem(place, problem.reason) if problem else (place, {"question": question, "answer": answer})
        if next(answers, None) is not None:
            raise DataError(f"{beside}: has more lines than {path.name}; one answer a line")


_READERS: dict[str, Callable[[io.BufferedIOBase, Path], Iterator[Record | Problem]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".source": _source,
}


def _cell(name: str, value: Any) -> Any:
    if name in ("answers", "doc_ids") and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return [value] if name == "doc_ids" else value


def _from_kilt(record: dict[str, Any]) -> dict[str, Any]:
    """A record of KILT (Petroni et al. 2021) under ragx's names; any other as it is."""
    outputs = record.get("output")
    if "question" in record or not isinstance(outputs, list) or not all(isinstance(o, dict) for o in outputs):
        return record
    answers = [output["answer"] for output in outputs if output.get("answer")]
    provenance = [source for output in outputs for source in output.get("provenance") or []]
    pages = dict.fromkeys(str(source.get("wikipedia_id")) for source in provenance if isinstance(source, dict))
    found = {"question": record.get("input"), "answers": answers, "doc_ids": [page for page in pages if page != "None"]}
    return found | ({"id": record["id"]} if "id" in record else {})


def _squad(path: Path, articles: list[Any]) -> Iterator[Record | Problem]:
    """The questions of SQuAD's nested file, each with its distinct answers."""
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_items(article, "paragraphs")):
            for q, entry in enumerate(_items(paragraph, "qas")):
                place = f"{path}:data[{a}].paragraphs[{p}].qas[{q}]"
                if isinstance(entry, dict):
                    texts = [answer.get("text") for answer in _items(entry, "answers") if isinstance(answer, dict)]
                    yield place, {**entry, "answers": list(dict.fromkeys(texts))}
                else:
                    yield Problem(place, "expected an object")


def _items(value: Any, name: str) -> list[Any]:
    items = value.get(name) if isinstance(value, dict) else None
    return items if isinstance(items, list) else []


def _example(place: str, record: dict[str, Any], default_id: str) -> Example | Problem:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        return Problem(place, "no 'question'")
    answers = record.get("answers", record.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers:
        return Problem(place, "no 'answers'")
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return Problem(place, "'answers' must hold text that is not empty")
    doc_ids = record.get("doc_ids") or []
    if not isinstance(doc_ids, list) or not all(isinstance(item, str | int) for item in doc_ids):
        return Problem(place, "'doc_ids' must be a list of document ids")
    identity = str(record.get("id", default_id))
    if not all(map(is_text, [identity, question, *answers, *map(str, doc_ids)])):
        return Problem(place, "holds half of a surrogate pair, which is no text")
    fields = {name: str(value) for name, value in record.items() if name not in OWN and isinstance(value, str | int)}
    return Example(identity, question.strip(), tuple(a.strip() for a in answers), tuple(map(str, doc_ids)), fields)
