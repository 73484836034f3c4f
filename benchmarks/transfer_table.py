"""Rows of the transfer benchmark read back from their folder: paired differences, JSON lines and Markdown."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragx.evaluation.significance import Bootstrap, difference, sample
from ragx.evaluation.statistic import mean
from ragx.records import Interval

METRICS = ("f1", "em", "recall@1", "recall@5")
COMPARED = ("f1", "recall@5")
OURS, UNTRAINED = "ragx", "frozen hybrid"
"""The row that all others are compared with, and the one that all of ragx's own gains are counted from."""
AS_RETRIEVED = "ragx, not reordered"
NAMES = (
    "frozen BM25",
    "frozen dense",
    UNTRAINED,
    "frozen dense, one prompt",
    "frozen hybrid, one prompt",
    "corpus only",
    "corpus only, dev",
    "separate, top passage",
    "separate, one prompt",
    "separate, hybrid, one prompt",
    "separate, marginal",
    "separate, hybrid marginal",
    "transformers RAG recipe",
    "warm-up alone",
    "ragx, dense",
    "ragx, no warm-up",
    "ragx, no reading",
    "ragx, answers alone",
    "ragx, question side",
    AS_RETRIEVED,
    "ragx, 2 top_k hits",
    "ragx, 4 top_k hits",
    OURS,
)
NONE = "0"
"""Training questions of rows that saw none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One scored row: what was trained on how many questions, its facts, and each question's score by metric."""

    domain: str
    questions: str
    seed: int
    name: str
    facts: dict[str, Any]
    scores: dict[str, dict[str, float]]

    @property
    def stem(self) -> str:
        """The name of its files."""
        return stem_of(self.domain, self.questions, self.seed, self.name)


def stem_of(domain: str, questions: str, seed: int, name: str) -> str:
    """The name of a row's files without their endings."""
    words = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return f"{domain}.{questions}.{seed}.{words}"


