"""Device, dtype, encoders, index and models of a configuration, opened and checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ragx.artifacts import fingerprint, read_manifest, recover_folder
from ragx.config import Config
from ragx.errors import ArtifactError, ConfigError, StaleIndexError

if TYPE_CHECKING:
    import torch

    from ragx.index.encoder import Compile, Encoder
    from ragx.index.store import Index
    from ragx.index.vectors import Parameter
    from ragx.rag.generator import Generator
    from ragx.rag.model import RagModel
    from ragx.rag.prompts import Prompt
    from ragx.rag.rerank import Rerank
    from ragx.rag.retriever import Retriever

MODEL_KIND = "ragx model"
Prepare = Callable[[Config, "Retriever", "Generator"], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model is opened from: the folders of its parts, the prior's temperature and lexical weight, the null bias
    where there is one, the prefix of questions that a tuned encoder learned with, where that is known, and what a
    training found for reordering hits."""

    question_encoder: Path
    generator: Path
    temperature: float | str
    lexical_weight: float | str
    null_bias: float | None
    adapter: Path | None = None
    query_prefix: str | None = None
    rerank: dict[str, float] | None = None


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


def passage_encoder(config: Config) -> Encoder:
    """The encoder of passages: the question encoder's twin, or the same."""
    return passage_encoder_loader(config)()


def passage_encoder_loader(config: Config, *, learns: bool = False) -> Callable[[], Encoder]:
    """What loads the encoder of passages, here or in another process that sees the same files; one that `learns` is
    not compiled, for what is compiled keeps its weights."""
    reference = config.encoder.passage_model or config.encoder.model
    if config.rag.checkpoint and not config.encoder.passage_model:
        raise ConfigError("encoder.passage_model: rag.checkpoint brings only the question encoder; name its twin here")
    compile = _compile_by_openvino(config) if config.encoder.backend == "openvino" and not learns else None
    return partial(
        _encoder_loader(config, _resolve(config, reference, config.encoder.sha256), "document"), compile=compile
    )


def _compile_by_openvino(config: Config) -> Compile:
    try:
        from ragx.index.compiled import CompiledTransformer
    except ImportError:
        raise ConfigError("encoder.backend: openvino: install ragx[openvino]") from None
    if compute_device(config) != "cpu":
        raise ConfigError("encoder.backend: openvino computes on the processor; set device: cpu, or backend: torch")
    return CompiledTransformer


def require_same_width(config: Config, passages: Encoder) -> None:
    """Refuse two towers whose vectors have no inner product, before a corpus is encoded with one of them.

    Raises:
        ConfigError: they are of different width.
    """
    if not config.encoder.passage_model or config.retrieval.mode == "lexical":
        return
    questions = question_encoder(config)
    if questions.dimension != passages.dimension:
        raise ConfigError(
            f"encoder.passage_model: {config.encoder.passage_model} gives vectors of {passages.dimension} dimensions, "
            f"the question encoder {config.rag.checkpoint or config.encoder.model} of {questions.dimension}: "
            "name its twin"
        )


def tuned_passage_encoder(config: Config) -> Path | None:
    """The folder of the passage encoder that the tuned model brings, where it brings one."""
    folder = config.run_dir / "model" / "passage_encoder"
    return folder if has_tuned_model(config) and folder.is_dir() else None


def tuned_passage_encoder_loader(config: Config, folder: Path) -> Callable[[], Encoder]:
    """What loads a passage encoder that training changed."""
    return _encoder_loader(config, folder, "document")


def tuned_index(config: Config) -> Path:
    """Where the generations made with the tuned passage encoder are; those of the base model stay beside them."""
    return config.run_dir / "index" / "tuned"


def _resolve(config: Config, reference: str, sha256: str | None) -> Path:
    from ragx import models

    models.hide_progress_bars()
    return models.resolve(reference, sha256=sha256, allow_pickle=config.allow_pickle_weights)


def question_encoder(config: Config) -> Encoder:
    """The pretrained encoder of questions."""
    return _encoder(config, pretrained_folders(config)[0], "query")


def _encoder(config: Config, folder: Path, role: str) -> Encoder:
    return _encoder_loader(config, folder, role)()


