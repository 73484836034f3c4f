"""A training step in micro-batches against the same step on the whole batch.

The loss is the mean over the questions of the batch whatever the micro-batch: gradients are equal up to float32 sums in
another order (and other padding), 1e-4 of the largest entry of a tensor.
"""

import pytest
import torch
from accelerate import Accelerator

from ragx import stages
from ragx.config import load_config
from ragx.corpus.questions import read_examples
from ragx.stages.models import open_model
from ragx.training.loop import TrainSettings, _step


def settings(micro_batch_size, posterior_mass):
    return TrainSettings(
        epochs=1,
        batch_size=5,
        micro_batch_size=micro_batch_size,
        top_k=3,
        posterior_mass=posterior_mass,
        learning_rate=1e-3,
        retriever_learning_rate=1e-3,
        prior_learning_rate=1e-3,
        weight_decay=0.0,
        warmup_ratio=0.0,
        max_grad_norm=1e9,
        patience=1,
        checkpoint_steps=1,
        seed=3,
        dtype=torch.float32,
    )


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["causal", "t5", "bart"])
def test_equal_gradients(kind, marginal, tiny_config, tiny_corpus):
    config = load_config(tiny_config(kind, rag={"marginal": marginal}))
    stages.build_index(config)
    model = open_model(config, "base")
    batch = read_examples(tiny_corpus.train)[:5]
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    found, monitors = [], []
    for micro in (5, 1, 2):  # the last of 2, 2 and 1 questions: a mean of means would weigh them unequally
        monitors.append(_step(model, batch, still, Accelerator(cpu=True), settings(micro, 1.0), 1))
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    whole = found[0]
    assert any(value.abs().max() > 1e-4 for value in whole.values())
    for parts, monitor in zip(found[1:], monitors[1:], strict=True):
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            limit = 1e-4 * float(value.abs().max()) + 1e-6
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=limit, msg=lambda t, n=name: f"{n}: {t}")
        assert monitor.nll == pytest.approx(monitors[0].nll, rel=1e-5)
        assert monitor.nll_per_token == pytest.approx(monitors[0].nll_per_token, rel=1e-5)


def test_the_step_is_the_mean_over_questions(tiny_config, tiny_corpus):
    config = load_config(tiny_config("bart"))
    stages.build_index(config)
    model = open_model(config, "base")
    batch = read_examples(tiny_corpus.train)[:5]
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    _step(model, batch, still, Accelerator(cpu=True), settings(2, 1.0), 1)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    (model([e.question for e in batch], [e.answers[0] for e in batch], 3).nll.mean()).backward()
    for name, value in found.items():
        expected = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-6)
