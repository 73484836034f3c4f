"""`ragx ask` and `ragx eval`: questions -> answers, scores and reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import file_sha256, fingerprint, is_text, read_manifest, untrusted
from ragx.config import Config
from ragx.errors import ArtifactError, ConfigError, DataError
from ragx.records import Answer, Example, Hit, Prediction, Progress, Report, no_progress
from ragx.stages.models import (
    MODEL_KIND,
    open_index,
    open_model,
    pretrained_folders,
    resolve_which,
)

if TYPE_CHECKING:
    from ragx.evaluation.metrics import Metric
    from ragx.evaluation.report import Scored
    from ragx.evaluation.significance import Bootstrap
    from ragx.index.store import Index

log = logging.getLogger(__name__)


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
        """An answer to each question, with its passages; `stream` is called with the one answer so far.

        Raises:
            DataError: a question is no text.
        """
        for question in questions:
            if not is_text(question):
                raise DataError(f"question {question!r} holds half of a surrogate pair, which is no text")
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


def evaluate(
    config: Config,
    *,
    split: str = "auto",
    which: str = "auto",
    baseline: Path | Sequence[Path] = (),
    predictions: Path | Sequence[Path] = (),
    limit: int | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Score a model on a split ("auto": test, else dev) and write predictions and reports to `eval/`.

    With `baseline`, an earlier report, also the paired differences to it; with `predictions`, a file of them, those are
    scored instead of a model's. Several of either are seeds of one training, and their means are judged. `limit` takes
    the first questions only and passes no gate.

    Raises:
        ConfigError: a metric, gate or slice is unknown, or a gate wants a baseline; before any model is loaded.
        DataError: the split is not configured, cannot be read or cannot be scored.
        ArtifactError: baseline or predictions are missing, damaged or of other questions.
    """
    from ragx.evaluation.as_json import percentiles
    from ragx.evaluation.as_markdown import write_step_summary
    from ragx.evaluation.files import write_report
    from ragx.evaluation.gates import parse_gates, require_baseline
    from ragx.evaluation.metrics import parse_metrics, require_facts, require_scorable
    from ragx.evaluation.predictions import read_predictions
    from ragx.evaluation.report import make_report, score
    from ragx.evaluation.seeds import require_seeds, together
    from ragx.evaluation.why import require_slices

    section = config.eval
    metrics = parse_metrics(section.metrics, section.tokens)
    gates = parse_gates(section.gates, metrics)
    baselines, files = _paths(baseline), _paths(predictions)
    require_baseline(gates, bool(baselines))
    split, path = _split_file(config, split)
    examples = _examples(config, path, limit)
    require_scorable(examples, metrics, section.tokens, path)
    require_slices(section.slices, examples, path)
    data = fingerprint([[e.id, e.question, e.answers, e.doc_ids] for e in examples])
    before = _baseline(config, baselines, examples, data, metrics) if baselines else None

    started = time.monotonic()
    if files:
        model = "rescored" if len(files) == 1 else "seeds"
        runs = [read_predictions(file, examples) for file in files]
        for file, found in zip(files, runs, strict=True):
            require_facts(metrics, found, str(file))
        signature = require_seeds([(file, _signature_beside(file)) for file in files])
    else:
        model = resolve_which(config, which)
        found, signature = _predict(config, model, examples, metrics, path, progress)
        runs = [found]
    report = make_report(
        together([score(found, metrics, section.tokens) for found in runs]),
        metrics,
        gates,
        _bootstrap(config),
        split=split,
        model=model,
        signature={**signature, **_own_signature(config, data)},
        seconds=time.monotonic() - started,
        slice_names=section.slices,
        baseline=before,
        limit=limit,
        latency=percentiles([p.seconds for found in runs for p in found if p.seconds is not None]),
        runs=[str(file) for file in files],
    )
    write_report(report, config.run_dir / "eval", _plots(report))
    write_step_summary(report)
    return report


def report_json(report: Report) -> dict[str, Any]:
    """A report as `ragx eval --json` prints it."""
    from ragx.evaluation.as_json import report_json as as_json

    return as_json(report)


def _paths(given: Path | Sequence[Path]) -> tuple[Path, ...]:
    return (given,) if isinstance(given, Path) else tuple(given)


def _split_file(config: Config, split: str) -> tuple[str, str]:
    split = ("test" if config.data.test else "dev") if split == "auto" else split
    path: str | None = getattr(config.data, split)
    if path is None:
        raise DataError(f"data.{split}: no questions are configured for this split")
    return split, path


def _examples(config: Config, path: str, limit: int | None) -> list[Example]:
    from ragx.corpus.questions import read_examples

    examples = read_examples(path, config.data.on_error)
    if limit is not None and limit >= len(examples):
        raise ConfigError(f"--limit {limit}: {path} has {len(examples)} questions; run without --limit")
    return examples[:limit]


def _baseline(
    config: Config, paths: Sequence[Path], examples: Sequence[Example], data: str, metrics: Sequence[Metric]
) -> tuple[Scored, dict[str, str]]:
    """An earlier report's predictions, or several seeds', scored by today's metrics, and their signature."""
    from ragx.evaluation.seeds import require_seeds, together

    found = [_earlier(config, path, examples, data, metrics) for path in paths]
    signatures = [signature for _, signature in found]
    return together([scored for scored, _ in found]), require_seeds(list(zip(paths, signatures, strict=True)))


