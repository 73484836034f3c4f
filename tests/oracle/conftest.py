"""Randomly drawn generators and RAG checkpoints, and retrieval that returns what a test says."""

import random
import string

import pytest

PROMPT = "{title} / {passage} // {question}"


@pytest.fixture
def draw_text():
    """draw_text(random, low, high): between `low` and `high` words of one to six letters."""

    def draw(source: random.Random, low: int, high: int) -> str:
        letters = string.ascii_lowercase[:12]
        return " ".join(
            "".join(source.choices(letters, k=source.randint(1, 6))) for _ in range(source.randint(low, high))
        )

    return draw


@pytest.fixture
def draw_passages(draw_text):
    """draw_passages(random, B, K): B rows of K passages of unequal length."""
    from ragx.records import Passage

    def draw(source, rows, k):
        numbers = iter(range(rows * k))
        return [
            [
                Passage(n := next(numbers), f"d{n}", draw_text(source, 1, 2), draw_text(source, 1, 12), f"d{n}#0")
                for _ in range(k)
            ]
            for _ in range(rows)
        ]

    return draw


@pytest.fixture
def open_generator(tiny_models):
    """open_generator("t5"): a tiny generator whose weights are spread so far that no distribution is nearly flat."""
    import torch

    from ragx.rag.generators import load_generator
    from ragx.rag.prompts import PromptSettings

    def load(kind, max_answer_tokens=12, max_input_tokens=60, spread=0.15):
        settings = PromptSettings(PROMPT, None, max_input_tokens)
        generator = load_generator(getattr(tiny_models, kind), settings, max_answer_tokens)
        source = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in generator.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=source) * spread)
        return generator

    return load


@pytest.fixture
def fixed_retriever():
    """fixed_retriever(passages, scores): a module that retrieves these passages with these scores [B, K]."""
    import torch

    from ragx.rag.marginal import log_prior
    from ragx.rag.retriever import Retrieval

    class Fixed(torch.nn.Module):
        def __init__(self, passages, scores):
            super().__init__()
            self.passages = passages
            self.scores = torch.nn.Parameter(scores)

        def forward(self, questions, k=None):
            return Retrieval(self.passages, self.scores, log_prior(self.scores))

    return Fixed


@pytest.fixture
def draw_checkpoint(tiny_models, draw_dpr, save_rag, tmp_path, monkeypatch):
    """draw_checkpoint(seed, "bart", "sequence", n_docs=3): a random RAG model of transformers, and its folder."""
    import torch
    import transformers

    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))

    def bart(source, tokenizer):
        width = source.choice([16, 32])
        return transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=len(tokenizer),
                d_model=width,
                encoder_layers=source.choice([1, 2]),
                decoder_layers=source.choice([1, 2]),
                encoder_attention_heads=source.choice([2, 4]),
                decoder_attention_heads=source.choice([2, 4]),
                encoder_ffn_dim=2 * width,
                decoder_ffn_dim=2 * width,
                max_position_embeddings=256,
                dropout=0.0,
                init_std=source.choice([0.1, 0.3]),
                scale_embedding=source.choice([False, True]),
                decoder_start_token_id=tokenizer.eos_token_id,
                forced_eos_token_id=None,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def t5(source, tokenizer):
        width = source.choice([16, 32])
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(tokenizer),
                d_model=width,
                d_kv=8,
                d_ff=2 * width,
                num_layers=source.choice([1, 2]),
                num_decoder_layers=source.choice([1, 2]),
                num_heads=source.choice([2, 4]),
                dropout_rate=0.0,
                initializer_factor=source.choice([1.0, 2.0]),
                feed_forward_proj=source.choice(["relu", "gated-gelu"]),
                tie_word_embeddings=source.choice([True, False]),
                decoder_start_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def draw(seed, generator, marginal, **config):
        source = random.Random(seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(getattr(tiny_models, generator))
        questions, _, words = draw_dpr(seed, hidden_size=16, max_position_embeddings=64)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            writer = {"bart": bart, "t5": t5}[generator](source, tokenizer)
        folder = tmp_path / f"{generator}-{marginal}-{seed}"
        return save_rag(folder, marginal, (questions, words), (writer, tokenizer), **config), folder

    return draw
