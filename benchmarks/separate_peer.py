"""What is assembled without ragx: a contrastively tuned retriever beside a generator tuned on gold passages.

The retriever: sentence-transformers' MultipleNegativesRankingLoss on (question, gold passage), both through the one
tower, no passage twice in a batch. Of two learning rates and all epochs the best by dev MRR stays, every passage being
encoded anew for it. The generator: LoRA and the mean negative log-likelihood of the answer's tokens after the gold
passage and the question; the epoch with the lowest dev loss stays.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from ragx.index.encoder import BATCH_TOKENS, GPU_BATCH_TOKENS, Encoder
from ragx.rag.generator import Generator
from ragx.rag.retriever import Retriever
from ragx.records import Example, Passage
from ragx.training.warmup import supervise

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question, its gold passage, and the numbers of all passages that are right."""

    example: Example
    passage: Passage
    positives: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Questions a step, optimizer steps at most, learning rates of which dev chooses, and epochs without a gain."""

    batch_size: int
    steps: int
    rates: tuple[float, ...]
    weight_decay: float
    patience: int
    seed: int
    dtype: torch.dtype


def lessons_of(retriever: Retriever, examples: Sequence[Example]) -> list[Lesson]:
    """Each question with that of its right passages which is nearest to it before any training."""
    passages, vectors = retriever.index.all_passages(), retriever.index.all_vectors()
    found = supervise(examples, passages)
    queries = retriever.encoder.encode([item.example.question for item in found])
    lessons = []
    for item, query in zip(found, queries, strict=True):
        nearest = item.positives[int((vectors[list(item.positives)] @ query).argmax())]
        lessons.append(Lesson(item.example, passages[nearest], item.positives))
    return lessons


def tune_retriever(
    encoder: Encoder, train: Sequence[Lesson], dev: Sequence[Lesson], passages: Sequence[Passage], tuning: Tuning
) -> dict[str, float]:
    """Tune the one tower in place; returns dev MRR before and after, and the learning rate that dev chose."""
    start = _snapshot(encoder.module)
    before = mean_reciprocal_rank(encoder, dev, passages, tuning.dtype)
    best, best_state, chosen = before, start, 0.0
    for rate in tuning.rates if dev else tuning.rates[:1]:
        encoder.module.load_state_dict(start, strict=False)
        for _ in _contrastive_epochs(encoder, train, rate, tuning):
            score = mean_reciprocal_rank(encoder, dev, passages, tuning.dtype)
            if not dev or score > best:
                best, best_state, chosen = score, _snapshot(encoder.module), rate
    encoder.module.load_state_dict(best_state, strict=False)
    return {"dev_mrr_before": before, "dev_mrr": best, "retriever_learning_rate": chosen}


def _contrastive_epochs(encoder: Encoder, train: Sequence[Lesson], rate: float, tuning: Tuning) -> Iterator[None]:
    """Train, and pause after every epoch."""
    torch.manual_seed(tuning.seed)
    module, loss = encoder.module, MultipleNegativesRankingLoss(encoder.module)
    parameters = list(module.parameters())
    optimizer, schedule = _optimizer(parameters, rate, tuning)
    done = 0
    while done < tuning.steps:
        module.train()
        for batch in distinct_batches(train, torch.randperm(len(train)).tolist(), tuning.batch_size):
            with torch.autocast(torch.device(encoder.device).type, tuning.dtype, enabled=_mixed(tuning)):
                questions = encoder.forward([lesson.example.question for lesson in batch])
                texts = encoder.tokenize_passages([lesson.passage for lesson in batch]).texts
                gold = encoder.forward([str(text) for text in texts])
            value: Tensor = loss.compute_loss_from_embeddings([questions, gold], None)
            _step(value, parameters, optimizer, schedule)
            done += 1
            if done == tuning.steps:
                break
        module.eval()
        yield


def distinct_batches(train: Sequence[Lesson], order: Sequence[int], size: int) -> list[list[Lesson]]:
    """Batches in which no lesson's passage is right for another: it would be a false negative."""

    def fits(batch: Sequence[Lesson], new: Lesson) -> bool:
        return len(batch) < size and not any(
            new.passage.number in other.positives or other.passage.number in new.positives for other in batch
        )

    batches: list[list[Lesson]] = []
    for row in order:
        home = next((batch for batch in batches if fits(batch, train[row])), None)
        if home is None:
            batches.append(home := [])
        home.append(train[row])
    return batches


