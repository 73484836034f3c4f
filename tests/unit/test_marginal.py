"""ragx.rag.marginal: small cases by hand, missing passages, masks, gradient. float32, so 1e-6 relative."""

import math

import pytest
import torch

from ragx.rag.marginal import (
    log_likelihood,
    log_prior,
    sequence_log_likelihood,
    sequence_posterior,
    token_log_likelihood,
    token_posterior,
)

PRIOR = torch.tensor([[0.75, 0.25]]).log()
TOKENS = torch.tensor([[[0.5, 0.2], [0.1, 0.8]]]).log()
MASK = torch.ones(1, 1, 2, dtype=torch.bool)


def test_sequence_by_hand():
    assert sequence_log_likelihood(PRIOR, TOKENS, MASK).exp().item() == pytest.approx(0.75 * 0.1 + 0.25 * 0.08)


def test_token_by_hand():
    expected = (0.75 * 0.5 + 0.25 * 0.1) * (0.75 * 0.2 + 0.25 * 0.8)
    assert token_log_likelihood(PRIOR, TOKENS, MASK).exp().item() == pytest.approx(expected)


def test_named_marginal():
    assert torch.equal(log_likelihood("sequence", PRIOR, TOKENS, MASK), sequence_log_likelihood(PRIOR, TOKENS, MASK))
    assert torch.equal(log_likelihood("token", PRIOR, TOKENS, MASK), token_log_likelihood(PRIOR, TOKENS, MASK))
    with pytest.raises(KeyError):
        log_likelihood("other", PRIOR, TOKENS, MASK)


def test_posteriors_by_hand():
    assert sequence_posterior(PRIOR, TOKENS, MASK)[0].tolist() == pytest.approx([0.075 / 0.095, 0.02 / 0.095])
    assert token_posterior(PRIOR, TOKENS)[0, :, 1].tolist() == pytest.approx([0.15 / 0.35, 0.2 / 0.35])


def test_prior_is_float32_and_sums_to_one():
    prior = log_prior(torch.randn(3, 5, dtype=torch.bfloat16))
    assert prior.dtype == torch.float32
    assert prior.exp().sum(-1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_one_passage_is_the_generator_alone(marginal):
    tokens = torch.tensor([[[-1.0, -2.0, -3.0]]])
    found = log_likelihood(marginal, torch.zeros(1, 1), tokens, torch.ones(1, 1, 3, dtype=torch.bool))
    assert found.item() == pytest.approx(-6)


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_padded_tokens_do_not_count(marginal):
    padded = torch.cat([TOKENS, torch.full((1, 2, 3), -torch.inf)], dim=-1)
    mask = torch.cat([MASK, torch.zeros(1, 1, 3, dtype=torch.bool)], dim=-1)
    assert log_likelihood(marginal, PRIOR, padded, mask).item() == pytest.approx(
        log_likelihood(marginal, PRIOR, TOKENS, MASK).item()
    )


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_missing_passage_has_no_part(marginal):
    scores = torch.tensor([[1.0, 0.5, -torch.inf]])
    tokens = torch.cat([TOKENS, torch.zeros(1, 1, 2)], dim=1)
    found = log_likelihood(marginal, log_prior(scores), tokens, MASK)
    assert found.item() == pytest.approx(log_likelihood(marginal, log_prior(scores[:, :2]), TOKENS, MASK).item())
    assert sequence_posterior(log_prior(scores), tokens, MASK)[0, 2].item() == 0.0


def test_answer_that_no_passage_can_give_is_minus_infinity():
    assert sequence_log_likelihood(PRIOR, torch.full_like(TOKENS, -torch.inf), MASK).item() == -math.inf


def test_tiny_probabilities_do_not_underflow():
    found = sequence_log_likelihood(PRIOR, torch.full((1, 2, 200), -50.0), torch.ones(1, 1, 200, dtype=torch.bool))
    assert found.item() == pytest.approx(-10_000)


def test_gradient_towards_the_scores_is_prior_minus_posterior():
    scores = torch.tensor([[0.3, -0.2]], requires_grad=True)
    prior = log_prior(scores)
    (-sequence_log_likelihood(prior, TOKENS, MASK)).sum().backward()
    expected = prior.exp() - sequence_posterior(prior, TOKENS, MASK)
    torch.testing.assert_close(scores.grad, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_gradient_towards_the_tokens_is_the_posterior(marginal):
    tokens = TOKENS.clone().requires_grad_()
    log_likelihood(marginal, PRIOR, tokens, MASK).sum().backward()
    expected = (
        token_posterior(PRIOR, TOKENS) if marginal == "token" else sequence_posterior(PRIOR, TOKENS, MASK)[..., None]
    )
    torch.testing.assert_close(tokens.grad, expected.expand_as(tokens), rtol=1e-5, atol=1e-6)
