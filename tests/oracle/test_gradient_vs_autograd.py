"""The closed-form gradient of the marginals against autograd and finite differences; two passes against one.

d(-log p(y|x)) / ds_k = p(k|x) - p(k|x,y) for RAG-Sequence, and the same summed over tokens for RAG-Token. The two-pass
loss uses it: with all posterior mass kept its gradient is the exact one.

Closed form: both sides are float32 from the same inputs, 1e-5. Whole models: gradients are sums over tokens whose order
differs between the passes (length-sorted slices), 1e-4 of the largest entry of a tensor. Finite differences of a
float32 loss of about 30 nats: an error near 3e-6 / step, with steps of 1e-2, so 2e-3 absolute and 1 % relative. The
temperature's gradient is a sum of scores near 30 times differences of probabilities, which cancel: 2e-5 absolute.
"""

import itertools
import math
import random

import pytest
import torch

from ragx import stages
from ragx.config import load_config
from ragx.rag import generator, head
from ragx.rag.generators import add_lora
from ragx.rag.marginal import log_likelihood, log_prior, sequence_posterior, token_posterior
from ragx.rag.model import RagModel
from ragx.stages.models import open_model

QUESTIONS = ["Who lights the kiln?", "What does a small bowl cost?", "Which river flooded the cellar in 1951?"]
ANSWERS = ["Marta Veld", "four crowns", "the Sile"]


@pytest.mark.parametrize("seed", range(30))
def test_closed_form_equals_autograd(seed):
    source = torch.Generator().manual_seed(seed)
    scores = torch.randn((3, 5), generator=source, requires_grad=True)
    log_probs = -torch.rand((3, 5, 6), generator=source) * 8
    mask = (torch.arange(6)[None] < torch.tensor([6, 3, 1])[:, None])[:, None].expand(3, 5, 6)
    for name in ("sequence", "token"):
        scores.grad = None
        (-log_likelihood(name, log_prior(scores), log_probs, mask)).sum().backward()
        prior = log_prior(scores.detach())
        if name == "sequence":
            expected = prior.exp() - sequence_posterior(prior, log_probs, mask)
        else:
            expected = ((prior.exp().unsqueeze(-1) - token_posterior(prior, log_probs)) * mask).sum(-1)
        torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores.grad.sum(-1), torch.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["sequence", "token"])
def test_weights_of_the_generator_equal_autograd(seed, name):
    """d log p(y|x) / d log p(y_t|x,k) is the posterior of the sequence, or of each token."""
    source = torch.Generator().manual_seed(seed)
    prior = log_prior(torch.randn((3, 5), generator=source) * 2)
    log_probs = (-torch.rand((3, 5, 6), generator=source) * 8).requires_grad_()
    mask = (torch.arange(6)[None] < torch.tensor([6, 3, 1])[:, None])[:, None].expand(3, 5, 6)
    log_likelihood(name, prior, log_probs, mask).sum().backward()
    fixed = log_probs.detach()
    by_token = (
        token_posterior(prior, fixed) if name == "token" else sequence_posterior(prior, fixed, mask).unsqueeze(-1)
    )
    torch.testing.assert_close(log_probs.grad, by_token * mask, rtol=1e-5, atol=1e-6)


@pytest.fixture
def open_tiny(tiny_config):
    """open_tiny("bart", "token", mode="hybrid"): a whole model over the indexed tiny corpus, distributions spread."""

    def load(kind, marginal, mode="hybrid", prior="topk"):
        retrieval = {"mode": mode, "top_k": 4, "candidates": 12, "prior": prior, "lexical_weight": 1.5}
        config = load_config(tiny_config(kind, retrieval=retrieval, rag={"marginal": marginal}))
        stages.build_index(config)
        model = open_model(config, "base")
        source = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.generator.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.1)
        return model

    return load


