"""A disk that fails at any one operation of a build: the old index or the new one, and the next build mends it."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ragx import build_index, load_config
from ragx.stages.models import open_index

OPERATIONS = [(os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "write_bytes"), (shutil, "copyfile")]


@pytest.fixture
def faulty(monkeypatch):
    """faulty(k): the k-th disk operation from now on fails; returns the list of those seen."""

    def arm(number):
        monkeypatch.undo()
        seen = []
        for home, name in OPERATIONS:
            own = getattr(home, name)

            def called(*arguments, own=own, name=name, **options):
                seen.append(name)
                if len(seen) == number:
                    raise OSError(errno.EIO, "Input/output error")
                return own(*arguments, **options)

            monkeypatch.setattr(home, name, called)
        return seen

    arm.undo = monkeypatch.undo
    return arm


def contents(config):
    index = open_index(config)
    return np.array(index.all_vectors()), index.all_passages()


def test_disk_that_fails_at_any_operation(tiny_config, tmp_path, faulty):
    path = tiny_config()
    old, new = load_config(path), load_config(path, ["passages.size=9"])
    build_index(old)
    before, whole = contents(old), tmp_path / "whole"
    shutil.copytree(old.run_dir, whole)
    build_index(new)
    after, number, failed = contents(new), 0, True
    while failed:
        shutil.rmtree(old.run_dir)
        shutil.copytree(whole, old.run_dir)
        number += 1
        seen = faulty(number)
        with contextlib.suppress(OSError):
            build_index(new)
        failed = len(seen) >= number
        faulty.undo()
        name = (old.run_dir / "index" / "CURRENT").read_text(encoding="utf-8").strip()
        found, expected = (contents(old), before) if name == "v1" else (contents(new), after)
        assert np.array_equal(found[0], expected[0]) and found[1] == expected[1], (number, seen[-1])
        assert name == "v2" or failed
        build_index(new)
        mended = contents(new)
        assert np.array_equal(mended[0], after[0]) and mended[1] == after[1]
        assert not list((old.run_dir / "index").glob("**/*.tmp"))
    assert number > 15


def test_nothing_is_renamed_into_place_before_it_is_on_disk(tiny_config, monkeypatch):
    """But shards, which carry their own SHA-256, and what moves into a folder that is sealed afterwards."""
    synced, unsafe = set(), []
    sync, replace, rename = os.fsync, Path.replace, Path.rename

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def moving(own):
        def move(self, target):
            files = [p for p in self.rglob("*") if p.is_file()] if self.is_dir() else [self]
            sealed_later = self.name.startswith(("shard-", "vectors."))
            unsafe.extend(p.name for p in files if p.stat().st_ino not in synced and not sealed_later)
            return own(self, target)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", moving(replace))
    monkeypatch.setattr(Path, "rename", moving(rename))
    build_index(load_config(tiny_config()))
    assert unsafe == []
    assert len(synced) > 8
