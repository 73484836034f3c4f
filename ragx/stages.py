"""Config -> artefacts: what each command does, from configuration to files.

The only module with late imports: torch and its company are loaded when a stage runs, not when ragx is imported.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragx.artifacts import file_sha256, fingerprint, new_folder, read_manifest, recover_folder, untrusted, write_text
from ragx.config import Config, Lora, dump_config
from ragx.errors import ArtifactError, ConfigError, DataError, StaleIndexError
from ragx.records import Answer, Example, Hit, Interval, Progress, Report, no_progress

if TYPE_CHECKING:
    import torch

    from ragx.index.build import Source
    from ragx.index.encoder import Encoder
    from ragx.index.store import Index
    from ragx.rag.generators import Generator
    from ragx.rag.model import RagModel
    from ragx.training.loop import TrainSettings

log = logging.getLogger(__name__)

MODEL_KIND = "ragx model"
LORA_FROM = 500_000_000
"""Encoder-decoder generators below this many weights are trained whole when `lora: auto`; causal ones never are."""


# --- index ----------------------------------------------------------------------------------------------------------


def build_index(config: Config, progress: Progress = no_progress) -> dict[str, Any]:
    """Read, cut and encode the corpus and write the next index generation; returns `index_stats`.

    Raises:
        RagxError: documents, model, disk or lock are at fault; the index in use stays as it was.
    """
    from ragx.corpus.passages import passages_of, word_spans
    from ragx.corpus.readers import read_documents
    from ragx.index.build import build, current_generation

    source = _source(config)
    encoder = _passage_encoder(config)
    folder = config.run_dir / "index"
    if (generation := current_generation(folder)) and _is_up_to_date(generation, source, encoder, config):
        log.info("the index %s is up to date", generation)
        return index_stats(config)
    write_text(config.run_dir / "config.yaml", dump_config(config))
    documents = read_documents(config.corpus.paths, _fields(config), config.corpus.on_error)
    spans = encoder.spans if config.passages.unit == "tokens" else word_spans
    build(
        folder,
        source,
        passages_of(documents, size=config.passages.size, overlap=config.passages.overlap, spans=spans),
        encoder,
        lexical=config.index.lexical == "bm25",
        batch_size=config.encoder.batch_size,
        shard_size=config.index.shard_size,
        dtype=compute_dtype(config),
        progress=progress,
    )
    return index_stats(config)


def index_stats(config: Config) -> dict[str, Any]:
    """What the index in use holds, from its manifest: counts, kinds and fingerprints."""
    from ragx.index.build import KIND, current_generation

    folder = config.run_dir / "index"
    generation = current_generation(folder)
    if generation is None:
        raise ArtifactError(f"{folder}: no index here; run: ragx index")
    manifest = read_manifest(generation, KIND, "ragx index")
    return {
        "folder": str(generation),
        "documents": manifest["documents"],
        "passages": manifest["passages"],
        "dimension": manifest["dimension"],
        "kind": manifest["kind_of_index"],
        "lexical": manifest["lexical"],
        "bytes": sum(facts["size"] for facts in manifest["files"].values()),
        "fingerprints": {
            "index": manifest["fingerprint"],
            **{part: fingerprint(manifest[part]) for part in ("corpus", "chunking", "encoder")},
        },
    }


def _is_up_to_date(generation: Path, source: Source, encoder: Encoder, config: Config) -> bool:
    from ragx.index.build import KIND

    try:
        manifest = read_manifest(generation, KIND, "ragx index")
    except ArtifactError as error:
        log.warning("%s; building it anew", error)
        return False
    wanted = (source.corpus, source.chunking, encoder.fingerprint, config.index.lexical)
    return wanted == tuple(manifest[part] for part in ("corpus", "chunking", "encoder", "lexical"))


def _source(config: Config) -> Source:
    from ragx.corpus.readers import corpus_files
    from ragx.index.build import Source

    files = {
        name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path, name in corpus_files(config.corpus.paths)
    }
    fields = config.corpus.model_dump(mode="json", exclude={"paths"})
    return Source({"files": files, **fields}, config.passages.model_dump(mode="json"))


def _fields(config: Config) -> Any:
    from ragx.corpus.readers import Fields

    return Fields(config.corpus.id_field, config.corpus.title_field, config.corpus.text_field)


# --- models ---------------------------------------------------------------------------------------------------------


def compute_device(config: Config) -> str:
    """The device of the configuration, "auto" resolved.

    Raises:
        ConfigError: it is not there.
    """
    import torch

    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {config.device}: no CUDA device here; say device: auto")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps: not available here; say device: auto")
    return config.device


def compute_dtype(config: Config) -> torch.dtype:
    """The configured dtype; "auto" is bfloat16 where the processor multiplies it natively."""
    import torch

    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    device = compute_device(config)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32


def _passage_encoder(config: Config) -> Encoder:
    reference = config.encoder.passage_model or config.encoder.model
    if config.rag.checkpoint and not config.encoder.passage_model:
        raise ConfigError("encoder.passage_model: rag.checkpoint brings only the question encoder; name its twin here")
    return _encoder(config, _resolve(config, reference, config.encoder.sha256), "document")


def _resolve(config: Config, reference: str, sha256: str | None) -> Path:
    from ragx import models

    models.hide_progress_bars()
    return models.resolve(reference, sha256=sha256, allow_pickle=config.allow_pickle_weights)


def _encoder(config: Config, folder: Path, role: str) -> Encoder:
    from ragx.index.encoder import Encoder, EncoderSettings

    section = config.encoder
    settings = EncoderSettings(
        prefix=section.query_prefix if role == "query" else section.passage_prefix,
        pooling=section.pooling,
        normalize=section.normalize,
        max_tokens=section.max_tokens,
    )
    device = compute_device(config)
    return Encoder(folder, settings, role=role, device=device, allow_pickle=config.allow_pickle_weights)


def _folders(config: Config) -> tuple[Path, Path]:
    """The pretrained question encoder's and generator's folders."""
    if config.rag.checkpoint:
        from ragx.rag.interop import split_checkpoint

        folder = _resolve(config, config.rag.checkpoint, None)
        return split_checkpoint(folder, allow_pickle=config.allow_pickle_weights)
    return (
        _resolve(config, config.encoder.model, config.encoder.sha256),
        _resolve(config, config.generator.model, config.generator.sha256),
    )


def open_index(config: Config) -> Index:
    """The index in use, checked against the configuration.

    Raises:
        StaleIndexError: it was built with another chunking, encoder or corpus.
    """
    from ragx.corpus.readers import corpus_files
    from ragx.index.store import Index
    from ragx.models import model_fingerprint

    index = Index(config.run_dir / "index", "ragx index")
    index.require("chunking", config.passages.model_dump(mode="json"), "ragx index")
    reference = config.encoder.passage_model or config.encoder.model
    weights = model_fingerprint(_resolve(config, reference, config.encoder.sha256))
    index.require("encoder", {**index.manifest["encoder"], "weights": weights}, "ragx index")
    if all(Path(path).exists() for path in config.corpus.paths):
        sizes = {name: path.stat().st_size for path, name in corpus_files(config.corpus.paths)}
        built = {name: facts["size"] for name, facts in index.manifest["corpus"]["files"].items()}
        changed = sorted(name for name in {*sizes, *built} if sizes.get(name) != built.get(name))
        if changed:
            raise StaleIndexError(f"{index.folder}: built before {changed[0]} changed; run: ragx index")
    return index


def has_tuned_model(config: Config) -> bool:
    """Whether a finished fine-tuning stands in the run folder."""
    recover_folder(config.run_dir / "model")
    return (config.run_dir / "model").is_dir()


def open_model(config: Config, which: str = "auto", *, training: bool = False) -> RagModel:
    """The model "base" (pretrained) or "tuned"; "auto" is tuned where it exists.

    For training, weights stay float32 and the trained parts of `finetune` are prepared.

    Raises:
        ArtifactError: a part is missing, damaged or does not fit the index.
    """
    import torch

    from ragx.rag.model import RagModel
    from ragx.rag.prompts import PromptSettings
    from ragx.rag.generators import load_generator
    from ragx.rag.retriever import RetrievalSettings, Retriever, starting_prior

    which = ("tuned" if has_tuned_model(config) else "base") if which == "auto" else which
    index = open_index(config)
    encoder_folder, generator_folder = _folders(config)
    adapter, prior = None, (config.retrieval.temperature, config.retrieval.lexical_weight)
    if which == "tuned":
        parts = _tuned_parts(config, index, generator_folder)
        encoder_folder, generator_folder, adapter, prior = parts
    encoder = _encoder(config, encoder_folder, "query")
    section = config.retrieval
    settings = RetrievalSettings(section.mode, section.top_k, section.candidates, section.prior)
    retriever = Retriever(encoder, starting_prior(encoder, section.mode, *prior), index, settings)
    generator = load_generator(
        generator_folder,
        PromptSettings(config.generator.prompt, config.generator.system, config.generator.max_input_tokens),
        config.generator.max_answer_tokens,
        device=compute_device(config),
        dtype=torch.float32 if training else compute_dtype(config),
        allow_pickle=config.allow_pickle_weights,
        adapter=adapter,
    )
    if training:
        _prepare_training(config, retriever, generator)
    return RagModel(retriever, generator, config.rag.marginal).to(compute_device(config))


def _tuned_parts(config: Config, index: Index, base_generator: Path) -> tuple[Path, Path, Path | None, tuple[float, float]]:
    """Question encoder, generator, adapter and prior of the tuned model, checked against index and base generator."""
    from ragx.models import model_fingerprint

    folder = config.run_dir / "model"
    recover_folder(folder)
    manifest = read_manifest(folder, MODEL_KIND, "ragx finetune")
    if manifest["passage_encoder"] != index.manifest["encoder"]:
        raise StaleIndexError(
            f"{folder}: tuned for passage encoder {fingerprint(manifest['passage_encoder'])}, "
            f"the index has {fingerprint(index.manifest['encoder'])}; run: ragx finetune"
        )
    if manifest["mode"] != config.retrieval.mode:
        raise ArtifactError(
            f"{folder}: tuned with retrieval.mode {manifest['mode']}, configured is {config.retrieval.mode}; "
            "run: ragx finetune"
        )
    prior = (manifest["prior"]["temperature"], manifest["prior"]["lexical_weight"])
    if not manifest["adapter"]:
        return folder / "question_encoder", folder / "generator", None, prior
    if manifest["base_generator"] != model_fingerprint(base_generator):
        raise ArtifactError(f"{folder}: its adapter was trained on another generator; run: ragx finetune")
    return folder / "question_encoder", base_generator, folder / "generator", prior


# --- finetune -------------------------------------------------------------------------------------------------------


def finetune(
    config: Config, *, resume: bool = False, dry_run: bool = False, progress: Progress = no_progress
) -> dict[str, Any]:
    """Train question encoder and generator on the marginal likelihood and write `model/`; returns what was done.

    Raises:
        RagxError: data, index, model or machine are at fault; checkpoints and the former model stay.
    """
    from ragx.training import checkpoints
    from ragx.training.loop import train

    started = time.monotonic()
    examples, dev = _training_data(config)
    model = open_model(config, "base", training=True)
    examples = _fitting(examples, model.generator, config)
    settings = _train_settings(config)
    plan = _plan(config, model, examples, dev, settings)
    log.info("%s", plan["text"])
    if dry_run:
        return plan
    folder = config.run_dir / "training"
    found = checkpoints.plan_of(folder / "checkpoints" / "last")
    if resume and found is None:
        log.warning("nothing to resume in %s; starting from the beginning", folder)
    elif resume and found != plan["fingerprint"]:
        raise ArtifactError(f"{folder}: its checkpoint belongs to another configuration or data; run: ragx finetune")
    elif found is not None and not resume:
        log.warning("starting over; the checkpoint that was in %s is gone", folder)
    resume = resume and found is not None
    write_text(config.run_dir / "config.yaml", dump_config(config))
    if not resume:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        _warm_up(config, model, examples, dev, progress)
    position = train(
        model, examples, dev, settings, folder, plan=plan["fingerprint"], resume=resume, progress=progress
    )
    seconds = time.monotonic() - started
    _write_model(config, model, plan, position.best_nll, seconds)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "model": str(config.run_dir / "model"),
        "questions": len(examples),
        "steps": position.step,
        "best_step": position.best_step or position.step,
        "dev_nll_per_token": position.best_nll,
        "prior": model.retriever.prior.values(),
        "seconds": round(seconds, 1),
    }


def _training_data(config: Config) -> tuple[list[Example], list[Example]]:
    from ragx.corpus.questions import read_examples

    if config.data.train is None:
        raise DataError("data.train: no training questions are configured; name a .jsonl file of questions and answers")
    examples = read_examples(config.data.train, config.data.on_error)[: config.finetune.max_train]
    dev = [] if config.data.dev is None else read_examples(config.data.dev, config.data.on_error)
    if not dev:
        log.warning("no data.dev: training runs to its end and keeps the last weights")
    return examples, dev[: config.finetune.dev_limit]


def _fitting(examples: list[Example], generator: Generator, config: Config) -> list[Example]:
    """Examples whose answer fits the budget; `data.on_error: skip` leaves the others out."""
    limit = config.generator.max_answer_tokens
    lengths = [len(generator.answer_ids(example.answers[0])) for example in examples]
    over = [(length, example.id) for length, example in zip(lengths, examples, strict=True) if length > limit]
    if over and config.data.on_error == "fail":
        raise DataError(
            f"{config.data.train}: {len(over)} answers exceed generator.max_answer_tokens: {limit} (question "
            f"{over[0][1]}; the longest has {max(over)[0]}); raise it, or say data.on_error: skip to leave them out"
        )
    if over:
        log.warning("left out %d training questions whose answer exceeds %d tokens", len(over), limit)
    kept = [example for length, example in zip(lengths, examples, strict=True) if length <= limit]
    if not kept:
        raise DataError(f"{config.data.train}: every answer exceeds generator.max_answer_tokens: {limit}; raise it")
    return kept


def _train_settings(config: Config) -> TrainSettings:
    from ragx.training.loop import TrainSettings

    section = config.finetune
    top_k = section.top_k or config.retrieval.top_k
    micro = max(1, 16 // top_k) if section.micro_batch_size == "auto" else section.micro_batch_size
    shared = {field.name for field in dataclasses.fields(TrainSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in shared}
    values |= {"top_k": top_k, "micro_batch_size": micro, "seed": config.seed, "dtype": compute_dtype(config)}
    return TrainSettings(**values)


def _prepare_training(config: Config, retriever: Any, generator: Generator) -> None:
    """Freeze what is not trained; wrap the generator with LoRA where wanted."""
    from ragx.rag.generators import CausalGenerator, add_lora

    section = config.finetune
    trained = set(section.train) - ({"question_encoder"} if config.retrieval.mode == "lexical" else set())
    retriever.question_encoder.requires_grad_("question_encoder" in trained)
    generator.model.requires_grad_("generator" in trained)
    large = isinstance(generator, CausalGenerator) or generator.parameters_count >= LORA_FROM
    wanted = large if section.lora == "auto" else section.lora
    if wanted and "generator" in trained:
        lora = wanted if isinstance(wanted, Lora) else Lora()
        import torch

        torch.manual_seed(config.seed)
        add_lora(generator, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)


def _plan(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example], settings: TrainSettings
) -> dict[str, Any]:
    """What will be trained, on what, for how many steps; with a fingerprint that a checkpoint must match."""
    from ragx.training.checkpoints import trainable

    def count(prefix: str) -> int:
        return sum(value.numel() for name, value in trainable(model).items() if name.startswith(prefix))

    encoder, generator = count("retriever.question_encoder"), count("generator_module")
    steps = settings.steps(len(examples))
    text = (
        f"training {encoder / 1e6:.1f}M weights of the question encoder, {generator / 1e6:.1f}M of the generator's "
        f"{model.generator.parameters_count / 1e6:.1f}M, and the prior's temperature and lexical weight, on "
        f"{len(examples)} questions with {settings.top_k} passages each: {settings.epochs} epochs, {steps} steps of "
        f"{settings.batch_size} questions in {str(settings.dtype).removeprefix('torch.')}, "
        f"{len(dev)} dev questions after each epoch"
    )
    facts = {
        "config": config.model_dump(mode="json", exclude={"output_dir", "eval", "data", "corpus", "name"}),
        "index": model.retriever.index.manifest["fingerprint"],
        "data": [dataclasses.asdict(example) for example in (*examples, *dev)],
        "dtype": str(settings.dtype),
    }
    return {
        "text": text,
        "questions": len(examples),
        "dev_questions": len(dev),
        "steps": steps,
        "trained_weights": {"question_encoder": encoder, "generator": generator},
        "fingerprint": fingerprint(facts),
    }


def _warm_up(
    config: Config, model: RagModel, examples: Sequence[Example], dev: Sequence[Example], progress: Progress
) -> None:
    """Train the retriever alone first, where there is something to learn from."""
    from ragx.training.warmup import WarmupSettings, supervise, warm_up

    section = config.finetune
    epochs = WARMUP_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    if not epochs or "question_encoder" not in section.train:
        return
    passages = model.retriever.index.all_passages()
    train, held_out = supervise(examples, passages), supervise(dev, passages)
    if not train:
        log.warning("no retriever warm-up: no training question has gold documents or an answer found in a passage")
        return
    log.info("retriever warm-up on %d of %d questions against all passages", len(train), len(examples))
    settings = WarmupSettings(
        epochs=epochs,
        batch_size=section.batch_size,
        learning_rate=section.warmup_learning_rate,
        prior_learning_rate=section.prior_learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        seed=config.seed,
    )
    warm_up(model.retriever, train, held_out, settings, progress)


WARMUP_EPOCHS = 10
"""Epochs at most of the retriever warm-up when `warmup_epochs: auto`; the dev set ends it earlier."""


def _write_model(
    config: Config, model: RagModel, plan: dict[str, Any], dev_nll: float | None, seconds: float
) -> None:
    from ragx.models import model_fingerprint

    adapter = model.generator.model is not model.generator.base
    facts: dict[str, object] = {
        "ragx": version("ragx"),
        "mode": config.retrieval.mode,
        "prior": model.retriever.prior.values(),
        "adapter": adapter,
        "base_generator": model_fingerprint(_folders(config)[1]),
        "passage_encoder": model.retriever.index.manifest["encoder"],
        "index": model.retriever.index.manifest["fingerprint"],
        "plan": plan["fingerprint"],
        "dev_nll_per_token": dev_nll,
    }
    with new_folder(config.run_dir / "model", MODEL_KIND, **facts) as beside:
        model.retriever.encoder.save(beside / "question_encoder")
        model.generator.model.save_pretrained(beside / "generator")
        if not adapter:
            model.generator.tokenizer.save_pretrained(beside / "generator")
        write_text(beside / "README.md", _model_card(config, plan, facts, seconds))


def _model_card(config: Config, plan: dict[str, Any], facts: dict[str, object], seconds: float) -> str:
    nll = "no dev set" if facts["dev_nll_per_token"] is None else f"{facts['dev_nll_per_token']:.3f} nats a token"
    return f"""# {config.name}: a RAG model tuned with ragx {facts["ragx"]}

