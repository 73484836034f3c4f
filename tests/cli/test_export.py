"""`ragx export`: what transformers cannot hold is refused by name before anything is written; what stands stays."""

import json
import sys

import pytest

ALLOWED = {"retrieval": {"mode": "dense"}, "rag": {"input_format": "transformers"}}


@pytest.fixture(autouse=True)
def _datasets():
    pytest.importorskip("datasets", reason="what ragx[export] installs")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"retrieval": {"mode": "hybrid"}}, "retrieval.mode: hybrid"),
        ({"retrieval": {"mode": "lexical"}}, "retrieval.mode: lexical"),
        ({"retrieval": {"mode": "dense", "prior": "corpus"}}, "retrieval.prior: corpus"),
        ({"rag": {"input_format": "transformers", "decoding": "fast"}}, "rag.decoding: fast"),
        ({"rag": {"input_format": "transformers", "decoding": "mbr"}}, "rag.decoding: mbr"),
        ({"rag": {"input_format": "prompt"}}, "rag.input_format: prompt"),
    ],
)
def test_refused_by_configuration(changed, named, tiny_config, cli, tmp_path):
    """No index is there: nothing is opened before the configuration is judged."""
    done = cli("export", tmp_path / "out", "-c", tiny_config("bart", **{**ALLOWED, **changed}))
    assert (done.code, done.out) == (2, "")
    assert named in done.err and "transformers cannot open this" in done.err
    assert done.err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("generator", "named"), [("bart", "a DPR question encoder gives the vector"), ("causal", "has no encoder")]
)
def test_refused_by_architecture(generator, named, indexed, cli, tmp_path):
    """A mean-pooled encoder, a causal generator."""
    done = cli("export", tmp_path / "out", "-q", "-c", indexed(generator, **ALLOWED))
    assert (done.code, done.out) == (2, "")
    assert named in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))


def test_without_the_library(tiny_config, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ragx.stages.export"], "find_spec", lambda name: None)
    done = cli("export", tmp_path / "out", "-c", tiny_config("bart", **ALLOWED))
    assert (done.code, done.err) == (2, "ragx: export needs the datasets library; install ragx[export]\n")


@pytest.mark.parametrize("what", ["a file", "a folder", "another artefact"])
def test_nothing_but_an_export_is_overwritten(what, indexed, cli, tmp_path):
    config, out = indexed("bart", **ALLOWED), tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "manifest.json").write_text(json.dumps({"kind": "ragx index"}) if what == "another artefact" else "mine")
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    done = cli("export", out, "-c", config)
    assert done.code == 2 and f"{out}: is there and is no export" in done.err
    assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def exportable(indexed):
    """A configuration whose cls-pooled BERT and BART transformers can hold, its index built."""
    return indexed("bart", encoder={"pooling": "cls", "normalize": False}, **ALLOWED)


def test_an_earlier_export_is_replaced_and_survives_a_failure(exportable, cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = cli("export", out, "-c", exportable, "--set", "retrieval.temperature=2.0")
    assert done.code == 0 and done.out == f"{out}: RagSequenceForGeneration (base) and 24 passages\n"
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ragx.index.hf_dataset.write_flat", full)
        failed = cli("export", out, "-q", "-c", exportable)
    assert failed.code == 2 and "No space left" in failed.err
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
    again = cli("export", out, "-q", "--json", "-c", exportable, "--set", "rag.marginal=token")
    assert again.code == 0
    assert json.loads(again.out)["class"] == json.loads((out / "config.json").read_text())["architectures"][0]


def test_questions_that_transformers_would_cut_are_counted(exportable, cli, tmp_path):
    done = cli("export", tmp_path / "out", "-c", exportable, "--set", "generator.max_input_tokens=50")
    assert done.code == 0
    assert "passages leave fewer than 32 of 50 tokens to the question" in done.err
