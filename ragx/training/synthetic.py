"""Questions from the corpus itself, for a domain that has none or few: draft, round trip, keep.

Drafts come evenly from all documents, one a sentence. A statement is a sentence cut before a number, a name or a noun:
its beginning is the question, what follows is the answer (statement reconstruction, Siriwardhana et al. 2023). A
question proper is written by an instruct generator about the sentence in its passage. A draft is kept when the
retriever finds its passage again and the generator, given the passage, reproduces the answer.
"""

import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal

import regex
import torch

from ragx.corpus.answers import holds_answer, normalise_answer
from ragx.errors import DataError
from ragx.rag.beams import beam_search
from ragx.rag.generator import Generator, Pair
from ragx.rag.model import RagModel
from ragx.rag.prompts import PromptSettings, make_template
from ragx.records import Example, Passage, Progress

log = logging.getLogger(__name__)

Agreement = Callable[[str, Sequence[str]], float]
"""How far a text agrees with the best of some others, 0-1: F1 over words."""

SAME = 0.8
"""F1 over words from which on two questions are the same one."""
SENTENCE_WORDS = range(6, 41)
BEGINNING_WORDS = 4
"""Words that a statement has before its answer, at least."""
ANSWER_WORDS = 5
QUESTION_TOKENS = 64
"""Tokens at most of a question written together with its answer."""
ASK_TOKENS = 128
"""Tokens by which the prompt below exceeds an ordinary one."""
ASK = """{title}
{passage}

Write one short question that this sentence of the text answers: "{question}"
The question must be clear to somebody who has not read the text. Then write its answer in a few words of the text.
Write two lines, the first beginning with "Question:", the second with "Answer:"."""
CONTINUE = "{title}\n{passage}\n\n{question}"

_END = regex.compile(r"(?<=[.!?])(?<!\b\p{Lu}\.|\b\p{Lu}\p{L}{1,2}\.|\b\p{Ll}\.)\s+(?=[\p{Lu}\d\"“'])|(?<!\s)\s*\n\s*")
_SENTENCE = regex.compile(r"[\p{Lu}\d\"“].*[.!?]", regex.S)
_REFERS_BACK = regex.compile(r"(?:He|She|It|They|This|These|That|Those|His|Her|Its|Their|There)\b")
_BEFORE_VERBS = frozenset("and or to not is was are be has had may can who you he she it".split())  # noqa: SIM905
_JOINING = frozenset("and of de di la le et y und von van der".split())  # noqa: SIM905
_WORD = regex.compile(r"\S+")
_MARKED = regex.compile(r"[$£€+-]?\d|\p{Lu}")
_LINKING = regex.compile(r"\p{Ll}{1,3}")
_CLAUSE_END = regex.compile(r"(?<![,;:.!?)])[,;:.!?)]+$")
_WRITTEN = regex.compile(r"Question:\s*(?P<question>[^\n]+?)\s*\n+\s*Answer:\s*(?P<answer>[^\n]+)", regex.I)


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """How many questions of which kind; the F1 with which an answer must be reproduced (0: need not be), and among how
    many hits its passage must be; drafts judged at once, the limit of a prompt in tokens, and the seed."""

    count: int
    kind: Literal["questions", "statements"]
    f1: float
    top_k: int
    batch_size: int
    max_input_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A sentence of a passage; the question made from it, and its answer."""

    passage: Passage
    sentence: str
    question: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """The questions kept, and how many drafts were dropped for which reason."""

    examples: list[Example]
    drafts: int
    dropped: dict[str, int]

    def summary(self) -> str:
        """The counts in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{len(self.examples)} of {self.drafts} drafts kept" + (f" (dropped: {reasons})" if reasons else "")