def gradients(model, **options):
    model.zero_grad(set_to_none=True)
    loss = model(QUESTIONS, ANSWERS, **options)
    loss.nll.sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        limit = 1e-4 * float(value.abs().max()) + 2e-5
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=limit, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["causal", "bart", "t5"])
def test_two_passes_with_all_mass_equal_one(kind, marginal, open_tiny):
    model = open_tiny(kind, marginal)
    one, expected = gradients(model, posterior_mass=1.0)
    model.kept_share = 0.0  # as if little had carried the posterior before: two passes pay
    two, found = gradients(model, posterior_mass=1.0 - 1e-7)
    assert two.kept.tolist() == [1.0] * len(two.kept)
    torch.testing.assert_close(two.nll, one.nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two.posterior, one.posterior, rtol=1e-4, atol=1e-5)
    assert any(name.startswith("retriever.question_encoder") for name in expected)
    assert {"retriever.prior.log_temperature", "retriever.prior.lexical_weight"} <= expected.keys()
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["causal", "bart", "t5"])
def test_small_batches_and_recomputing_change_no_gradient(kind, open_tiny, monkeypatch):
    """Whatever the batches of like length, the vocabulary slices, and what is kept for the backward pass."""
    model = open_tiny(kind, "sequence")
    one, expected = gradients(model)
    monkeypatch.setitem(generator.BUDGETS, "cpu", 60)
    monkeypatch.setitem(head.SLICES, "cpu", 50)
    monkeypatch.setattr(head, "KEPT", 0)
    model.generator.recompute = True
    other, found = gradients(model)
    torch.testing.assert_close(other.nll, one.nll, rtol=1e-5, atol=1e-5)
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("lengths", "budget", "overhead", "expected"),
    [
        ([5, 9, 7], 100, 0, [[1], [2], [0]]),
        ([5, 9, 7], 100, 4, [[1, 2, 0]]),
        ([5, 9, 8], 100, 3, [[1, 2], [0]]),
        ([5, 9, 7], 100, 50, [[1, 2, 0]]),
        ([5, 9, 7], 11, 50, [[1], [2], [0]]),
        ([50, 5, 5], 20, 50, [[0], [1, 2]]),
        ([4], 1, 0, [[0]]),
    ],
)
def test_batches_of_like_length(lengths, budget, overhead, expected):
    assert generator.length_batches(lengths, budget, overhead) == expected


@pytest.mark.parametrize("seed", range(30))
def test_no_other_batches_cost_less(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 9))]
    budget, overhead = draw.choice([1, 40, 90, 1000]), draw.choice([0, 5, 20, 100])
    ordered = sorted(lengths, reverse=True)

    def cost(batches):
        padded = [len(batch) * max(batch) for batch in batches]
        fits = all(tokens <= budget or len(batch) == 1 for tokens, batch in zip(padded, batches, strict=True))
        return sum(padded) + overhead * len(padded) if fits else math.inf

    splits = itertools.product([False, True], repeat=len(ordered) - 1)
    best = math.inf
    for split in splits:
        ends = [i + 1 for i, cuts in enumerate(split) if cuts]
        best = min(best, cost([ordered[a:b] for a, b in itertools.pairwise([0, *ends, len(ordered)])]))
    found = generator.length_batches(lengths, budget, overhead)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    assert cost([[lengths[row] for row in batch] for batch in found]) == best


