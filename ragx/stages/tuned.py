"""What a training leaves: curves, the index of a tuned passage encoder, and the model with its card."""

from __future__ import annotations

import json
import logging
import shutil
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import fingerprint, naming, new_folder, write_text
from ragx.config import Config
from ragx.records import Progress
from ragx.stages.index import build_tuned_index
from ragx.stages.models import MODEL_KIND, pretrained_folders

if TYPE_CHECKING:
    from ragx.rag.model import RagModel
    from ragx.training.checkpoints import Position

log = logging.getLogger(__name__)


def draw_curves(folder: Path) -> None:
    """training/curves.png, where the extra that draws is installed."""
    if find_spec("matplotlib") is None:
        log.info("no %s/curves.png: install ragx[plots] to have it drawn", folder)
        return
    from ragx.training.curves import draw

    beside = folder / ".curves.png.tmp"
    with naming(folder / "curves.png"):
        beside.write_bytes(draw(folder / "metrics.jsonl"))
    beside.replace(folder / "curves.png")


def write_index(config: Config, model: RagModel, weights: Path, progress: Progress) -> float:
    """The index of the tuned passage encoder, where one was trained, and its weights in a folder; returns seconds.

    The base model's index stays. What the new one was made with is in the model's manifest.
    """
    retriever = model.retriever
    if retriever.passage_side is None:
        return 0.0
    started = time.monotonic()
    shutil.rmtree(weights, ignore_errors=True)
    retriever.passage_side.save(weights)
    retriever.index = build_tuned_index(config, retriever.index, weights, progress)
    seconds = time.monotonic() - started
    log.info("index of the tuned passage encoder: %s, in %.1f s", retriever.index.folder, seconds)
    return seconds


def write_model(config: Config, model: RagModel, plan: dict[str, Any], position: Position, seconds: float) -> None:
    """`model/`: both parts, the prior, and what they were made from."""
    from ragx.models import model_fingerprint

    adapter = model.generator.is_adapted
    facts: dict[str, object] = {
        "ragx": version("ragx"),
        "mode": config.retrieval.mode,
        "query_prefix": model.retriever.encoder.settings.prefix,
        "prior": model.retriever.prior.values(),
        "rerank": None if model.rerank is None else model.rerank.values(),
        "null_bias": None if model.null_bias is None else float(model.null_bias.detach()),
        "adapter": adapter,
        "base_generator": model_fingerprint(pretrained_folders(config)[1]),
        "passage_encoder": model.retriever.index.manifest["encoder"],
        "index": model.retriever.index.manifest["fingerprint"],
        "plan": plan["fingerprint"],
        "dev_nll_per_token": position.best_nll,
    }
    with new_folder(config.run_dir / "model", MODEL_KIND, **facts) as beside:
        model.retriever.encoder.save(beside / "question_encoder")
        if model.retriever.passage_side is not None:
            shutil.copytree(config.run_dir / "training" / "passage_encoder", beside / "passage_encoder")
        model.generator.save(beside / "generator")
        write_text(beside / "README.md", _card(config, plan, facts, position, seconds))


def _card(config: Config, plan: dict[str, Any], facts: dict[str, Any], position: Position, seconds: float) -> str:
    from ragx.training.card import model_card

    listed = {
        "corpus": f"{plan['documents']} documents, {plan['passages']} passages",
        "questions": f"{plan['questions']} to train on, {plan['dev_questions']} to choose the best weights by",
        "question encoder": config.rag.checkpoint or config.encoder.model,
        "generator": f"{config.rag.checkpoint or config.generator.model}{' (LoRA adapter here)' * facts['adapter']}",
        "prior": json.dumps(facts["prior"]),
        "null bias": facts["null_bias"],
        "reranking": json.dumps(facts["rerank"]),
        "weights": f"of step {position.weights_step} of {plan['steps']}",
        "rollbacks": position.rollbacks,
        "time": f"{seconds / 60:.1f} minutes",
        "index": facts["index"],
        "passage encoder": fingerprint(facts["passage_encoder"]),
        "training plan": facts["plan"],
        "ragx": facts["ragx"],
    }
    metrics = (config.run_dir / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [line for line in map(json.loads, metrics) if line["split"] == "dev"]
    configuration = config.model_dump(mode="json", exclude={"output_dir", "corpus", "data"})
    return model_card(f"{config.name}: a RAG model tuned with ragx", plan["text"], listed, looks, configuration)
