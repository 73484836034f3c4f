"""DPR towers against transformers' DPRQuestionEncoder and DPRContextEncoder: the vector is their `pooler_output`.

Same weights, float32, one text at a time without padding against our batches: 1e-5 absolute on entries of about 1.
"""

import numpy as np
import pytest
import torch
import transformers

from ragx.index.encoder import Encoder, EncoderSettings
from ragx.records import Passage

TEXTS = ["Who lights the kiln?", "beech wood", "A brown dog called Biscuit sleeps beside the kiln.", "x"]
PASSAGES = [
    Passage(0, "kiln", "The kiln", "The kiln at Orrin burns beech wood.", "kiln#0"),
    Passage(1, "none", "", "A passage without a title.", "none#0"),
    Passage(2, "long", "Clay pits", "clay " * 60, "long#0"),
]


@pytest.fixture(params=["DPRQuestionEncoder", "DPRContextEncoder"])
def tower(request, draw_dpr, tmp_path):
    """(class, folder) of a random tower; its weights are spread so that vectors differ."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64, "initializer_range": 0.3}
    questions, passages, words = draw_dpr(11, **shape)
    chosen = questions if request.param == "DPRQuestionEncoder" else passages
    for part in (chosen, words):
        part.save_pretrained(tmp_path / "tower")
    return type(chosen), tmp_path / "tower"


def theirs(tower, *texts):
    kind, folder = tower
    model, tokenizer = kind.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt", truncation=True, max_length=64)).pooler_output[0].numpy()


def test_texts(tower):
    encoder = Encoder(tower[1], EncoderSettings(max_tokens=64), role="query")
    expected = np.stack([theirs(tower, text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoder.forward(TEXTS).detach().numpy(), expected, rtol=0, atol=1e-5)
    assert encoder.settings.normalize is False and encoder.settings.pooling == "cls"


def test_passages_are_pairs_of_title_and_text(tower):
    encoder = Encoder(tower[1], EncoderSettings(max_tokens=64), role="document")
    expected = np.stack([theirs(tower, passage.title, passage.text) for passage in PASSAGES])
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), expected, rtol=0, atol=1e-5)


def test_saved_and_opened_again(tower, tmp_path):
    encoder = Encoder(tower[1], EncoderSettings(max_tokens=64), role="query")
    encoder.save(tmp_path / "saved")
    again = Encoder(tmp_path / "saved", EncoderSettings(max_tokens=64), role="query")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)


def test_opened_twice_it_has_the_same_weights(tower):
    """No weight is drawn at random while opening."""
    one, two = (Encoder(tower[1], EncoderSettings(), role="query").module.state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_back_to_a_question_tower(tower, tmp_path):
    """Whatever was trained goes back into transformers' class with the same vectors."""
    encoder = Encoder(tower[1], EncoderSettings(max_tokens=64), role="query")
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            parameter.mul_(1.1)
    encoder.dpr_tower().save_pretrained(tmp_path / "back")
    encoder.save_tokenizer(tmp_path / "back")
    again = (transformers.DPRQuestionEncoder, tmp_path / "back")
    expected = np.stack([theirs(again, text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=0, atol=1e-5)