@torch.no_grad()
def write_questions(
    model: RagModel,
    passages: Sequence[Passage],
    taken: Sequence[str],
    agreement: Agreement,
    settings: SyntheticSettings,
    progress: Progress,
) -> Written:
    """Up to `count` questions on `passages`; none that repeats one of the questions `taken`, or another."""
    drafts = draw(passages, settings.seed)
    repeats = _Repeats(taken, agreement)
    dropped: Counter[str] = Counter()
    kept: list[Draft] = []
    seen = 0
    while len(kept) < settings.count and (batch := list(islice(drafts, settings.batch_size))):
        seen += len(batch)
        made = [draft for draft in _made(model.generator, batch, settings) if draft.question]
        short = [draft for draft in made if _fits(model.generator, draft)]
        new = [draft for draft in short if repeats.add(draft.question)]
        found = _found(model, new, settings.top_k)
        good = _reproduced(model.generator, found, agreement, settings)
        dropped["without a question and an answer of the passage"] += len(batch) - len(made)
        dropped["too long"] += len(made) - len(short)
        dropped["repeating another question"] += len(short) - len(new)
        dropped["whose passage was not found again"] += len(new) - len(found)
        dropped["whose answer was not reproduced"] += len(found) - len(good)
        kept += good
        progress("synthetic questions", min(len(kept), settings.count), settings.count)
    dropped["beyond the number wanted"] += max(0, len(kept) - settings.count)
    return Written([_example(number, draft) for number, draft in enumerate(kept[: settings.count], 1)], seen, dropped)


def draw(passages: Sequence[Passage], seed: int) -> Iterator[Draft]:
    """Every sentence that can stand alone, one of each document in turn; documents and sentences in random order."""
    by_document: dict[str, list[Passage]] = {}
    for passage in passages:
        by_document.setdefault(passage.document_id, []).append(passage)
    order = random.Random(seed)
    documents = [_sentences_of(own, order) for own in by_document.values()]
    order.shuffle(documents)
    return (draft for turn in zip_longest(*documents) for draft in turn if draft is not None)


def _sentences_of(passages: Sequence[Passage], order: random.Random) -> Iterator[Draft]:
    found = [Draft(passage, sentence) for passage in passages for sentence in sentences(passage.text)]
    order.shuffle(found)
    yield from found


def sentences(text: str) -> list[str]:
    """The whole sentences of a passage that can stand alone: no fragments, none that begins with a pronoun."""
    return [
        piece
        for piece in map(str.strip, _END.split(text))
        if _SENTENCE.fullmatch(piece) and not _REFERS_BACK.match(piece) and len(piece.split()) in SENTENCE_WORDS
    ]


def cuts(sentence: str) -> list[tuple[str, str]]:
    """The places where a sentence can be cut: (beginning, answer).

    An answer begins with a word that holds a digit or a capital; where there is none, with one that follows a linking
    word of up to three letters. It ends at punctuation or before the next linking word that joins no two
    names.
    """
    words = list(_WORD.finditer(sentence))
    texts = [word[0] for word in words]
    places = range(BEGINNING_WORDS, len(words))
    marked = [
        place for place in places if _MARKED.match(texts[place]) and not _inside_name(texts[:place], texts[place])
    ]
    linked = [place for place in places if _follows_link(texts[place - 1], texts[place])]
    found = []
    for place in marked or linked:
        end = place + 1
        while end < min(len(words), place + ANSWER_WORDS) and not _ends_phrase(texts[end - 1 : end + 2]):
            end += 1
        answer = sentence[words[place].start() : words[end - 1].end()]
        found.append((sentence[: words[place].start()].rstrip(), _CLAUSE_END.sub("", answer)))
    return [cut for cut in found if normalise_answer(cut[1]) and not holds_answer(cut[0], [cut[1]])]


def _follows_link(before: str, word: str) -> bool:
    return bool(_LINKING.fullmatch(before)) and before not in _BEFORE_VERBS and len(word) > 3


def _inside_name(before: Sequence[str], word: str) -> bool:
    """Whether `word` goes on with a name or number that these words end with: "Tarn Hill", "Gorse and Daughter"."""
    last = before[-2] if before[-1] in _JOINING and word[0].isupper() else before[-1]
    return bool(_MARKED.match(last)) and not _CLAUSE_END.search(last)


def _ends_phrase(words: Sequence[str]) -> bool:
    """Whether a phrase ends with the first of these words."""
    joins = words[1] in _JOINING and len(words) > 2 and words[0][0].isupper() and words[2][0].isupper()
    return bool(_CLAUSE_END.search(words[0])) or (bool(_LINKING.fullmatch(words[1])) and not joins)


