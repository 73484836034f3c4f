"""`ragx init` and `ragx check`: a first configuration, and a look at the data before anything heavy."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ragx.artifacts import write_text
from ragx.config import Config
from ragx.errors import ConfigError
from ragx.stages.corpus import corpus_documents, corpus_passages


def init(folder: Path, *, sample: bool) -> list[Path]:
    """Write a commented configuration into `folder`, with `sample` also the sample domain; returns what was written.

    Raises:
        ConfigError: something would be overwritten.
    """
    samples = Path(__file__).parents[1] / "samples"
    config = folder / "ragx.yaml"
    wanted = [config, *([folder / "saltmere"] if sample else [])]
    for path in wanted:
        if path.exists():
            raise ConfigError(f"{path}: is already there; ragx init overwrites nothing")
    template = (samples / "ragx.yaml").read_text(encoding="utf-8")
    if not sample:
        template = (samples / "starter.yaml").read_text(encoding="utf-8")
    if sample:
        shutil.copytree(samples, folder / "saltmere", ignore=shutil.ignore_patterns("*.py", "*.yaml", "__pycache__"))
    write_text(config, template)
    return wanted


def check(config: Config) -> dict[str, Any]:
    """Read everything, load no model: counts, answer ceiling, leakage between splits, an estimate of the index.

    Raises:
        RagxError: data or configuration cannot be used.
    """
    from ragx.corpus.answers import normalise_answer
    from ragx.corpus.passages import word_spans
    from ragx.corpus.questions import read_examples
    from ragx.evaluation.gates import parse_gates
    from ragx.evaluation.metrics import parse_metrics

    parse_gates(config.eval.gates, parse_metrics(config.eval.metrics))
    documents = list(corpus_documents(config))
    ids = {document.id for document in documents}
    passages = list(corpus_passages(config, documents, word_spans))
    text = "\n".join(passage.text for passage in passages)
    words = len(text.split())
    normalised = f" {normalise_answer(text)} "
    splits: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        path = getattr(config.data, split)
        if path is None:
            continue
        examples = read_examples(path, config.data.on_error)
        questions = [normalise_answer(example.question) for example in examples]
        splits[split] = {
            "questions": len(examples),
            "answer_in_corpus": _share(
                any(f" {normalise_answer(a)} " in normalised for a in example.answers) for example in examples
            ),
            "unknown_gold_documents": sorted({d for example in examples for d in example.doc_ids} - ids),
            "also_in": sorted({seen[q] for q in questions if q in seen}),
            "repeated": sum(q in seen for q in questions),
        }
        seen |= dict.fromkeys(questions, split)
    return {
        "documents": len(documents),
        "passages": len(passages) if config.passages.unit == "words" else None,
        "words": words,
        "splits": splits,
        "index_bytes": len(passages) * 384 * 4 + 4 * len(text),
        "free_bytes": shutil.disk_usage(_existing(config.run_dir)).free,
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
