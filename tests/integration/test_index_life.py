"""An index through its life: updated, made in parts, on a cluster, read while it is replaced."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ragx import artifacts, build_index, load_config, stages
from ragx.errors import ArtifactError, StaleIndexError
from ragx.index import store
from ragx.index.encoder import Encoder
from ragx.index.generations import only_writer
from ragx.index.shards import shard_path
from ragx.stages.models import open_index

WORDS = ["kiln", "clay", "wheel", "glaze", "river", "market", "dog", "school", "train", "bread", "song", "museum"]


def document(number, seed=0):
    words = " ".join(WORDS[(number * step + seed) % 12] + str(step % 7) for step in range(50))
    return {"id": f"d{number}", "title": f"Paper {number}", "text": words}


def write(path, documents):
    path.write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "papers.jsonl"
    write(path, [document(number) for number in range(40)])
    return path


@pytest.fixture
def config_of(corpus, tiny_config, tmp_path):
    """config_of("name", *overrides): the same corpus, built in a run folder of its own."""
    path = tiny_config(corpus={"paths": [str(corpus)]}, index={"shard_size": 16})

    def load(name, *overrides):
        return load_config(path, [f"name={name}", *overrides])

    load.path = path
    return load


@pytest.fixture
def encoded(monkeypatch):
    """The texts that were encoded so far."""
    texts, own = [], Encoder.encode_tokens

    def counted(self, tokens, **options):
        texts.extend(tokens.texts)
        return own(self, tokens, **options)

    monkeypatch.setattr(Encoder, "encode_tokens", counted)
    return texts


def assert_same_index(ours, theirs, atol=0.0):
    """Passages and every file's facts are equal; vectors too, to `atol`, and so are searches."""
    one, two = open_index(ours), open_index(theirs)
    assert one.all_passages() == two.all_passages()
    np.testing.assert_allclose(one.all_vectors(), two.all_vectors(), rtol=0, atol=atol)
    assert one.manifest["fingerprint"] == two.manifest["fingerprint"]
    questions = ["kiln3 wheel5", "Paper 7", "river"]
    queries = two.all_vectors()[:3]
    for mode in ("dense", "lexical"):
        found, expected = (index.candidates(queries, questions, mode, 9) for index in (one, two))
        assert (found.ids == expected.ids).all()
        np.testing.assert_array_equal(found.lexical, expected.lexical)


def changed(documents):
    """One document gone, one changed, one new in the middle; the rest as it was, in another order."""
    rest = [row for row in documents if row["id"] not in ("d3", "d20")]
    return [*rest[30:], document(20, seed=5), document(99), *rest[:30]]


def test_update_encodes_only_what_changed_and_equals_a_fresh_build(config_of, corpus, encoded):
    config = config_of("updated")
    build_index(config)
    old_ids = {passage.id for passage in open_index(config).all_passages()}
    rows = [document(number) for number in range(40)]
    write(corpus, changed(rows))
    encoded.clear()
    stages.build_index(config, update=True)
    assert len(encoded) == 10
    assert all("Paper 20" in text or "Paper 99" in text for text in encoded)
    build_index(config_of("fresh"))
    # batches of another size round differently: float32, vectors of length 1 to some
    assert_same_index(config, config_of("fresh"), atol=1e-5)
    ids = {passage.id for passage in open_index(config).all_passages()}
    assert old_ids - ids == {f"d3#{n}" for n in range(5)}
    assert ids - old_ids == {f"d99#{n}" for n in range(5)}


def test_update_of_nothing_encodes_nothing(config_of, encoded):
    config = config_of("same")
    build_index(config)
    encoded.clear()
    stages.build_index(config, update=True)
    assert encoded == []
    assert (config.run_dir / "index" / "CURRENT").read_text() == "v1\n"


