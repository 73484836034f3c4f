"""The vocabulary head, a slice at a time, against torch's cross entropy over all logits at once."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from ragx.rag import head
from ragx.rag.head import gold_log_probs


@pytest.fixture(params=[(1 << 20, 1 << 24), (90, 1 << 24), (90, 0), (7, 0)], ids=str)
def sliced(request, monkeypatch):
    """All logits at once, and in slices, kept and not."""
    monkeypatch.setitem(head.SLICES, "cpu", request.param[0])
    monkeypatch.setattr(head, "KEPT", request.param[1])


def drawn(seed, *, rows=9, width=6, words=31, bias=True):
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn((rows, width), generator=source, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn((words, width), generator=source))
    own = torch.nn.Parameter(torch.randn(words, generator=source)) if bias else None
    return hidden, weight, own, torch.randint(0, words, (rows,), generator=source)


def gradients(loss, *leaves):
    for leaf in leaves:
        leaf.grad = None
    loss().backward()
    return [leaf.grad.clone() for leaf in leaves]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradients_are_those_of_cross_entropy(sliced, seed, bias, smoothing):
    hidden, weight, own, gold = drawn(seed, bias=bias)
    slope = torch.linspace(-1, 2, len(gold))
    leaves = [hidden, weight, *([own] if bias else [])]
    plain = -cross_entropy(linear(hidden, weight, own), gold, reduction="none")
    torch.testing.assert_close(gold_log_probs(hidden, weight, own, gold, smoothing), plain)
    expected = gradients(
        lambda: -slope @ cross_entropy(linear(hidden, weight, own), gold, reduction="none", label_smoothing=smoothing),
        *leaves,
    )
    found = gradients(lambda: slope @ gold_log_probs(hidden, weight, own, gold, smoothing), *leaves)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_weight_is_added_to_what_is_there(sliced):
    hidden, weight, own, gold = drawn(3)
    (once,) = gradients(lambda: gold_log_probs(hidden, weight, own, gold).sum(), weight)
    before, weight.grad = weight.grad, torch.ones_like(weight)
    held = weight.grad
    (2 * gold_log_probs(hidden, weight, own, gold)).sum().backward()
    assert weight.grad is held and before is not held
    torch.testing.assert_close(held, 1 + 2 * once)


def test_a_frozen_weight_gets_none_and_a_fixed_state_still_teaches_the_weight(sliced):
    hidden, weight, _, gold = drawn(4)
    gold_log_probs(hidden, weight.requires_grad_(False), None, gold).sum().backward()
    assert weight.grad is None and hidden.grad is not None
    gold_log_probs(hidden.detach(), weight.requires_grad_(True), None, gold).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_autocast_computes_in_its_dtype_and_keeps_masters(sliced):
    hidden, weight, own, gold = drawn(5, rows=64, width=32)
    exact = gradients(lambda: gold_log_probs(hidden, weight, own, gold).sum(), hidden, weight)

    def rough():
        with torch.autocast("cpu", torch.bfloat16):
            found = gold_log_probs(hidden, weight, own, gold)
        assert found.dtype == torch.float32
        assert not torch.equal(found, gold_log_probs(hidden, weight, own, gold))
        return found.sum()

    for found, wanted in zip(gradients(rough, hidden, weight), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_impossible_tokens_are_minus_infinite_and_nothing_is_lost_to_overflow(sliced):
    hidden, weight, _, gold = drawn(6)
    bias = torch.zeros(len(weight))
    bias[gold[0]] = -torch.inf
    bias[0 if gold[0] else 1] = 1e4
    found = gold_log_probs(hidden, weight, bias, gold)
    torch.testing.assert_close(found, -cross_entropy(linear(hidden, weight, bias), gold, reduction="none"))
    assert found[0] == -torch.inf