class _Repeats:
    """The questions there are, by which a new one is known to be new."""

    def __init__(self, taken: Sequence[str], agreement: Agreement) -> None:
        self._taken = list(taken)
        self._seen: set[str] = set()
        self._agreement = agreement

    def add(self, question: str) -> bool:
        """Whether a question is new; it is among them from now on."""
        known = normalise_answer(question)
        if known in self._seen or (self._taken and self._agreement(question, self._taken) >= SAME):
            return False
        self._seen.add(known)
        return True


def _made(generator: Generator, batch: Sequence[Draft], settings: SyntheticSettings) -> list[Draft]:
    """The drafts with question and answer, both empty where none could be made."""
    match settings.kind:
        case "statements":
            return [_statement(draft, settings.seed) for draft in batch]
        case "questions":
            pairs = [(draft.sentence, draft.passage) for draft in batch]
            writer = _writer(generator, ASK, settings.max_input_tokens + ASK_TOKENS, QUESTION_TOKENS, chat=True)
            texts = _write(writer, pairs)
            return [_question(draft, text) for draft, text in zip(batch, texts, strict=True)]


def _statement(draft: Draft, seed: int) -> Draft:
    found = cuts(draft.sentence)
    if not found:
        return draft
    beginning, answer = random.Random(f"{seed} {draft.sentence}").choice(found)
    return Draft(draft.passage, draft.sentence, f"{beginning} ...", answer)


def _question(draft: Draft, text: str) -> Draft:
    written = _WRITTEN.search(text)
    if written is None:
        return draft
    answer = written["answer"].strip(" .\"'")
    if not holds_answer(draft.passage.text, [answer]) or not written["question"].endswith("?"):
        return draft
    return Draft(draft.passage, draft.sentence, written["question"], answer)


def _fits(generator: Generator, draft: Draft) -> bool:
    """Whether the answer fits the budget, and the question leaves room for a passage."""
    try:
        generator.template.ids(draft.passage, draft.question)
    except DataError:
        return False
    return len(generator.answer_ids(draft.answer)) <= generator.max_answer_tokens


def _found(model: RagModel, drafts: Sequence[Draft], k: int) -> list[Draft]:
    """The drafts whose passage is among the first k hits of their question."""
    if not drafts:
        return []
    hits = model.retriever([draft.question for draft in drafts], k).passages
    return [draft for draft, row in zip(drafts, hits, strict=True) if draft.passage in row]


def _reproduced(
    generator: Generator, drafts: Sequence[Draft], agreement: Agreement, settings: SyntheticSettings
) -> list[Draft]:
    """The drafts whose answer the generator writes when it is given the passage.

    A statement is continued, by a causal generator as plain text; the first words count, as many as the answer has.
    """
    if settings.f1 == 0 or not drafts:
        return list(drafts)
    reader, pairs = generator, [(draft.question, draft.passage) for draft in drafts]
    if settings.kind == "statements" and generator.chats:
        tokens = 2 + max(len(generator.answer_ids(draft.answer)) for draft in drafts)
        reader = _writer(generator, CONTINUE, settings.max_input_tokens, tokens, chat=False)
        pairs = [(draft.question.removesuffix(" ..."), draft.passage) for draft in drafts]
    texts = _write(reader, pairs)
    if settings.kind == "statements":
        lengths = [len(draft.answer.split()) for draft in drafts]
        texts = [" ".join(text.split()[:length]) for text, length in zip(texts, lengths, strict=True)]
    scored = zip(drafts, texts, strict=True)
    return [draft for draft, text in scored if agreement(text, [draft.answer]) >= settings.f1]


def _writer(generator: Generator, prompt: str, max_input_tokens: int, tokens: int, *, chat: bool) -> Generator:
    """The same model with another prompt."""
    writer = copy.copy(generator)
    writer.template = make_template(generator.tokenizer, PromptSettings(prompt, None, max_input_tokens), chat=chat)
    writer.max_answer_tokens = tokens
    return writer


def _write(writer: Generator, pairs: Sequence[Pair]) -> list[str]:
    """The greedy answer to each pair."""
    state = writer.start(pairs)
    alone = torch.zeros((len(pairs), 1), device=writer.device)
    return [writer.text(beam[0].ids) for beam in beam_search(writer, state, alone, 1)]


def _example(number: int, draft: Draft) -> Example:
    return Example(f"synthetic-{number}", draft.question, (draft.answer,), (draft.passage.document_id,))