@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_pruning_changes_no_gradient_of_the_retriever(marginal, open_tiny):
    """With mass cut away only the generator's gradient is an approximation."""
    model = open_tiny("causal", marginal)
    one, expected = gradients(model, posterior_mass=1.0)
    model.kept_share = 0.0
    two, found = gradients(model, posterior_mass=0.5)
    assert two.kept.mean() < 1.0
    torch.testing.assert_close(two.nll, one.nll, rtol=1e-5, atol=1e-5)
    assert_same(
        {name: value for name, value in found.items() if name.startswith("retriever.")},
        {name: value for name, value in expected.items() if name.startswith("retriever.")},
    )


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["causal", "bart"])
def test_both_passes_see_the_same_model(kind, lora, draw_passages, open_generator, fixed_retriever):
    """Without dropout, whatever the model's own configuration says: else another network's posterior weighs the
    gradient of this one."""
    generator = open_generator(kind)
    for module in generator.model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    if lora:
        add_lora(generator, rank=4, alpha=64)
    with torch.no_grad():
        for name, parameter in generator.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    passages = draw_passages(random.Random(4), 2, 6)
    model = RagModel(fixed_retriever(passages, torch.zeros(2, 6)), generator, "sequence")
    seen, own = [], generator.token_log_probs

    def recorded(pairs, answers):
        log_probs, mask = own(pairs, answers)
        totals = log_probs.detach().sum(-1).tolist()
        seen.append({(pair[0], pair[1].number): total for pair, total in zip(pairs, totals, strict=True)})
        return log_probs, mask

    generator.token_log_probs = recorded
    model.kept_share = 0.0
    torch.manual_seed(3)
    model(["abc def", "gab ef"], ["fed", "bad cab"], posterior_mass=1.0 - 1e-7)
    first = {key: total for part in seen[:-1] for key, total in part.items()} or seen[0]
    assert seen[-1] == pytest.approx({key: first[key] for key in seen[-1]}, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("mass", [0.9, 0.99])
def test_pruned_gradient_misses_at_most_the_mass_cut(mass, draw_passages, open_generator, fixed_retriever):
    """The kept passages enter with their exact posterior weights, so the error is the gradient of the others."""
    generator = open_generator("causal")
    passages = draw_passages(random.Random(4), 2, 6)
    scores = torch.tensor([[4.0, 3, 2, 1, 0, -1], [2.0, 2, 2, -4, -4, -4]])
    model = RagModel(fixed_retriever(passages, scores), generator, "sequence")
    questions, answers = ["abc def", "gab ef"], ["fed", "bad cab"]
    one = model(questions, answers, posterior_mass=1.0)
    model.kept_share = 0.0
    pruned = model(questions, answers, posterior_mass=mass)
    assert pruned.kept.mean() < 1.0
    weights = one.posterior
    ordered = weights.sort(dim=-1, descending=True).values
    kept = (ordered.cumsum(-1) - ordered < mass).sum(-1)
    assert float(pruned.kept.mean()) == pytest.approx(float(kept.sum()) / weights.numel())
    assert all(float(row[:count].sum()) >= mass - 1e-6 for row, count in zip(ordered, kept.tolist(), strict=True))
    pruned.nll.sum().backward()
    found = {name: p.grad.clone() for name, p in generator.model.named_parameters()}
    generator.model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for row, question in enumerate(questions):
        ids = generator.answer_ids(answers[row])
        log_probs, _ = generator.token_log_probs([(question, p) for p in passages[row]], [ids] * 6)
        keep = weights[row].argsort(descending=True, stable=True)[: kept[row]]
        total = total - (weights[row, keep] * log_probs.sum(-1)[keep]).sum()
    total.backward()
    assert_same(found, {name: p.grad for name, p in generator.model.named_parameters()})


@pytest.mark.parametrize("prior", ["topk", "corpus"])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_finite_differences_of_the_prior(marginal, prior, open_tiny):
    model = open_tiny("causal", marginal, prior=prior)
    _, expected = gradients(model)

    def loss_at(parameter, value):
        with torch.no_grad():
            before = parameter.clone()
            parameter.copy_(value)
            loss = float(model(QUESTIONS, ANSWERS).nll.double().sum())
            parameter.copy_(before)
        return loss

    step = 1e-2
    for name in ("log_temperature", "lexical_weight"):
        parameter = getattr(model.retriever.prior, name)
        above, below = loss_at(parameter, parameter + step), loss_at(parameter, parameter - step)
        found = (above - below) / (2 * step)
        assert float(expected[f"retriever.prior.{name}"]) == pytest.approx(found, rel=1e-2, abs=2e-3), name


def test_finite_difference_of_the_question_encoder(open_tiny):
    """Along its own gradient, so that the difference is as large as it can be."""
    model = open_tiny("bart", "sequence", mode="dense", prior="corpus")
    _, expected = gradients(model)
    name = "retriever.question_encoder"
    parts = [
        (p, expected[f"{name}.{n}"])
        for n, p in model.retriever.question_encoder.named_parameters()
        if f"{name}.{n}" in expected
    ]
    norm = torch.cat([g.flatten() for _, g in parts]).norm()
    losses = []
    step = 1e-3  # a slope near 50: larger steps leave the tangent
    for move in (step, -2 * step):
        with torch.no_grad():
            for parameter, gradient in parts:
                parameter.add_(gradient / norm * move)
            losses.append(float(model(QUESTIONS, ANSWERS).nll.double().sum()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(norm), rel=1e-2, abs=2e-3)
