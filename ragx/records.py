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


NOTHING = Passage(-1, "", "", "", "")
"""What the reader sees when there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its accepted answers, the first being the one trained on, its gold documents, and the further
    fields of its line as text: what evaluation can be sliced by."""

    id: str
    question: str
    answers: tuple[str, ...]
    doc_ids: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage: score in nats before normalisation, prior p(z|x) and posterior p(z|x,y)."""

    passage: Passage
    score: float
    prior: float
    posterior: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with log p(y|x) in nats and the passages it was marginalised over; its tokens with the end, and after
    each of them the posterior of those passages."""

    question: str
    text: str
    log_probability: float
    hits: tuple[Hit, ...]
    tokens: tuple[str, ...]
    token_posterior: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure over questions with its bootstrap interval; fractions 0-1, or nats for `nll`.

    detectable: the smallest true change that a comparison of this many questions finds with probability 0.8.
    """

    value: float
    low: float
    high: float
    detectable: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A retrieved passage of a question: whether it holds a reference answer or is of a gold document. What the answer
    was marginalised over also has its text, prior p(z|x) and posterior p(z|x,y)."""

    id: str
    document_id: str
    supports: bool
    holds_answer: bool
    prior: float | None = None
    posterior: float | None = None
    title: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one question yielded: the answer with log p(y|x), -log p of the reference with passages and without any
    (nats, summed over its tokens), the passages retrieved, whether a reference stands anywhere in the corpus, its
    score by every metric, and how it ended: correct, or what went wrong. None: not known, as in answers of another
    system. `missing`: there was no prediction; scored as an empty answer. `seconds` that the answer took, where it was
    computed just now: kept in no file."""

    id: str
    question: str
    answers: tuple[str, ...]
    answer: str
    doc_ids: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    log_probability: float | None = None
    reference_nll: float | None = None
    reference_tokens: int | None = None
    closed_book_nll: float | None = None
    answer_in_corpus: bool | None = None
    hits: tuple[Evidence, ...] | None = None
    missing: bool = False
    seconds: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: the rule as configured, the figure seen, whether it held, and the verdict with its reason: passed,
    FAILED, inconclusive (passed, but the set is too small to be sure), or not judged."""

    metric: str
    rule: str
    value: float
    passed: bool
    verdict: str = "passed"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """The questions that share a value of a field: their number and metric values, and the baseline's."""

    field: str
    value: str
    n: int
    metrics: dict[str, float]
    before: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric's value of each seed, and their standard deviation."""

    values: tuple[float, ...]
    deviation: float


@dataclass(frozen=True, slots=True)
class Seeds:
    """Several seeds of one training: their predictions files, the one in the middle, whose questions are shown, and how
    far they lie apart by metric."""

    runs: tuple[str, ...]
    shown: str
    spread: dict[str, Spread]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one evaluation: metrics with intervals, their differences to a baseline, gates, what went wrong
    where, and what exactly was scored. `limit`: a smoke run of so many questions. `latency`: seconds a question at
    percentiles, None where nothing was computed. `before`: the baseline's predictions, in the same order. `seeds`: what
    the metrics are means over; questions, outcomes and plots of them are the middle one's."""

    split: str
    model: str
    n: int
    metrics: dict[str, Interval]
    gates: tuple[GateResult, ...]
    signature: dict[str, str]
    seconds: float
    predictions: tuple[Prediction, ...] = field(repr=False)
    before: tuple[Prediction, ...] | None = field(default=None, repr=False)
    differences: dict[str, Interval] | None = None
    baseline: dict[str, str] | None = None
    limit: int | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    ceiling: float | None = None
    retrieval_hurts: float | None = None
    slices: tuple[Slice, ...] = ()
    latency: dict[str, float] | None = None
    seeds: Seeds | None = None
