"""-log p(y|x) of ragx against RagSequenceForGeneration and RagTokenForGeneration on randomly drawn checkpoints.

Theirs: `decoder_input_ids` are the labels as they are, targets are the labels shifted left, so the first column is
given and never scored; padding is never scored. They train BART with `<s> y </s>` (the decoder begins with `<s>`) and
generate with `</s> <s> y </s>`, where `<s>` is left out of the score. ragx trains and generates in the second way; both
are compared. RagSequenceForGeneration cannot run T5 (T5Config has no bos_token_id), hence RAG-Token alone there.

Everything is float32 on both sides. Answers cost up to some hundred nats, with 6e-8 relative error an operation and
another order of summation: equality to 1e-5, relative and absolute.
"""

import random

import pytest
import torch

from ragx.rag.generators import load_generator
from ragx.rag.interop import split_checkpoint
from ragx.rag.marginal import log_likelihood
from ragx.rag.model import RagModel
from ragx.rag.prompts import PromptSettings

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
PROMPT = PromptSettings("{title} / {passage} // {question}", None, 80)
ROUTES = [
    *(("bart", "sequence", "as generated", seed) for seed in range(30)),
    *(("bart", "token", "as generated", seed) for seed in range(30)),
    *(("t5", "token", "as generated", seed) for seed in range(30)),
    *(("bart", "sequence", "as trained", seed) for seed in range(10)),
    *(("bart", "token", "as trained", seed) for seed in range(10)),
]


def padded(rows, pad):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def their_nll(model, generator, questions, passages, scores, answers, prefix):
    """Their loss of each question; `prefix` is what the decoder is given before the answer."""
    pad = generator.pad_id
    pairs = [(passage, question) for question, row in zip(questions, passages, strict=True) for passage in row]
    contexts, mask = padded([generator.template.ids(*pair) for pair in pairs], pad)
    ids, _ = padded([[*prefix, *answer] for answer in answers], pad)
    given = {
        "context_input_ids": contexts,
        "context_attention_mask": mask,
        "doc_scores": scores,
        "n_docs": scores.shape[1],
    }
    if type(model).__name__ == "RagSequenceForGeneration":
        return model(**given, decoder_input_ids=ids, labels=ids, exclude_bos_score=True).loss
    labels = ids.clone()
    labels[:, 1 : len(prefix)] = pad  # given, not scored
    return model(**given, decoder_input_ids=ids, labels=labels).loss


@pytest.fixture
def problem(draw_text, draw_passages):
    """problem(seed): questions, passages [B][K], scores [B, K] and answers of one to four words."""

    def draw(seed):
        source = random.Random(seed)
        rows, k = source.randint(1, 3), source.randint(1, 5)
        questions = [draw_text(source, 2, 8) for _ in range(rows)]
        answers = [draw_text(source, 1, 4) for _ in range(rows)]
        scores = torch.randn((rows, k), generator=torch.Generator().manual_seed(seed)) * source.choice([0.3, 3.0])
        return questions, draw_passages(source, rows, k), scores, answers

    return draw


@pytest.mark.parametrize(("kind", "marginal", "begin", "seed"), ROUTES)
def test_same_loss(kind, marginal, begin, seed, problem, draw_checkpoint, fixed_retriever):
    model, folder = draw_checkpoint(seed, kind, marginal)
    generator = load_generator(split_checkpoint(folder)[1], PROMPT, 40)
    if begin == "as trained":
        generator.decoder_prefix = [generator.tokenizer.bos_token_id]
    questions, passages, scores, answers = problem(seed)
    ids = [generator.answer_ids(answer) for answer in answers]
    assert min(map(len, ids)) >= 2
    ours = RagModel(fixed_retriever(passages, scores), generator, marginal)
    loss = ours(questions, answers)
    with torch.no_grad():
        theirs = their_nll(model, generator, questions, passages, scores, ids, generator.decoder_prefix)
        scored = ours(questions, answers)
    torch.testing.assert_close(loss.nll.detach(), theirs, **TOLERANCE, msg=lambda text: f"seed {seed}: {text}")
    torch.testing.assert_close(scored.nll, theirs, **TOLERANCE, msg=lambda text: f"seed {seed}, no gradient: {text}")
    assert loss.tokens.tolist() == [len(row) for row in ids]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("kind", "marginal"), [("bart", "sequence"), ("bart", "token"), ("t5", "token")])
