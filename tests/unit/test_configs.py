"""Every YAML file that is shipped loads."""

from pathlib import Path

import pytest

import ragx
from ragx.config import dump_config, load_config
from ragx.evaluation.gates import parse_gates
from ragx.evaluation.metrics import parse_metrics

PACKAGE = Path(ragx.__file__).parent
FILES = sorted([*PACKAGE.parent.glob("configs/*.y*ml"), *PACKAGE.glob("samples/*.yaml")])


def test_there_are_configurations():
    assert {"ragx.yaml", "starter.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loads_and_reads_back(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config
    parse_gates(config.eval.gates, parse_metrics(config.eval.metrics))