def _encoder_loader(config: Config, folder: Path, role: str) -> Callable[..., Encoder]:
    from ragx.index.encoder import Encoder, EncoderSettings

    section = config.encoder
    settings = EncoderSettings(
        prefix=section.query_prefix if role == "query" else section.passage_prefix,
        pooling=section.pooling,
        normalize=section.normalize,
        max_tokens=section.max_tokens,
    )
    device = compute_device(config)
    return partial(Encoder, folder, settings, role=role, device=device, allow_pickle=config.allow_pickle_weights)


def pretrained_folders(config: Config) -> tuple[Path, Path]:
    """The pretrained question encoder's and generator's folders."""
    if config.rag.checkpoint:
        from ragx.rag.interop import split_checkpoint

        folder = _resolve(config, config.rag.checkpoint, None)
        return split_checkpoint(folder, allow_pickle=config.allow_pickle_weights)
    return (
        _resolve(config, config.encoder.model, config.encoder.sha256),
        _resolve(config, config.generator.model, config.generator.sha256),
    )


def open_index(config: Config, which: str = "base") -> Index:
    """The index of the "base" model, or of the "tuned" one where that brings its own passage encoder, checked against
    the configuration.

    Raises:
        StaleIndexError: it was built with another chunking, encoder or corpus.
    """
    from ragx.corpus.readers import corpus_files
    from ragx.index.store import Index
    from ragx.models import model_fingerprint

    section = config.index
    search: dict[Parameter, int] = {}
    if section.ef_search is not None:
        search["ef_search"] = section.ef_search
    if section.nprobe is not None:
        search["nprobe"] = section.nprobe
    tuned = tuned_passage_encoder(config) if which == "tuned" else None
    index = Index(tuned_index(config) if tuned else config.run_dir / "index", "ragx index", search)
    index.require("chunking", config.passages.model_dump(mode="json"), "ragx index")
    index.require("encoding", encoding_facts(config), "ragx index")
    reference = config.encoder.passage_model or config.encoder.model
    weights = model_fingerprint(tuned or _resolve(config, reference, config.encoder.sha256))
    index.require("encoder", {**index.manifest["encoder"], "weights": weights}, "ragx index")
    if all(Path(path).exists() for path in config.corpus.paths):
        sizes = {name: path.stat().st_size for path, name in corpus_files(config.corpus.paths)}
        built = {name: facts["size"] for name, facts in index.manifest["corpus"]["files"].items()}
        changed = sorted(name for name in {*sizes, *built} if sizes.get(name) != built.get(name))
        if changed:
            raise StaleIndexError(f"{index.folder}: built before {changed[0]} changed; run: ragx index")
    return index


def encoding_facts(config: Config) -> dict[str, object]:
    """What the configuration says of how passages become vectors, besides the encoder's name."""
    return config.encoder.model_dump(mode="json", include={"passage_prefix", "pooling", "normalize", "max_tokens"})


def has_tuned_model(config: Config) -> bool:
    """Whether a finished fine-tuning stands in the run folder."""
    recover_folder(config.run_dir / "model")
    return (config.run_dir / "model").is_dir()


def resolve_which(config: Config, which: str) -> str:
    """ "base" or "tuned"; "auto" is tuned where there is one."""
    return ("tuned" if has_tuned_model(config) else "base") if which == "auto" else which


def open_model(config: Config, which: str = "auto", *, prepare: Prepare | None = None) -> RagModel:
    """The model "base" (pretrained) or "tuned"; "auto" is tuned where it exists.

    For training, `prepare` freezes and adapts the parts before they become one module; weights then stay float32, and
    hits are not reordered.

    Raises:
        ArtifactError: a part is missing, damaged or does not fit the index.
    """
    import torch

    from ragx.rag.generators import load_generator
    from ragx.rag.model import RagModel
    from ragx.rag.retriever import RetrievalSettings, Retriever, starting_prior

    which = resolve_which(config, which)
    index = open_index(config, which)
    parts = _tuned_parts(config, index) if which == "tuned" else _pretrained_parts(config)
    encoder = _encoder(config, parts.question_encoder, "query")
    _require_query_prefix(config, encoder, parts.query_prefix)
    section = config.retrieval
    settings = RetrievalSettings(section.mode, section.top_k, section.candidates, section.prior)
    passage_side = _passage_side(config, encoder) if prepare and "passage_encoder" in config.finetune.named else None
    prior = starting_prior(encoder, section.mode, parts.temperature, parts.lexical_weight)
    retriever = Retriever(encoder, prior, index, settings, passage_side)
    generator = load_generator(
        parts.generator,
        generator_prompt(config, encoder, parts.generator),
        config.generator.max_answer_tokens,
        device=compute_device(config),
        dtype=torch.float32 if prepare else compute_dtype(config),
        allow_pickle=config.allow_pickle_weights,
        adapter=parts.adapter,
    )
    if prepare is not None:
        prepare(config, retriever, generator)
    rerank = _rerank(config, generator, parts.rerank)
    model = RagModel(retriever, generator, config.rag.marginal, parts.null_bias, None if prepare else rerank)
    return model.to(compute_device(config))


