"""transformers' RAG checkpoints, RagSequenceForGeneration and RagTokenForGeneration -> question encoder, generator."""

from pathlib import Path

import transformers

from ragx.artifacts import new_folder
from ragx.errors import ArtifactError
from ragx.models import cache_folder, model_fingerprint, read_model_config, require_weights

_CLASSES = ("RagSequenceForGeneration", "RagTokenForGeneration")


def split_checkpoint(folder: Path, *, allow_pickle: bool = False) -> tuple[Path, Path]:
    """The question encoder's and the generator's own folders, made once in the cache from one RAG checkpoint.

    Raises:
        ArtifactError: the folder is no such checkpoint, or lacks its tokenizers.
    """
    names = [name for name in read_model_config(folder).get("architectures") or [] if name in _CLASSES]
    if not names:
        raise ArtifactError(f"{folder}: not a checkpoint of {' or '.join(_CLASSES)}; set rag.checkpoint")
    require_weights(folder, allow_pickle)
    parts = cache_folder() / "rag-checkpoints" / model_fingerprint(folder)
    if not parts.is_dir():
        _split(folder, getattr(transformers, names[0]), parts, allow_pickle)
    return parts / "question_encoder", parts / "generator"


def _split(folder: Path, model_class: type, parts: Path, allow_pickle: bool) -> None:
    source = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = model_class.from_pretrained(folder, use_safetensors=None if allow_pickle else True, **source)  # type: ignore[attr-defined]
        tokenizers = {
            name: transformers.AutoTokenizer.from_pretrained(folder / f"{name}_tokenizer", **source)
            for name in ("question_encoder", "generator")
        }
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    with new_folder(parts, "rag checkpoint parts", source=str(folder)) as beside:
        for name, tokenizer in tokenizers.items():
            getattr(model.rag, name).save_pretrained(beside / name)
            tokenizer.save_pretrained(beside / name)
