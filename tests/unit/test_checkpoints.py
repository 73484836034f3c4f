"""ragx.training.checkpoints: what a resumed training keeps of the lines that were written before."""

import json

import pytest

from ragx.errors import ArtifactError
from ragx.training.checkpoints import append_line, truncate_lines

SEPARATORS = "one\u2028two\u2029three\x85four\x0bfive\nsix\r"


@pytest.fixture
def lines(tmp_path):
    """A file of three lines, of steps 0 to 2, whose texts hold whatever some reader takes for the end of a line."""
    path = tmp_path / "deep" / "samples.jsonl"
    for step in range(3):
        append_line(path, {"step": step, "answer": f"{SEPARATORS}é{step}"})
    return path


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_a_line_whatever_its_text_holds(lines):
    assert steps_of(lines) == [0, 1, 2]
    assert json.loads(lines.read_text(encoding="utf-8").splitlines()[1])["answer"] == f"{SEPARATORS}é1"


def test_half_of_a_surrogate_pair_is_written_too(tmp_path):
    append_line(tmp_path / "a.jsonl", {"answer": "\ud800"})
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == {"answer": "\ud800"}


@pytest.mark.parametrize("step", [0, 1, 2, 7])
def test_later_lines_go_and_earlier_ones_stay_as_they_are(lines, step):
    before = lines.read_bytes().splitlines(keepends=True)
    truncate_lines(lines, step)
    assert lines.read_bytes().splitlines(keepends=True) == before[: step + 1]


def test_lines_of_an_earlier_ragx_with_separators_in_them_are_read(lines):
    plain = "".join(json.dumps({"step": n, "answer": "a\u2028b}"}, ensure_ascii=False) + "\n" for n in range(3))
    lines.write_text(plain, encoding="utf-8")
    truncate_lines(lines, 1)
    assert lines.read_text(encoding="utf-8") == "\n".join(plain.split("\n")[:2]) + "\n"


def test_what_a_kill_left_of_the_last_line_goes(lines):
    whole = lines.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        lines.write_bytes(whole[:end])
        truncate_lines(lines, 2)
        assert lines.read_bytes() == whole[:start]


@pytest.mark.parametrize("damage", [b"{\n", b"\xff\n", b"[]\n", b'{"split": "dev"}\n', b'{"step": "x"}\n'])
def test_a_damaged_line_is_named(lines, damage):
    lines.write_bytes(lines.read_bytes() + damage)
    with pytest.raises(
        ArtifactError, match=r"samples.jsonl: line 4 is damaged .*; run: ragx finetune without --resume"
    ):
        truncate_lines(lines, 2)


def test_no_file_is_no_line(tmp_path):
    truncate_lines(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()