def mean_reciprocal_rank(
    encoder: Encoder, lessons: Sequence[Lesson], passages: Sequence[Passage], dtype: torch.dtype
) -> float:
    """1 / rank of the first right passage among all of the corpus, averaged; 0 without lessons."""
    if not lessons:
        return 0.0
    batch_tokens = BATCH_TOKENS if encoder.device == "cpu" else GPU_BATCH_TOKENS
    vectors = encoder.encode_passages(passages, batch_tokens=batch_tokens, dtype=dtype)
    scores = encoder.encode([lesson.example.question for lesson in lessons]) @ vectors.T
    right = np.array([scores[row, list(lesson.positives)].max() for row, lesson in enumerate(lessons)])
    return float((1 / (1 + (scores > right[:, None]).sum(axis=1))).mean())


def tune_generator(
    generator: Generator, train: Sequence[Lesson], dev: Sequence[Lesson], tuning: Tuning
) -> dict[str, float]:
    """Tune the generator's trainable weights in place; returns dev loss before and after and the steps taken."""
    parameters = [parameter for parameter in generator.model.parameters() if parameter.requires_grad]
    optimizer, schedule = _optimizer(parameters, tuning.rates[0], tuning)
    draw = torch.Generator().manual_seed(tuning.seed)
    before = answers_nll(generator, dev, tuning)
    best, best_state, bad, done = before, _snapshot(generator.model), 0, 0
    while done < tuning.steps and bad < tuning.patience:
        order = torch.randperm(len(train), generator=draw).tolist()[: (tuning.steps - done) * tuning.batch_size]
        for start in range(0, len(order), tuning.batch_size):
            batch = [train[row] for row in order[start : start + tuning.batch_size]]
            nll, tokens = _nll(generator, batch, tuning)
            _step(nll / tokens, parameters, optimizer, schedule)
            done += 1
        now = answers_nll(generator, dev, tuning)
        if dev and now >= best:
            bad += 1
        else:
            best, best_state, bad = now, _snapshot(generator.model), 0
    generator.model.load_state_dict(best_state, strict=False)
    return {"dev_nll_before": before, "dev_nll": best, "generator_steps": done}


@torch.no_grad()
def answers_nll(generator: Generator, lessons: Sequence[Lesson], tuning: Tuning) -> float:
    """Nats a token of the answers after their gold passages; 0 without lessons."""
    parts = [
        _nll(generator, lessons[start : start + tuning.batch_size], tuning)
        for start in range(0, len(lessons), tuning.batch_size)
    ]
    return sum(float(nll) for nll, _ in parts) / max(1, sum(tokens for _, tokens in parts))


def _nll(generator: Generator, lessons: Sequence[Lesson], tuning: Tuning) -> tuple[Tensor, int]:
    """-log p of the answers in nats, summed, and their tokens."""
    answers = [generator.answer_ids(lesson.example.answers[0]) for lesson in lessons]
    pairs = [(lesson.example.question, lesson.passage) for lesson in lessons]
    with torch.autocast(generator.device.type, tuning.dtype, enabled=_mixed(tuning)):
        log_probs, mask = generator.token_log_probs(pairs, answers)
    return -log_probs.masked_fill(~mask, 0.0).sum(), int(mask.sum())


def _optimizer(
    parameters: Sequence[nn.Parameter], rate: float, tuning: Tuning
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a linear warm-up over a tenth of the steps and a linear decay."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=tuning.weight_decay)
    warm = math.ceil(tuning.steps / 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, 1 - step / (tuning.steps + 1))
    )
    return optimizer, schedule


def _step(loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def _mixed(tuning: Tuning) -> bool:
    return tuning.dtype != torch.float32


def _snapshot(module: nn.Module) -> State:
    """Copies of what may be trained."""
    kept = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: value.detach().clone() for name, value in module.state_dict().items() if name in kept}
