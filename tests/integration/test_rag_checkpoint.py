"""transformers' RAG checkpoints through the shipped configurations: tiny DPR and BART in the place of Facebook's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ragx import ask, build_index, evaluate, finetune, load_config
from ragx.stages.models import open_index, open_model

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def shipped(tiny_rag, tiny_corpus, tmp_path):
    """shipped("sequence", *overrides): configs/rag-sequence-nq.yaml over the tiny corpus and checkpoint."""

    def load(marginal, *overrides):
        checkpoint, tower = tiny_rag(marginal)
        return load_config(
            CONFIGS / f"rag-{marginal}-nq.yaml",
            [
                f"rag.checkpoint={checkpoint}",
                f"encoder.passage_model={tower}",
                f"corpus.paths=[{tiny_corpus.corpus}]",
                f"data.train={tiny_corpus.train}",
                f"data.dev={tiny_corpus.dev}",
                f"data.test={tiny_corpus.test}",
                f"output_dir={tmp_path / 'runs'}",
                "passages.size=12",
                "dtype=float32",
                "device=cpu",
                "eval.bootstrap=100",
                *overrides,
            ],
        )

    return load


@pytest.mark.parametrize("pickles", ["true", "false"])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_index_ask_eval(marginal, pickles, shipped):
    """Weights in safetensors are read whether or not pickled ones would be allowed."""
    config = shipped(marginal, f"allow_pickle_weights={pickles}")
    assert (config.rag.marginal, config.retrieval.mode) == (marginal, "dense")
    assert build_index(config)["passages"] > 12
    answer = ask(config, "Who lights the kiln?")
    assert answer.log_probability < 0 and len(answer.hits) == config.retrieval.top_k
    report = evaluate(config)
    assert report.n == 4 and np.isfinite(report.metrics["nll"].value)


def test_vectors_are_those_of_the_towers(shipped):
    """Index and questions: transformers' own pooler outputs, float32, 1e-5; and the prior is their softmax."""
    config = shipped("sequence", "allow_pickle_weights=false")
    build_index(config)
    index = open_index(config)
    passages = index.all_passages()[:5]
    tower = transformers.DPRContextEncoder.from_pretrained(config.encoder.passage_model).eval()
    words = transformers.AutoTokenizer.from_pretrained(config.encoder.passage_model)
    joint = transformers.RagSequenceForGeneration.from_pretrained(config.rag.checkpoint).eval()
    question = "Who lights the kiln?"
    with torch.no_grad():
        expected = [tower(**words(p.title, p.text, return_tensors="pt")).pooler_output[0].numpy() for p in passages]
        asked = joint.question_encoder(**words(question, return_tensors="pt")).pooler_output[0].numpy()
        found = open_model(config, "base").retriever([question])
    np.testing.assert_allclose(index.all_vectors()[:5], np.stack(expected), rtol=0, atol=1e-5)
    products = index.all_vectors() @ asked
    best = np.argsort(-products, kind="stable")[: config.retrieval.top_k]
    assert [passage.number for passage in found.passages[0]] == best.tolist()
    np.testing.assert_allclose(found.scores[0].numpy(), products[best], rtol=1e-5, atol=1e-4)


def test_finetune_and_ask(shipped, read_metrics):
    config = shipped("sequence", "allow_pickle_weights=false", "finetune.epochs=6", "finetune.batch_size=4",
                     "finetune.learning_rate=1e-2", "finetune.patience=100", "finetune.warmup_epochs=1",
                     "finetune.lora=false")  # fmt: skip
    build_index(config)
    before = ask(config, "Who lights the kiln?")
    assert finetune(config)["steps"] == 21 + 18  # of reading, and joint
    train = read_metrics(config.run_dir)
    assert train[-1]["nll_per_token"] < 0.8 * train[0]["nll_per_token"]
    after = ask(config, "Who lights the kiln?")
    assert after.log_probability != before.log_probability
    card = json.loads((config.run_dir / "model" / "manifest.json").read_text(encoding="utf-8"))
    assert card["adapter"] is False
