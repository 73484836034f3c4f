"""ragx.artifacts: inert text, fingerprints, atomic writes, manifests, locks."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragx import artifacts
from ragx.artifacts import (
    files_fingerprint,
    fingerprint,
    lock,
    new_folder,
    read_manifest,
    recover_folder,
    remove_folder,
    untrusted,
    write_json,
    write_text,
)
from ragx.errors import ArtifactError

KIND, REMEDY = "ragx thing", "ragx make"


@pytest.mark.parametrize(
    "character",
    [
        *("\x00", "\x07", "\x08", "\x1b", "\x7f", "\x85", "\x9b", "\x9d", "\r", "\x0b", "\x0c"),
        *(
            "\u061c",
            "\u200e",
            "\u200f",
            "\u202e",
            "\u2066",
            "\u2069",
            "\u2028",
            "\u2029",
            "\ufeff",
            "\U000e0041",
            "\ud800",
        ),
    ],
    ids=lambda c: f"U+{ord(c):04X}",
)
def test_untrusted_drops(character):
    assert untrusted(f"a{character}b") == "ab"


def test_untrusted_keeps_lines_tabs_and_letters():
    text = "Zürich\t東京\r\nمرحبا 👩\u200d🔬 [31m"
    assert untrusted(text) == text.replace("\r\n", "\n")


@given(st.text())
def test_untrusted_leaves_no_control_character_and_is_idempotent(text):
    found = untrusted(text)
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in found)
    assert untrusted(found) == found


def test_fingerprint_is_of_the_value_not_of_the_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert len(fingerprint(None)) == 16


def test_fingerprint_refuses_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))


def test_files_fingerprint_sees_names_and_bytes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x"), two.write_text("y")
    before = files_fingerprint([two, one])
    assert before == files_fingerprint([one, two])
    two.write_text("z")
    assert before != files_fingerprint([one, two])


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_text_on_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(artifacts.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_write_text_makes_folders_and_keeps_newlines(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "x\ny")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"x\ny"


def test_write_json_refuses_nan_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}


@pytest.fixture
def thing(tmp_path):
    with new_folder(tmp_path / "thing", KIND, colour="red") as beside:
        (beside / "deep").mkdir()
        (beside / "deep" / "data.bin").write_bytes(bytes(range(100)))
        (beside / "empty").touch()
    return tmp_path / "thing"


def test_sealed_folder_reads_back(thing):
    manifest = read_manifest(thing, KIND, REMEDY)
    assert manifest["colour"] == "red"
    assert sorted(manifest["files"]) == ["deep/data.bin", "empty"]
    assert [p.name for p in thing.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_failure_inside_leaves_the_old_folder(thing, failure):
    with pytest.raises(failure), new_folder(thing, KIND) as beside:
        (beside / "half").touch()
        raise failure
    assert read_manifest(thing, KIND, REMEDY)["colour"] == "red"
    assert [p.name for p in thing.parent.iterdir()] == ["thing"]


def test_full_disk_while_sealing_leaves_the_old_folder(thing, monkeypatch):
    monkeypatch.setattr(artifacts.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"), new_folder(thing, KIND) as beside:
        (beside / "new").touch()
    assert read_manifest(thing, KIND, REMEDY)["colour"] == "red"
    assert [p.name for p in thing.parent.iterdir()] == ["thing"]


def test_new_folder_replaces_the_old_one(thing):
    with new_folder(thing, KIND, colour="blue"):
        pass
    assert read_manifest(thing, KIND, REMEDY) == {"format": 1, "kind": KIND, "colour": "blue", "files": {}}
    assert [p.name for p in thing.rglob("*")] == ["manifest.json"]


def test_rests_of_a_killed_write_do_not_stay(thing):
    rest = thing.with_name(".thing.tmp")
    rest.mkdir()
    (rest / "rest").touch()
    with new_folder(thing, KIND) as beside:
        assert list(beside.iterdir()) == []


def test_recover_folder_brings_the_old_one_back(thing):
    thing.rename(thing.with_name(".thing.old"))
    recover_folder(thing)
    assert read_manifest(thing, KIND, REMEDY)["colour"] == "red"


def test_recover_folder_prefers_the_new_one(thing):
    old = thing.with_name(".thing.old")
    old.mkdir()
    recover_folder(thing)
    assert read_manifest(thing, KIND, REMEDY)["colour"] == "red"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "file"])
@pytest.mark.parametrize("name", ["thing", ".thing.tmp", ".thing.old"])
def test_what_is_no_folder_is_replaced_and_what_a_link_points_to_stays(tmp_path, kind, name):
    target, place = tmp_path / "target", tmp_path / "here" / name
    place.parent.mkdir()
    if kind == "link":
        target.mkdir()
        (target / "mine").touch()
    place.write_text("mine") if kind == "file" else place.symlink_to(target)
    for colour in ("red", "blue"):
        with new_folder(tmp_path / "here" / "thing", KIND, colour=colour):
            pass
        assert read_manifest(tmp_path / "here" / "thing", KIND, REMEDY)["colour"] == colour
        assert [path.name for path in place.parent.iterdir()] == ["thing"]
    assert [path.name for path in target.glob("*")] == (["mine"] if kind == "link" else [])


def test_remove_folder_takes_a_link_and_leaves_what_it_points_to(thing):
    link = thing.with_name("link")
    link.symlink_to(thing)
    remove_folder(link)
    assert [path.name for path in thing.parent.iterdir()] == ["thing"]
    assert read_manifest(thing, KIND, REMEDY)["colour"] == "red"
    remove_folder(thing)
    assert list(thing.parent.iterdir()) == []


def test_a_kill_while_a_folder_is_removed_leaves_it_gone(thing, monkeypatch):
    def killed(path, **_):
        (path / "empty").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artifacts.shutil, "rmtree", lambda path, **_: killed(path) if path.exists() else None)
        remove_folder(thing)
    assert not thing.exists()
    remove_folder(thing)
    assert list(thing.parent.iterdir()) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "reason"), [(truncate, "99 bytes instead of 100"), (flip, "bytes changed")])
def test_damaged_file_is_named_with_the_remedy(thing, damage, reason):
    damage(thing / "deep" / "data.bin")
    with pytest.raises(ArtifactError, match=rf"data\.bin: .*{reason}.*run: ragx make"):
        read_manifest(thing, KIND, REMEDY)


def test_missing_file(thing):
    (thing / "empty").unlink()
    with pytest.raises(ArtifactError, match="empty: missing; run: ragx make"):
        read_manifest(thing, KIND, REMEDY)


@pytest.mark.parametrize("moment", ["_check_file", "file_sha256", "_note_checked", "fingerprint", "_identity"])
def test_folder_that_is_removed_while_it_is_read(thing, reads, monkeypatch, moment):
    """As a pruned generation is: refused, and nothing comes back of it."""
    own = getattr(artifacts, moment)

    def late(*arguments):
        shutil.rmtree(thing, ignore_errors=True)
        return own(*arguments)

    monkeypatch.setattr(artifacts, moment, late)
    with contextlib.suppress(ArtifactError):
        read_manifest(thing, KIND, REMEDY)
        assert moment == "_note_checked"
    assert not thing.exists()


def test_missing_folder(tmp_path):
    with pytest.raises(ArtifactError, match="no ragx thing here; run: ragx make"):
        read_manifest(tmp_path / "none", KIND, REMEDY)


def test_other_format_version(thing):
    text = (thing / "manifest.json").read_text()
    (thing / "manifest.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ArtifactError, match="of format 2, this ragx reads ragx thing of format 1; run: ragx make"):
        read_manifest(thing, KIND, REMEDY)


def test_other_kind(thing):
    with pytest.raises(ArtifactError, match="ragx thing of format 1, this ragx reads ragx index"):
        read_manifest(thing, "ragx index", REMEDY)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": 1, "kind": "ragx thing", "files": 3}'])
def test_manifest_that_is_none(thing, text):
    (thing / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="manifest"):
        read_manifest(thing, KIND, REMEDY)


def test_no_flipped_byte_of_a_manifest_changes_what_is_read(thing):
    path = thing / "manifest.json"
    whole, facts = path.read_bytes(), read_manifest(thing, KIND, REMEDY)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(ArtifactError):
            assert read_manifest(thing, KIND, REMEDY) == facts


@pytest.fixture
def reads(monkeypatch):
    """The files whose bytes are hashed."""
    found, own = [], artifacts.file_sha256

    def counted(path):
        found.append(path.name)
        return own(path)

    monkeypatch.setattr(artifacts, "LARGE", 50)
    monkeypatch.setattr(artifacts, "_SETTLED", -1)
    monkeypatch.setattr(artifacts, "file_sha256", counted)
    return found


def test_large_file_is_compared_once_until_it_changes(thing, reads):
    read_manifest(thing, KIND, REMEDY)
    assert "data.bin" in reads
    reads.clear()
    read_manifest(thing, KIND, REMEDY)
    assert "data.bin" not in reads and "empty" in reads
    flip(thing / "deep" / "data.bin")
    with pytest.raises(ArtifactError, match="bytes changed"):
        read_manifest(thing, KIND, REMEDY)


def test_large_file_written_just_now_is_compared_again(thing, reads, monkeypatch):
    monkeypatch.setattr(artifacts, "_SETTLED", 10**12)
    read_manifest(thing, KIND, REMEDY)
    reads.clear()
    read_manifest(thing, KIND, REMEDY)
    assert "data.bin" in reads


@pytest.mark.parametrize("note", ["", "[]", "{", '{"deep/data.bin": 3}'])
def test_damaged_note_of_what_was_compared_is_ignored(thing, reads, note):
    read_manifest(thing, KIND, REMEDY)
    (thing / ".checked.json").write_text(note)
    flip(thing / "deep" / "data.bin")
    with pytest.raises(ArtifactError, match="bytes changed"):
        read_manifest(thing, KIND, REMEDY)


HOLDER = """
import sys
from pathlib import Path
from ragx.artifacts import lock
with lock(Path(sys.argv[1]), "this index"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_of_another_process_names_it_and_ends_with_it(tmp_path):
    path = tmp_path / "a.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ArtifactError, match=f"this index is being written by process {holder.pid} on"),
            lock(path, "this index"),
        ):
            pass
        holder.kill()
    with lock(path, "this index"):
        pass


def test_lock_is_free_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "a.lock", "this"):
        raise ZeroDivisionError
    with lock(tmp_path / "a.lock", "this"):
        pass
