"""`ragx check`: what the data and the limits promise, and what an index will take, before anything is built."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.config import Config
from ragx.errors import DataError
from ragx.records import Document, Example, Passage, Progress, no_progress
from ragx.stages.corpus import corpus_documents, corpus_passages, deduplicator
from ragx.stages.index import index_settings
from ragx.stages.models import (
    generator_prompt,
    passage_encoder,
    pretrained_folders,
    question_encoder,
    require_same_width,
)

if TYPE_CHECKING:
    from ragx.evaluation.survey import Survey
    from ragx.index.encoder import Encoder
    from ragx.rag.lengths import Lengths

SAMPLE = 1000
"""Passages drawn at random from the whole corpus, and prompts made of them, whose tokens are counted."""


@dataclasses.dataclass
class _Read:
    """What one pass over the corpus counted, and the passages it drew."""

    documents: int = 0
    words: int = 0
    passages: int = 0
    left_out: int = 0
    seconds: float = 0.0
    sample: list[Passage] = dataclasses.field(default_factory=list)


def check(config: Config, progress: Progress = no_progress) -> dict[str, Any]:
    """Read the corpus once and all questions, load the passage encoder and the generator's tokenizer: what is repeated,
    leaked, cut or unanswerable, and an estimate of the index. Memory does not grow with the corpus.

    Raises:
        RagxError: data, models or configuration cannot be used.
    """
    from ragx.corpus.questions import read_examples
    from ragx.evaluation.gates import parse_gates
    from ragx.evaluation.metrics import parse_metrics
    from ragx.evaluation.survey import Survey
    from ragx.index.estimate import estimate
    from ragx.rag.lengths import Lengths

    parse_gates(config.eval.gates, parse_metrics(config.eval.metrics))
    paths = {split: getattr(config.data, split) for split in ("train", "dev", "test")}
    splits = {split: read_examples(path, config.data.on_error) for split, path in paths.items() if path is not None}
    encoder = passage_encoder(config)
    require_same_width(config, encoder)
    asking = question_encoder(config) if config.rag.joins_like_transformers else encoder
    generator = pretrained_folders(config)[1]
    lengths = Lengths(generator, generator_prompt(config, asking, generator))
    survey = Survey(splits)
    read = _read(config, encoder, survey, progress)
    if not read.passages:
        raise DataError("no passages in the corpus")
    progress("measuring the encoder on a sample", 0, 1)
    found = estimate(encoder, read.sample, read.passages, index_settings(config))
    progress("measuring the encoder on a sample", 1, 1)
    facts = {split: dataclasses.asdict(each) for split, each in survey.facts().items()}
    return {
        "documents": read.documents,
        "words": read.words,
        "passages": read.passages,
        "left_out": read.left_out,
        "splits": {split: facts[split] | _limits(config, splits[split], lengths) for split in splits},
        "truncation": {
            "passages": _cut_passages(encoder, read.sample),
            "prompts": _cut_prompts(config, lengths, read.sample, splits),
        },
        "index": {
            **dataclasses.asdict(found),
            "seconds": read.seconds + found.seconds,
            "free_bytes": shutil.disk_usage(_existing(config.run_dir)).free,
        },
    }


def _read(config: Config, encoder: Encoder, survey: Survey, progress: Progress) -> _Read:
    """Stream the corpus through the survey, and draw the sample: every passage stays with the same probability
    (Vitter 1985, algorithm R)."""
    read, dice, fresh, duplicates = _Read(), random.Random(config.seed), list[Document](), deduplicator(config)

    def documents() -> Generator[Document]:
        for document in corpus_documents(config):
            fresh.append(document)
            yield document

    with closing(corpus_passages(config, documents(), encoder.spans, duplicates)) as passages:
        for passage in _timed(passages, read):
            _look(fresh, read, survey)
            survey.add_passage(passage)
            read.passages += 1
            if len(read.sample) < SAMPLE:
                read.sample.append(passage)
            elif (place := dice.randrange(read.passages)) < SAMPLE:
                read.sample[place] = passage
            if read.passages % 1000 == 0:
                progress("reading passages", read.passages, None)
    _look(fresh, read, survey)
    dice.shuffle(read.sample)
    read.left_out = duplicates.removed
    return read


def _look(fresh: list[Document], read: _Read, survey: Survey) -> None:
    """The documents read since the last passage."""
    for document in fresh:
        read.documents += 1
        read.words += len(document.text.split())
        survey.add_document(document)
    fresh.clear()


def _timed(passages: Iterator[Passage], read: _Read) -> Iterator[Passage]:
    """The passages, the seconds that reading and cutting took being added up."""
    while True:
        started = time.perf_counter()
        passage = next(passages, None)
        read.seconds += time.perf_counter() - started
        if passage is None:
            return
        yield passage


def _limits(config: Config, examples: Sequence[Example], lengths: Lengths) -> dict[str, Any]:
    """The questions of a split that the generator's limits do not suit, in tokens."""
    from ragx.evaluation.survey import finding

    section, nothing = config.generator, Passage(0, "", "", "", "")
    answers = [lengths.answer(example.answers[0]) for example in examples]
    prompts = [lengths.prompt(nothing, example.question) for example in examples]
    long = [f"{n} tokens" if n > section.max_answer_tokens else None for n in answers]
    full = [f"{n} tokens" if n >= section.max_input_tokens else None for n in prompts]
    found = {"long_answers": finding(examples, long), "no_room": finding(examples, full)}
    return {name: dataclasses.asdict(each) for name, each in found.items()}


def _cut_passages(encoder: Encoder, sample: Sequence[Passage]) -> dict[str, Any]:
    return _truncation(encoder.uncut_lengths(sample), encoder.settings.max_tokens)


def _cut_prompts(
    config: Config, lengths: Lengths, sample: Sequence[Passage], splits: Mapping[str, Sequence[Example]]
) -> dict[str, Any] | None:
    """Of questions drawn from all splits, each with another passage of the sample; None without questions."""
    questions = [example.question for examples in splits.values() for example in examples]
    if not questions:
        return None
    asked = random.Random(config.seed).choices(questions, k=len(sample))
    counts = [lengths.prompt(passage, question) for passage, question in zip(sample, asked, strict=True)]
    return _truncation(counts, config.generator.max_input_tokens)


def _truncation(counts: Sequence[int], limit: int) -> dict[str, Any]:
    """The share of texts above a limit, and of their tokens the share that is lost."""
    lost = sum(max(0, count - limit) for count in counts)
    return {
        "sample": len(counts),
        "cut": sum(count > limit for count in counts) / len(counts),
        "tokens_lost": lost / sum(counts),
        "longest": max(counts),
        "limit": limit,
    }


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
