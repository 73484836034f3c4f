"""`finetune.synthetic` from the command line: what is written, kept, used again and refused."""

import json

import pytest

from ragx.training import synthetic

ALONE = {"data": {"train": None}, "passages": {"size": 60}}
FREE = {"synthetic": 6, "synthetic_f1": 0.0}


@pytest.fixture
def finetuned(cli):
    """finetuned(config, ...) -> what `ragx finetune --json` printed, and what it told."""

    def run(config, *arguments):
        done = cli("finetune", "--json", "-c", config, *arguments)
        assert done.code == 0, done.err
        return json.loads(done.out), done.err

    return run


def refused(done, *named):
    """Exit code 2 and one line that holds `named`."""
    assert (done.code, done.out) == (2, ""), done.err
    assert [line[:6] for line in done.err.splitlines()] == ["ragx: "], done.err
    assert [text for text in named if text not in done.err] == []


def kept(tmp_path):
    return tmp_path / "runs" / "tiny" / "training" / "synthetic.jsonl"


def test_without_questions_the_way_out_is_named(cli, indexed):
    refused(cli("finetune", "-q", "-c", indexed(data={"train": None})), "data.train: no training", "finetune.synthetic")


@pytest.mark.parametrize("kind", ["causal", "causal_chat", "bart"])
def test_instead_of_the_users_questions(indexed, finetuned, tmp_path, kind):
    done, told = finetuned(indexed(kind, finetune=FREE, **ALONE))
    assert (done["questions"], done["synthetic_questions"], done["steps"]) == (6, 6, 2)
    records = [json.loads(line) for line in kept(tmp_path).read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == [f"synthetic-{n}" for n in range(1, 7)]
    assert all(record["question"] and record["answers"] and len(record["doc_ids"]) == 1 for record in records)
    assert "writing 6 statements from the corpus" in told and str(kept(tmp_path)) in "".join(told.split())
    card = (tmp_path / "runs" / "tiny" / "model" / "README.md").read_text(encoding="utf-8")
    assert "on 6 questions (6 of them synthetic, written from the corpus)" in card


def test_beside_the_users_questions(indexed, finetuned):
    done, _ = finetuned(indexed(finetune=FREE))
    assert (done["questions"], done["synthetic_questions"]) == (18, 6)


def test_without_it_nothing_is_written(indexed, finetuned, tmp_path):
    done, _ = finetuned(indexed())
    assert done["synthetic_questions"] == 0 and not kept(tmp_path).exists()


def test_the_same_plan_uses_them_again_as_the_reader_left_them(indexed, finetuned, tmp_path, monkeypatch):
    config = indexed(finetune=FREE, **ALONE)
    finetuned(config)
    lines = kept(tmp_path).read_text(encoding="utf-8").splitlines(keepends=True)
    kept(tmp_path).write_text("".join(lines[1:]), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "write_questions", None)
        done, told = finetuned(config, "--set", "finetune.epochs=2")
    assert done["synthetic_questions"] == 5 and "5 synthetic questions from an earlier run" in told
    done, told = finetuned(config, "--set", "seed=14")
    assert done["synthetic_questions"] == 6 and "writing 6 statements" in told


@pytest.mark.parametrize("damage", ["{", "[]", "{}", None])
def test_questions_without_their_plan_are_written_anew(indexed, finetuned, tmp_path, damage):
    config = indexed(finetune=FREE, **ALONE)
    finetuned(config)
    before = kept(tmp_path).read_bytes()
    plan = kept(tmp_path).with_suffix(".plan.json")
    if damage is None:
        plan.unlink()
    else:
        plan.write_text(damage)
    kept(tmp_path).write_text("")
    _, told = finetuned(config)
    assert "writing 6 statements" in told and kept(tmp_path).read_bytes() == before


def test_a_bad_line_of_the_reader_is_named(cli, indexed, finetuned, tmp_path):
    config = indexed(finetune=FREE, **ALONE)
    finetuned(config)
    with kept(tmp_path).open("a") as file:
        file.write('{"question": "Who?"}\n')
    refused(cli("finetune", "-q", "-c", config), f"{kept(tmp_path)}:7: no 'answers'")


def test_a_dry_run_writes_none(indexed, finetuned, tmp_path):
    done, told = finetuned(indexed(finetune=FREE, **ALONE), "--dry-run")
    assert (done["questions"], done["synthetic_questions"], done["steps"]) == (6, 6, 2)
    assert "would first write 6 statements" in told and not kept(tmp_path).exists()


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"synthetic": 500}, "500 questions wanted, one a sentence, the corpus holds 18 sentences"),
        ({"synthetic": 6}, "no question survived, 0 of 18 drafts kept (dropped: "),
        ({"synthetic": 6, "synthetic_kind": "questions"}, "synthetic_kind: questions needs a generator with a chat"),
        ({"synthetic": -1}, "finetune.synthetic: "),
        ({"synthetic": 6, "synthetic_f1": 2}, "finetune.synthetic_f1: "),
        ({"synthetic": 6, "synthetic_kind": "cloze"}, "finetune.synthetic_kind: "),
    ],
)
def test_what_cannot_be_done_is_refused(cli, indexed, standing, tmp_path, section, named):
    config, before = indexed(**ALONE), standing()
    options = [word for key, value in section.items() for word in ("--set", f"finetune.{key}={value}")]
    refused(cli("finetune", "-q", "-c", config, *options), named)
    assert standing() == before and not kept(tmp_path).exists()


def test_fewer_than_wanted_are_told(indexed, finetuned):
    done, told = finetuned(indexed(finetune={**FREE, "synthetic": 18}, **ALONE))
    assert 0 < done["synthetic_questions"] < 18
    assert f"the corpus gave only {done['synthetic_questions']} of 18 synthetic questions" in told
    assert "dropped: " in told


def test_a_broken_test_file_is_named_before_anything_is_written(cli, indexed, tiny_corpus, tmp_path):
    config = indexed(finetune=FREE, **ALONE)
    tiny_corpus.test.write_text("{\n")
    refused(cli("finetune", "-q", "-c", config), f"{tiny_corpus.test}:1: invalid JSON")
    assert not kept(tmp_path).exists()
