"""Text -> vectors: a sentence-transformers model, with or without gradient.

Pooling, prefixes and normalisation are the model's own unless the configuration overrides them; all of them are in
`settings`, which goes into the index manifest.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoTokenizer, BertConfig, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from ragx.errors import ArtifactError, RagxError
from ragx.models import loading, model_fingerprint, read_model_config, require_tokenizer, require_weights, saving
from ragx.records import Passage

Vectors = NDArray[np.float32]
Compile = Callable[[Transformer, dict[str, Any], torch.dtype], torch.nn.Module]
"""Transformer, example of its features, dtype -> a module that stands for it, for inference only."""

BATCH_TOKENS = 2048
"""On two cores, larger batches were slower."""
GPU_BATCH_TOKENS = 65536


def auto_batch_tokens(device: str) -> int:
    """Tokens of a batch where nothing else is said."""
    return BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What turns a text into a vector besides the weights. None: as the model's own files say."""

    prefix: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised texts, padded to the longest: tensors [N, T], and the tokens of each text [N]."""

    texts: tuple[str | tuple[str, str], ...]
    features: dict[str, Any]
    lengths: NDArray[np.int64]

    def batches(self, batch_tokens: int) -> Iterator[NDArray[np.int64]]:
        """Rows of texts of like length, the longest first, padded to at most `batch_tokens` tokens a batch."""
        order = np.argsort(-self.lengths, kind="stable")
        while len(order):
            count = max(1, batch_tokens // int(self.lengths[order[0]] or 1))
            yield order[:count]
            order = order[count:]

    def rows(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The features of some rows, without the columns that are padding in all of them."""
        mask = self.features["attention_mask"][rows]
        used = mask.any(dim=0)
        return {
            name: value[rows][:, used]
            if isinstance(value, torch.Tensor) and value.shape == (len(self.texts), len(used))
            else value
            for name, value in self.features.items()
        }


