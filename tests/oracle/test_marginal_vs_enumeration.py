"""ragx.rag.marginal against brute-force enumeration over passages and tokens with Python floats (float64).

The package computes in float32, whose relative error is 6e-8 an operation; sums of up to 40 terms of up to 20 nats
stay within 1e-5 of the exact value relatively, which is the tolerance here.
"""

import math

import pytest
import torch

from ragx.rag import marginal

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SEEDS = range(40)


def draw(seed):
    """Scores [B, K] with some at -inf, token log-probabilities [B, K, T], and a right-padded mask [B, K, T]."""
    source = torch.Generator().manual_seed(seed)
    rows, k, length = (int(torch.randint(1, high, (), generator=source)) for high in (5, 8, 7))
    scores = torch.randn((rows, k), generator=source) * 5
    missing = torch.rand((rows, k), generator=source) < 0.25
    missing[:, 0] = False
    scores = scores.masked_fill(missing, -torch.inf)
    log_probs = -torch.rand((rows, k, length), generator=source) * 12
    lengths = torch.randint(1, length + 1, (rows,), generator=source)
    mask = (torch.arange(length)[None] < lengths[:, None])[:, None].expand(rows, k, length)
    garbage = torch.randn((rows, k, length), generator=source) * 100
    return scores, torch.where(mask, log_probs, garbage), mask


def priors(scores):
    weights = [[math.exp(s - max(row)) for s in row] for row in scores.tolist()]
    return [[w / sum(row) for w in row] for row in weights]


def likelihoods(log_probs, mask, row, passage):
    """p(y_t|x,z,y_<t) of the tokens of one answer under one passage."""
    return [math.exp(v) for v, m in zip(log_probs[row][passage], mask[row][passage], strict=True) if m]


def enumerated(scores, log_probs, mask):
    """(sequence log p, token log p, sequence posteriors, token posteriors) by plain sums of products."""
    prior, table, masks = priors(scores), log_probs.tolist(), mask.tolist()
    found = {"sequence": [], "token": [], "sequence_posterior": [], "token_posterior": []}
    for row, weights in enumerate(prior):
        chances = [likelihoods(table, masks, row, passage) for passage in range(len(weights))]
        joint = [w * math.prod(c) for w, c in zip(weights, chances, strict=True)]
        steps = [[w * c[t] for w, c in zip(weights, chances, strict=True)] for t in range(len(chances[0]))]
        found["sequence"].append(math.log(sum(joint)))
        found["token"].append(sum(math.log(sum(step)) for step in steps))
        found["sequence_posterior"].append([j / sum(joint) for j in joint])
        found["token_posterior"].append([[j / sum(step) for j in step] for step in steps])
    return prior, found


@pytest.mark.parametrize("seed", SEEDS)
def test_prior_marginals_and_posteriors_equal_enumeration(seed):
    scores, log_probs, mask = draw(seed)
    expected_prior, expected = enumerated(scores, log_probs, mask)
    log_prior = marginal.log_prior(scores)
    torch.testing.assert_close(log_prior.exp(), torch.tensor(expected_prior), **TOLERANCE)
    for name in ("sequence", "token"):
        found = marginal.log_likelihood(name, log_prior, log_probs, mask)
        torch.testing.assert_close(found, torch.tensor(expected[name]), **TOLERANCE)
        shared = marginal.log_likelihood(name, log_prior, log_probs, mask[:, :1])
        torch.testing.assert_close(shared, found, rtol=0, atol=0)
    posterior = marginal.sequence_posterior(log_prior, log_probs, mask)
    torch.testing.assert_close(posterior, torch.tensor(expected["sequence_posterior"]), **TOLERANCE)
    by_token = marginal.token_posterior(log_prior, log_probs)
    for row, steps in enumerate(expected["token_posterior"]):
        found = by_token[row, :, : len(steps)].T
        torch.testing.assert_close(found, torch.tensor(steps), **TOLERANCE)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_passage_changes_nothing(seed):
    """A passage at -inf has neither prior, posterior nor a share in the likelihood; nor does its text make NaN."""
    scores, log_probs, mask = draw(seed)
    more_scores = torch.cat([scores, torch.full((len(scores), 1), -torch.inf)], dim=1)
    more = torch.cat([log_probs, torch.zeros_like(log_probs[:, :1])], dim=1)
    more_mask = torch.cat([mask, mask[:, :1]], dim=1)
    for name in ("sequence", "token"):
        without = marginal.log_likelihood(name, marginal.log_prior(scores), log_probs, mask)
        with_one = marginal.log_likelihood(name, marginal.log_prior(more_scores), more, more_mask)
        torch.testing.assert_close(with_one, without, rtol=1e-6, atol=1e-6)
    assert marginal.sequence_posterior(marginal.log_prior(more_scores), more, more_mask)[:, -1].eq(0).all()
    assert marginal.token_posterior(marginal.log_prior(more_scores), more)[:, -1].eq(0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_passage_is_the_generator_alone(seed):
    _, log_probs, mask = draw(seed)
    one = marginal.log_prior(torch.randn(len(log_probs), 1))
    plain = torch.where(mask, log_probs, 0.0)[:, 0].double().sum(-1)
    for name in ("sequence", "token"):
        found = marginal.log_likelihood(name, one, log_probs[:, :1], mask[:, :1])
        torch.testing.assert_close(found.double(), plain, **TOLERANCE)


def test_scores_of_half_precision_are_normalised_in_float32():
    """bfloat16 keeps 8 bits: scores near 80 would be rounded to 0.5. The prior loses no more than its input did."""
    scores = torch.tensor([[80.0, 79.5, 78.0]], dtype=torch.bfloat16)
    expected = priors(scores.double())
    assert marginal.log_prior(scores).dtype == torch.float32
    torch.testing.assert_close(marginal.log_prior(scores).exp(), torch.tensor(expected), **TOLERANCE)
