"""Distillation against sums in Python floats and autograd; smoothed labels against torch's own cross entropy; given
passages against what is retrieved.

float32 on both sides; sums over up to 40 terms or 500 words of a vocabulary: 1e-5, gradients 1e-4 of values near 1.
"""

import math
import random

import pytest
import torch

from ragx import stages
from ragx.config import load_config
from ragx.rag.marginal import distillation, log_prior, with_null
from ragx.rag.model import RagModel
from ragx.records import Passage
from ragx.stages.models import open_model
from ragx.training.crossfit import offsets_of

QUESTIONS = ["Who lights the kiln?", "What does a small bowl cost?", "Which river flooded the cellar in 1951?"]


@pytest.mark.parametrize("seed", range(20))
def test_distillation_is_the_divergence_from_the_generators_own_choice(seed):
    source = torch.Generator().manual_seed(seed)
    scores = (torch.randn((3, 5), generator=source) * 2).masked_fill(torch.rand((3, 5), generator=source) < 0.2, -1e30)
    scores[:, 0] = 0.5
    scores = scores.where(scores > -1e29, -torch.inf).requires_grad_()
    log_probs = (-torch.rand((3, 5, 4), generator=source) * 3).requires_grad_()
    mask = (torch.arange(4)[None] < torch.tensor([4, 2, 1])[:, None])[:, None].expand(3, 5, 4)
    found = distillation(log_prior(scores), log_probs, mask)
    found.sum().backward()
    assert log_probs.grad is None
    divergences = found.tolist()
    for row in range(3):
        own, tokens, length = scores[row].tolist(), log_probs[row].tolist(), int(mask[row, 0].sum())
        there = [k for k in range(5) if math.isfinite(own[k])]
        weights = {k: math.exp(sum(tokens[k][:length])) for k in there}
        priors = {k: math.exp(own[k]) for k in there}
        q = {k: w / sum(weights.values()) for k, w in weights.items()}
        p = {k: w / sum(priors.values()) for k, w in priors.items()}
        assert divergences[row] == pytest.approx(sum(q[k] * math.log(q[k] / p[k]) for k in there), rel=1e-5, abs=1e-5)
        slope = [p[k] - q[k] if k in p else 0.0 for k in range(5)]
        assert scores.grad[row].tolist() == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["causal", "t5", "bart"])
