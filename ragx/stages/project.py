"""`ragx init`: a first configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

from ragx.artifacts import write_text
from ragx.errors import ConfigError


def init(folder: Path, *, sample: bool) -> list[Path]:
    """Write a commented configuration into `folder`, with `sample` also the sample domain; returns what was written.

    Raises:
        ConfigError: something would be overwritten.
    """
    samples = Path(__file__).parents[1] / "samples"
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