def test_another_kind_of_index_needs_no_encoding(config_of, encoded):
    build_index(config_of("kinds"))
    before = open_index(config_of("kinds")).all_vectors().copy()
    encoded.clear()
    found = build_index(config_of("kinds", "index.kind=hnsw", "index.lexical=tfidf"))
    assert encoded == []
    assert (found["kind"], found["factory"], found["lexical"]) == ("hnsw", "HNSW32_SQ8", "tfidf")
    index = open_index(config_of("kinds", "index.ef_search=100"))
    np.testing.assert_array_equal(index.all_vectors(), before)


def test_update_after_another_encoder_setting_encodes_everything(config_of, encoded):
    build_index(config_of("settings"))
    encoded.clear()
    stages.build_index(config_of("settings", "encoder.passage_prefix=passage"), update=True)
    assert len(encoded) == 200


def test_interrupted_update_goes_on(config_of, corpus, encoded):
    config = config_of("stopped")
    build_index(config)
    write(corpus, changed([document(number) for number in range(40)]))

    def stopping(what, done, total):
        if what == "encoding passages" and done >= 160:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.build_index(config, stopping, update=True)
    with pytest.raises(StaleIndexError, match=r"papers\.jsonl changed"):
        open_index(config)
    made = len(list((config.run_dir / "index" / ".building").glob("shard-*")))
    assert made == 10
    encoded.clear()
    stages.build_index(config, update=True)
    assert len(encoded) < 10
    build_index(config_of("fresh"))
    assert_same_index(config, config_of("fresh"), atol=1e-5)


def test_parts_merged_equal_the_local_build(config_of, tmp_path):
    config = config_of("parts")
    for part in (3, 1, 2):
        files = stages.build_index_part(config, part, 3)
        assert [path.name for path in files] == [f"shard-{n:05d}.safetensors" for n in range(part - 1, 13, 3)]
    stages.merge_index(config)
    build_index(config_of("local"))
    assert_same_index(config, config_of("local"))
    assert not (config.run_dir / "index" / ".building").exists()


def test_merge_names_missing_shards_and_keeps_the_others(config_of):
    config = config_of("missing")
    stages.build_index_part(config, 1, 2)
    with pytest.raises(ArtifactError, match=r"6 of 13 shards are missing \(1, 3, 5, 7, 9, \.\.\.\)"):
        stages.merge_index(config)
    stages.build_index_part(config, 2, 2)
    assert stages.merge_index(config)["passages"] == 200


def shards_command(config_of, name, part, *overrides):
    settings = [f"--set={override}" for override in (f"name={name}", *overrides)]
    return [sys.executable, "-m", "ragx", "index", "--shard", part, "--quiet", "-c", str(config_of.path), *settings]


def test_parts_started_together_run_side_by_side(config_of):
    """Both reach the folder that they share while somebody is at it, and neither is refused."""
    config = config_of("together")
    folder = config.run_dir / "index"
    with only_writer(folder):
        commands = [shards_command(config_of, "together", part) for part in ("1/2", "2/2")]
        parts = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
        limit = time.monotonic() + 60
        while len(list(folder.glob(".lock-*-of-2"))) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(4)
    outputs = [part.communicate(timeout=120) for part in parts]
    assert [part.returncode for part in parts] == [0, 0], outputs
    stages.merge_index(config)
    build_index(config_of("local"))
    assert_same_index(config, config_of("local"))


def test_killed_part_goes_on_when_it_is_run_again(config_of, kill_when, encoded):
    config = config_of("killed", "index.shard_size=2")
    made = lambda: list((config.run_dir / "index" / ".building").glob("shard-*.safetensors"))  # noqa: E731
    kill_when(lambda: len(made()) >= 3, *shards_command(config_of, "killed", "1/2", "index.shard_size=2")[3:])
    done = len(made())
    assert 3 <= done < 50
    assert len(stages.build_index_part(config, 1, 2)) == 50
    assert len(encoded) == 2 * (50 - done)
    stages.build_index_part(config, 2, 2)
    assert stages.merge_index(config)["passages"] == 200


