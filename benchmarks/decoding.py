"""RAG-Sequence thorough decoding against transformers' RagSequenceForGeneration.generate, on the same random weights.

    python -m benchmarks.decoding [--quick] [--json]

BART-base size, K = 5 contexts of 120-200 tokens a question, greedy candidates, 16 new tokens, float32. The peer is run
as its users run it, contexts padded to 300 tokens; a second claim gives it contexts trimmed to the longest. It lets
candidates attend to padding, so the answers can differ: compared is log p of ragx's answer, recomputed by the peer from
the true masks.
"""

import argparse
import statistics
from functools import partial

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    PreTrainedTokenizerFast,
    RagConfig,
    RagSequenceForGeneration,
)

from benchmarks.common import alternate, matrix_peak, print_claim, ratio
from ragx.rag.decoding import Decoded, decode
from ragx.rag.generator import Pair
from ragx.rag.prompts import PromptSettings
from ragx.rag.seq2seq import Seq2SeqGenerator
from ragx.records import Passage

K = 5
NEW_TOKENS = 16
PADDED = 300
WORDS = 20_000


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word w0 ... w19999, wrapped as BART does."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def peer_model(bart: BartForConditionalGeneration) -> RagSequenceForGeneration:
    """transformers' RAG around the same generator; its question encoder is not used here."""
    small = DPRConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    config = RagConfig.from_question_encoder_generator_configs(small, bart.config, n_docs=K)
    model = RagSequenceForGeneration(config)
    model.rag.generator = bart
    return model.eval()


def questions(count: int, seed: int = 0) -> list[list[Pair]]:
    """`count` questions with K passages of natural length each."""
    draw = torch.Generator().manual_seed(seed)

    def text(length: int) -> str:
        return " ".join(f"w{int(i)}" for i in torch.randint(0, WORDS, (length,), generator=draw))

    lengths = torch.randint(110, 185, (count, K), generator=draw).tolist()
    rows = []
    for number, row in enumerate(lengths):
        question = text(12)
        rows.append([(question, Passage(k, f"d{number}", "", text(n), f"d{number}#{k}")) for k, n in enumerate(row)])
    return rows


def padded(generator: Seq2SeqGenerator, pairs: list[Pair], length: int | None) -> dict[str, torch.Tensor]:
    """The peer's inputs of one question: context ids and mask, padded to `length` or the longest."""
    rows = [generator.template.ids(passage, question) for question, passage in pairs]
    width = length or max(map(len, rows))
    ids = torch.tensor([row + [generator.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"context_input_ids": ids, "context_attention_mask": mask}


@torch.no_grad()
def agree(
    peer: RagSequenceForGeneration, generator: Seq2SeqGenerator, pairs: list[Pair], prior: torch.Tensor, ours: Decoded
) -> bool:
    """Whether the peer's loss of ragx's answer is ragx's -log p(y|x), float32."""
    target = torch.tensor([[*generator.decoder_prefix, *generator.fitting_ids(ours.text)]])
    inputs = padded(generator, pairs, None)
    loss = peer(**inputs, doc_scores=prior[None], decoder_input_ids=target, labels=target, exclude_bos_score=True)
    skipped = peer(**inputs, doc_scores=prior[None], decoder_input_ids=target, labels=target)
    return any(abs(float(found.loss) + ours.log_probability) < 1e-2 for found in (loss, skipped))


@torch.no_grad()
def main() -> None:
    """Print one JSON line a claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two questions, three pairs")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    words = tokenizer()
    layers = {"encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(words), d_model=768, **layers)).eval()
    generator = Seq2SeqGenerator(bart, words, PromptSettings("{passage} {question}", None, PADDED), NEW_TOKENS)
    peer = peer_model(bart)
    rows = questions(2 if quick else 4)
    priors = torch.log_softmax(torch.randn(len(rows), K), dim=-1)
    found: list[Decoded] = []

    def ours() -> None:
        state = generator.start([pair for row in rows for pair in row])
        found[:] = decode(generator, state, priors, marginal="sequence", decoding="thorough", num_beams=1)

    def theirs(length: int | None) -> None:
        for pairs, prior in zip(rows, priors, strict=True):
            inputs = padded(generator, pairs, length)
            peer.generate(**inputs, doc_scores=prior[None], n_docs=K, num_beams=1, max_new_tokens=NEW_TOKENS)

    peak = matrix_peak(torch.float32)
    for claim, length in (("decoding_thorough", PADDED), ("decoding_thorough_trimmed", None)):
        seconds = alternate(ours, partial(theirs, length), 3 if quick else 7)
        same = all(agree(peer, generator, *each) for each in zip(rows, priors, found, strict=True))
        print_claim(
            claim,
            ratio(*seconds),
            peer="transformers RagSequenceForGeneration.generate",
            same_result=same,
            n=len(seconds[0]),
            seconds_ours=round(statistics.median(seconds[0]), 3),
            seconds_peer=round(statistics.median(seconds[1]), 3),
            float32_peak_gflops=round(peak),
        )


if __name__ == "__main__":
    main()