{plan["text"]}.

- question encoder: {config.rag.checkpoint or config.encoder.model}
- generator: {config.rag.checkpoint or config.generator.model}{" (LoRA adapter here)" if facts["adapter"] else ""}
- marginal: {config.rag.marginal}; retrieval: {config.retrieval.mode}, {config.retrieval.top_k} passages
- prior: {json.dumps(facts["prior"])}
- best dev -log p(answer | question): {nll}
- index {facts["index"]}, training plan {facts["plan"]}, {seconds / 60:.1f} minutes
"""


# --- ask and eval ---------------------------------------------------------------------------------------------------


class Answerer:
    """An opened model that answers questions."""

    def __init__(self, config: Config, which: str = "auto") -> None:
        """Raises ArtifactError when index or model cannot be opened."""
        self._config = config
        self._model = open_model(config, which)

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """An answer to each question, with its passages."""
        section = self._config.rag
        found = self._model.answer(questions, decoding=section.decoding, num_beams=section.num_beams)
        priors, scores = found.retrieval.log_prior.exp().tolist(), found.retrieval.scores.tolist()
        answers = []
        for row, (question, decoded) in enumerate(zip(questions, found.decoded, strict=True)):
            parts = zip(found.retrieval.passages[row], scores[row], priors[row], decoded.posterior, strict=True)
            hits = tuple(Hit(*part) for part in parts)
            text = untrusted(decoded.text)
            answers.append(Answer(question, text, decoded.log_probability, decoded.tokens, hits))
        return answers


def ask(config: Config, question: str, which: str = "auto") -> Answer:
    """Answer one question from the indexed corpus."""
    return Answerer(config, which).answer([question])[0]


def evaluate(
    config: Config, *, split: str = "auto", which: str = "auto", limit: int | None = None, progress: Progress = no_progress
) -> Report:
    """Score a model on a split ("auto": test, else dev) and write predictions and reports to `eval/`.

    Raises:
        ConfigError: a metric or gate is unknown; before any model is loaded.
        DataError: the split is not configured or cannot be read.
    """
    from ragx.corpus.questions import read_examples
    from ragx.evaluation.gates import parse_gates
    from ragx.evaluation.metrics import parse_metrics

    metrics = parse_metrics(config.eval.metrics)
    gates = parse_gates(config.eval.gates, config.eval.metrics)
    split = ("test" if config.data.test else "dev") if split == "auto" else split
    path: str | None = getattr(config.data, split)
    if path is None:
        raise DataError(f"data.{split}: no questions are configured for this split")
    examples = read_examples(path, config.data.on_error)

    from ragx.evaluation.predict import predict
    from ragx.evaluation.report import make_report, write_report

    started = time.monotonic()
    which = ("tuned" if has_tuned_model(config) else "base") if which == "auto" else which
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


def baseline_means(baseline: Path) -> dict[str, float]:
    """The metric values of an earlier report."""
    found = json.loads(baseline.read_text(encoding="utf-8"))
    return {name: value["value"] for name, value in found["metrics"].items()}


def report_json(report: Report, differences: dict[str, Interval] | None = None) -> dict[str, Any]:
    """A report as `ragx eval --json` prints it, with the differences to a baseline where there is one."""
    from ragx.evaluation.report import report_json as as_json

    found = as_json(report)
    if differences is not None:
        found["differences"] = {name: dataclasses.asdict(value) for name, value in differences.items()}
    return found


def _bootstrap(config: Config) -> Any:
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


# --- init and check -------------------------------------------------------------------------------------------------


def init(folder: Path, *, sample: bool) -> list[Path]:
    """Write a commented configuration into `folder`, with `sample` also the sample domain; returns what was written.

    Raises:
        ConfigError: something would be overwritten.
    """
    samples = Path(__file__).parent / "samples"
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
    from ragx.corpus.answers import holds_answer, normalise_answer
    from ragx.corpus.passages import passages_of
    from ragx.corpus.questions import read_examples
    from ragx.corpus.readers import read_documents
    from ragx.evaluation.gates import parse_gates
    from ragx.evaluation.metrics import parse_metrics

    parse_metrics(config.eval.metrics)
    parse_gates(config.eval.gates, config.eval.metrics)
    documents = list(read_documents(config.corpus.paths, _fields(config), config.corpus.on_error))
    ids = {document.id for document in documents}
    passages = list(passages_of(documents, size=config.passages.size, overlap=config.passages.overlap))
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


def _share(flags: Any) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else math.nan


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