def read_rows(folder: Path) -> list[Row]:
    """All finished rows of a folder, in the order of NAMES."""
    rows = []
    for path in sorted(folder.glob("*.row.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        lines = path.with_name(path.name.replace(".row.json", ".predictions.jsonl")).read_text(encoding="utf-8")
        scores = {record["id"]: record["scores"] for record in map(json.loads, lines.splitlines())}
        rows.append(Row(facts["set"], facts["questions"], facts["seed"], facts["row"], facts, scores))
    return sorted(rows, key=lambda row: (row.domain, _number(row.questions), NAMES.index(row.name), row.seed))


def line_of(row: Row, rows: Sequence[Row]) -> dict[str, object]:
    """A row's facts and its paired differences to ragx, by training questions, and to the untrained model."""
    here = [other for other in rows if other.domain == row.domain]
    ours = [other for other in here if other.name == OURS]
    if row.questions != NONE:
        ours = [other for other in ours if (other.questions, other.seed) == (row.questions, row.seed)]
    untrained = [other for other in here if other.name == UNTRAINED]
    line = dict(row.facts)
    if row.name != OURS:
        counts = dict.fromkeys(other.questions for other in ours)
        by_count = {count: [other for other in ours if other.questions == count] for count in counts}
        line["ragx_minus_row"] = {count: _as_json(differences([row], same)) for count, same in by_count.items()}
    if untrained and row.name != UNTRAINED:
        line["row_minus_untrained"] = _as_json(differences(untrained, [row]))
    return line


def differences(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Interval]:
    """after - before by metric, paired question by question; several seeds of a row are averaged a question.

    Raises:
        ValueError: they were scored on different questions.
    """
    then, now = averaged(before), averaged(after)
    if list(then) != list(now):
        raise ValueError(f"{before[0].stem} and {after[0].stem} hold other test questions")
    statistics = {
        name: difference(mean([then[q][name] for q in then]), mean([now[q][name] for q in now])) for name in METRICS
    }
    found = sample(statistics, len(then), Bootstrap(1000, 0.95, 13))
    return {name: value.interval(0.95) for name, value in found.items()}


def averaged(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Each question's scores, averaged over the seeds of one row."""
    return {
        question: {name: sum(row.scores[question][name] for row in rows) / len(rows) for name in METRICS}
        for question in sorted(rows[0].scores)
    }


def markdown(rows: Sequence[Row]) -> str:
    """One table a set and number of training questions, then what `--dry-run` said against what it took."""
    parts = []
    for domain in dict.fromkeys(row.domain for row in rows):
        here = [row for row in rows if row.domain == domain]
        untrained = [row for row in here if row.questions == NONE]
        counts = [count for count in dict.fromkeys(row.questions for row in here) if count != NONE]
        if any(row.name.startswith("corpus only") for row in untrained):
            parts.append(_table(f"{domain}, no training questions", untrained, UNTRAINED))
        for count in counts:
            frozen = [row for row in untrained if row.name.startswith("frozen")]
            trained = [row for row in here if row.questions == count]
            parts.append(_table(f"{domain}, {count} training questions", [*frozen, *trained], OURS))
    return "\n\n".join([*parts, *_estimates(rows)])


def _table(title: str, rows: Sequence[Row], reference: str) -> str:
    by_name = {name: [row for row in rows if row.name == name] for name in NAMES}
    sign = f"{OURS} - row" if reference == OURS else f"row - {reference}"
    heads = [
        "row",
        "n",
        "seeds",
        *METRICS,
        "nll a token",
        "training min",
        "GiB",
        *(f"{name}: {sign}" for name in COMPARED),
    ]
    lines = [f"### {title}", "", _cells(heads), _cells("---" for _ in heads)]
    for name, same in by_name.items():
        if not same:
            continue
        scores = averaged(same)
        values = [f"{sum(each[metric] for each in scores.values()) / len(scores):.3f}" for metric in METRICS]
        values += [_average(same, _nll, ".3f"), _average(same, _minutes, ".1f"), _average(same, _gib, ".1f")]
        cells = [name, str(len(scores)), str(len(same)), *values]
        lines.append(_cells([*cells, *_changes(same, by_name[reference], reference)]))
    return "\n".join(lines)


def _changes(rows: Sequence[Row], reference: Sequence[Row], name: str) -> list[str]:
    """The two differences of a row, bold where the interval excludes zero."""
    if not reference or rows[0].name == name:
        return ["" for _ in COMPARED]
    pair = (rows, reference) if name == OURS else (reference, rows)
    found = differences(*pair)
    return [_signed(found[metric]) for metric in COMPARED]


def _signed(interval: Interval) -> str:
    text = f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def _average(rows: Sequence[Row], figure: Callable[[Row], float | None], form: str) -> str:
    """A figure averaged over the seeds that have it."""
    found = [value for value in map(figure, rows) if value is not None]
    return format(sum(found) / len(found), form) if found else ""


def _nll(row: Row) -> float:
    return float(row.facts["metrics"]["nll"]["value"])


def _minutes(row: Row) -> float | None:
    """Null where nothing was trained, or not in one go."""
    seconds = row.facts["training_seconds"]
    return None if seconds is None else float(seconds) / 60


def _gib(row: Row) -> float:
    return float(row.facts["peak_mib"]) / 1024


def _estimates(rows: Sequence[Row]) -> list[str]:
    """`ragx finetune --dry-run` against the training itself."""
    heads = ["set", "training questions", "seed", "steps", "estimated s", "took s", "estimated / took"]
    lines = [_cells(heads), _cells("---" for _ in heads)]
    for row in rows:
        estimated, took = row.facts.get("estimated_seconds"), row.facts["training_seconds"]
        if estimated is not None and took is not None:
            steps = f"{row.facts['steps']} of {row.facts['planned_steps']}"
            cells = [row.domain, row.questions, str(row.seed), steps, f"{estimated:.0f}", f"{took:.0f}"]
            lines.append(_cells([*cells, f"{estimated / took:.2f}"]))
    return ["\n".join(["### ragx finetune --dry-run", "", *lines])] if len(lines) > 2 else []


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _as_json(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    """[difference, low, high] by metric."""
    return {name: [round(v, 4) for v in (found.value, found.low, found.high)] for name, found in intervals.items()}


def _number(questions: str) -> float:
    return float("inf") if questions == "all" else float(questions)