def test_same_gradient_towards_scores_and_generator(seed, kind, marginal, problem, draw_checkpoint, fixed_retriever):
    """Gradients of sums of losses; entries reach some tens, so 1e-4 relative to the largest of a tensor."""
    model, folder = draw_checkpoint(seed, kind, marginal)
    generator = load_generator(split_checkpoint(folder)[1], PROMPT, 40)
    questions, passages, scores, answers = problem(seed)
    retriever = fixed_retriever(passages, scores.clone())
    RagModel(retriever, generator, marginal)(questions, answers).nll.sum().backward()
    leaf = scores.clone().requires_grad_()
    ids = [generator.answer_ids(answer) for answer in answers]
    their_nll(model, generator, questions, passages, leaf, ids, generator.decoder_prefix).sum().backward()
    torch.testing.assert_close(retriever.scores.grad, leaf.grad, rtol=1e-4, atol=1e-5)
    theirs = dict(model.generator.named_parameters())
    for name, parameter in generator.model.named_parameters():
        expected = theirs[name].grad
        if expected is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            limit = 1e-4 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(
                parameter.grad, expected, rtol=1e-4, atol=limit, msg=lambda t, n=name: f"{n}: {t}"
            )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("answer", ["empty", "one token"])
def test_theirs_loses_the_prior_of_the_shortest_answers(seed, answer, problem, draw_checkpoint, fixed_retriever):
    """They add log p(z|x) to the second target column, which is padding for `<s> </s>` and for one token with no end.

    Then theirs is -log sum_z p(y|x,z), which is no probability of y: it exceeds the marginal. Ours stays the marginal.
    """
    model, folder = draw_checkpoint(seed, "bart", "sequence")
    generator = load_generator(split_checkpoint(folder)[1], PROMPT, 40)
    generator.decoder_prefix = [generator.tokenizer.bos_token_id]
    questions, passages, _, _ = problem(seed)
    passages = [(row * 3)[:3] for row in passages]
    scores = torch.randn((len(questions), 3), generator=torch.Generator().manual_seed(seed))
    token = generator.tokenizer.eos_token_id if answer == "empty" else generator.answer_ids("a")[0]
    answers = [[token]] * len(questions)
    pairs = [(question, passage) for question, row in zip(questions, passages, strict=True) for passage in row]
    with torch.no_grad():
        theirs = their_nll(model, generator, questions, passages, scores, answers, generator.decoder_prefix)
        log_probs, mask = generator.token_log_probs(pairs, [[token]] * len(pairs))
    log_probs, mask = log_probs.reshape(len(questions), 3, 1), mask.reshape(len(questions), 3, 1)
    brute = [
        sum(p * q for p, q in zip(*row, strict=True))
        for row in zip(scores.double().softmax(-1).tolist(), log_probs[..., 0].double().exp().tolist(), strict=True)
    ]
    expected = -torch.tensor(brute).log()
    prior = torch.log_softmax(scores, dim=-1)
    torch.testing.assert_close(-log_likelihood("sequence", prior, log_probs, mask), expected, **TOLERANCE)
    torch.testing.assert_close(-log_likelihood("token", prior, log_probs, mask), expected, **TOLERANCE)
    without_prior = -torch.logsumexp(log_probs[..., 0], dim=-1)
    torch.testing.assert_close(theirs, without_prior, **TOLERANCE)
    assert (expected - theirs > 0.1).all()


def test_the_same_answer_is_right_in_ragx_end_to_end(problem, draw_checkpoint, fixed_retriever):
    """An answer without any text is scored as its end token, under the prior."""
    _, folder = draw_checkpoint(3, "bart", "sequence")
    generator = load_generator(split_checkpoint(folder)[1], PROMPT, 40)
    questions, passages, scores, _ = problem(3)
    with torch.no_grad():
        loss = RagModel(fixed_retriever(passages, scores), generator, "sequence")(questions, [""] * len(questions))
        pairs = [(question, passage) for question, row in zip(questions, passages, strict=True) for passage in row]
        end, _ = generator.token_log_probs(pairs, [[generator.tokenizer.eos_token_id]] * len(pairs))
    joint = scores.double().softmax(-1) * end.double().exp().reshape(scores.shape)
    torch.testing.assert_close(loss.nll, -joint.sum(-1).log().float(), **TOLERANCE)
    assert loss.tokens.tolist() == [1] * len(questions)
