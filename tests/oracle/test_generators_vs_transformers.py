"""Generators against transformers' own forward and generate, and decoding against exhaustive search.

Log-probabilities are compared one prompt at a time without padding (theirs) with batches (ours): float32 attention over
padded keys and sums in another order move them by some 1e-6 of their 1 to 20 nats: 1e-5 relative, 2e-5 absolute.
"""

import itertools
import math
import random

import pytest
import torch
import transformers

from ragx.rag.beams import beam_search
from ragx.rag.causal import CausalGenerator
from ragx.rag.decoding import decode
from ragx.rag.marginal import log_likelihood, log_prior
from ragx.rag.prompts import PromptSettings
from ragx.rag.seq2seq import Seq2SeqGenerator
from ragx.records import Passage

KINDS = ["causal", "causal_chat", "t5", "bart"]
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture
def problem(draw_text, draw_passages):
    """problem(seed, count): (question, passage) pairs and answers, all of unequal length."""

    def draw(seed, count):
        source = random.Random(seed)
        passages = draw_passages(source, count, 1)
        return [(draw_text(source, 1, 6), row[0]) for row in passages], [draw_text(source, 1, 5) for _ in range(count)]

    return draw


def their_log_probs(generator, pair, answer):
    """log p of an answer's tokens by the model's own logits, alone and unpadded."""
    question, passage = pair
    prompt = generator.template.ids(passage, question)
    if isinstance(generator, Seq2SeqGenerator):
        given = [*generator.decoder_prefix, *answer[:-1]]
        logits = generator.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([given])).logits
        logits = logits[0, len(generator.decoder_prefix) - 1 :]
    else:
        logits = generator.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, dim=-1)[range(len(answer)), answer]


def assert_rows(found, mask, expected):
    assert mask.sum(-1).tolist() == [len(row) for row in expected]
    for row, flags, wanted in zip(found, mask, expected, strict=True):
        torch.testing.assert_close(row[flags], wanted, **TOLERANCE)
        assert not row[~flags].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_token_log_probs(kind, seed, open_generator, problem):
    generator = open_generator(kind)
    assert isinstance(generator, CausalGenerator if kind.startswith("causal") else Seq2SeqGenerator)
    pairs, texts = problem(seed, 7)
    answers = [generator.answer_ids(text) for text in texts]
    assert len({len(generator.template.ids(p, q)) for q, p in pairs}) > 3 and len(set(map(len, answers))) > 1
    with torch.no_grad():
        expected = [their_log_probs(generator, *row) for row in zip(pairs, answers, strict=True)]
        assert_rows(*generator.token_log_probs(pairs, answers), expected)
        for pair, answer, wanted in zip(pairs, answers, expected, strict=True):
            assert_rows(*generator.token_log_probs([pair], [answer]), [wanted])
    with_graph, mask = generator.token_log_probs(pairs, answers)
    assert with_graph.requires_grad
    assert_rows(with_graph.detach(), mask, expected)


