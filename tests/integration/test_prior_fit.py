"""The prior's two numbers are fitted before the encoders learn, and learn at rates of their own sizes."""

import itertools
import math

import pytest
import torch

from ragx import build_index, finetune, load_config
from ragx.corpus.questions import read_examples
from ragx.rag.retriever import LEXICAL_WEIGHT, Prior
from ragx.stages.models import open_model
from ragx.training.warmup import Supervised, corpus_nll, fit_prior, supervise


@pytest.fixture
def retriever_of(tiny_config):
    """retriever_of("hybrid") -> the retriever of the tiny model and its training questions with what is right."""

    def opened(mode, count=None):
        config = load_config(tiny_config(retrieval={"mode": mode, "top_k": 3, "candidates": 30}))
        build_index(config)
        retriever = open_model(config, "base").retriever
        return retriever, supervise(read_examples(config.data.train), retriever.index.all_passages())[:count]

    return opened


@torch.no_grad()
def posterior(retriever, questions, begun):
    """What is least where the prior is fitted: nats of all questions, and half the squared distance in deviations."""
    prior = retriever.prior
    moved = (prior.log_temperature - begun[0]) ** 2 + ((prior.lexical_weight - begun[1]) / LEXICAL_WEIGHT) ** 2
    return corpus_nll(retriever, questions) * len(questions) + float(moved) / 2


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_no_other_prior_near_it_is_likelier(retriever_of, mode):
    retriever, questions = retriever_of(mode)
    prior = retriever.prior
    begun = (prior.log_temperature.item(), prior.lexical_weight.item())
    before = posterior(retriever, questions, begun)
    encoder = {name: value.clone() for name, value in retriever.question_encoder.state_dict().items()}
    fit_prior(retriever, questions)
    least = posterior(retriever, questions, begun)
    assert least < before - 0.1
    for parameter in (prior.log_temperature, prior.lexical_weight):
        for step in (0.05, -0.05):
            with torch.no_grad():
                parameter.add_(step)
            assert posterior(retriever, questions, begun) > least or not parameter.requires_grad
            with torch.no_grad():
                parameter.sub_(step)
    assert (prior.log_temperature.item() == begun[0]) is (mode == "lexical")
    assert (prior.lexical_weight.item() == begun[1]) is (mode == "dense")
    assert all(torch.equal(value, encoder[name]) for name, value in retriever.question_encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_lexical_scores_that_tell_nothing_lose_their_weight(retriever_of):
    retriever, questions = retriever_of("hybrid")
    unlike = [Supervised(item.example, other.positives) for item, other in itertools.pairwise(questions)]
    fit_prior(retriever, unlike)
    assert retriever.prior.lexical_weight.item() < 0.2 * LEXICAL_WEIGHT


def test_one_question_hardly_moves_it(retriever_of):
    retriever, questions = retriever_of("hybrid", 1)
    begun = retriever.prior.values()
    fit_prior(retriever, questions)
    now = retriever.prior.values()
    assert abs(math.log(now["temperature"] / begun["temperature"])) < 2
    assert abs(now["lexical_weight"] - begun["lexical_weight"]) < 2 * LEXICAL_WEIGHT


@pytest.mark.parametrize("folds", [0, 3])
def test_where_no_encoder_learns_the_warm_up_is_the_fit_alone(tiny_config, caplog, folds):
    caplog.set_level("INFO", logger="ragx")
    section = {
        "train": ["generator"],
        "cross_fit": folds,
        "epochs": 1,
        "reading_epochs": 0,
        "prior_learning_rate": 1e-12,
    }
    config = load_config(tiny_config(retrieval={"mode": "lexical", "top_k": 3}, data={"dev": None}, finetune=section))
    build_index(config)
    done = finetune(config)
    log = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("prior fitted: ") for line in log) == 1 + folds
    assert not any("retriever warm-up: " in line for line in log)
    assert done["prior"]["lexical_weight"] != pytest.approx(LEXICAL_WEIGHT, abs=0.01)


def test_a_step_moves_both_numbers_by_a_like_part_of_their_size():
    prior = Prior(0.05, LEXICAL_WEIGHT, "hybrid")
    optimizer = torch.optim.AdamW(prior.groups(0.01))
    prior(torch.tensor([[0.3]]), torch.tensor([[0.4]])).sum().backward()
    optimizer.step()
    values = prior.values()
    assert abs(math.log(values["temperature"] / 0.05)) == pytest.approx(0.01, rel=1e-3)
    assert abs(values["lexical_weight"] / LEXICAL_WEIGHT - 1) == pytest.approx(0.01, rel=1e-3)
