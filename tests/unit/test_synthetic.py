"""Drafts of synthetic questions: which sentences, where they are cut, what is dropped and counted."""

from collections import Counter

import pytest

from ragx import build_index, load_config
from ragx.evaluation.matching import f1
from ragx.records import Passage, no_progress
from ragx.stages.models import open_model
from ragx.training import synthetic
from ragx.training.synthetic import SyntheticSettings, cuts, draw, sentences, write_questions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("and cools by Friday. The kiln at Orrin burns beech wood.", ["The kiln at Orrin burns beech wood."]),
        ("Mr. Hale and Dr. A. Veld built the wheel.", ["Mr. Hale and Dr. A. Veld built the wheel."]),
        ("The jar is 1.4 metres high! Its lid was lost in the river Sile.", ["The jar is 1.4 metres high!"]),
        ("The oldest wheel was built by\n\nA heading", []),
        ("Too short a sentence.", []),
        ("The list goes on " + "and on " * 40 + "to its end.", []),
        ("", []),
    ],
)
def test_sentences_that_can_stand_alone(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("sentence", "answers"),
    [
        ("The oldest wheel was built by Joris Hale in 1912.", ["Joris Hale", "1912"]),
        ("It was sold in the year 1951, for 40 crowns a piece.", ["1951", "40 crowns"]),
        ("Pots are sold on the square every Thursday.", ["Thursday"]),
        ("The boats were made by Gorse and Daughter.", ["Gorse and Daughter"]),
        ("The bakery next door sells the bread of others.", ["bread", "others"]),
        ("The door is kept shut and locked.", []),
        ("In Orrin the potters all come from Orrin.", []),
        ("Four words come first.", []),
    ],
)
def test_where_a_sentence_is_cut(sentence, answers):
    found = cuts(sentence)
    assert [answer for _, answer in found] == answers
    for beginning, answer in found:
        assert sentence.startswith(f"{beginning} {answer}") and len(beginning.split()) >= 4


def passages_of(counts):
    """Documents named by letters, each with so many sentences, one a passage."""
    names = [(document, n) for document, count in counts.items() for n in range(count)]
    texts = (f"The pot number {n} of {document} was made by somebody else." for document, n in names)
    return [Passage(i, d, d, text, f"{d}#{n}") for i, ((d, n), text) in enumerate(zip(names, texts, strict=True))]


def test_documents_take_turns_whatever_their_length():
    passages = passages_of({"a": 50, "b": 2, "c": 3, "d": 1})
    drawn = [draft.passage.document_id for draft in draw(passages, seed=3)]
    assert sorted(drawn[:4]) == ["a", "b", "c", "d"]
    assert Counter(drawn[:9]) == {"a": 3, "b": 2, "c": 3, "d": 1}
    assert len(drawn) == 56


def test_drawn_by_the_seed_alone():
    passages = passages_of({"a": 5, "b": 5})
    assert list(draw(passages, 1)) == list(draw(passages, 1))
    assert list(draw(passages, 1)) != list(draw(passages, 2))


@pytest.fixture
def opened(tiny_config):
    """opened("causal", key=value): a base model over whole documents, and its passages."""

    def make(kind="causal", **overrides):
        config = load_config(tiny_config(kind, passages={"size": 60}, **overrides))
        build_index(config)
        model = open_model(config, "base")
        return model, model.retriever.index.all_passages()

    return make


def settings(**changes):
    return SyntheticSettings(
        **{"count": 5, "kind": "statements", "f1": 0.0, "top_k": 2, "batch_size": 4, "max_input_tokens": 200, "seed": 1}
        | changes
    )


def reading(passages):
    """A perfect reader in the place of the model: continues a text as its passage does."""

    def write(writer, pairs):
        return [passage.text.partition(question.removesuffix(" ..."))[2].strip() for question, passage in pairs]

    return write


@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_statements_stand_in_their_passages(opened, monkeypatch, kind):
    model, passages = opened(kind)
    monkeypatch.setattr(synthetic, "_write", reading(passages))
    written = write_questions(model, passages, [], f1, settings(f1=1.0), no_progress)
    assert [example.id for example in written.examples] == [f"synthetic-{n}" for n in range(1, 6)]
    by_document = {passage.document_id: passage.text for passage in passages}
    for example in written.examples:
        beginning = example.question.removesuffix(" ...")
        assert f"{beginning} {example.answers[0]}" in by_document[example.doc_ids[0]]
    assert len({example.question for example in written.examples}) == 5


