"""Every command in the README runs, in its order, on the sample domain cut to a few questions and with tiny models;
with the real ones `test_real_weights.py` goes through the same domain."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = {"train": 4, "dev": 2, "test": 3}


def commands():
    """The lines of the README's ```sh blocks."""
    return [line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S) for line in block.splitlines() if line]


def cut(folder: Path):
    """Keep the first questions of each split, their gold documents and a few others."""
    gold = set()
    for split, count in FEW.items():
        path = folder / f"{split}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")
        gold.update(document for line in lines[:count] for document in json.loads(line)["doc_ids"])
    documents = folder / "documents"
    for number, path in enumerate(sorted(documents.rglob("*.md"))):
        if number >= 12 and path.relative_to(documents).as_posix() not in gold:
            path.unlink()


def shrink(path: Path, models):
    """Tiny models, which write letters, in place of those of a configuration."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["encoder"] = {"model": str(models.encoder), "max_tokens": 48}
    tree["generator"] = {"model": str(models.causal), "max_input_tokens": 300, "max_answer_tokens": 100}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


@pytest.mark.slow
def test_readme_commands_run(tmp_path, tiny_models):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    folder = tmp_path
    for command in commands():
        if command.startswith("cd "):
            folder = folder / command.removeprefix("cd ")
            cut(folder / "saltmere")
            shrink(folder / "ragx.yaml", tiny_models)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
        )
        allowed = (0, 1) if command.startswith("ragx eval") else (0,)  # few questions need not pass the sample's gate
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (folder / "runs/saltmere/eval/test.tuned.report.json").is_file()


def test_readme_names_every_configuration_key():
    from ragx.config import Config

    for section, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for key in inner or {section: None}:
            assert f"`{key}`" in README, f"{section}.{key}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