def test_the_same_part_twice_is_refused_at_once(config_of, monkeypatch):
    config = config_of("twice")

    def again(what, done, total):
        monkeypatch.setattr(Encoder, "__init__", lambda *_, **__: pytest.fail("loaded in vain"))
        with pytest.raises(ArtifactError, match=r"part 1 of 2 is being written by process"):
            stages.build_index_part(config, 1, 2)

    assert len(stages.build_index_part(config, 1, 2, again)) == 7


@pytest.mark.parametrize("ends", [True, False], ids=["finished", "unfinished"])
def test_part_whose_folder_another_build_takes_says_so(config_of, ends):
    config, other = config_of("taken"), config_of("taken", "passages.size=9")

    def stopping(what, done, total):
        if what == "encoding passages" and not ends:
            raise KeyboardInterrupt

    def taken(what, done, total):
        if done == 16:
            with contextlib.suppress(KeyboardInterrupt):
                build_index(other, stopping)

    with pytest.raises(
        ArtifactError, match=r"\.building: another build has taken .*; run ragx index --shard 1/2 again"
    ):
        stages.build_index_part(config, 1, 2, taken)
    build_index(other)
    assert open_index(other).manifest["chunking"]["size"] == 9


def test_shard_of_another_plan_is_refused(config_of, corpus):
    build, stale = config_of("build"), config_of("stale")
    stages.build_index_part(build, 1, 1)
    write(corpus, [document(number, seed=number == 7) for number in range(40)])
    stages.build_index_part(stale, 1, 1)
    folders = [config.run_dir / "index" / ".building" for config in (build, stale)]
    shard_path(folders[1], 2).write_bytes(shard_path(folders[0], 2).read_bytes())
    with pytest.raises(StaleIndexError, match=r"shard-00002\.safetensors: made for plan"):
        stages.merge_index(stale)
    stages.build_index_part(stale, 1, 1)
    assert stages.merge_index(stale)["passages"] == 200


def mend_by_parts(config):
    for part in (1, 2):
        stages.build_index_part(config, part, 2)
    stages.merge_index(config)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:-3] + bytes([d[-3] ^ 1]) + d[-2:], lambda d: b""])
@pytest.mark.parametrize("mend", [build_index, mend_by_parts])
def test_damaged_shard_is_made_again(config_of, encoded, damage, mend):
    config = config_of("damaged")
    stages.build_index_part(config, 1, 1)
    path = shard_path(config.run_dir / "index" / ".building", 4)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"shard-00004\.safetensors: .*; make it again: ragx index --shard i/n"):
        stages.merge_index(config)
    encoded.clear()
    mend(config)
    assert len(encoded) == 16
    build_index(config_of("local"))
    assert_same_index(config, config_of("local"))


READER = """
import sys
from pathlib import Path
from ragx.index.store import Index
folder, stop, opened = Path(sys.argv[1]), Path(sys.argv[2]), set()
print("ready", flush=True)
while not stop.exists():
    index = Index(folder, "ragx index")
    found = index.candidates(index.all_vectors()[:2], ["kiln3", "river"], "hybrid", 5)
    assert (found.ids[:, 0] >= 0).all() and len(index.passages(found.ids[0].tolist())) >= 5
    opened.add(index.folder.name)
print(len(opened))
"""