def _earlier(
    config: Config, path: Path, examples: Sequence[Example], data: str, metrics: Sequence[Metric]
) -> tuple[Scored, dict[str, str]]:
    """One earlier report's predictions, scored by today's metrics, and its signature."""
    from ragx.evaluation.as_json import read_report
    from ragx.evaluation.metrics import require_facts
    from ragx.evaluation.predictions import read_predictions
    from ragx.evaluation.report import score

    report = read_report(path)
    if report["limit"] is not None:
        raise ArtifactError(f"{path}: a smoke run of {report['limit']} questions is no baseline; run without --limit")
    if report.get("seeds"):
        raise ArtifactError(f"{path}: a mean over seeds; give the report of each with its own --baseline")
    if report["signature"].get("data") != data:
        raise ArtifactError(
            f"{path}: made from other questions (data {report['signature'].get('data')}, now {data}): "
            "not comparable; evaluate the baseline on this split"
        )
    predictions = path.with_name(path.name.replace(".report.json", ".predictions.jsonl"))
    found = read_predictions(predictions, examples)
    metrics = [metric for metric in metrics if not metric.timed]
    require_facts(metrics, found, str(path))
    signature = {**report["signature"], "predictions": file_sha256(predictions)[:16]}
    return score(found, metrics, config.eval.tokens), signature


def _predict(
    config: Config, which: str, examples: Sequence[Example], metrics: Sequence[Metric], path: str, progress: Progress
) -> tuple[list[Prediction], dict[str, str]]:
    """Predictions and the signature of what made them."""
    from ragx.evaluation.cache import PredictionCache
    from ragx.evaluation.metrics import DEPTH
    from ragx.evaluation.predict import HowToAnswer, predict, with_support

    index = open_index(config, which)
    _require_gold_documents(config, index, examples, path)
    deepest = max(
        [DEPTH, config.retrieval.top_k, config.retrieval.rerank_hits, *(metric.cutoff or 0 for metric in metrics)]
    )
    signature = _signature(config, index, which)
    how = HowToAnswer(
        decoding=config.rag.decoding,
        num_beams=config.rag.num_beams,
        batch_size=config.eval.batch_size,
        depth=min(deepest, index.passages_count),
        closed_book=config.eval.closed_book,
        fingerprint=fingerprint([{**signature, "config": _answering(config)}, deepest]),
        timed=any(metric.timed for metric in metrics),
    )
    cache = PredictionCache(config.run_dir / "eval" / ".cache.sqlite" if config.eval.cache else None)
    try:
        found = predict(lambda: open_model(config, which), examples, how, cache, progress)
    finally:
        cache.close()
    return with_support(found, index), signature


def _answering(config: Config) -> dict[str, Any]:
    """All of the configuration that an answer depends on, besides index and weights."""
    return {
        **config.model_dump(mode="json", include={"device", "dtype", "encoder", "retrieval", "generator", "rag"}),
        "closed_book": config.eval.closed_book,
        "batch_size": config.eval.batch_size,
    }


def _require_gold_documents(config: Config, index: Index, examples: Sequence[Example], path: str) -> None:
    """Gold documents must be in the index, or metrics of retrieval are wrong; `data.on_error: skip` lets them be."""
    wanted = {document: example.id for example in examples for document in example.doc_ids}
    gone = [document for document in wanted if not index.passages_of([document])]
    if gone and config.data.on_error == "fail":
        raise DataError(
            f"{path}: gold document {gone[0]!r} of question {wanted[gone[0]]} is not in the index "
            f"({len(gone)} such); mend doc_ids or the corpus, or say data.on_error: skip"
        )


def _signature_beside(predictions: Path) -> dict[str, str]:
    """The signature of the report beside a predictions file, else the file's own fingerprint."""
    from ragx.evaluation.as_json import read_report

    report = predictions.with_name(predictions.name.replace(".predictions.jsonl", ".report.json"))
    known = read_report(report)["signature"] if report != predictions and report.is_file() else {}
    return {**known, "predictions": file_sha256(predictions)[:16]}


def _plots(report: Report) -> dict[str, str]:
    try:
        from ragx.evaluation.plots import draw
    except ModuleNotFoundError:
        log.info("no plots in the page; for them: pip install 'ragx[plots]'")
        return {}
    return draw(report)


def _bootstrap(config: Config) -> Bootstrap:
    from ragx.evaluation.significance import Bootstrap

    return Bootstrap(config.eval.bootstrap, config.eval.confidence, config.seed)


def _own_signature(config: Config, data: str) -> dict[str, str]:
    """What the figures depend on besides the predictions."""
    libraries = {name: version(name) for name in ("ir_measures", "rouge_score", "sacrebleu")}
    return {
        "data": data,
        "metrics": f"tokens:{config.eval.tokens}|" + "|".join(f"{name}:{found}" for name, found in libraries.items()),
        "seed": str(config.seed),
        "resamples": str(config.eval.bootstrap),
    }


def _signature(config: Config, index: Index, which: str) -> dict[str, str]:
    from ragx.models import model_fingerprint

    manifest: dict[str, Any] = {"plan": "none"}
    if which == "tuned":
        manifest = read_manifest(config.run_dir / "model", MODEL_KIND, "ragx finetune")
    weights = [model_fingerprint(folder) for folder in pretrained_folders(config)]
    return {
        "ragx": version("ragx"),
        "config": fingerprint(config.model_dump(mode="json", exclude={"output_dir"})),
        "corpus": fingerprint(index.manifest["corpus"]),
        "index": str(index.manifest["fingerprint"]),
        "generator": config.rag.checkpoint or config.generator.model,
        "tuning": str(manifest["plan"]),
        "model": fingerprint([weights, manifest.get("files")]),
    }
