"""What the retriever gains before the generator is touched: recall of the untouched one against the warmed-up one.

    python -m benchmarks.warmup CONFIG --out FOLDER [--rows ROWS] [--questions 500] [--seed 13,14,15]
                                [--against ROW] [--set KEY=VALUE] ...

ROWS, separated by commas (by default the first three after `untouched`):

untouched       hybrid retrieval as it is before any training
prior           temperature and lexical weight fitted to the training questions, the encoder as it is
question side   the warm-up of `ragx finetune` with the passages' vectors as they are
both sides      the warm-up of the encoder on questions and passages, all of which are then encoded anew
separate        what is tuned without ragx: the contrastive dense retriever of `benchmarks.transfer --rows separate`
separate hybrid the same with BM25, by the temperature and lexical weight that fit the dev questions best
ragx            what a whole training has left in FOLDER by `benchmarks.transfer --rows ragx`, as it is retrieved
ragx reordered  the same with the first hits reordered by its generator, as `retrieval.rerank` says

Training questions are those that `benchmarks.transfer` draws. Judged are the test questions and, where there are any,
the training questions that were not drawn, which may be many more. Recall@k is the share of gold documents among those
of the first k passages; a question's scores are averaged over the seeds that judge it before questions are resampled.
One JSON line a row and kind of question, with its paired difference to the row of `--against`, by default `untouched`.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine
from benchmarks.transfer import Cell, fitted_apart, retriever_apart
from ragx import load_config, stages
from ragx.cli.common import start_log
from ragx.corpus.questions import read_examples
from ragx.evaluation.significance import Bootstrap, difference, sample
from ragx.evaluation.statistic import mean
from ragx.rag.model import RagModel
from ragx.rag.rerank import question_log_probs, reordered
from ragx.rag.retriever import Retrieval, Retriever
from ragx.records import Example, Passage, no_progress
from ragx.stages.job import prepare_training
from ragx.stages.models import open_model
from ragx.stages.questions import training_data
from ragx.stages.warmup import settle
from ragx.training import refresh
from ragx.training.warmup import fit_prior, supervise

CUTS = (1, 5, 20)
UNTOUCHED, PRIOR, QUESTION_SIDE, BOTH_SIDES = "untouched", "prior", "question side", "both sides"
SEPARATE, SEPARATE_HYBRID, TRAINED, REORDERED = "separate", "separate hybrid", "ragx", "ragx reordered"
ROWS = (UNTOUCHED, PRIOR, QUESTION_SIDE, BOTH_SIDES, SEPARATE, SEPARATE_HYBRID, TRAINED, REORDERED)
AT_ONCE = 32
Search = Callable[[Sequence[str], int], Sequence[Sequence[Passage]]]
"""The k best passages of each question."""
Scores = dict[str, dict[str, tuple[float, ...]]]
"""Recall at each of CUTS by question, by what is judged."""


def retrieved(cell: Cell, row: str) -> tuple[Retriever, float]:
    """The retriever of a row, and the seconds that its training took."""
    if row == TRAINED:
        return open_model(cell.load("ragx"), "tuned").retriever, 0.0
    if row in (SEPARATE, SEPARATE_HYBRID):
        config, facts = retriever_apart(cell, f"retrieval.mode={'dense' if row == SEPARATE else 'hybrid'}")
        return fitted_apart(config), facts["retriever_seconds"] + facts["index_seconds"]
    sides = "question_encoder, passage_encoder" if row == BOTH_SIDES else "question_encoder"
    config = cell.load("warmup", f"finetune.train=[{sides}, generator]")
    stages.build_index(config)
    model = open_model(config, "base", prepare=partial(prepare_training, few=True))
    train, dev = training_data(config)
    started, retriever = time.monotonic(), model.retriever
    if row == PRIOR:
        fit_prior(retriever, supervise(train, retriever.index.all_passages()))
    elif row != UNTOUCHED:
        settle(config, model, train, dev, folds=0, reads=False, progress=no_progress)
    if retriever.passage_side is not None:
        passages = retriever.index.all_passages()
        retriever.replace_vectors(np.arange(len(passages)), refresh.encode(retriever, passages))
    return retriever, time.monotonic() - started


def as_retrieved(retriever: Retriever, questions: Sequence[str], k: int) -> Sequence[Sequence[Passage]]:
    """The k best passages of each question, or all there are."""
    found: Retrieval = retriever(questions, min(k, retriever.index.passages_count))
    return found.passages


def as_reordered(model: RagModel, questions: Sequence[str], k: int) -> Sequence[Sequence[Passage]]:
    """The same, the first `model.width` of them in the generator's order where the model reorders."""
    found = model.retriever(questions, min(max(k, model.width), model.retriever.index.passages_count))
    first = model.retriever.first(found, model.width)
    if model.rerank is not None:
        first, _ = reordered(first, question_log_probs(model.generator, questions, first), model.rerank)
    return [[*new, *old[model.width :]][:k] for new, old in zip(first.passages, found.passages, strict=True)]


