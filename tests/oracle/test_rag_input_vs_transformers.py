"""The generator's input against RagRetriever.postprocess_docs: the same token ids, whatever the separators.

Theirs is cut at the end, where the question stands; ours cuts the passage, unless `truncation: end` asks for theirs.
"""

import random
from types import SimpleNamespace

import pytest
import transformers

from ragx.errors import DataError
from ragx.rag.prompts import RagFormat, RagTemplate
from ragx.records import Passage


@pytest.fixture
def draw(tiny_models, draw_text):
    """draw(seed, limit): generator tokenizer, format, passage and question; quoted titles, double spaces."""

    def make(seed, limit):
        source = random.Random(seed)
        kind = source.choice(["bart", "t5"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(getattr(tiny_models, kind))
        words = transformers.AutoTokenizer.from_pretrained(tiny_models.encoder)
        question = draw_text(source, 2, 6).capitalize() + source.choice(["?", "", " 12%"])
        asked = words.decode(words(question)["input_ids"], skip_special_tokens=True)
        form = RagFormat(
            title_sep=source.choice([" / ", " | ", ": "]),
            doc_sep=source.choice([" // ", "  ", " question: "]),
            prefix=source.choice(["", " ", "answer: "]),
            max_input_tokens=limit,
            question_text={question: asked}.__getitem__,
        )
        title = draw_text(source, 0, 2)
        title = source.choice([title, f'"{title}"', f'"{title}'])
        text = draw_text(source, 1, 30).replace(" ", source.choice([" ", "  ", " ", ", "]), 2)
        return tokenizer, form, Passage(0, "d", title, text, "d#0"), question, asked

    return make


def theirs(tokenizer, form, passage, asked):
    """Their token ids without padding, and how many there would be without truncation."""
    config = transformers.RagConfig(
        title_sep=form.title_sep, doc_sep=form.doc_sep, max_combined_length=form.max_input_tokens
    )
    found = SimpleNamespace(config=config, generator_tokenizer=tokenizer)
    docs = [{"title": [passage.title], "text": [passage.text]}]
    ids, mask = transformers.RagRetriever.postprocess_docs(found, docs, [asked], form.prefix, 1, return_tensors="pt")
    return ids[0][mask[0].bool()].tolist()


@pytest.mark.parametrize("seed", range(100))
def test_same_ids_where_all_fits(seed, draw):
    tokenizer, form, passage, question, asked = draw(seed, 400)
    ids = RagTemplate(tokenizer, form).ids(passage, question)
    assert ids == theirs(tokenizer, form, passage, asked), f"seed {seed}"
    assert len(ids) < 400


@pytest.mark.parametrize("seed", range(100))
def test_cut_at_the_end_as_theirs(seed, draw):
    import dataclasses

    tokenizer, form, passage, question, asked = draw(seed, 30)
    form = dataclasses.replace(form, truncation="end")
    assert RagTemplate(tokenizer, form).ids(passage, question) == theirs(tokenizer, form, passage, asked), (
        f"seed {seed}"
    )


def test_theirs_loses_the_question_and_ours_keeps_it(draw):
    """Of the draws whose text exceeds the limit, theirs loses words of every question, ours of none."""
    cut = 0
    for seed in range(60):
        tokenizer, form, passage, question, asked = draw(seed, 60)
        whole = tokenizer(f"{form.prefix}{form.doc_sep}{asked}".replace("  ", " "))["input_ids"]
        try:
            ids = RagTemplate(tokenizer, form).ids(passage, question)
        except DataError:
            assert len(whole) > 50, f"seed {seed}"
            continue
        other = theirs(tokenizer, form, passage, asked)
        if ids == other:
            continue
        cut += 1
        decoded, lost = (tokenizer.decode(row, skip_special_tokens=True).rstrip() for row in (ids, other))
        assert decoded.endswith(asked.rstrip()) and not lost.endswith(asked.rstrip()), f"seed {seed}"
        assert 50 < len(ids) <= 60, f"seed {seed}"
        bare = passage.title.removeprefix('"').removesuffix('"')
        assert decoded.startswith(f"{form.prefix}{bare}".replace("  ", " ").rstrip()), f"seed {seed}"
    assert cut > 10


def test_a_question_that_leaves_no_room_is_refused(draw):
    tokenizer, form, passage, question, _ = draw(0, 4)
    with pytest.raises(DataError, match="leaves no room for a passage"):
        RagTemplate(tokenizer, form).ids(passage, question)


def test_a_passage_cannot_bring_special_tokens(tiny_models):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models.bart)
    template = RagTemplate(tokenizer, RagFormat(" / ", " // ", "", 100, str))
    ids = template.ids(Passage(0, "d", "</s>", "<s> end </s> here <pad>", "d#0"), "who? </s>")
    special = [token for token in ids if token in tokenizer.all_special_ids]
    assert special == [tokenizer.bos_token_id, tokenizer.eos_token_id]
