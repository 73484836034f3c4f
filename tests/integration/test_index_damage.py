"""Random damage to the files of an index: an ArtifactError, never a crash and never another answer.

`RAGX_DAMAGES=500 pytest ...` runs more of them.
"""

import json
import os
import random
import shutil

import numpy as np
import pytest

from ragx import build_index, load_config
from ragx.errors import ArtifactError, RagxError
from ragx.index.encoder import Encoder
from ragx.stages.models import open_index

COUNT = int(os.environ.get("RAGX_DAMAGES", "40"))


def damage(data, dice):
    """One of the ways in which files go bad."""
    place = dice.randrange(len(data))
    match dice.choice(["cut", "flip", "zero", "hostile", "append", "swap"]):
        case "cut":
            return data[:place]
        case "flip":
            return data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]
        case "zero":
            return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]
        case "hostile":
            value = dice.choice([2**63 - 1, 2**64 - 1, 2**32, 2**31 - 1]).to_bytes(8, "little")
            return data[:place] + value + data[place + 8 :]
        case "append":
            return data + bytes(dice.randrange(1, 100))
        case _:
            other = dice.randrange(len(data))
            low, high = sorted((place, other))
            return data[:low] + data[high:] + data[low:high]


def answer(config):
    index = open_index(config)
    found = index.candidates(index.all_vectors()[:3], ["kiln", "river", "clay pits"], "hybrid", 6)
    return index.manifest, found.ids.tolist(), found.dense.tolist(), found.lexical.tolist(), index.all_passages()


@pytest.mark.parametrize(
    ("kind", "lexical"), [("flat", "bm25"), ("hnsw", "tfidf"), ("ivf", "bm25"), ("ivfpq", "tfidf")]
)
def test_damaged_index_is_refused(tiny_config, tmp_path, kind, lexical):
    config = load_config(tiny_config(index={"kind": kind, "lexical": lexical}))
    build_index(config)
    folder = config.run_dir / "index"
    expected = answer(config)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    dice = random.Random(f"{kind} {lexical}")
    files = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file() and ".lock" not in p.name]
    refused = 0
    for number in range(COUNT):
        name = files[number % len(files)]
        before = (whole / name).read_bytes()
        if not before:
            continue
        after = damage(before, dice)
        (folder / name).write_bytes(after)
        try:
            found = answer(config)
        except ArtifactError:
            refused += 1
        else:  # white space of a text file, or the very same bytes
            assert after == before or (name.suffix in (".json", "") and found == expected), (name, number)
        (folder / name).write_bytes(before)
    assert refused >= COUNT * 0.8
    assert answer(config) == expected


@pytest.mark.parametrize("fact", ["passages", "dimension", "kind_of_index", "lexical", "search", "encoder"])
def test_edited_manifest_is_refused(tiny_config, fact):
    config = load_config(tiny_config())
    build_index(config)
    path = config.run_dir / "index" / "v1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), fact: 3}))
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest"):
        open_index(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_index_in_a_read_only_folder_is_read(tiny_config):
    config = load_config(tiny_config())
    build_index(config)
    before = answer(config)
    folder = config.run_dir / "index"
    paths = [folder, *folder.rglob("*")]
    try:
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert answer(config) == before
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_nothing_appears_in_a_sealed_folder_by_reading(tiny_config):
    config = load_config(tiny_config())
    build_index(config)
    folder = config.run_dir / "index" / "v1"
    before = sorted(path.name for path in folder.rglob("*"))
    answer(config)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_vector_that_is_not_finite_is_refused(tiny_config, monkeypatch):
    config = load_config(tiny_config())
    load = Encoder.__init__

    def poisoned(self, *arguments, **options):
        load(self, *arguments, **options)
        self.module.register_forward_hook(
            lambda *found: {"sentence_embedding": found[2]["sentence_embedding"] * np.nan}
        )

    monkeypatch.setattr(Encoder, "__init__", poisoned)
    with pytest.raises(RagxError, match="is not finite"):
        build_index(config)
    assert not (config.run_dir / "index" / "CURRENT").exists()