def judged(cell: Cell) -> dict[str, list[Example]]:
    """The questions with gold documents that nothing was trained on."""
    config, whole = cell.load("warmup"), load_config(cell.path, cell.overrides)
    drawn = {example.id for example in read_examples(_named(config.data.train), config.data.on_error)}
    found = {
        "test": read_examples(_named(config.data.test), config.data.on_error),
        "training, not drawn": [
            example
            for example in read_examples(_named(whole.data.train), config.data.on_error)
            if example.id not in drawn
        ],
    }
    with_gold = {name: [example for example in examples if example.doc_ids] for name, examples in found.items()}
    return {name: examples for name, examples in with_gold.items() if examples}


@torch.no_grad()
def recalls(search: Search, examples: Sequence[Example]) -> dict[str, tuple[float, ...]]:
    """Recall at each of CUTS by question."""
    found = {}
    for start in range(0, len(examples), AT_ONCE):
        part = examples[start : start + AT_ONCE]
        for example, row in zip(part, search([e.question for e in part], max(CUTS)), strict=True):
            documents, gold = [passage.document_id for passage in row], set(example.doc_ids)
            found[example.id] = tuple(len(gold & set(documents[:cut])) / len(gold) for cut in CUTS)
    return found


def compared(before: Sequence[Scores], after: Sequence[Scores], what: str) -> dict[str, Any]:
    """Recall before and after, averaged over the seeds that judge a question, and the paired difference."""
    then, now = _averaged(before, what), _averaged(after, what)
    figures: dict[str, Any] = {"n": len(then)}
    for place, cut in enumerate(CUTS):
        sides = [mean([scores[q][place] for q in then]) for scores in (then, now)]
        statistics = {"before": sides[0], "after": sides[1], "change": difference(*sides)}
        sampled = sample(statistics, len(then), Bootstrap(1000, 0.95, 13))
        change = sampled["change"].interval(0.95)
        figures[f"recall@{cut}"] = {
            "before": round(sampled["before"].value, 4),
            "after": round(sampled["after"].value, 4),
            "change": [round(value, 4) for value in (change.value, change.low, change.high)],
        }
    return figures


def _averaged(seeds: Sequence[Scores], what: str) -> dict[str, list[float]]:
    by_question: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for scores in seeds:
        for question, values in scores[what].items():
            by_question[question].append(values)
    return {q: [sum(column) / len(column) for column in zip(*by_question[q], strict=True)] for q in sorted(by_question)}


def _named(path: str | None) -> str:
    if path is None:
        raise SystemExit("the configuration needs data.train and data.test")
    return path


def _scores(cell: Cell, row: str, questions: Mapping[str, Sequence[Example]]) -> tuple[Scores, dict[str, Any]]:
    if row == REORDERED:
        model = open_model(cell.load("ragx"), "tuned")
        retriever, seconds = model.retriever, 0.0
        search: Search = partial(as_reordered, model)
    else:
        retriever, seconds = retrieved(cell, row)
        search = partial(as_retrieved, retriever)
    found = {what: recalls(search, examples) for what, examples in questions.items()}
    return found, {"seconds": round(seconds, 1), **retriever.prior.values()}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a configuration of ragx")
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs")
    parser.add_argument("--questions", default="500", help="training questions, or all")
    parser.add_argument("--seed", type=lambda text: [int(seed) for seed in text.split(",")], default=[13])
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS[1:4]))
    parser.add_argument("--against", choices=ROWS, default=UNTOUCHED, help="the row that differences are taken from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for every row")
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"--rows {unknown[0]}: known are {', '.join(ROWS)}")
    return options


def main() -> None:
    """Print one JSON line a row and kind of question."""
    options = parse()
    start_log(False, False)
    cells = [Cell(options.config, options.out, options.questions, seed, tuple(options.set)) for seed in options.seed]
    questions = [judged(cell) for cell in cells]
    before = [_scores(cell, options.against, asked)[0] for cell, asked in zip(cells, questions, strict=True)]
    for row in options.rows:
        scored = [_scores(cell, row, asked) for cell, asked in zip(cells, questions, strict=True)]
        after, facts = zip(*scored, strict=True)
        for what in after[0]:
            line = {"set": cells[0].domain, "questions": options.questions, "seeds": options.seed}
            line |= {"row": row, "against": options.against}
            line |= {"judged": what, **compared(before, after, what), "runs": list(facts), "machine": machine()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