class Encoder:
    """A text encoder; `module` is the torch module that training changes."""

    def __init__(
        self,
        folder: Path,
        settings: EncoderSettings,
        *,
        role: str,
        device: str = "cpu",
        allow_pickle: bool = False,
        compile: Compile | None = None,
    ) -> None:
        """Load from a sentence-transformers folder, or any transformers encoder folder.

        `role` ("query" or "document") picks the model's own prompt when `settings.prefix` is None. With `compile`, the
        transformer is compiled when it first encodes, and what training changes afterwards is not seen.

        Raises:
            ArtifactError: the folder holds no usable encoder.
        """
        self.folder = folder
        self.role = role
        self.device = device
        self._compile = compile
        self._compiled: dict[torch.dtype, torch.nn.Module] = {}
        self.module = _load(folder, settings, device, allow_pickle)
        self.module.eval()
        own_limit = self.module.max_seq_length
        self.module.max_seq_length = min(settings.max_tokens, own_limit or settings.max_tokens)
        prefix = settings.prefix if settings.prefix is not None else self.module.prompts.get(role) or ""
        self.settings = EncoderSettings(
            prefix=prefix,
            pooling=next((str(part.pooling_mode) for part in self.module if isinstance(part, Pooling)), None),
            normalize=any(isinstance(part, Normalize) for part in self.module),
            max_tokens=self.module.max_seq_length,
        )
        self.titles_apart = read_model_config(_weights_folder(folder)).get("model_type") == "dpr"
        self.tokenizer = self.module.tokenizer
        self.tokenizer.split_special_tokens = True

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return int(self.module.get_embedding_dimension())

    @property
    def fingerprint(self) -> dict[str, object]:
        """Weights and settings: what an index must agree with."""
        return {"weights": model_fingerprint(self.folder), **dataclasses.asdict(self.settings)}

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character offsets of a text's tokens."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        return [(start, end) for start, end in encoded["offset_mapping"] if end > start]

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors [N, D] in float32 with gradient, for training."""
        prefix = self.settings.prefix or ""
        return self._vectors(self.module.preprocess([prefix + text for text in texts])).float()

    def forward_passages(self, passages: Sequence[Passage], dtype: torch.dtype) -> torch.Tensor:
        """Vectors [N, D] of passages with gradient, computed in `dtype` and batches as `encode_passages` does."""
        tokens = self.tokenize_passages(passages)
        batches = list(tokens.batches(auto_batch_tokens(self.device)))
        with torch.autocast(torch.device(self.device).type, dtype, enabled=dtype != torch.float32):
            vectors = torch.cat([self._vectors(tokens.rows(rows)) for rows in batches])
        places = torch.from_numpy(np.argsort(np.concatenate(batches))).to(vectors.device)
        return vectors.float()[places]

    def _vectors(self, features: dict[str, Any]) -> torch.Tensor:
        moved = {name: _to(value, self.device) for name, value in features.items()}
        vectors: torch.Tensor = self.module(moved)["sentence_embedding"]
        return vectors

    def share_weights(self, other: "Encoder") -> None:
        """Compute with another encoder's weights from now on; prefix and settings stay."""
        self.module, self.tokenizer = other.module, other.tokenizer

    def encode_passages(
        self, passages: Sequence[Passage], *, batch_tokens: int = BATCH_TOKENS, dtype: torch.dtype = torch.float32
    ) -> Vectors:
        """Vectors [N, D] of passages, as `encode` makes them."""
        return self.encode_tokens(self.tokenize_passages(passages), batch_tokens=batch_tokens, dtype=dtype)

    def encode(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        dtype: torch.dtype = torch.float32,
    ) -> Vectors:
        """Vectors [N, D] in float32, computed in `dtype` and length-sorted batches of at most `batch_tokens` tokens.

        Raises:
            RagxError: a vector is not finite.
        """
        return self.encode_tokens(self.tokenize(texts), batch_tokens=batch_tokens, dtype=dtype)

    def tokenize_passages(self, passages: Sequence[Passage]) -> Tokens:
        """The tokens of passages: title and text on two lines, or as a pair for DPR, as it was trained."""
        return self.tokenize(self._inputs(passages))

    def uncut_lengths(self, passages: Sequence[Passage]) -> list[int]:
        """The tokens of each passage, special ones included, before it is cut to `max_tokens`."""
        encoded = self.tokenizer(self._prefixed(self._inputs(passages)), truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def tokenize(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Tokens:
        """The tokens of texts, or of pairs of texts, cut to `max_tokens`; may run in another thread than computing."""
        wanted = self._prefixed(texts)
        if not wanted:
            return Tokens((), {}, np.zeros(0, dtype=np.int64))
        features = {name: value for name, value in self.module.preprocess(wanted).items() if value is not None}
        return Tokens(tuple(wanted), features, features["attention_mask"].sum(dim=1).numpy())

    def _inputs(self, passages: Sequence[Passage]) -> Sequence[str] | Sequence[tuple[str, str]]:
        if self.titles_apart:
            return [(p.title, p.text) for p in passages]
        return [f"{p.title}\n{p.text}" if p.title else p.text for p in passages]

    def _prefixed(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[str | tuple[str, str]]:
        prefix = self.settings.prefix or ""
        return [prefix + text if isinstance(text, str) else text for text in texts]

    def encode_tokens(self, tokens: Tokens, *, batch_tokens: int, dtype: torch.dtype) -> Vectors:
        """Vectors [N, D] of tokenised texts, as `encode` makes them."""
        array = np.empty((len(tokens.texts), self.dimension), dtype=np.float32)
        if not tokens.texts:
            return array
        kind, module = torch.device(self.device).type, self._module(tokens, dtype)
        batches = tokens.batches(batch_tokens)

        def compute(rows: NDArray[np.int64]) -> None:
            with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                features = {name: _to(value, self.device) for name, value in tokens.rows(rows).items()}
                array[rows] = module(features)["sentence_embedding"].float().cpu().numpy()

        if self._compile is None:
            for rows in batches:
                compute(rows)
        else:  # a batch a core: together on one they would wait for each other after every layer
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(compute, batches))
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise RagxError(f"{self.folder}: the encoder's vector of {str(tokens.texts[bad])[:60]!r} is not finite")
        return array

    def _module(self, example: Tokens, dtype: torch.dtype) -> torch.nn.Module:
        """What computes in `dtype`: the module itself, or one whose first part is compiled."""
        if self._compile is None:
            module: torch.nn.Module = self.module
            return module
        if dtype not in self._compiled:
            transformer, *others = self.module
            features = example.rows(np.arange(min(2, len(example.texts))))
            self._compiled[dtype] = torch.nn.Sequential(self._compile(transformer, features, dtype), *others)
        return self._compiled[dtype]

    def read_back(self, text: str) -> str:
        """The text as the tokenizer decodes it from its own ids: what transformers' RAG gives to the generator."""
        ids = self.tokenizer(text, truncation=True, max_length=self.settings.max_tokens)["input_ids"]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def dpr_tower(self) -> DPRQuestionEncoder:
        """The same weights as transformers' DPRQuestionEncoder, whose pooler output is the same vector.

        Raises:
            ArtifactError: a DPR tower cannot give these vectors.
        """
        parts = [type(part) for part in self.module]
        bert = self.module[0].auto_model if parts[:1] == [Transformer] else None
        if not isinstance(bert, BertModel):
            raise ArtifactError(
                f"{self.folder}: a DPR question encoder is a BERT; this is {type(bert or self.module[0]).__name__}"
            )
        if parts != [Transformer, Pooling] or self.settings.pooling != "cls" or self.settings.prefix:
            raise ArtifactError(
                f"{self.folder}: a DPR question encoder gives the vector of the first token of a text without prefix; "
                f"this one has pooling: {self.settings.pooling}, normalize: {str(self.settings.normalize).lower()}, "
                f"prefix: {self.settings.prefix!r}"
            )
        tower = DPRQuestionEncoder(_dpr_config(bert))
        tower.question_encoder.bert_model.load_state_dict(_without_pooler(bert))
        return tower.eval()

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer alone, as it was before special tokens in texts were made plain."""
        self.tokenizer.split_special_tokens = False
        try:
            with saving(folder):
                self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.split_special_tokens = True

    def save(self, folder: Path) -> None:
        """Write the encoder as a sentence-transformers folder, which `Encoder` opens again."""
        if self.titles_apart and self.role == "document":
            self._save_passage_tower(folder)
            return
        self.tokenizer.split_special_tokens = False
        try:
            with saving(folder):
                self.module.save_pretrained(str(folder), create_model_card=False)
        finally:
            self.tokenizer.split_special_tokens = True

    def _save_passage_tower(self, folder: Path) -> None:
        """Write transformers' DPRContextEncoder, from whose name `Encoder` knows that titles stand apart."""
        bert = self.module[0].auto_model
        tower = DPRContextEncoder(_dpr_config(bert))
        tower.ctx_encoder.bert_model.load_state_dict(_without_pooler(bert))
        with saving(folder):
            tower.save_pretrained(folder)
        self.save_tokenizer(folder)


def _dpr_config(bert: BertModel) -> DPRConfig:
    own_names = ("model_type", "architectures")
    config = {key: value for key, value in bert.config.to_dict().items() if key not in own_names}
    return DPRConfig(**config, projection_dim=0)


def _without_pooler(bert: BertModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in bert.state_dict().items() if not name.startswith("pooler.")}


def _to(value: object, device: str) -> object:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _weights_folder(folder: Path) -> Path:
    """Where config.json is: the folder itself, or its first module's."""
    return folder if (folder / "config.json").is_file() else next(folder.glob("0_*"), folder)


def _load_dpr(folder: Path, device: str, allow_pickle: bool) -> SentenceTransformer:
    """A DPR tower (Karpukhin et al. 2020): the vector of the first token of its BERT."""
    asks = "Question" in str(read_model_config(folder).get("architectures"))
    auto = DPRQuestionEncoder if asks else DPRContextEncoder
    tower = auto.from_pretrained(folder, use_safetensors=None if allow_pickle else True, local_files_only=True)
    if tower.config.projection_dim:
        raise ArtifactError(f"{folder}: DPR towers with a projection are not supported")
    weights = (tower.question_encoder if asks else tower.ctx_encoder).bert_model.state_dict()
    own = ("model_type", "architectures", "projection_dim")
    config = BertConfig(**{key: value for key, value in tower.config.to_dict().items() if key not in own})
    bert = BertModel(config, add_pooling_layer=False)
    bert.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as scratch:
        bert.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(scratch)
        transformer = Transformer(scratch, model_kwargs={"add_pooling_layer": False})
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="cls")
    return SentenceTransformer(modules=[transformer, pooling], device=device)


def _lacks_pooler(folder: Path) -> bool:
    """Whether this is a BERT saved without its pooler, which would be drawn at random while opening: a DPR tower."""
    weights = _weights_folder(folder) / "model.safetensors"
    if not weights.is_file() or read_model_config(_weights_folder(folder)).get("model_type") != "bert":
        return False
    with safe_open(weights, framework="pt") as file:
        return not any("pooler." in name for name in file.keys())  # noqa: SIM118 - it is no dict


def _load(folder: Path, settings: EncoderSettings, device: str, allow_pickle: bool) -> SentenceTransformer:
    model_kwargs: dict[str, bool | None] = {"use_safetensors": None if allow_pickle else True}
    own_modules = (folder / "modules.json").is_file()
    kind = None if own_modules else read_model_config(folder).get("model_type")
    if not own_modules:
        require_weights(folder, allow_pickle)
        require_tokenizer(folder)
    with loading(folder, "cannot be loaded as a text encoder"):
        if kind == "dpr":
            return _load_dpr(folder, device, allow_pickle)
        if own_modules and _lacks_pooler(folder):
            model_kwargs["add_pooling_layer"] = False
        if own_modules and settings.pooling is None and settings.normalize is None:
            return SentenceTransformer(str(folder), device=device, trust_remote_code=False, model_kwargs=model_kwargs)
        loaded = SentenceTransformer(str(folder), device=device, trust_remote_code=False, model_kwargs=model_kwargs)
        transformer = next(part for part in loaded if isinstance(part, Transformer))
        own_pooling = next((part.pooling_mode for part in loaded if isinstance(part, Pooling)), "mean")
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=settings.pooling or own_pooling)
        own_normalize = any(isinstance(part, Normalize) for part in loaded)
        normalize = own_normalize if settings.normalize is None else settings.normalize
        parts = [transformer, pooling, *([Normalize()] if normalize else [])]
        return SentenceTransformer(modules=parts, device=device)
