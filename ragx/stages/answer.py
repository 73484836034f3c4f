"""`ragx ask` and `ragx eval`: questions -> answers, scores and reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import file_sha256, fingerprint, read_manifest, untrusted
from ragx.config import Config
from ragx.errors import DataError
from ragx.records import Answer, Hit, Interval, Progress, Report, no_progress
from ragx.stages.models import MODEL_KIND, open_model, resolve_which

if TYPE_CHECKING:
    from ragx.evaluation.report import Bootstrap
    from ragx.rag.model import RagModel


class Answerer:
    """An opened model that answers questions."""

    def __init__(self, config: Config, which: str = "auto") -> None:
        """Raises ArtifactError when index or model cannot be opened."""
        self._config = config
        self._model = open_model(config, which)

    @property
    def streams(self) -> bool:
        """Whether an answer can be shown while it is written: the token marginal with one beam."""
        return self._config.rag.marginal == "token" and self._config.rag.num_beams == 1

    def answer(self, questions: Sequence[str], stream: Callable[[str], None] | None = None) -> list[Answer]:
        """An answer to each question, with its passages; `stream` is called with the one answer so far."""
        section = self._config.rag
        shown = None if stream is None else lambda text: stream(untrusted(text))
        found = self._model.answer(questions, decoding=section.decoding, num_beams=section.num_beams, stream=shown)
        priors, scores = found.retrieval.log_prior.exp().tolist(), found.retrieval.scores.tolist()
        answers = []
        for row, (question, decoded) in enumerate(zip(questions, found.decoded, strict=True)):
            parts = zip(found.retrieval.passages[row], scores[row], priors[row], decoded.posterior, strict=True)
            hits = tuple(Hit(*part) for part in parts)
            text = untrusted(decoded.text)
            tokens = tuple(map(untrusted, decoded.tokens))
            answers.append(Answer(question, text, decoded.log_probability, hits, tokens, decoded.token_posterior))
        return answers


def ask(config: Config, question: str, which: str = "auto") -> Answer:
    """Answer one question from the indexed corpus."""
    return Answerer(config, which).answer([question])[0]


def evaluate(config: Config, *, split: str = "auto", which: str = "auto", progress: Progress = no_progress) -> Report:
    """Score a model on a split ("auto": test, else dev) and write predictions and reports to `eval/`.

    Raises:
        ConfigError: a metric or gate is unknown; before any model is loaded.
        DataError: the split is not configured or cannot be read.
    """
    from ragx.corpus.questions import read_examples
    from ragx.evaluation.gates import parse_gates
    from ragx.evaluation.metrics import parse_metrics
    from ragx.evaluation.predict import predict
    from ragx.evaluation.report import make_report, write_report

    metrics = parse_metrics(config.eval.metrics)
    gates = parse_gates(config.eval.gates, config.eval.metrics)
    split = ("test" if config.data.test else "dev") if split == "auto" else split
    path: str | None = getattr(config.data, split)
    if path is None:
        raise DataError(f"data.{split}: no questions are configured for this split")
    examples = read_examples(path, config.data.on_error)

    started = time.monotonic()
    which = resolve_which(config, which)
    model = open_model(config, which)
    predictions = predict(
        model,
        examples,
        metrics,
        decoding=config.rag.decoding,
        num_beams=config.rag.num_beams,
        batch_size=config.eval.batch_size,
        progress=progress,
    )
    report = make_report(
        predictions,
        metrics,
        gates,
        _bootstrap(config),
        split=split,
        model=which,
        signature=_signature(config, model, which, Path(path)),
        seconds=time.monotonic() - started,
    )
    write_report(report, config.run_dir / "eval")
    return report


def compare(config: Config, report: Report, baseline: Path) -> dict[str, Interval]:
    """The paired differences of a report to an earlier one over the same questions.

    Raises:
        ArtifactError: the baseline is missing, damaged or of other questions.
    """
    from ragx.evaluation.report import compare as difference
    from ragx.evaluation.report import read_predictions

    before = read_predictions(baseline)
    shared = [name for name in report.metrics if all(name in prediction.scores for prediction in before)]
    return difference(before, report.predictions, shared, _bootstrap(config))


def report_json(report: Report, differences: dict[str, Interval] | None = None) -> dict[str, Any]:
    """A report as `ragx eval --json` prints it, with the differences to a baseline where there is one."""
    from ragx.evaluation.report import report_json as as_json

    found = as_json(report)
    if differences is not None:
        found["differences"] = {name: dataclasses.asdict(value) for name, value in differences.items()}
    return found


def _bootstrap(config: Config) -> Bootstrap:
    from ragx.evaluation.report import Bootstrap

    return Bootstrap(config.eval.bootstrap, config.eval.confidence, config.seed)


def _signature(config: Config, model: RagModel, which: str, data: Path) -> dict[str, str]:
    plan = read_manifest(config.run_dir / "model", MODEL_KIND, "ragx finetune")["plan"] if which == "tuned" else "none"
    return {
        "ragx": version("ragx"),
        "config": fingerprint(config.model_dump(mode="json", exclude={"output_dir"})),
        "index": str(model.retriever.index.manifest["fingerprint"]),
        "generator": config.rag.checkpoint or config.generator.model,
        "tuning": plan,
        "data": file_sha256(data)[:16],
        "seed": str(config.seed),
    }
