"""What the data promise before anything is built: repeated questions, and what of questions and answers stands in the
corpus, seen one document and one passage at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ragx.corpus.answers import normalise_answer
from ragx.corpus.search import Finder
from ragx.records import Document, Example, Passage

Place = tuple[str, int]
"""A question: its split and its number there."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A question that something is to be said of, and what."""

    id: str
    question: str
    where: str


@dataclass(frozen=True, slots=True)
class Finding:
    """How many questions of a split something is to be said of, and the first of them."""

    count: int
    first: Instance | None


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split.

    duplicates: questions that stand in it before. leaked: those that stand in an earlier split. in_corpus: those that
    stand in a document word for word. All texts are normalised as SQuAD's. answer_in_corpus: the share of questions of
    which some reference stands in some passage, the ceiling of EM; answer_in_gold: of those with gold
    documents, in a passage of one of these (None without any).
    """

    questions: int
    duplicates: Finding
    leaked: Finding
    in_corpus: Finding
    answer_in_corpus: float
    answer_in_gold: float | None
    unknown_gold_documents: tuple[str, ...]


class Survey:
    """Reads the corpus past the questions of all splits, the earliest first; memory grows with the questions only."""

    def __init__(self, splits: Mapping[str, Sequence[Example]]) -> None:
        self._splits = splits
        places = {(name, n): example for name, examples in splits.items() for n, example in enumerate(examples)}
        self._questions = Finder((place, example.question) for place, example in places.items())
        self._answers = Finder((place, answer) for place, example in places.items() for answer in example.answers)
        self._gold = {place: frozenset(example.doc_ids) for place, example in places.items()}
        self._unseen = {document for gold in self._gold.values() for document in gold}
        self._verbatim: dict[Place, str] = {}
        self._answered: set[Place] = set()
        self._answered_in_gold: set[Place] = set()

    def add_document(self, document: Document) -> None:
        """Look for gold documents, and for questions that stand in this one."""
        self._unseen.discard(document.id)
        for place in self._questions.within(f"{document.title}\n{document.text}"):
            self._verbatim.setdefault(place, document.id)

    def add_passage(self, passage: Passage) -> None:
        """Look for answers."""
        found = self._answers.within(passage.text)
        self._answered |= found
        self._answered_in_gold.update(place for place in found if passage.document_id in self._gold[place])

    def facts(self) -> dict[str, SplitFacts]:
        """What was found in each split."""
        found: dict[str, SplitFacts] = {}
        elsewhere: dict[str, str] = {}
        for name, examples in self._splits.items():
            here: dict[str, str] = {}
            earlier = [here.setdefault(_same(e.question), e.id) for e in examples]
            places = [(name, number) for number in range(len(examples))]
            gold = [place for place in places if self._gold[place]]
            found[name] = SplitFacts(
                len(examples),
                finding(examples, [i if i != e.id else None for i, e in zip(earlier, examples, strict=True)]),
                finding(examples, [elsewhere.get(_same(e.question)) for e in examples]),
                finding(examples, [self._verbatim.get(place) for place in places]),
                _share(place in self._answered for place in places),
                _share(place in self._answered_in_gold for place in gold) if gold else None,
                tuple(sorted({d for place in gold for d in self._gold[place]} & self._unseen)),
            )
            elsewhere = {**{question: f"{name} {i}" for question, i in here.items()}, **elsewhere}
        return found


def finding(examples: Sequence[Example], where: Iterable[str | None]) -> Finding:
    """The examples for which there is something to say."""
    said = [(e, text) for e, text in zip(examples, where, strict=True) if text is not None]
    return Finding(len(said), Instance(said[0][0].id, said[0][0].question, said[0][1]) if said else None)


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def _same(question: str) -> str:
    """What two questions share that are the same."""
    return normalise_answer(question) or question