def their_question_log_prob(generator, pair):
    """log p of a question after its passage by the model's own logits, alone and unpadded."""
    question, passage = pair
    if isinstance(generator, Seq2SeqGenerator):
        asked = generator.tokenizer(question, add_special_tokens=False)["input_ids"]
        given = [*generator.decoder_prefix, *asked[:-1]]
        prompt = torch.tensor([generator.template.ids(passage, "")])
        logits = generator.model(input_ids=prompt, decoder_input_ids=torch.tensor([given])).logits
        logits = logits[0, len(generator.decoder_prefix) - 1 :]
    else:
        before, asked = generator.template.before_question(passage, question)
        whole = generator.template.ids(passage, question)
        assert whole[: len(before) + len(asked)] == [*before, *asked]
        assert question.replace(" ", "") in generator.tokenizer.decode(asked).replace(" ", "")
        logits = generator.model(input_ids=torch.tensor([whole])).logits[0, len(before) - 1 :]
    return torch.log_softmax(logits, dim=-1)[range(len(asked)), asked].sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_question_log_probs(kind, seed, open_generator, problem):
    generator = open_generator(kind)
    assert generator.writes_questions
    pairs, _ = problem(seed, 7)
    with torch.no_grad():
        expected = torch.stack([their_question_log_prob(generator, pair) for pair in pairs])
        torch.testing.assert_close(generator.question_log_probs(pairs), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(generator.start(pairs, weigh=True).question, expected, rtol=1e-5, atol=1e-4)
        assert generator.start(pairs).question is None
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "causal" in kind])
@pytest.mark.parametrize("seed", range(3))
def test_reading_gives_answer_and_question_from_one_pass(kind, seed, open_generator, problem):
    generator = open_generator(kind)
    assert generator.weighs_as_it_reads
    pairs, texts = problem(seed, 7)
    answers = [generator.answer_ids(text) for text in texts]
    weights = [weight for name, weight in generator.model.named_parameters() if "proj" in name]
    log_probs, mask, question = generator.reading_log_probs(pairs, answers)
    wanted = generator.token_log_probs(pairs, answers)[0]
    asked = torch.stack([their_question_log_prob(generator, pair) for pair in pairs])
    torch.testing.assert_close(question, asked, rtol=1e-5, atol=1e-4)
    assert_rows(log_probs, mask, [their_log_probs(generator, *row) for row in zip(pairs, answers, strict=True)])
    found = torch.autograd.grad(log_probs.sum() + 0.3 * question.sum(), weights)
    expected = torch.autograd.grad(wanted.sum() + 0.3 * asked.sum(), weights)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_start_and_score(kind, seed, open_generator, problem):
    """Scores from a cache equal those of the whole sequence; a state serves several answers, and any of its rows."""
    generator = open_generator(kind)
    pairs, texts = problem(seed, 7)
    answers = [generator.answer_ids(text) for text in texts]
    with torch.no_grad():
        state = generator.start(pairs)
        for turn in (answers, answers[::-1]):
            expected = [their_log_probs(generator, *row) for row in zip(pairs, turn, strict=True)]
            assert_rows(*generator.score(state, turn), expected)
        ends = [answer[-1:] for answer in answers]
        expected = [their_log_probs(generator, *row) for row in zip(pairs, ends, strict=True)]
        assert_rows(*generator.score(state, ends), expected)
        rows = torch.tensor([5, 1, 1])
        chosen = [answers[row] for row in (0, 2, 3)]
        expected = [their_log_probs(generator, pairs[r], a) for r, a in zip(rows.tolist(), chosen, strict=True)]
        assert_rows(*generator.score(state.select(rows), chosen), expected)
        for pair, answer in zip(pairs, answers, strict=True):
            wanted = their_log_probs(generator, pair, answer)
            assert_rows(*generator.score(generator.start([pair]), [answer]), [wanted])


