"""The retriever alone: -log p(a gold passage | question), normalised over the whole corpus.

Passage vectors stay fixed, so the scores of all passages are one matrix product and every passage is a negative.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ragx.corpus.answers import normalise_answer
from ragx.rag.retriever import Retriever
from ragx.records import Example, Passage, Progress

log = logging.getLogger(__name__)

PATIENCE = 3


@dataclass(frozen=True, slots=True)
class WarmupSettings:
    """Epochs at most, questions a step, and the learning rates of encoder and prior."""

    epochs: int
    batch_size: int
    learning_rate: float
    prior_learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int


@dataclass(frozen=True, slots=True)
class Supervised:
    """A question and the numbers of the passages that count as right for it."""

    example: Example
    positives: tuple[int, ...]


def supervise(examples: Sequence[Example], passages: Sequence[Passage]) -> list[Supervised]:
    """The right passages of each question: those of its gold documents that hold an answer, else all of theirs; with
    no gold documents, all passages that hold an answer. Questions without any are left out."""
    texts = [f" {normalise_answer(passage.text)} " for passage in passages]
    by_document: dict[str, list[int]] = {}
    for passage in passages:
        by_document.setdefault(passage.document_id, []).append(passage.number)
    found = []
    for example in examples:
        answers = [f" {answer} " for answer in map(normalise_answer, example.answers) if answer]
        gold = [number for document in example.doc_ids for number in by_document.get(document, [])]
        pool = gold if example.doc_ids else range(len(passages))
        holding = [number for number in pool if any(answer in texts[number] for answer in answers)]
        positives = holding or gold
        if positives:
            found.append(Supervised(example, tuple(positives)))
    return found


def warm_up(
    retriever: Retriever,
    train: Sequence[Supervised],
    dev: Sequence[Supervised],
    settings: WarmupSettings,
    progress: Progress,
) -> int:
    """Train question encoder and prior; the epoch with the lowest dev loss is kept, where there is a dev set, else the
    last. Returns which it was, 0 being the start."""
    encoder = [p for p in retriever.question_encoder.parameters() if p.requires_grad]
    prior = [p for p in retriever.prior.parameters() if p.requires_grad]
    groups = [
        {"params": encoder, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": prior, "lr": settings.prior_learning_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    total = settings.epochs * -(-len(train) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / total))
    best, best_state, bad, done, kept = corpus_nll(retriever, dev), snapshot(retriever), 0, 0, 0
    for epoch in range(settings.epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed + epoch)).tolist()
        for start in range(0, len(order), settings.batch_size):
            batch = [train[row] for row in order[start : start + settings.batch_size]]
            loss = retriever_loss(retriever, batch).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_([*encoder, *prior], settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            done += 1
            progress("retriever warm-up", done, total)
        nll = corpus_nll(retriever, dev)
        if dev and nll >= best:
            bad += 1
            if bad == PATIENCE:
                break
        else:
            best, best_state, bad, kept = nll, snapshot(retriever), 0, epoch + 1
    retriever.load_state_dict(best_state)
    log.info("retriever warm-up: %d epochs, dev -log p(gold passage) %.3f nats", epoch + 1, best)
    progress("retriever warm-up", total, total)
    return kept


@torch.no_grad()
def corpus_nll(retriever: Retriever, questions: Sequence[Supervised], batch_size: int = 32) -> float:
    """The mean of -log p(a gold passage | question) in nats; 0 when there are no questions."""
    losses = [retriever_loss(retriever, questions[i : i + batch_size]) for i in range(0, len(questions), batch_size)]
    return float(torch.cat(losses).mean()) if losses else 0.0


def retriever_loss(retriever: Retriever, batch: Sequence[Supervised]) -> Tensor:
    """-log sum over the right passages of p(z|x), [B]."""
    texts = [item.example.question for item in batch]
    queries = None if retriever.settings.mode == "lexical" else retriever.encoder.forward(texts)
    log_probs = torch.log_softmax(retriever.corpus_scores(queries, texts), dim=-1)
    return torch.stack([-log_probs[row, list(item.positives)].logsumexp(0) for row, item in enumerate(batch)])


def snapshot(retriever: Retriever) -> dict[str, Tensor]:
    """A copy of the retriever's weights."""
    return {name: value.detach().clone() for name, value in retriever.state_dict().items()}
