"""The passage side's gradient against plain autograd over everything, and refreshed vectors against encoding anew.

Float32; the batches differ in their padding and the sums in their order: 1e-4 of the largest entry of a tensor, 1e-5
for vectors of unit size.
"""

from functools import partial

import numpy as np
import pytest
import torch

from ragx import build_index, load_config
from ragx.rag.marginal import log_likelihood
from ragx.stages.job import prepare_training
from ragx.stages.models import open_model
from ragx.training.processes import Processes
from ragx.training.refresh import UNCHANGED, hits, refresh, restore, state

QUESTIONS = ["Who lights the kiln?", "What does a small bowl cost?", "Which river flooded the cellar in 1951?"]
ANSWERS = ["Marta Veld", "four crowns", "the Sile"]


@pytest.fixture
def open_both(tiny_config):
    """open_both(tied=False, kind="ivf"): a model over the tiny corpus whose passage encoder learns."""

    def load(*, tied=True, kind="flat", marginal="sequence"):
        path = tiny_config(
            "t5",
            retrieval={"mode": "hybrid", "top_k": 4, "candidates": 12, "lexical_weight": 1.5},
            rag={"marginal": marginal},
            index={"kind": kind} if kind != "IVF2,Flat" else {"factory": kind},
            finetune={"train": ["question_encoder", "passage_encoder", "generator"], "tie_encoders": tied},
        )
        config = load_config(path)
        build_index(config)
        return open_model(config, "base", prepare=partial(prepare_training, few=False))

    return load


def move(model):
    """Change the passage encoder, as some steps would."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.retriever.passage_encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.02)


def by_hand(model):
    """-log p(y|x) written down anew: every passage encoded alone, with graph, the hits being those of the index."""
    retriever = model.retriever
    with torch.no_grad():
        numbers = [[p.number for p in row] for row in retriever(QUESTIONS).passages]
    every = {p.number: p for p in retriever.index.all_passages()}
    total = torch.zeros(())
    for question, answer, row in zip(QUESTIONS, ANSWERS, numbers, strict=True):
        query = retriever.encoder.forward([question])[0]
        texts = [f"{every[n].title}\n{every[n].text}" for n in row]
        vectors = torch.stack([retriever.passage_side.forward([text])[0] for text in texts])
        lexical = torch.from_numpy(retriever.index.lexical_scores([question], np.array([row]), "hybrid"))[0]
        log_prior = torch.log_softmax(retriever.prior(vectors @ query, lexical), dim=-1)
        ids = [model.generator.answer_ids(answer)] * len(row)
        log_probs, mask = model.generator.token_log_probs([(question, every[n]) for n in row], ids)
        total = total - log_likelihood(model.marginal, log_prior[None], log_probs[None], mask[None]).sum()
    return total


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("marginal", ["sequence", "token"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("two_passes", [True, False])
def test_gradient_equals_autograd(two_passes, tied, marginal, open_both):
    """With stale vectors in the index too: they say which passages are hits, and nothing else."""
    model = open_both(tied=tied, marginal=marginal)
    move(model)
    expected_loss = by_hand(model)
    expected = gradients(model, expected_loss)
    model.kept_share = 0.0 if two_passes else 1.0
    loss = model(QUESTIONS, ANSWERS, posterior_mass=1.0 - 1e-7 if two_passes else 1.0).nll.sum()
    assert float(loss.detach()) == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    found = gradients(model, loss)
    side = "question_encoder" if tied else "passage_encoder"
    names = [name for name in expected if name.startswith(f"retriever.{side}")]
    assert names and any(float(expected[name].abs().max()) > 1e-3 for name in names)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = 1e-4 * max(2e-2, float(value.abs().max()))  # float32, and batches padded otherwise
        assert float((found[name] - value).abs().max()) <= bound, name


@pytest.mark.parametrize("kind", ["flat", "IVF2,Flat"])
def test_refresh_equals_encoding_anew(kind, open_both):
    model = open_both(kind=kind)
    retriever, alone = model.retriever, Processes("cpu")
    before = retriever.index.all_vectors().copy()
    fresh = retriever.passage_side.encode_passages(retriever.index.all_passages())
    untouched = refresh(retriever, alone, QUESTIONS, 4, whole_below=UNCHANGED, seed=1)
    assert not untouched.whole and untouched.cosine > UNCHANGED and untouched.overlap == 1.0
    np.testing.assert_allclose(before, fresh, rtol=0, atol=1e-5)
    saved = state(retriever)

    move(model)
    fresh = retriever.passage_side.encode_passages(retriever.index.all_passages())
    whole = refresh(retriever, alone, QUESTIONS, 4, whole_below=2.0, seed=1)
    assert whole.whole and whole.passages == len(before) and whole.cosine < UNCHANGED
    np.testing.assert_allclose(retriever.index.all_vectors(), fresh, rtol=0, atol=1e-5)
    numbers = hits(retriever, alone, QUESTIONS, 4)
    with torch.no_grad():
        scores = retriever(QUESTIONS).scores
    with torch.enable_grad():
        again = retriever(QUESTIONS)
    assert [[p.number for p in row] for row in again.passages] == numbers.tolist()
    torch.testing.assert_close(again.scores.detach(), scores, rtol=1e-4, atol=1e-4)
    restore(retriever, saved)
    np.testing.assert_allclose(retriever.index.all_vectors(), before, rtol=0, atol=1e-5)


def test_a_partial_refresh_is_of_what_questions_choose_between(open_both, monkeypatch):
    monkeypatch.setattr("ragx.training.refresh.SAMPLE", 3)
    model = open_both()
    retriever, alone = model.retriever, Processes("cpu")
    move(model)
    before = retriever.index.all_vectors().copy()
    near = set(hits(retriever, alone, QUESTIONS[:1], 8).flatten().tolist())
    done = refresh(retriever, alone, QUESTIONS[:1], 4, whole_below=-1.0, seed=1)
    changed = set(np.flatnonzero((retriever.index.all_vectors() != before).any(axis=1)).tolist())
    assert near <= changed and len(changed) == done.passages <= len(near) + 3 < len(before) and not done.whole
    fresh = retriever.passage_side.encode_passages(retriever.index.all_passages())
    rows = sorted(changed)
    np.testing.assert_allclose(retriever.index.all_vectors()[rows], fresh[rows], rtol=0, atol=1e-5)
