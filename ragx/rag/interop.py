"""transformers' RAG checkpoints, RagSequenceForGeneration and RagTokenForGeneration -> question encoder and generator,
and back.

What theirs lacks is carried where it is exact: a prior temperature by dividing the passages' vectors by it, a beginning
of the answer that is given and not predicted by forcing it. Everything else is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import transformers

from ragx.artifacts import new_folder
from ragx.errors import ArtifactError
from ragx.index.encoder import Encoder
from ragx.models import cache_folder, loading, model_fingerprint, read_model_config, require_weights, saving
from ragx.rag.generator import Generator
from ragx.rag.generators import merged
from ragx.rag.prompts import RagFormat, RagTemplate
from ragx.rag.seq2seq import Seq2SeqGenerator

MARGINALS = {"sequence": "RagSequenceForGeneration", "token": "RagTokenForGeneration"}
GENERATORS = ("bart", "t5")


def split_checkpoint(folder: Path, *, allow_pickle: bool = False) -> tuple[Path, Path]:
    """The question encoder's and the generator's own folders, made once in the cache from one RAG checkpoint.

    Raises:
        ArtifactError: the folder is no such checkpoint, its parts are of other architectures, or it lacks its
            tokenizers.
    """
    names = [name for name in read_model_config(folder).get("architectures") or [] if name in MARGINALS.values()]
    if not names:
        raise ArtifactError(f"{folder}: not a checkpoint of {' or '.join(MARGINALS.values())}; set rag.checkpoint")
    _require_architectures(folder)
    require_weights(folder, allow_pickle)
    parts = cache_folder() / "rag-checkpoints" / model_fingerprint(folder)
    if not parts.is_dir():
        _split(folder, getattr(transformers, names[0]), parts, allow_pickle)
    return parts / "question_encoder", parts / "generator"


def _require_architectures(folder: Path) -> None:
    config = read_model_config(folder)
    kinds = {name: str((config.get(name) or {}).get("model_type")) for name in ("question_encoder", "generator")}
    if kinds["question_encoder"] != "dpr" or kinds["generator"] not in GENERATORS:
        raise ArtifactError(
            f"{folder}: unsupported architecture: question encoder {kinds['question_encoder']}, generator "
            f"{kinds['generator']}; a checkpoint of dpr with {' or '.join(GENERATORS)} is wanted"
        )


def _split(folder: Path, model_class: type, parts: Path, allow_pickle: bool) -> None:
    source = {"local_files_only": True, "trust_remote_code": False}
    with loading(folder, "cannot be loaded"):
        model = model_class.from_pretrained(folder, use_safetensors=None if allow_pickle else True, **source)  # type: ignore[attr-defined]
        tokenizers = {
            name: transformers.AutoTokenizer.from_pretrained(folder / f"{name}_tokenizer", **source)
            for name in ("question_encoder", "generator")
        }
    with new_folder(parts, "rag checkpoint parts", source=str(folder)) as beside, saving(parts):
        for name, tokenizer in tokenizers.items():
            getattr(model.rag, name).save_pretrained(beside / name)
            tokenizer.save_pretrained(beside / name)


def input_format(
    checkpoint: Path | None,
    generator: Path,
    *,
    question_text: Callable[[str], str],
    truncation: Literal["passage", "end"],
    max_input_tokens: int,
) -> RagFormat:
    """The input format of a RAG checkpoint, or without one that of a new RagConfig; the prefix is the generator's.

    Their limit is `max_combined_length`; `max_input_tokens` holds where it is smaller.
    """
    config = transformers.RagConfig()
    if checkpoint is not None:
        with loading(checkpoint, "cannot be loaded"):
            config = transformers.RagConfig.from_pretrained(checkpoint)
    return RagFormat(
        title_sep=config.title_sep,
        doc_sep=config.doc_sep,
        prefix=read_model_config(generator).get("prefix") or "",
        max_input_tokens=min(config.max_combined_length, max_input_tokens),
        question_text=question_text,
        truncation=truncation,
    )


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a checkpoint says of use: the marginal, passages K, beams and tokens of an answer."""

    marginal: str
    top_k: int
    num_beams: int
    max_answer_tokens: int


def write_checkpoint(folder: Path, encoder: Encoder, generator: Generator, decoding: Decoding) -> dict[str, object]:
    """Write a checkpoint of transformers' RAG classes, an adapter merged, tokenizers in their places.

    Returns the options under which their `generate` decodes as ragx does.

    The generator's input is that of a `RagFormat`.

    Raises:
        ArtifactError: question encoder or generator are of another architecture than theirs.
        RagxError: the disk is full.
    """
    kind = generator.base.config.model_type
    if not isinstance(generator, Seq2SeqGenerator) or kind not in GENERATORS:
        name = generator.base.config.name_or_path
        raise ArtifactError(f"{name}: transformers' RAG generates with {' or '.join(GENERATORS)}, not with {kind}")
    assert isinstance(generator.template, RagTemplate)
    form, tower, writer = generator.template.form, encoder.dpr_tower(), merged(generator)
    writer.config.bos_token_id = getattr(
        writer.config, "bos_token_id", None
    )  # RAG-Sequence asks every generator for it
    writer.config.prefix = form.prefix
    for part in (tower, writer):
        part.config.name_or_path = ""  # a path of this machine
    config = transformers.RagConfig.from_question_encoder_generator_configs(
        tower.config,
        writer.config,
        title_sep=form.title_sep,
        doc_sep=form.doc_sep,
        max_combined_length=form.max_input_tokens,
        n_docs=decoding.top_k,
        retrieval_vector_size=encoder.dimension,
        index_name="custom",
        **{name: getattr(writer.config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")},
    )
    joint = getattr(transformers, MARGINALS[decoding.marginal])
    with saving(folder):
        joint(config=config, question_encoder=tower, generator=writer).save_pretrained(folder)
        generator.tokenizer.save_pretrained(folder / "generator_tokenizer")
    # Where this file is, RagTokenForGeneration.from_pretrained(folder, retriever=...) fails: it takes the retriever for
    # one of its settings. Without it they come from config.json.
    (folder / "generation_config.json").unlink(missing_ok=True)
    encoder.save_tokenizer(folder / "question_encoder_tokenizer")
    return _options(generator, decoding)


def _options(generator: Seq2SeqGenerator, decoding: Decoding) -> dict[str, object]:
    """No length normalisation; what ragx gives as the beginning of an answer is forced, and counts as answer tokens.

    `max_length` because their RAG-Token ignores `max_new_tokens`.
    """
    begin = generator.decoder_prefix[1:]
    return {
        "num_beams": decoding.num_beams,
        "length_penalty": 0.0,
        "max_length": decoding.max_answer_tokens + len(generator.decoder_prefix),
        **({"forced_bos_token_id": begin[0]} if begin else {}),
    }
