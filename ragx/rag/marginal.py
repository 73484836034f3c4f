"""The marginal likelihood, its posterior and its gradient (Lewis et al. 2020, section 2.1): pure float32 tensor maths.

Axes: B questions, K passages a question, T answer tokens. Log-probabilities in nats. A missing passage has score -inf
and therefore prior 0; a padded answer token has log-probability 0 by its mask.
"""

import torch
from torch import Tensor


def log_prior(scores: Tensor) -> Tensor:
    """log p(z|x) [B, K] from scores [B, K]: log-softmax over the passages of each question."""
    return torch.log_softmax(scores.float(), dim=-1)


def with_null(log_prior: Tensor, bias: Tensor) -> Tensor:
    """log-prior [B, K + 1] of K passages and, last, of none: p(none|x) = sigmoid(bias), the others share the rest."""
    none = torch.nn.functional.logsigmoid(bias).expand(len(log_prior), 1)
    return torch.cat([log_prior + torch.nn.functional.logsigmoid(-bias), none], dim=-1)


def masked(token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Token log-probabilities [..., T] in float32, 0 where the mask is False."""
    return torch.where(mask, token_log_probs.float(), 0.0)


def sequence_joint(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log p(z|x) + sum_t log p(y_t|x,z,y_<t): [B, K] from [B, K], [B, K, T] and mask [B, 1 or K, T]."""
    return log_prior + masked(token_log_probs, mask).sum(dim=-1)


def sequence_log_likelihood(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """RAG-Sequence log p(y|x) [B]: logsumexp over passages of the joint."""
    return torch.logsumexp(sequence_joint(log_prior, token_log_probs, mask), dim=-1)


def token_marginals(log_prior: Tensor, token_log_probs: Tensor) -> Tensor:
    """RAG-Token log p(y_t|x,y_<t) [B, T]: logsumexp over passages at every token."""
    return torch.logsumexp(log_prior.unsqueeze(-1) + token_log_probs.float(), dim=1)


def token_log_likelihood(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """RAG-Token log p(y|x) [B]; mask [B, 1, T] or [B, K, T], equal over passages."""
    return masked(token_marginals(log_prior, token_log_probs), mask[:, 0]).sum(dim=-1)


def log_likelihood(marginal: str, log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log p(y|x) [B] by the named marginal, "sequence" or "token"."""
    by_name = {"sequence": sequence_log_likelihood, "token": token_log_likelihood}
    return by_name[marginal](log_prior, token_log_probs, mask)


def sequence_posterior(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """p(z|x,y) [B, K] under RAG-Sequence."""
    return torch.softmax(sequence_joint(log_prior, token_log_probs, mask), dim=-1)


def distillation(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """KL(q || p(z|x)) [B] in nats with gradient towards the prior alone, q being p(z|x,y) as it were under a uniform
    prior over the K passages: what the generator alone says of them (PDist of Izacard et al. 2022)."""
    missing = torch.isneginf(log_prior)
    alone = masked(token_log_probs.detach(), mask).sum(dim=-1).masked_fill(missing, -torch.inf)
    target = torch.log_softmax(alone, dim=-1).masked_fill(missing, 0.0)
    return (target.exp().masked_fill(missing, 0.0) * (target - log_prior.masked_fill(missing, 0.0))).sum(dim=-1)


def running_posterior(log_prior: Tensor, token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """p(z|x,y_<=t) [B, K, T] under RAG-Sequence: what the answer so far says of the passages."""
    return torch.softmax(log_prior.unsqueeze(-1) + masked(token_log_probs, mask).cumsum(-1), dim=1)


def token_posterior(log_prior: Tensor, token_log_probs: Tensor) -> Tensor:
    """p(z|x,y_<=t) [B, K, T] of each token under RAG-Token: which passage the token came from (Figure 2)."""
    return torch.softmax(log_prior.unsqueeze(-1) + token_log_probs.float(), dim=1)