def test_every_draft_is_kept_or_counted(opened):
    model, passages = opened()
    written = write_questions(model, passages, [], f1, settings(count=1000), no_progress)
    assert written.drafts == len(list(draw(passages, 1)))
    assert len(written.examples) + sum(written.dropped.values()) == written.drafts
    assert written.dropped["whose passage was not found again"] < written.drafts
    assert written.summary().startswith(f"{len(written.examples)} of {written.drafts} drafts kept")


def test_a_random_generator_reproduces_nothing(opened):
    model, passages = opened()
    written = write_questions(model, passages, [], f1, settings(count=1000, f1=0.9), no_progress)
    free = write_questions(model, passages, [], f1, settings(count=1000), no_progress)
    assert len(free.examples) > 10 and written.examples == []
    assert written.dropped["whose answer was not reproduced"] == len(free.examples)


def test_what_dev_and_test_ask_is_not_asked(opened):
    model, passages = opened()
    free = write_questions(model, passages, [], f1, settings(), no_progress)
    leaked = [free.examples[0].question.upper(), f"{free.examples[1].question} so"]
    held = write_questions(model, passages, leaked, f1, settings(), no_progress)
    assert not {e.question for e in free.examples[:2]} & {e.question for e in held.examples}
    assert held.dropped["repeating another question"] == free.dropped["repeating another question"] + 2


def test_a_sentence_that_stands_twice_is_asked_once(opened, tiny_corpus):
    lines = tiny_corpus.corpus.read_text().splitlines()
    tiny_corpus.corpus.write_text("\n".join([*lines, lines[0].replace('"kiln"', '"kiln again"')]) + "\n")
    model, passages = opened()
    written = write_questions(model, passages, [], f1, settings(count=1000), no_progress)
    questions = [example.question for example in written.examples]
    assert len(questions) == len(set(questions)) and written.dropped["repeating another question"] >= 1


def test_a_question_that_leaves_no_room_is_dropped(opened):
    """In training it would be refused."""
    model, passages = opened()
    model.generator.template._limit = 30
    written = write_questions(model, passages, [], f1, settings(count=1000), no_progress)
    assert written.dropped["too long"] > 0
    for example in written.examples:
        model.generator.template.ids(passages[0], example.question)


def test_an_answer_beyond_the_budget_is_dropped(opened):
    model, passages = opened()
    model.generator.max_answer_tokens = 2
    written = write_questions(model, passages, [], f1, settings(count=1000), no_progress)
    assert written.dropped["too long"] > 0
    assert all(len(model.generator.answer_ids(e.answers[0])) <= 2 for e in written.examples)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Question: Who lights the kiln?\nAnswer: Marta Veld.", ("Who lights the kiln?", "Marta Veld")),
        ("question: Who lights it?\n\nANSWER:  marta veld\nMore", ("Who lights it?", "marta veld")),
        ("Question: Who lights the kiln?\nAnswer: Nobody", None),
        ("Question: Marta lights it.\nAnswer: Marta Veld", None),
        ("Question: Who?\nAnswer: the", None),
        ("Who lights the kiln? Marta Veld", None),
        ("", None),
    ],
)
def test_questions_written_by_the_generator(opened, monkeypatch, text, expected):
    """Only a question mark and an answer that stands in the passage count."""
    model, passages = opened("causal_chat")
    monkeypatch.setattr(synthetic, "_write", lambda writer, pairs: [text] * len(pairs))
    kiln = [passage for passage in passages if passage.document_id == "kiln"]
    chosen = settings(kind="questions", count=10)
    written = write_questions(model, kiln, [], f1, chosen, no_progress)
    assert [(e.question, e.answers[0]) for e in written.examples] == ([expected] if expected else [])


def test_the_prompt_of_questions_goes_through_the_chat_template(opened, monkeypatch):
    model, passages = opened("causal_chat")
    seen = []
    own = synthetic._write

    def watched(writer, pairs):
        seen.append(writer.tokenizer.decode(writer.template.ids(pairs[0][1], pairs[0][0])))
        return own(writer, pairs)

    monkeypatch.setattr(synthetic, "_write", watched)
    chosen = settings(kind="questions", max_input_tokens=400, count=2)
    written = write_questions(model, passages, [], f1, chosen, no_progress)
    assert (
        seen[0].startswith("<|user|>") and seen[0].endswith("<|assistant|>") and "Write one short question" in seen[0]
    )
    assert written.examples == [] and written.dropped["without a question and an answer of the passage"] > 0