@pytest.mark.parametrize("kind", KINDS)
def test_start_and_advance_token_by_token(kind, open_generator, problem):
    generator = open_generator(kind)
    pairs, _ = problem(1, 4)
    answers = [generator.answer_ids("abcde fghij")[:5] for _ in pairs]
    with torch.no_grad():
        state, found = generator.start(pairs), []
        for column in range(5):
            tokens = torch.tensor([answer[column] for answer in answers])
            found.append(state.log_probs.gather(-1, tokens[:, None])[:, 0])
            state = generator.advance(state, tokens)
        expected = torch.stack([their_log_probs(generator, *row) for row in zip(pairs, answers, strict=True)])
    torch.testing.assert_close(torch.stack(found, dim=-1), expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_generate(kind, batch, seed, open_generator, problem):
    """With one passage and one beam, both marginals and both decodings are the generator's own greedy answer."""
    generator = open_generator(kind, max_answer_tokens=8)
    pairs, _ = problem(seed, batch)
    prompts = [generator.template.ids(passage, question) for question, passage in pairs]
    width, pad = max(map(len, prompts)), generator.pad_id
    left = not generator.base.config.is_encoder_decoder
    padding = [[0] * (width - len(p)) for p in prompts]
    join = (lambda fill, row: [*fill, *row]) if left else (lambda fill, row: [*row, *fill])
    ids = torch.tensor([join([pad for _ in fill], row) for fill, row in zip(padding, prompts, strict=True)])
    mask = torch.tensor([join(fill, [1] * len(row)) for fill, row in zip(padding, prompts, strict=True)])
    prefix = {} if left else {"decoder_input_ids": torch.tensor([generator.decoder_prefix] * batch)}
    written = generator.base.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=pad,
        forced_eos_token_id=generator.end_id,
        **prefix,
    )
    given = width if left else len(generator.decoder_prefix)
    expected = [generator.text(row[given:].tolist()) for row in written]
    with torch.no_grad():
        state = generator.start(pairs)
        alone = torch.zeros((batch, 1))
        for marginal, decoding in (("sequence", "thorough"), ("sequence", "fast"), ("token", "thorough")):
            found = decode(generator, state, alone, marginal=marginal, decoding=decoding, num_beams=1)
            assert [answer.text for answer in found] == expected
            assert all(answer.posterior == (1.0,) for answer in found)
    assert len(set(expected)) > 1 or batch == 1


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]
WIDE = 128


def letter_tokenizer(begins, ends):
    """One token a letter; tokens beyond the letters have no text."""
    import tokenizers

    names = [*LETTERS, *(chr(0x100 + n) for n in range(WIDE - len(LETTERS)))]
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({t: n for n, t in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=" ".join([*begins, "$A", *ends]), special_tokens=[(t, names.index(t)) for t in {*begins, *ends}]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def letter_generator():
    """letter_generator("bart" or "phi", seed, tokens): only </s>, a, b and c have any probability."""

    def make(kind, seed, max_answer_tokens=3):
        shape = {"vocab_size": WIDE, "max_position_embeddings": 128, **SPECIAL}
        bias = torch.full((WIDE,), -1e9)
        bias[[2, 4, 5, 6]] = 0.0
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            if kind == "bart":
                layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
                heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
                ends = {"decoder_start_token_id": 2, "forced_eos_token_id": None}
                config = transformers.BartConfig(d_model=16, init_std=0.5, **layers, **heads, **ends, **shape)
                model = transformers.BartForConditionalGeneration(config)
                model.final_logits_bias.copy_(bias[None])
            else:
                layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
                config = transformers.PhiConfig(hidden_size=32, initializer_range=0.5, **layers, **shape)
                model = transformers.PhiForCausalLM(config)
                model.lm_head.bias.copy_(bias)
        cls = Seq2SeqGenerator if kind == "bart" else CausalGenerator
        tokenizer = letter_tokenizer(["<s>"] if kind == "bart" else [], ["</s>"] if kind == "bart" else [])
        return cls(model.eval(), tokenizer, PromptSettings("{passage}{question} ", None, 40), max_answer_tokens)

    return make


def letters(source, low, high):
    return "".join(source.choices("abc", k=source.randint(low, high)))


def letter_problem(seed, questions, k):
    source = random.Random(seed)
    passages = [[Passage(0, "d", "", letters(source, 1, 6), "d#0") for _ in range(k)] for _ in range(questions)]
    asked = [letters(source, 1, 3) for _ in range(questions)]
    return [(question, passage) for question, row in zip(asked, passages, strict=True) for passage in row]


def every_sequence(tokens, stop=2, alphabet=(4, 5, 6)):
    """All answers of at most `tokens` tokens with their end."""
    return [(*body, stop) for length in range(tokens) for body in itertools.product(alphabet, repeat=length)]


def scored(generator, pairs, sequences):
    """log p of every token of every sequence [S, K, T] and the mask, by the model's own logits, a passage at a time."""
    width = max(map(len, sequences))
    gold = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]).bool()
    columns = []
    for question, passage in pairs:
        prompt = torch.tensor([generator.template.ids(passage, question)]).expand(len(sequences), -1)
        if isinstance(generator, Seq2SeqGenerator):
            begin = torch.tensor([generator.decoder_prefix]).expand(len(sequences), -1)
            given = torch.cat([begin, gold[:, :-1]], dim=-1)
            logits = generator.model(input_ids=prompt, decoder_input_ids=given).logits[:, begin.shape[1] - 1 :]
        else:
            logits = generator.model(input_ids=torch.cat([prompt, gold], dim=-1)).logits[:, prompt.shape[1] - 1 : -1]
        columns.append(torch.log_softmax(logits, dim=-1).gather(-1, gold.unsqueeze(-1)).squeeze(-1))
    return torch.stack(columns, dim=1), mask.unsqueeze(1)


