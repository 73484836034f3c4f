"""transformers' RAG on random weights, and the same generator for ragx: what several benchmarks compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    PreTrainedTokenizerFast,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

from ragx.rag.generator import Pair
from ragx.rag.marginal import log_prior
from ragx.rag.prompts import PromptSettings
from ragx.rag.retriever import Retrieval, RetrievalSettings
from ragx.rag.seq2seq import Seq2SeqGenerator
from ragx.records import Passage

PADDED = 300
"""transformers pads every context to this length (RagConfig.max_combined_length)."""


@dataclass(frozen=True, slots=True)
class Size:
    """A BART by its width, layers, vocabulary and the deviation of its random weights; the defaults are BART-base's."""

    width: int = 768
    layers: int = 6
    words: int = 50_000
    init_std: float = 0.02


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """One token a word w0, w1, ..., wrapped as BART does."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(words))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def bart_generator(size: Size, max_answer_tokens: int, device: str = "cpu") -> Seq2SeqGenerator:
    """A randomly initialised BART as ragx opens one."""
    tokenizer = word_tokenizer(size.words)
    layers = {"encoder_layers": size.layers, "decoder_layers": size.layers}
    feed_forward = {"encoder_ffn_dim": 4 * size.width, "decoder_ffn_dim": 4 * size.width}
    heads = {"encoder_attention_heads": size.width // 64, "decoder_attention_heads": size.width // 64}
    shape = {"vocab_size": len(tokenizer), "d_model": size.width, "init_std": size.init_std}
    config = BartConfig(**shape, **layers, **feed_forward, **heads)
    bart = BartForConditionalGeneration(config).to(device).eval()
    return Seq2SeqGenerator(bart, tokenizer, PromptSettings("{passage} {question}", None, PADDED), max_answer_tokens)


def rag_model(bart: Any, k: int, marginal: str = "sequence") -> Any:
    """transformers' RAG around the same generator; its question encoder is not used here."""
    small = DPRConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    config = RagConfig.from_question_encoder_generator_configs(small, bart.config, n_docs=k)
    model = (RagSequenceForGeneration if marginal == "sequence" else RagTokenForGeneration)(config)
    model.rag.generator = bart
    return model.eval().to(bart.device)


def random_text(words: int, length: int, draw: torch.Generator) -> str:
    """`length` words of the vocabulary."""
    return " ".join(f"w{int(i)}" for i in torch.randint(0, words, (length,), generator=draw))


def questions(count: int, k: int, words: int, seed: int = 0) -> list[list[Pair]]:
    """`count` questions with K passages each, so that contexts have 120 to 200 tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(106, 187, (count, k), generator=draw).tolist()
    rows = []
    for number, row in enumerate(lengths):
        question, name = random_text(words, 12, draw), f"d{number}"
        texts = [random_text(words, length, draw) for length in row]
        rows.append([(question, Passage(j, name, "", text, f"{name}#{j}")) for j, text in enumerate(texts)])
    return rows


def contexts(generator: Seq2SeqGenerator, pairs: list[Pair], length: int | None) -> dict[str, Tensor]:
    """The peer's inputs: context ids and mask, padded to `length` or the longest."""
    rows = [generator.template.ids(passage, question) for question, passage in pairs]
    width = length or max(map(len, rows))
    ids = torch.tensor([row + [generator.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"context_input_ids": ids.to(generator.device), "context_attention_mask": mask.to(generator.device)}


def labels(generator: Seq2SeqGenerator, answers: list[list[int]]) -> Tensor:
    """Answers with the decoder's start tokens, padded: what the peer takes as decoder input and target at once."""
    rows = [[*generator.decoder_prefix, *answer] for answer in answers]
    width = max(map(len, rows))
    return torch.tensor([row + [generator.pad_id] * (width - len(row)) for row in rows], device=generator.device)


class FixedRetriever(nn.Module):
    """The given K passages of each question, with scores [B, K] that are parameters: both sides read the same."""

    def __init__(self, rows: list[list[Pair]], scores: Tensor) -> None:
        super().__init__()
        self.rows = {row[0][0]: number for number, row in enumerate(rows)}
        self.passages = [[passage for _, passage in row] for row in rows]
        self.scores = nn.Parameter(scores)
        self.settings = RetrievalSettings(top_k=scores.shape[1])

    def forward(self, questions: Sequence[str], k: int | None = None) -> Retrieval:
        """Passages, scores and log-prior [B, K]."""
        numbers = [self.rows[question] for question in questions]
        scores = self.scores[numbers]
        return Retrieval([self.passages[number] for number in numbers], scores, log_prior(scores))

    def first(self, retrieval: Retrieval, k: int) -> Retrieval:
        """All of them: there are just K."""
        return retrieval
