"""The records that pass between the stages: frozen, without behaviour."""

from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str, int, int | None], None]
"""Called as progress(what, done, total): `total` is None when it is not known yet."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the corpus. `source` is the file, with the line where there is one; `sections` says where in
    `text` each section starts, with its headings from the outermost on."""

    id: str
    title: str
    text: str
    source: str
    sections: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: the unit retrieved. `number` counts passages of the whole corpus from 0."""

    number: int
    document_id: str
    title: str
    text: str
    id: str


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its accepted answers, the first being the one trained on, and its gold documents."""

    id: str
    question: str
    answers: tuple[str, ...]
    doc_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage: score in nats before normalisation, prior p(z|x) and posterior p(z|x,y)."""

    passage: Passage
    score: float
    prior: float
    posterior: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with log p(y|x) in nats, the number of its tokens and the passages it was marginalised over."""

    question: str
    text: str
    log_probability: float
    tokens: int
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions with its bootstrap interval; fractions 0-1, or nats for `nll`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one question yielded: the answer with log p(y|x) in nats, the ids of the passages retrieved, its score by
    every metric, and the tokens of the reference answer, by which `nll` is weighed."""

    id: str
    question: str
    answers: tuple[str, ...]
    answer: str
    log_probability: float
    reference_tokens: int
    retrieved: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: the rule as configured, the figure seen, and whether it held."""

    metric: str
    rule: str
    value: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one evaluation: metric means with intervals, gates, and what exactly was scored."""

    split: str
    model: str
    n: int
    metrics: dict[str, Interval]
    gates: tuple[GateResult, ...]
    signature: dict[str, str]
    seconds: float
    predictions: tuple[Prediction, ...] = field(repr=False)