def assert_all_found(beams, sequences, totals):
    """The beams are all sequences, best first, with their log-probabilities; near ties may change places."""
    assert {written.ids for written in beams} == set(sequences)
    exact = dict(zip(sequences, totals.tolist(), strict=True))
    found = torch.tensor([written.log_probability for written in beams])
    torch.testing.assert_close(found, torch.tensor([exact[written.ids] for written in beams]), **TOLERANCE)
    assert (found.diff() <= 0).all()


@pytest.mark.parametrize("kind", ["bart", "phi"])
@pytest.mark.parametrize("seed", range(4))
def test_beam_search_as_wide_as_the_space_is_exhaustive(kind, seed, letter_generator):
    """Of 13 possible answers 13 beams cut off none: all come back, in order."""
    generator = letter_generator(kind, seed)
    pairs = letter_problem(seed, 3, 1)
    with torch.no_grad():
        found = beam_search(generator, generator.start(pairs), torch.zeros((3, 1)), 13)
        for pair, beams in zip(pairs, found, strict=True):
            sequences = every_sequence(3)
            table, mask = scored(generator, [pair], sequences)
            totals = torch.where(mask, table, 0.0).sum(-1)[:, 0]
            assert_all_found(beams, sequences, totals)


@pytest.mark.parametrize("kind", ["bart", "phi"])
@pytest.mark.parametrize("seed", range(4))
def test_token_decoding_is_exhaustive_search_of_the_marginal(kind, seed, letter_generator):
    generator = letter_generator(kind, seed)
    pairs = letter_problem(seed, 2, 3)
    prior = log_prior(torch.randn((2, 3), generator=torch.Generator().manual_seed(seed)))
    with torch.no_grad():
        state = generator.start(pairs)
        beams = beam_search(generator, state, prior, 13)
        answers = decode(generator, state, prior, marginal="token", decoding="thorough", num_beams=13)
        for row in range(2):
            own = pairs[3 * row : 3 * row + 3]
            sequences = every_sequence(3)
            table, mask = scored(generator, own, sequences)
            totals = log_likelihood("token", prior[row].expand(len(sequences), 3), table, mask)
            assert_all_found(beams[row], sequences, totals)
            assert answers[row].text == generator.text(sequences[int(totals.argmax())])
            assert answers[row].log_probability == pytest.approx(float(totals.max()), rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("kind", ["bart", "phi"])
@pytest.mark.parametrize("seed", range(4))
def test_thorough_decoding_is_exhaustive_search_of_the_marginal(kind, seed, letter_generator):
    """Every text is a candidate of some passage, so the best of the rescored ones is the best of all."""
    generator = letter_generator(kind, seed)
    pairs = letter_problem(seed + 50, 2, 3)
    prior = log_prior(torch.randn((2, 3), generator=torch.Generator().manual_seed(seed)) * 2)
    with torch.no_grad():
        state = generator.start(pairs)
        answers = decode(generator, state, prior, marginal="sequence", decoding="thorough", num_beams=13)
        for row in range(2):
            sequences = every_sequence(3)
            table, mask = scored(generator, pairs[3 * row : 3 * row + 3], sequences)
            totals = log_likelihood("sequence", prior[row].expand(len(sequences), 3), table, mask)
            assert answers[row].log_probability == pytest.approx(float(totals.max()), rel=1e-5, abs=2e-5)
            assert tuple(generator.fitting_ids(answers[row].text)) == sequences[int(totals.argmax())]


def overlap(one, other):
    """F1 of two token sequences, counted by crossing off."""
    left = list(other)
    common = sum(1 for token in one if token in left and (left.remove(token) is None))
    return 2 * common / (len(one) + len(other))


@pytest.mark.parametrize("kind", ["bart", "phi"])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_mbr_decoding_finds_the_text_of_most_expected_overlap(kind, marginal, letter_generator):
    """Every text is a candidate, so that the expectation is over all of them."""
    others = 0
    for seed in range(6):
        generator, sequences = letter_generator(kind, seed), every_sequence(3)
        pairs = letter_problem(seed + 50, 2, 3)
        prior = log_prior(torch.randn((2, 3), generator=torch.Generator().manual_seed(seed)) * 2)
        options = {"marginal": marginal, "num_beams": 13}
        with torch.no_grad():
            state = generator.start(pairs)
            answers = decode(generator, state, prior, decoding="mbr", **options)
            likeliest = decode(generator, state, prior, decoding="thorough", **options)
            for row in range(2):
                table, mask = scored(generator, pairs[3 * row : 3 * row + 3], sequences)
                totals = log_likelihood(marginal, prior[row].expand(len(sequences), 3), table, mask)
                weights = totals.softmax(-1).tolist()
                expected = {
                    ids: sum(w * overlap(ids, other) for w, other in zip(weights, sequences, strict=True))
                    for ids in sequences
                }
                found = tuple(generator.fitting_ids(answers[row].text))
                assert expected[found] == pytest.approx(max(expected.values()), abs=1e-5)
                assert answers[row].log_probability == pytest.approx(float(totals[sequences.index(found)]), abs=2e-5)
                others += answers[row].text != likeliest[row].text
    assert others


@pytest.mark.parametrize("seed", range(2))
def test_a_beam_wider_than_the_vocabulary(seed, letter_generator):
    """Fewer continuations than beams is no reason to fail: the first step has one row of V tokens."""
    generator = letter_generator("bart", seed)
    pairs = letter_problem(seed, 2, 1)
    with torch.no_grad():
        found = beam_search(generator, generator.start(pairs), torch.zeros((2, 1)), WIDE)
        for pair, beams in zip(pairs, found, strict=True):
            sequences = every_sequence(3)
            table, mask = scored(generator, [pair], sequences)
            totals = torch.where(mask, table, 0.0).sum(-1)[:, 0]
            assert beams[0].ids == sequences[int(totals.argmax())]


@pytest.mark.parametrize("kind", ["bart", "phi"])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_not_scored_could_not_have_won(kind, seed, letter_generator, monkeypatch):
    """Greedy and small beams, few and many passages, flat and sharp priors: with and without bounds, the same."""
    draw = torch.Generator().manual_seed(seed)
    k, beams = 2 + seed % 4, 1 + seed % 3
    generator = letter_generator(kind, seed)
    pairs = letter_problem(seed, 6, k)
    prior = log_prior(torch.randn((6, k), generator=draw) * (seed % 3))
    options = {"marginal": "sequence", "decoding": "thorough", "num_beams": beams}
    with torch.no_grad():
        bounded = decode(generator, generator.start(pairs), prior, **options)
        monkeypatch.setattr("ragx.rag.decoding.SLACK", math.inf)
        full = decode(generator, generator.start(pairs), prior, **options)
    assert [answer.text for answer in bounded] == [answer.text for answer in full]
    for one, other in zip(bounded, full, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        assert one.posterior == pytest.approx(other.posterior, abs=1e-5)


def test_a_sure_passage_leaves_the_others_unscored(letter_generator):
    from ragx.rag.decoding import Candidate, _hopeful

    held = [{(token, 2): (math.log(p), 0.0)} for token, p in ((4, 0.9), (5, 0.5), (6, 0.3))]
    candidates = [
        Candidate(text, ids, {row: own[ids]})
        for row, (text, own) in enumerate(zip("abc", held, strict=True))
        for ids in own
    ]
    prior = torch.tensor([0.8, 0.15, 0.05]).log()
    first = torch.full((3, 7), 0.1).log()
    first[:, 5] = math.log(0.9)
    found = _hopeful(candidates, held, prior, first)
    assert found == candidates[:1]  # 0.72 at least; "b" at most 0.08 + 0.075 + 0.035
    found = _hopeful(candidates, held, torch.full((3,), 1 / 3).log(), first)
    assert found == candidates[:2]  # 0.3 at least; "b" at most 0.433, "c" 0.167


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("seed", range(6))
def test_what_the_beams_know_is_what_scoring_gives(marginal, seed, letter_generator, monkeypatch):
    """log p, posterior and the tokens' posteriors, with the beams' own figures and without them."""
    from ragx.rag.decoding import Candidate

    generator = letter_generator(("bart", "phi")[seed % 2], seed)
    pairs = letter_problem(seed, 4, 3)
    prior = log_prior(torch.randn((4, 3), generator=torch.Generator().manual_seed(seed)))
    options = {"marginal": marginal, "decoding": "thorough", "num_beams": 1 + seed % 3}
    with torch.no_grad():
        known = decode(generator, generator.start(pairs), prior, **options)
        monkeypatch.setattr("ragx.rag.decoding.Candidate", lambda text, ids, _: Candidate(text, ids, {}))
        scored_again = decode(generator, generator.start(pairs), prior, **options)
    for one, other in zip(known, scored_again, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        assert one.posterior == pytest.approx(other.posterior, abs=1e-5)
        assert torch.tensor(one.token_posterior) == pytest.approx(torch.tensor(other.token_posterior), abs=1e-5)


def test_fast_decoding_counts_a_passage_only_for_its_own_beam(letter_generator):
    """p(y|x,z) = 0 for texts that are not in z's beam (Lewis et al. 2020, 2.5): against a table worked by hand.

    Greedy texts: passage 0 "a" with p 0.6, passages 1 and 2 "b" with p 0.5 and 0.4; prior 0.5, 0.3, 0.2.
    "a": 0.5 * 0.6 = 0.30; "b": 0.3 * 0.5 + 0.2 * 0.4 = 0.23. So "a", though with the prior turned round it is "b".
    """
    from ragx.rag.decoding import _fast_best

    generator = letter_generator("bart", 0)
    logs = [{(token, 2): (math.log(p), 0.0)} for token, p in ((4, 0.6), (5, 0.5), (5, 0.4))]
    assert _fast_best(generator, logs, torch.tensor([0.5, 0.3, 0.2]).log()) == "a"
    assert _fast_best(generator, logs, torch.tensor([0.3, 0.4, 0.3]).log()) == "b"


def test_text_stops_at_the_end_and_drops_special_tokens(letter_generator):
    generator = letter_generator("bart", 0)
    assert generator.text([4, 5, 2, 6]) == "ab"
    assert generator.text([2]) == ""
    assert generator.text([4, 1, 0, 6]) == "ac"
    assert generator.answer_ids("abc") == [4, 5, 6, 2]
    assert generator.fitting_ids("abcabc") == [4, 5, 2]
