"""Rows packed into one against the same rows padded, as transformers computes them, on BART and mBART.

Float32: only the order of sums differs, so 1e-5 on log-probabilities and 1e-4 of a tensor's largest gradient. In
bfloat16, with 8 bits of mantissa, 2 % of the gradient's norm, and 0.05 on log-probabilities of some 5 nats.
"""

import dataclasses

import pytest
import torch
import transformers

from ragx.rag import packing, seq2seq
from ragx.rag.generators import choose_attention
from ragx.rag.prompts import PromptSettings
from ragx.records import Passage

SENTENCES = ["the kiln burns beech", "nine wheels", "a river flooded the cellar where clay was kept in old barrels"]
PAIRS = [(f"What of {n}?", Passage(n, str(n), "", SENTENCES[n % 3] * (1 + n % 2), str(n))) for n in range(7)]
ANSWERS = ["Marta", "four crowns", "the Sile", "beech", "on the second day of the year", "x", "a lid"]


@pytest.fixture
def writers(open_generator):
    """writers("mbart"): a tiny generator; mBART's is one of the tiny BART's shape, with its tokenizer."""

    def load(architecture):
        generator = open_generator("bart", max_input_tokens=80)
        if architecture == "mbart":
            named = {
                k: v for k, v in generator.base.config.to_dict().items() if k not in ("model_type", "architectures")
            }
            torch.manual_seed(3)
            model = transformers.MBartForConditionalGeneration(transformers.MBartConfig(**named)).eval()
            settings = PromptSettings("{passage} {question}", None, 80)
            generator = seq2seq.Seq2SeqGenerator(model, generator.tokenizer, settings, 12)
        return generator

    return load


def computed(generator, dtype=torch.float32):
    """Log-probabilities of all answers and every gradient of a weighted sum of them."""
    answers = [generator.fitting_ids(answer) for answer in ANSWERS]
    generator.model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found, mask = generator.token_log_probs(PAIRS, answers)
    weights = torch.linspace(0.2, 1.0, len(PAIRS)).unsqueeze(-1)
    (found * weights * mask).sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in generator.model.named_parameters()}


def padded(generator, monkeypatch, dtype=torch.float32):
    with monkeypatch.context() as patch:
        patch.setattr(seq2seq, "packable", lambda model: False)
        return computed(generator, dtype)


@pytest.mark.parametrize("budget", [1, 60, 2000])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("architecture", ["bart", "mbart"])
def test_packed_rows_are_the_padded_ones(architecture, recompute, budget, writers, monkeypatch):
    generator = writers(architecture)
    expected, gradients = padded(generator, monkeypatch)
    monkeypatch.setattr(packing, "PACKED_TOKENS", budget)
    generator.recompute = recompute
    found, own = computed(generator)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        limit = 1e-4 * float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=limit, msg=name)


@pytest.mark.parametrize("plain_up_to", [0, 640])
def test_in_bfloat16_too(plain_up_to, writers, monkeypatch):
    generator = writers("bart")
    exact, gradients = padded(generator, monkeypatch)
    monkeypatch.setattr(packing, "PLAIN_UP_TO", plain_up_to)
    choose_attention(generator, torch.bfloat16, 100)
    found, own = computed(generator, torch.bfloat16)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    wanted, rough = (torch.cat([g.reshape(-1) for g in each.values()]) for each in (gradients, own))
    assert float((rough - wanted).norm() / wanted.norm()) < 0.02


def test_encoder_states_of_packed_prompts_begin_answers_alike(writers, monkeypatch):
    generator = writers("bart")
    with torch.no_grad():
        found = generator.start(PAIRS).log_probs
        monkeypatch.setattr(seq2seq, "packable", lambda model: False)
        torch.testing.assert_close(found, generator.start(PAIRS).log_probs, rtol=1e-5, atol=1e-5)


def test_no_row_sees_another(writers):
    """Other neighbours change nothing of a row."""
    generator = writers("bart")
    answers = [generator.fitting_ids(answer) for answer in ANSWERS]
    others = [(question, dataclasses.replace(p, text=p.text.swapcase())) for question, p in PAIRS]
    with torch.no_grad():
        alone, _ = generator.token_log_probs(PAIRS[:1], answers[:1])
        found, _ = generator.token_log_probs([*PAIRS[:1], *others[1:]], answers)
    torch.testing.assert_close(found[0, : alone.shape[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_the_model_is_as_before_even_after_a_failure(writers):
    generator = writers("bart")
    encoder = generator.base.get_encoder()
    before = generator.base.config._attn_implementation
    with pytest.raises(RuntimeError), packing.packing(generator.base, encoder, [2, 2]):
        encoder(inputs_embeds=torch.zeros(1, 5, 32), rows=[2, 2])
    assert generator.base.config._attn_implementation == before
    assert not encoder.embed_positions._forward_pre_hooks


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([9], [[0]]), ([4, 5, 2], [[0, 1], [2]]), ([20, 1, 9, 1], [[0], [1, 2], [3]]), ([10, 10], [[0], [1]])],
)
def test_batches_are_filled_in_order(lengths, expected, monkeypatch):
    monkeypatch.setattr(packing, "PACKED_TOKENS", 10)
    assert packing.packed_batches(lengths) == expected
