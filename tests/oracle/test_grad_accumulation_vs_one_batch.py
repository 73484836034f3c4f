"""A training step in micro-batches against the same step on the whole batch.

The loss is the mean over the questions of the batch whatever the micro-batch: gradients are equal up to float32 sums in
another order (and other padding), 1e-4 of the largest entry of a tensor.
"""

import pytest
import torch

from ragx import stages
from ragx.config import load_config
from ragx.corpus.questions import read_examples
from ragx.stages.models import open_model
from ragx.training import watch
from ragx.training.hits import Settled
from ragx.training.loop import _Joint
from ragx.training.processes import Processes
from ragx.training.settings import TrainSettings


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
        rollbacks=0,
        sample_answers=0,
        seed=3,
        dtype=torch.float32,
    )


def gradients(model, batch, micro, folder):
    """What the loop leaves before the optimizer's step: gradients by name, and the monitor of the batch."""
    joint = _Joint(model, batch, [], settings(micro, 1.0), folder, "", Processes("cpu"), Settled())
    monitor = watch.monitor_of(joint._gradients(batch))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, monitor


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["causal", "t5", "bart"])
def test_equal_gradients(kind, marginal, tiny_config, tiny_corpus, tmp_path):
    config = load_config(tiny_config(kind, rag={"marginal": marginal}))
    stages.build_index(config)
    model = open_model(config, "base")
    batch = read_examples(tiny_corpus.train)[:5]
    found, monitors = [], []
    for micro in (5, 1, 2):  # the last of 2, 2 and 1 questions: a mean of means would weigh them unequally
        part, monitor = gradients(model, batch, micro, tmp_path)
        found.append(part)
        monitors.append(monitor)
    whole = found[0]
    assert any(value.abs().max() > 1e-4 for value in whole.values())
    for parts, monitor in zip(found[1:], monitors[1:], strict=True):
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            limit = 1e-4 * float(value.abs().max()) + 1e-6
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=limit, msg=lambda t, n=name: f"{n}: {t}")
        assert monitor.nll == pytest.approx(monitors[0].nll, rel=1e-5)
        assert monitor.nll_per_token == pytest.approx(monitors[0].nll_per_token, rel=1e-5)


def test_the_step_is_the_mean_over_questions(tiny_config, tiny_corpus, tmp_path):
    config = load_config(tiny_config("bart"))
    stages.build_index(config)
    model = open_model(config, "base")
    batch = read_examples(tiny_corpus.train)[:5]
    found, _ = gradients(model, batch, 2, tmp_path)
    model.zero_grad(set_to_none=True)
    (model([e.question for e in batch], [e.answers[0] for e in batch], 3).nll.mean()).backward()
    for name, value in found.items():
        expected = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-6)
