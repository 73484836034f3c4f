"""`finetune.synthetic`: questions from the corpus, written once and kept in the run folder to be read."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragx.artifacts import fingerprint, lock, untrusted_json, write_json, write_text
from ragx.config import Config
from ragx.errors import ConfigError, DataError
from ragx.records import Example, Progress
from ragx.stages.models import compute_dtype, open_index, open_model, pretrained_folders

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.training.synthetic import SyntheticSettings, Written

log = logging.getLogger(__name__)

ASKS_FROM = 1_000_000_000
"""Weights from which on a chat generator writes questions when `synthetic_kind: auto`. A guess: SmolLM2-135M writes
nonsense, and no larger one was tried."""
DRAFTS_AT_ONCE = 32
FORMAT = 1
"""Goes up when the same settings would write other questions."""


def synthetic_questions(
    config: Config, examples: Sequence[Example], dev: Sequence[Example], *, dry_run: bool, progress: Progress
) -> tuple[list[Example], bool]:
    """The `finetune.synthetic` questions: those in the run folder where they were written for the same plan, else new
    ones; and whether they are statements. A dry run writes none: it gets stand-ins for them.

    Raises:
        DataError: the corpus has too few sentences, or no draft was kept.
        ConfigError: `synthetic_kind: questions` with a generator that does not chat.
    """
    from ragx.corpus.questions import read_examples

    if not config.finetune.synthetic:
        return [], False
    path = config.run_dir / "training" / "synthetic.jsonl"
    taken = [example.question for example in (*examples, *dev, *_test(config))]
    plan = _plan(config, taken)
    if (kind := _kind_of(path, plan)) is not None:
        found = read_examples(path)
        log.info("%d synthetic questions from an earlier run: %s", len(found), path)
        return found, kind == "statements"
    if dry_run:
        kind = _settings(config, open_model(config, "base").generator).kind
        log.info("a run would first write %d %s from the corpus to %s", config.finetune.synthetic, kind, path)
        stand_ins = [Example(f"synthetic-{n}", "", ("",)) for n in range(1, config.finetune.synthetic + 1)]
        return stand_ins, kind == "statements"
    with lock(config.run_dir / ".training.lock", "this model"):
        kind = _write(config, path, plan, taken, progress)
    return read_examples(path), kind == "statements"


def _write(config: Config, path: Path, plan: str, taken: Sequence[str], progress: Progress) -> str:
    """Write new questions to `path`; returns their kind."""
    from ragx.evaluation.matching import f1
    from ragx.training.synthetic import draw, write_questions

    wanted = config.finetune.synthetic
    passages = open_index(config).all_passages()
    room = sum(1 for _ in islice(draw(passages, config.seed), wanted))
    if room < wanted:
        raise DataError(
            f"finetune.synthetic: {wanted} questions wanted, one a sentence, the corpus holds {room} sentences that "
            "can stand alone; lower it"
        )
    model = open_model(config, "base")
    settings = _settings(config, model.generator)
    log.info("writing %d %s from the corpus with the untrained model", wanted, settings.kind)
    written = write_questions(model, passages, taken, f1, settings, progress)
    if not written.examples:
        raise DataError(
            f"finetune.synthetic: no question survived, {written.summary()}; try another finetune.synthetic_kind, "
            "a lower finetune.synthetic_f1 (0: answers need not be reproduced), or a larger generator"
        )
    _keep(path, plan, settings, written)
    if len(written.examples) < wanted:
        log.warning("the corpus gave only %d of %d synthetic questions", len(written.examples), wanted)
    log.info("synthetic %s: %s; read them in %s", settings.kind, written.summary(), path)
    return settings.kind


def _settings(config: Config, generator: Generator) -> SyntheticSettings:
    from ragx.training.synthetic import SyntheticSettings

    chats = generator.chats and generator.tokenizer.chat_template is not None
    kind: Literal["questions", "statements"]
    match config.finetune.synthetic_kind:
        case "auto":
            kind = "questions" if chats and generator.parameters_count >= ASKS_FROM else "statements"
        case "questions" if not chats:
            raise ConfigError(
                "finetune.synthetic_kind: questions needs a generator with a chat template, which "
                f"{config.generator.model} is not; say statements"
            )
        case chosen:
            kind = chosen
    return SyntheticSettings(
        count=config.finetune.synthetic,
        kind=kind,
        f1=config.finetune.synthetic_f1,
        top_k=config.retrieval.top_k,
        batch_size=DRAFTS_AT_ONCE,
        max_input_tokens=config.generator.max_input_tokens,
        seed=config.seed,
    )


def _keep(path: Path, plan: str, settings: SyntheticSettings, written: Written) -> None:
    """The questions first, then what they were written for: a kill between leaves them unused."""
    lines = [
        {"id": e.id, "question": e.question, "answers": list(e.answers), "doc_ids": list(e.doc_ids)}
        for e in written.examples
    ]
    write_text(path, "".join(untrusted_json(json.dumps(line, ensure_ascii=False)) + "\n" for line in lines))
    facts = {"plan": plan, "kind": settings.kind, "kept": len(lines), "drafts": written.drafts}
    write_json(_plan_path(path), {**facts, "dropped": written.dropped})


def _plan(config: Config, taken: Sequence[str]) -> str:
    """The fingerprint of all that decides which questions are written."""
    from ragx.models import model_fingerprint

    section = config.model_dump(mode="json", include={"seed", "encoder", "retrieval", "generator", "rag", "device"})
    wanted = config.finetune.model_dump(include={"synthetic", "synthetic_kind", "synthetic_f1"})
    facts: dict[str, Any] = {
        "format": FORMAT,
        "config": {**section, **wanted, "dtype": str(compute_dtype(config))},
        "index": open_index(config).manifest["fingerprint"],
        "generator": model_fingerprint(pretrained_folders(config)[1]),
        "taken": list(taken),
    }
    return fingerprint(facts)


def _kind_of(path: Path, plan: str) -> str | None:
    """The kind of the questions in `path`, None where there are none or they were written for another plan."""
    try:
        facts = json.loads(_plan_path(path).read_text(encoding="utf-8"))
        return str(facts["kind"]) if path.is_file() and facts["plan"] == plan else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _plan_path(path: Path) -> Path:
    return path.with_suffix(".plan.json")


def _test(config: Config) -> list[Example]:
    from ragx.corpus.questions import read_examples

    return [] if config.data.test is None else read_examples(config.data.test, config.data.on_error)