def test_smoothed_gradient_is_that_of_torchs_cross_entropy(kind, open_generator):
    generator = open_generator(kind)
    source = torch.Generator().manual_seed(3)
    width = generator.base.get_output_embeddings().weight.shape[1]
    hidden = torch.randn((9, width), generator=source, requires_grad=True)
    gold = torch.randint(0, 200, (9,), generator=source)
    plain = generator._gold(hidden, gold)
    generator.label_smoothing = 0.2
    smooth = generator._gold(hidden, gold)
    assert torch.equal(plain, smooth)
    found = torch.autograd.grad(-smooth.sum(), hidden)[0]
    loss = torch.nn.functional.cross_entropy(generator._logits(hidden), gold, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(found, torch.autograd.grad(loss, hidden)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, torch.autograd.grad(-plain.sum(), hidden)[0], atol=1e-3)


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_smoothing_is_the_same_in_one_pass_and_two(marginal, draw_passages, open_generator, fixed_retriever):
    generator = open_generator("causal")
    passages, scores = draw_passages(random.Random(4), 2, 4), torch.tensor([[2.0, 1, 0, -1], [0.5, 0, 0, 1]])

    def gradient(smoothing, kept_share):
        generator.label_smoothing = smoothing
        model = RagModel(fixed_retriever(passages, scores.clone()), generator, marginal)
        model.kept_share = kept_share
        generator.model.zero_grad(set_to_none=True)
        loss = model(["abc def", "gab ef"], ["fed", "bad cab"], posterior_mass=1.0 - 1e-7)
        loss.nll.sum().backward()
        own = [p.grad.clone() for p in generator.model.parameters() if p.grad is not None]
        return loss.nll.detach(), torch.cat([g.flatten() for g in own]), model.retriever.scores.grad

    plain, one, two = gradient(0.0, 1.0), gradient(0.3, 1.0), gradient(0.3, 0.0)
    torch.testing.assert_close(one[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(one[2], plain[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two[0], one[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(two[1], one[1], rtol=1e-3, atol=1e-4 * float(one[1].abs().max()))
    assert float((one[1] - plain[1]).norm()) > 0.05 * float(plain[1].norm())


@pytest.mark.parametrize("prior", ["topk", "corpus"])
@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_given_passages_score_as_retrieved_ones(mode, prior, tiny_config):
    """Also the gradient towards the question encoder; offsets make the prior another retriever's."""
    config = load_config(tiny_config(retrieval={"mode": mode, "top_k": 3, "candidates": 30, "prior": prior}))
    stages.build_index(config)
    retriever = open_model(config, "base").retriever
    found = retriever(QUESTIONS)
    ids = torch.tensor([[passage.number for passage in row] for row in found.passages])
    again = retriever.over(QUESTIONS, ids)
    assert again.passages == found.passages
    torch.testing.assert_close(again.scores, found.scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.log_prior, found.log_prior, rtol=1e-5, atol=1e-5)
    if mode != "lexical":
        slopes = []
        for retrieval in (found, again):
            retriever.zero_grad(set_to_none=True)
            retrieval.log_prior[:, 0].sum().backward()
            slopes.append([p.grad for p in retriever.question_encoder.parameters() if p.grad is not None])
        for one, two in zip(*slopes, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max()) + 1e-7)

    examples = [type("E", (), {"question": question}) for question in QUESTIONS]
    others = torch.log_softmax(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), -1)
    offsets = offsets_of(retriever, examples, ids, others)
    torch.testing.assert_close(retriever.over(QUESTIONS, ids, offsets).log_prior, others, rtol=1e-4, atol=1e-4)


def test_some_columns_are_a_retrieval_of_their_own(tiny_config):
    config = load_config(tiny_config(retrieval={"top_k": 4, "candidates": 30}))
    stages.build_index(config)
    retriever = open_model(config, "base").retriever
    found = retriever(QUESTIONS)
    columns = torch.tensor([[0, 3], [1, 2], [0, 1]])
    some = retriever.columns(found, columns)
    assert [[p.number for p in row] for row in some.passages] == [
        [found.passages[row][j].number for j in chosen] for row, chosen in enumerate(columns.tolist())
    ]
    ids = torch.tensor([[p.number for p in row] for row in some.passages])
    torch.testing.assert_close(some.log_prior, retriever.over(QUESTIONS, ids).log_prior, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [-6.0, 0.3])
def test_null_prior_is_a_mixture(bias):
    prior = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).log()
    share = torch.tensor(bias, requires_grad=True)
    found = with_null(prior, share)
    none = 1 / (1 + math.exp(-bias))
    for row, own in zip(found.exp().tolist(), prior.exp().tolist(), strict=True):
        assert row == pytest.approx([*((1 - none) * p for p in own), none], rel=1e-5, abs=1e-7)
    found[:, -1].sum().backward()
    assert float(share.grad) == pytest.approx(2 * (1 - none), rel=1e-5)


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["causal", "t5"])
def test_null_passage_is_one_more_term(kind, marginal, draw_passages, open_generator, fixed_retriever):
    """The likelihood of K passages and of an empty one, put together by hand; in one pass and in two."""
    generator = open_generator(kind)
    passages, scores = draw_passages(random.Random(4), 2, 3), torch.tensor([[2.0, 1, 0], [0.5, 0, 1]])
    questions, answers = ["abc def", "gab ef"], ["fed", "bad cab"]
    model = RagModel(fixed_retriever(passages, scores), generator, marginal, null_bias=-0.5)
    loss = model(questions, answers)
    none = 1 / (1 + math.exp(0.5))
    for row in range(2):
        ids = generator.answer_ids(answers[row])
        read = [*passages[row], Passage(-1, "", "", "", "")]
        with torch.no_grad():
            tokens = generator.token_log_probs([(questions[row], p) for p in read], [ids] * 4)[0].double().exp()
        weights = torch.cat([scores[row].double().softmax(-1) * (1 - none), torch.tensor([none]).double()])
        chances = tokens.prod(-1) if marginal == "sequence" else tokens
        by_hand = (weights @ chances).log().sum()
        assert float(loss.nll[row].detach()) == pytest.approx(-float(by_hand), rel=1e-4)
    assert loss.posterior.shape == (2, 4)
    slopes = []
    for kept_share in (1.0, 0.0):
        model.zero_grad(set_to_none=True)
        model.kept_share = kept_share
        model(questions, answers, posterior_mass=1 - 1e-7).nll.sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert model.null_bias.grad is not None
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4 * float(slopes[0].abs().max()))


@pytest.mark.parametrize("null_bias", [None, -0.5])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_the_question_is_expected_under_the_posterior(
    marginal, null_bias, draw_passages, open_generator, fixed_retriever
):
    """-sum_z p(z|x,y) log p(x|z) with gradient towards the generator alone, beside the same likelihood as without."""
    generator = open_generator("causal")
    passages, scores = draw_passages(random.Random(4), 2, 3), torch.tensor([[2.0, 1, 0], [0.5, 0, 1]])
    questions, answers = ["abc def", "gab ef"], ["fed", "bad cab"]
    model = RagModel(fixed_retriever(passages, scores), generator, marginal, null_bias=null_bias)
    plain, loss = model(questions, answers), model(questions, answers, with_question=True)
    torch.testing.assert_close(loss.nll, plain.nll, rtol=1e-5, atol=1e-4)
    assert plain.question.tolist() == [0.0, 0.0]
    read = [[*row, Passage(-1, "", "", "", "")] if null_bias is not None else row for row in passages]
    by_hand = torch.stack(
        [
            -sum(p * generator.question_log_probs([(question, z)])[0] for p, z in zip(shares, row, strict=True))
            for question, shares, row in zip(questions, plain.posterior.tolist(), read, strict=True)
        ]
    )
    torch.testing.assert_close(loss.question, by_hand, rtol=1e-5, atol=1e-3)
    weights = [weight for name, weight in generator.model.named_parameters() if "proj" in name]
    found, expected = (
        torch.autograd.grad(value.sum(), weights, retain_graph=True) for value in (loss.question, by_hand)
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()))