def _rerank(config: Config, generator: Generator, learnt: dict[str, float] | None) -> Rerank | None:
    """How hits are reordered, with what a training has `learnt` for it, or as no dev question has said otherwise; with
    `auto`, not where none has.

    Raises:
        ConfigError: this generator's prompt does not let the question be written after the passage.
    """
    from ragx.rag.rerank import Rerank

    hits = config.retrieval.rerank_hits
    if not hits or (config.retrieval.rerank == "auto" and learnt is None):
        return None
    if not generator.writes_questions:
        raise ConfigError(
            f"retrieval.rerank: {config.retrieval.rerank}: this generator weighs passages by a question that is "
            "last in its prompt; put {question} after {passage} in generator.prompt, or say rerank: 0"
        )
    return Rerank(hits, **(learnt or {}))


def _passage_side(config: Config, questions: Encoder) -> Encoder:
    """The passage encoder to train: a tower of its own, or the question encoder's weights."""
    passages = passage_encoder_loader(config, learns=True)()
    if config.ties_encoders:
        passages.share_weights(questions)
    return passages


def generator_prompt(config: Config, encoder: Encoder, generator: Path) -> Prompt:
    """The generator's input: the configured prompt, or the format of the RAG checkpoint."""
    from ragx.rag.interop import input_format
    from ragx.rag.prompts import PromptSettings

    section = config.generator
    if not config.rag.joins_like_transformers:
        return PromptSettings(section.prompt, section.system, section.max_input_tokens)
    return input_format(
        _resolve(config, config.rag.checkpoint, None) if config.rag.checkpoint else None,
        generator,
        question_text=encoder.read_back,
        truncation=config.rag.truncation,
        max_input_tokens=section.max_input_tokens,
    )


def _pretrained_parts(config: Config) -> Parts:
    from ragx.rag.model import NULL_BIAS

    encoder, generator = pretrained_folders(config)
    section, null_bias = config.retrieval, NULL_BIAS if config.rag.null_passage else None
    return Parts(encoder, generator, section.temperature, section.lexical_weight, null_bias)


def _tuned_parts(config: Config, index: Index) -> Parts:
    """The parts of the tuned model, checked against index and pretrained generator."""
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
    null_bias = manifest.get("null_bias")
    if (null_bias is not None) != config.rag.null_passage:
        was = str(null_bias is not None).lower()
        raise ArtifactError(f"{folder}: tuned with rag.null_passage: {was}; say so, or run: ragx finetune")
    base, adapter = pretrained_folders(config)[1], folder / "generator" if manifest["adapter"] else None
    if adapter and manifest["base_generator"] != model_fingerprint(base):
        raise ArtifactError(f"{folder}: its adapter was trained on another generator; run: ragx finetune")
    return Parts(
        folder / "question_encoder",
        base if adapter else folder / "generator",
        manifest["prior"]["temperature"],
        manifest["prior"]["lexical_weight"],
        null_bias,
        adapter,
        manifest.get("query_prefix"),
        manifest.get("rerank"),
    )


def _require_query_prefix(config: Config, encoder: Encoder, learned: str | None) -> None:
    """Refuse a prefix of questions other than the one the tuned encoder learned with; None where that is not known."""
    if learned is not None and encoder.settings.prefix != learned:
        raise ArtifactError(
            f"{config.run_dir / 'model'}: tuned with encoder.query_prefix: {learned!r}, configured is "
            f"{encoder.settings.prefix!r}; set it back, or run: ragx finetune"
        )
