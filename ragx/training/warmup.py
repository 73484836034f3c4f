"""The retriever alone: -log p(a gold passage | question).

First the prior's two numbers are fitted, all else as it is: how far lexical scores may be trusted differs from corpus
to corpus, and an encoder that learns beside a wrong weight learns to make up for it. Then the encoders learn, too.

While passage vectors stay fixed the loss is normalised over the whole corpus: the scores of all passages are one matrix
product, and every passage is a negative. Where the passage encoder learns, it is normalised over the passages of the
batch: right ones and mined negatives of all its questions, encoded with gradient (DPR, Karpukhin et al. 2020).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ragx.corpus.search import Finder
from ragx.errors import RagxError
from ragx.rag.retriever import LEXICAL_WEIGHT, Retriever
from ragx.records import Example, Passage, Progress

log = logging.getLogger(__name__)

PATIENCE = 3
MINED = 20
"""Hits of a question looked at for negatives; of a dev question all of them, for what its loss is normalised over."""
POOL = 2048
"""Passages that the dev loss is normalised over at most, where they must be encoded at every look."""
FITTED = 1 << 25
"""Scores of questions and passages that the prior is fitted on at most."""
_NOT_FINITE = "retriever warm-up, {}: the {} is not finite; {}, or say finetune.warmup_epochs: 0"


@dataclass(frozen=True, slots=True)
class WarmupSettings:
    """Epochs at most, questions a step, the learning rates of encoders and prior, and the mined negatives a question
    where the passage encoder learns."""

    epochs: int
    batch_size: int
    learning_rate: float
    prior_learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    hard_negatives: int = 2


@dataclass(frozen=True, slots=True)
class Supervised:
    """A question and the numbers of the passages that count as right for it; `neutral` ones, which hold an answer or
    belong to a gold document, are never mined as negatives."""

    example: Example
    positives: tuple[int, ...]
    neutral: frozenset[int] = frozenset()


def supervise(examples: Sequence[Example], passages: Sequence[Passage], *, neutral: bool = False) -> list[Supervised]:
    """The right passages of each question: those of its gold documents that hold an answer, else all of theirs; with
    no gold documents, all passages that hold an answer. Questions without any are left out. `neutral` ones are found
    where wanted."""
    finder = Finder((row, answer) for row, example in enumerate(examples) for answer in example.answers)
    right: list[list[int]] = [[] for _ in examples]
    held: list[list[int]] = [[] for _ in examples]
    by_document: dict[str, list[int]] = {}
    for passage in passages:
        by_document.setdefault(passage.document_id, []).append(passage.number)
        for row in finder.within(passage.text):
            gold_documents = examples[row].doc_ids
            if not gold_documents or passage.document_id in gold_documents:
                right[row].append(passage.number)
            if neutral:
                held[row].append(passage.number)
    found = []
    for row, example in enumerate(examples):
        gold = [number for document in example.doc_ids for number in by_document.get(document, [])]
        if positives := right[row] or gold:
            beside = frozenset([*gold, *held[row]]) if neutral else frozenset()
            found.append(Supervised(example, tuple(positives), beside))
    return found


def warm_up(
    retriever: Retriever,
    train: Sequence[Supervised],
    dev: Sequence[Supervised],
    settings: WarmupSettings,
    progress: Progress,
) -> int:
    """Fit the prior, then train encoders and prior; the epoch with the lowest dev loss is kept, where there is a dev
    set, else the last. Returns which it was, 0 being the start.

    Raises:
        RagxError: a loss or gradient is not finite; the retriever is as it was at the start.
    """
    start = snapshot(retriever)
    fit_prior(retriever, train)
    if not settings.epochs:
        return 0
    loss_of, dev_loss = objective(retriever, train, dev, settings)
    optimizer = _optimizer_of(retriever, settings)
    total = settings.epochs * -(-len(train) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / total))
    best, bad, done, kept = dev_loss(), 0, 0, 0
    best_state = snapshot(retriever)
    if not math.isfinite(best):
        retriever.load_state_dict(start)
        raise RagxError(_NOT_FINITE.format("before the first step", "loss of the dev set", "try another encoder.model"))
    for epoch in range(settings.epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed + epoch)).tolist()
        broken = None
        for first in range(0, len(order), settings.batch_size):
            loss = loss_of(order[first : first + settings.batch_size]).mean()
            if broken := _step(loss, optimizer, settings.max_grad_norm):
                break
            schedule.step()
            done += 1
            progress("retriever warm-up", done, total)
        nll = math.nan if broken else dev_loss()
        if not math.isfinite(nll):
            retriever.load_state_dict(start)
            what = broken or "loss of the dev set"
            raise RagxError(_NOT_FINITE.format(f"epoch {epoch + 1}", what, "lower finetune.warmup_learning_rate"))
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


def fit_prior(retriever: Retriever, questions: Sequence[Supervised]) -> None:
    """Temperature and lexical weight of least -log p(a right passage | question) over the corpus, by L-BFGS.

    They are the most likely ones a posteriori: where questions are few or all are answered at once, a normal prior
    around the start holds them (of deviation 1 for the temperature's logarithm, `LEXICAL_WEIGHT` for the weight).
    """
    prior, passages = retriever.prior, retriever.index.passages_count
    learnt = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    questions = questions[:: -(-len(questions) // max(32, FITTED // passages))]
    starts = range(0, len(questions), 32)
    with torch.no_grad():
        texts = [[item.example.question for item in questions[start : start + 32]] for start in starts]
        parts = [retriever.corpus_parts(retriever.queries(some), some) for some in texts]
        dense, lexical = (torch.cat(each) for each in zip(*parts, strict=True))
        right = torch.zeros(dense.shape, dtype=torch.bool, device=dense.device)
        for row, item in zip(right, questions, strict=True):
            row[list(item.positives)] = True
    begun = [parameter.detach().clone() for parameter in (prior.log_temperature, prior.lexical_weight)]
    optimizer = torch.optim.LBFGS(learnt, max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        nll = right_nll(prior(dense, lexical), right)
        moved = (prior.log_temperature - begun[0]) ** 2 + ((prior.lexical_weight - begun[1]) / LEXICAL_WEIGHT) ** 2
        value = nll.sum() + moved / 2
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    found = prior.values()
    log.info("prior fitted: temperature %.3f, lexical weight %.2f", found["temperature"], found["lexical_weight"])


def right_nll(scores: Tensor, right: Tensor) -> Tensor:
    """-log of what the softmax of scores [B, n] gives to the right ones [B, n], [B]."""
    return scores.logsumexp(-1) - scores.masked_fill(~right, -torch.inf).logsumexp(-1)


def _optimizer_of(retriever: Retriever, settings: WarmupSettings) -> torch.optim.Optimizer:
    encoder = [p for side in retriever.encoders() for p in side.parameters() if p.requires_grad]
    group = {"params": encoder, "lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return torch.optim.AdamW([group, *retriever.prior.groups(settings.prior_learning_rate)])


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> str | None:
    """One optimizer step; or what is not finite, and no weight has changed."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], max_grad_norm)
    if not torch.isfinite(loss):
        return "loss"
    if not torch.isfinite(norm):
        return "gradient"
    optimizer.step()
    return None


def objective(
    retriever: Retriever, train: Sequence[Supervised], dev: Sequence[Supervised], settings: WarmupSettings
) -> tuple[Callable[[Sequence[int]], Tensor], Callable[[], float]]:
    """The loss [B] of some rows of the training questions, and the loss over the dev set."""
    if retriever.passage_side is None:
        return lambda rows: retriever_loss(retriever, [train[row] for row in rows]), partial(corpus_nll, retriever, dev)
    mined = mine(retriever, train, settings.hard_negatives)
    pool = _pool(mine(retriever, dev, MINED))

    def loss_of(rows: Sequence[int]) -> Tensor:
        numbers = sorted({number for row in rows for number in mined[row]})
        return _loss_over(retriever, [train[row] for row in rows], numbers, retriever.encode_passages(numbers))

    return loss_of, partial(_pool_nll, retriever, dev, pool)


@torch.no_grad()
def mine(retriever: Retriever, items: Sequence[Supervised], negatives: int) -> list[list[int]]:
    """The passages that each question is trained on: its right one that is retrieved best, then the best wrong ones."""
    k = min(MINED + negatives, retriever.index.passages_count)
    found = []
    for start in range(0, len(items), 32):
        part = items[start : start + 32]
        hits = retriever([item.example.question for item in part], k).passages
        for item, row in zip(part, hits, strict=True):
            numbers = [passage.number for passage in row]
            right = next((number for number in numbers if number in item.positives), item.positives[0])
            wrong = [number for number in numbers if number not in item.neutral]
            found.append([right, *wrong[:negatives]])
    return found


def _pool(mined: Sequence[Sequence[int]]) -> list[int]:
    """The right passages of all questions, and as many others as `POOL` has room for."""
    right = {row[0] for row in mined}
    others = sorted({number for row in mined for number in row[1:]} - right)
    return sorted([*right, *others[: max(0, POOL - len(right))]])


@torch.no_grad()
def _pool_nll(retriever: Retriever, questions: Sequence[Supervised], pool: Sequence[int]) -> float:
    """The mean of -log p(a right passage | question) over a pool encoded anew, in nats; 0 without questions."""
    starts = range(0, len(pool), 32)
    vectors = [retriever.encode_passages(pool[start : start + 32]) for start in starts]
    parts = [questions[start : start + 32] for start in range(0, len(questions), 32)]
    losses = [_loss_over(retriever, part, pool, torch.cat(vectors)) for part in parts]
    return float(torch.cat(losses).mean()) if losses else 0.0


def _loss_over(retriever: Retriever, items: Sequence[Supervised], numbers: Sequence[int], vectors: Tensor) -> Tensor:
    """-log sum over the right passages of p(z|x), normalised over passages `numbers` without a question's neutral ones;
    vectors are [n, D], the loss [B]."""
    texts = [item.example.question for item in items]
    ids = np.tile(np.asarray(numbers, dtype=np.int64), (len(items), 1))
    lexical = torch.from_numpy(retriever.index.lexical_scores(texts, ids, retriever.settings.mode)).to(vectors.device)
    scores: Tensor = retriever.prior(retriever.encoder.forward(texts) @ vectors.T, lexical)
    right = torch.tensor([[n in item.positives for n in numbers] for item in items], device=vectors.device)
    neutral = torch.tensor([[n in item.neutral for n in numbers] for item in items], device=vectors.device)
    return right_nll(scores.masked_fill(neutral & ~right, -torch.inf), right)


@torch.no_grad()
def corpus_nll(retriever: Retriever, questions: Sequence[Supervised], batch_size: int = 32) -> float:
    """The mean of -log p(a gold passage | question) in nats; 0 when there are no questions."""
    losses = [retriever_loss(retriever, questions[i : i + batch_size]) for i in range(0, len(questions), batch_size)]
    return float(torch.cat(losses).mean()) if losses else 0.0


def retriever_loss(retriever: Retriever, batch: Sequence[Supervised]) -> Tensor:
    """-log sum over the right passages of p(z|x), [B]."""
    texts = [item.example.question for item in batch]
    log_probs = torch.log_softmax(retriever.corpus_scores(retriever.queries(texts), texts), dim=-1)
    return torch.stack([-log_probs[row, list(item.positives)].logsumexp(0) for row, item in enumerate(batch)])


def snapshot(retriever: Retriever) -> dict[str, Tensor]:
    """A copy of the retriever's weights."""
    return {name: value.detach().clone() for name, value in retriever.state_dict().items()}