def test_readers_never_notice_a_writer(config_of, tmp_path):
    """Two processes open and ask while generations are replaced; an index opened before keeps its answers."""
    config = config_of("read")
    build_index(config)
    first = open_index(config)
    vectors, passages = first.all_vectors().copy(), first.all_passages()
    command = [sys.executable, "-W", "ignore", "-c", READER, str(config.run_dir / "index"), str(tmp_path / "stop")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 2
        for number in range(4):
            build_index(config_of("read", f"index.lexical={('tfidf', 'bm25')[number % 2]}"))
    finally:
        (tmp_path / "stop").touch()
        outputs = [reader.communicate(timeout=60) for reader in readers]
    assert [(reader.returncode, err) for reader, (_, err) in zip(readers, outputs, strict=True)] == [(0, "")] * 2
    assert all(int(out) > 1 for out, _ in outputs)
    assert sorted(path.name for path in (config.run_dir / "index").glob("v*")) == ["v4", "v5"]
    np.testing.assert_array_equal(first.all_vectors(), vectors)
    assert first.all_passages() == passages


@pytest.mark.parametrize("lexical", ["bm25", "tfidf"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_opened_index_outlives_its_generation(config_of, kind, lexical):
    """Its files are removed from under it, and it finds, scores and reads what it did."""
    first = config_of("pruned", f"index.kind={kind}", f"index.lexical={lexical}")
    build_index(first)
    index, untouched = open_index(first), open_index(first)
    queries, questions = index.all_vectors()[:3].copy(), ["kiln3 wheel5", "Paper 7", "river"]
    expected = untouched.candidates(queries, questions, "hybrid", 9)
    passages = untouched.all_passages()
    for size in (9, 10):
        build_index(config_of("pruned", f"passages.size={size}"))
    assert not index.folder.exists()
    found = index.candidates(queries, questions, "hybrid", 9)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.dense, expected.dense)
    np.testing.assert_array_equal(found.lexical, expected.lexical)
    assert index.all_passages() == passages


OPENING = [
    (artifacts, "_check_file"),
    (artifacts, "file_sha256"),
    (artifacts, "_note_checked"),
    *((store, name) for name in ("read_manifest", "VectorIndex", "open_lexical", "open_passages")),
]


@pytest.mark.parametrize(("home", "name"), OPENING, ids=[name for _, name in OPENING])
def test_reader_overtaken_by_pruning_opens_the_next_generation(config_of, monkeypatch, home, name):
    config, own = config_of("overtaken", "index.kind=ivf"), getattr(home, name)
    build_index(config)

    def overtaken(*arguments, **options):
        monkeypatch.setattr(home, name, own)
        for lexical in ("tfidf", "bm25"):
            build_index(config_of("overtaken", f"index.lexical={lexical}"))
        return own(*arguments, **options)

    monkeypatch.setattr(home, name, overtaken)
    index = open_index(config)
    assert index.folder.name == "v3"
    assert len(index.candidates(index.all_vectors()[:1], ["river"], "hybrid", 5).ids[0]) >= 5


def test_ray_build_with_a_killed_worker_equals_the_local_one(config_of, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    psutil = pytest.importorskip("psutil")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    killed = []

    def at_work():
        return [
            p for p in psutil.process_iter(["cmdline"]) if "ray::_encode_shards" in " ".join(p.info["cmdline"] or [])
        ]

    def kill_one(building, built):
        """A worker is stopped in the midst of its task, so that no build ends without it, and killed once the other
        has written a shard."""
        limit = time.monotonic() + 100
        while not killed and not built.is_set() and time.monotonic() < limit:
            for worker in at_work()[:1]:
                worker.suspend()
                if worker not in at_work():  # its task had just ended
                    worker.resume()
                    continue
                while not any(building.glob("shard-*.safetensors")) and time.monotonic() < limit:
                    time.sleep(0.01)
                worker.kill()
                killed.append(worker.pid)
            time.sleep(0.01)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for attempt in range(5):  # on a busy machine a build may end before a task of it was caught
            config, built = config_of(f"ray-{attempt}", "index.engine=ray", "index.shard_size=4"), threading.Event()
            killer = threading.Thread(target=kill_one, args=(config.run_dir / "index" / ".building", built))
            killer.start()
            build_index(config)
            built.set()
            killer.join()
            if killed:
                break
    finally:
        ray.shutdown()
    assert len(killed) == 1
    build_index(config_of("local", "index.shard_size=4"))
    assert_same_index(config, config_of("local", "index.shard_size=4"))


def test_random_kills_lose_and_double_nothing():
    """A few of what `python -m benchmarks.kills` does two hundred times."""
    root = Path(__file__).parents[2]
    if not (root / "benchmarks").is_dir():
        pytest.skip("not a source tree")
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", os.environ.get("RAGX_KILLS", "6")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lost"] == 0
