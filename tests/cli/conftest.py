"""What the command line tests share: a built index, and what stands in a run folder."""

import pytest


@pytest.fixture
def indexed(tiny_config, cli):
    """A factory like tiny_config, whose index is built: the path of the ragx.yaml."""

    def build(generator="causal", **overrides):
        config = tiny_config(generator, **overrides)
        done = cli("index", "-q", "-c", config)
        assert done.code == 0, done.err
        return config

    return build


@pytest.fixture
def standing(tmp_path):
    """The artefacts in the run folder, by path and bytes; working files and locks begin with a dot and do not count."""

    def read(*parts):
        run = tmp_path / "runs"
        wanted = [p for part in parts or ("index", "model", "eval") for p in run.glob(f"*/{part}/**/*") if p.is_file()]
        visible = [p for p in wanted if not any(name.startswith(".") for name in p.relative_to(run).parts)]
        return {p.relative_to(run).as_posix(): p.read_bytes() for p in visible}

    return read
