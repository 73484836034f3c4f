"""Options of the training: a dev set where there is none, cross-fitted passages, smoothed labels and the others."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ragx import build_index, finetune, load_config
from ragx.corpus.questions import read_examples
from ragx.rag.model import NULL_BIAS
from ragx.rag.rerank import question_log_probs
from ragx.records import Example
from ragx.stages.models import open_model
from ragx.training import crossfit, hits, loop, policy
from ragx.training.batches import with_drawn_answer
from ragx.training.reading import right_passages
from ragx.training.warmup import Supervised, WarmupSettings, snapshot, supervise

QUICK = {"epochs": 2, "batch_size": 4, "checkpoint_steps": 1, "learning_rate": 1e-3, "warmup_epochs": 2}


@pytest.fixture
def training(tiny_config, tmp_path, caplog):
    """training("a", generator="t5", data={...}, epochs=2) -> the configuration, what finetune returned, and its log."""
    caplog.set_level("INFO", logger="ragx")

    def run(name, generator="causal", data=None, **section):
        path = tiny_config(generator, retrieval={"top_k": 3}, data=data or {}, finetune={**QUICK, **section})
        config = load_config(path, [f"output_dir={tmp_path / name}"])
        build_index(config)
        caplog.clear()
        return config, finetune(config), [record.getMessage() for record in caplog.records]

    return run


def weights_of(config):
    files = sorted((config.run_dir / "model").rglob("*.safetensors"))
    return [load_file(path) for path in files]


def same(one, two):
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)


def test_without_a_dev_set_questions_are_held_out(training, read_metrics):
    config, done, log = training("held", data={"dev": None}, dev_share=0.25, epochs=4)
    assert done["questions"] == 9 and done["dev_nll_per_token"] is not None
    dev = read_metrics(config.run_dir, "dev")
    assert {line["questions"] for line in dev} == {3}
    assert done["dev_nll_per_token"] == min(line["nll_per_token"] for line in dev)
    assert sum("3 of them held out to say when to stop" in line for line in log) == 1


def test_what_is_held_out_stops_the_training_and_is_never_trained_on(training, read_metrics, monkeypatch):
    seen, own = set(), loop.batch_of

    def recorded(*given):
        seen.update(example.id for example in own(*given))
        return own(*given)

    monkeypatch.setattr(loop, "batch_of", recorded)
    config, done, _ = training("stop", data={"dev": None}, dev_share=0.25, epochs=50, learning_rate=0.05, patience=1)
    assert done["steps"] < 150 and done["best_step"] < done["steps"]
    assert len(seen) == 9
    plan = json.loads((config.run_dir / "model" / "manifest.json").read_text())
    assert plan["dev_nll_per_token"] == done["dev_nll_per_token"]


def test_too_few_questions_train_to_the_end_and_say_so(training):
    _, done, log = training("end", data={"dev": None})
    assert done["dev_nll_per_token"] is None and done["best_step"] == done["steps"] == 6
    assert any("none held out: training runs to its end" in line for line in log)


def test_few_questions_train_adapters_of_a_small_encoder_decoder(training):
    config, _, log = training("few", generator="t5", lora="auto", learning_rate="auto")
    assert (config.run_dir / "model" / "generator" / "adapter_config.json").is_file()
    assert any("at a learning rate of 1.0e-03" in line for line in log)
    config, _, log = training("whole", generator="t5", lora=False, learning_rate="auto")
    assert not (config.run_dir / "model" / "generator" / "adapter_config.json").exists()
    assert any("at a learning rate of 1.0e-04" in line for line in log)


@pytest.mark.parametrize("kind", ["causal", "bart", "t5"])
def test_in_bfloat16_training_attends_by_plain_products_to_the_same_end(kind, tiny_config, monkeypatch, read_metrics):
    losses, used, own = {}, {}, loop.train

    def watched(model, *given, **named):
        used[name] = model.generator.base.config._attn_implementation
        return own(model, *given, **named)

    monkeypatch.setattr(loop, "train", watched)
    for name, dtype in (("exact", "float32"), ("rough", "bfloat16")):
        config = load_config(tiny_config(kind, name=name, dtype=dtype, retrieval={"top_k": 3}, finetune=QUICK))
        build_index(config)
        finetune(config)
        losses[name] = [line["nll_per_token"] for line in read_metrics(config.run_dir)]
        saved = json.loads((config.run_dir / "model" / "manifest.json").read_text())
        assert saved["adapter"] or "eager" not in (config.run_dir / "model" / "generator" / "config.json").read_text()
    assert (used["rough"] == "eager" and used["exact"] != "eager") or kind == "t5"
    assert losses["rough"] == pytest.approx(losses["exact"], rel=0.02)


def test_every_question_is_retrieved_by_one_that_has_not_seen_it(tiny_config, monkeypatch):
    config = load_config(tiny_config(retrieval={"top_k": 3, "candidates": 30}))
    build_index(config)
    retriever = open_model(config, "base").retriever
    examples = read_examples(config.data.train)
    supervised = supervise(examples, retriever.index.all_passages())
    settings = WarmupSettings(3, 4, 1e-3, 1e-2, 0.0, 1.0, seed=5)
    learnt, asked, own = [], {}, crossfit.warm_up

    def recorded(model, train, dev, *rest):
        assert {item.example.id for item in train}.isdisjoint(item.example.id for item in dev)
        learnt.append({item.example.question for item in train})
        return own(model, train, dev, *rest)

    monkeypatch.setattr(crossfit, "warm_up", recorded)
    retriever.register_forward_hook(
        lambda _, given, found: asked.update(
            {q: (len(learnt) - 1, [p.number for p in row]) for q, row in zip(given[0], found.passages, strict=True)}
        )
    )
    before = snapshot(retriever)
    ids, log_prior, epochs = crossfit.cross_fit(retriever, examples, supervised, settings, 3, 4, lambda *_: None)
    assert len(learnt) == 3 and set(asked) == {e.question for e in examples} and 1 <= epochs <= 3
    assert all(question not in learnt[fold] for question, (fold, _) in asked.items())
    assert [asked[e.question][1] for e in examples] == ids.tolist()
    torch.testing.assert_close(log_prior.exp().sum(-1), torch.ones(12))
    assert all(torch.equal(value, before[name]) for name, value in snapshot(retriever).items())
    sizes = [crossfit.fold_of(14, 4, 1).count(fold) for fold in range(4)]
    assert sorted(sizes) == [3, 3, 4, 4] and crossfit.fold_of(14, 4, 1) != crossfit.fold_of(14, 4, 2)


def test_training_starts_from_the_prior_of_the_folds(training, read_metrics, monkeypatch):
    own, kept = crossfit.cross_fit, []
    monkeypatch.setattr(crossfit, "cross_fit", lambda *a: kept.append((a, own(*a))) or kept[-1][1])
    config, done, _ = training("folds", cross_fit=3, batch_size=12)
    assert done["steps"] == 2
    (_, examples, *_), (ids, log_prior, _) = kept[0]
    index = open_model(config, "base").retriever.index
    found = index.passages(ids.flatten().tolist())
    gold = [[found[n].document_id in e.doc_ids for n in row] for row, e in zip(ids.tolist(), examples, strict=True)]
    expected = float((log_prior.exp() * torch.tensor(gold)).sum(-1).mean())
    assert read_metrics(config.run_dir)[0]["p_gold"] == pytest.approx(expected, abs=1e-4)


def test_in_the_first_epochs_each_question_is_read_with_its_right_passage_alone(training, read_metrics, monkeypatch):
    read, own = {}, hits.alone
    monkeypatch.setattr(hits, "alone", lambda r, given: read.setdefault(len(read), (snapshot(r), own(r, given)))[1])
    config, done, _ = training("reading", reading_epochs=1)
    assert done["steps"] == 9 and len(read) >= 3
    start = read[0][0]
    for weights, retrieval in read.values():
        assert all(torch.equal(value, start[name]) for name, value in weights.items())  # the retriever waits
        assert all(len(row) == 1 for row in retrieval.passages) and (retrieval.log_prior == 0).all()
    train = read_metrics(config.run_dir)
    assert all(line["p_gold"] == 1.0 and line["kept"] == 1.0 for line in train[:3])
    assert any(line["p_gold"] < 1.0 for line in train[3:])


def test_the_question_is_learnt_while_reading(training, read_metrics):
    """The objective alone differs: what is reported of the first step does not."""
    options = {"data": {"dev": None}, "dev_share": 0.0, "reading_epochs": 4, "epochs": 1, "learning_rate": 0.03}
    plain, _, log = training("answers", **options, question_loss=0.0)
    asked, _, told = training("questions", **options, question_loss=0.5)
    assert not any("learn its question" in line for line in log)
    assert any("after 12 on one right passage each that learn its question, too (weight 0.5)" in line for line in told)
    one, two = (read_metrics(config.run_dir)[0]["nll_per_token"] for config in (plain, asked))
    assert one == pytest.approx(two, rel=1e-5)
    before, after = (mean_question_log_prob(config) for config in (plain, asked))
    assert after > before + 0.3


def mean_question_log_prob(config):
    """log p(x|z) in nats of the training questions after passages of theirs, by the tuned generator."""
    model = open_model(config, "tuned")
    questions = [example.question for example in read_examples(config.data.train)]
    return float(question_log_probs(model.generator, questions, model.retriever(questions, 3)).mean())


def test_questions_are_learnt_by_default_where_one_pass_reads_and_weighs_them(tiny_config):
    def told(generator="causal", **changes):
        config = load_config(tiny_config(generator, finetune={"reading_epochs": 1, **changes}))
        build_index(config)
        return finetune(config, dry_run=True)["text"]

    assert "its question, too (weight 0.2)" in told()
    assert "its question" not in told("t5")
    assert "its question" not in told(synthetic=8, synthetic_f1=0.0)
    assert "its question, too (weight 0.1)" in told(synthetic=8, synthetic_f1=0.0, question_loss=0.1)


@pytest.mark.parametrize(
    ("generator", "changes", "words"),
    [
        (
            "t5",
            {"reading_epochs": 1, "question_loss": 0.5},
            "finetune.question_loss: 0.5 needs a causal generator",
        ),
        ("causal", {"reading_epochs": 0, "question_loss": 0.5}, "question_loss: 0.5 is learnt while reading; raise"),
        (
            "causal",
            {"reading_epochs": 1, "question_loss": 0.5, "train": ["question_encoder"]},
            "question_loss: 0.5 is learnt by the generator; name it in train",
        ),
    ],
)
def test_a_question_that_cannot_be_learnt_is_refused(generator, changes, words, tiny_config, cli):
    path = tiny_config(generator, finetune=changes)
    if generator == "t5":
        build_index(load_config(path))
    refused = cli("finetune", "-q", "-c", path)
    assert refused.code == 2 and words in refused.err and len(refused.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("best", "kept"), [(0, 0), (3, 9), (6, 9), (9, 9), (12, 12)])
def test_weights_amid_reading_are_none_to_keep(best, kept, training, read_metrics, monkeypatch):
    """Three epochs of reading and one more, of three steps each: the dev loss is least after `best` steps, then after
    the end of reading."""
    looks, own = itertools.count(), loop.dev_monitor

    def look(*given):
        step = 3 * next(looks)
        return dataclasses.replace(own(*given), nll_per_token=1.0 if step == best else 1.01 if step == 9 else 1.02)

    monkeypatch.setattr(loop, "dev_monitor", look)
    _, done, _ = training("amid", reading_epochs=3, epochs=1)
    assert (done["steps"], done["best_step"]) == (12, kept)


def test_passages_learn_by_default_where_they_are_few(training, monkeypatch):
    config, done, log = training("few", train="auto", epochs=1)
    assert done["refresh"]["passages"] > 0 and (config.run_dir / "model" / "passage_encoder").is_dir()
    assert sum("learns on passages, too, for 24 are soon encoded anew" in line for line in log) == 1
    assert "- passage_encoder" in (config.run_dir / "config.yaml").read_text(encoding="utf-8")
    monkeypatch.setitem(policy.PASSAGES_UP_TO, "cpu", 23)
    config, done, log = training("many", train="auto", epochs=1)
    assert "refresh" not in done and not (config.run_dir / "model" / "passage_encoder").exists()
    assert sum("learns on questions only, for 24 passages" in line for line in log) == 1


def test_max_steps_ends_either_phase(training, read_metrics):
    config, done, log = training("bounded", reading_epochs="auto", max_steps=2)
    assert done["steps"] == 4
    assert [line["p_gold"] == 1.0 for line in read_metrics(config.run_dir)] == [True, True, False, False]
    assert any("2 steps of 4 questions in float32, after 2 on one right passage each" in line for line in log)


def test_the_passage_to_read_is_the_likeliest_of_the_right_ones(tiny_config):
    config = load_config(tiny_config("causal"))
    build_index(config)
    retriever = open_model(config, "base").retriever
    examples = read_examples(config.data.train)
    numbers = range(retriever.index.passages_count)
    found = right_passages(retriever, examples, [Supervised(examples[0], tuple(numbers)[2:])])
    for row, example in enumerate(examples):
        scores = retriever.scores_of([example.question], torch.tensor([list(numbers)]))[0]
        wanted = 2 + int(scores[2:].argmax()) if row == 0 else int(scores.argmax())
        assert found[row].tolist() == [wanted]


def test_a_stopped_training_goes_on_with_the_same_passages(training, monkeypatch):
    options = {
        "reading_epochs": 1,
        "cross_fit": 2,
        "distractors": 1,
        "answers": "drawn",
        "distillation": 0.5,
        "label_smoothing": 0.1,
    }
    whole, *_ = training("whole", **options)
    own = loop.batch_of

    def stopped(examples, settings, epoch, offset):
        if (epoch, offset) == (1, 1):
            raise KeyboardInterrupt
        return own(examples, settings, epoch, offset)

    monkeypatch.setattr(loop, "batch_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        training("half", **options)
    monkeypatch.undo()
    config = whole.model_copy(update={"output_dir": whole.output_dir.replace("whole", "half")})
    assert (config.run_dir / "training" / "checkpoints" / "settled" / "settled.safetensors").is_file()
    finetune(config, resume=True)
    assert same(weights_of(config), weights_of(whole))


@pytest.mark.parametrize(
    "option", [{"label_smoothing": 0.2}, {"distillation": 1.0}], ids=lambda option: next(iter(option))
)
def test_an_option_changes_the_weights_and_not_what_is_reported(option, training, read_metrics):
    plain, with_it = training("plain")[0], training("option", **option)[0]
    one, two = (read_metrics(config.run_dir)[0] for config in (plain, with_it))
    assert one == two
    assert not same(weights_of(plain), weights_of(with_it))


def test_distractors_are_drawn_beyond_the_first_passages(tiny_config):
    config = load_config(tiny_config(retrieval={"top_k": 3, "candidates": 10}))
    build_index(config)
    retriever = open_model(config, "base").retriever
    examples = [Example(f"q{n}", question, ("x",)) for n, question in enumerate(["Who lights it?", "What is dug?"])]
    plain = hits.TrainingRetrieval(examples, hits.Settled(), 0, 1).retrieve(retriever, examples, 3, 0)
    lesson, deep = hits.TrainingRetrieval(examples, hits.Settled(), 2, 1), retriever([e.question for e in examples], 10)
    steps = [lesson.retrieve(retriever, examples, 3, step) for step in (0, 1, 0)]
    assert steps[0].passages == steps[2].passages != steps[1].passages
    for found in steps:
        for row, first, pool in zip(found.passages, plain.passages, deep.passages, strict=True):
            assert len({p.number for p in row}) == 3 and row[0] == first[0]
            assert {p.number for p in row[1:]} <= {p.number for p in pool[1:]}
        torch.testing.assert_close(found.log_prior.exp().sum(-1), torch.ones(2))


@pytest.mark.parametrize(("generator", "marginal"), [("causal", "sequence"), ("bart", "token")])
def test_null_passage_through_all_commands(generator, marginal, tiny_config, cli, tmp_path, read_metrics):
    rag = {"marginal": marginal, "null_passage": True}
    path = tiny_config(generator, rag=rag, retrieval={"top_k": 3}, finetune={**QUICK, "prior_learning_rate": 0.1})
    config = load_config(path)
    build_index(config)
    assert cli("finetune", "-q", "-c", path).code == 0
    manifest = json.loads((config.run_dir / "model" / "manifest.json").read_text())
    assert manifest["null_bias"] != NULL_BIAS and len(read_metrics(config.run_dir)) == 6
    told = json.loads(cli("ask", "Who lights the kiln?", "--json", "-c", path).out)
    assert [p["document_id"] == "" for p in told["passages"]] == [False, False, False, True]
    share = 1 / (1 + math.exp(-manifest["null_bias"]))
    assert told["passages"][-1]["prior"] == pytest.approx(share, rel=1e-4)
    assert sum(p["prior"] for p in told["passages"]) == pytest.approx(1, abs=1e-4)
    assert sum(p["posterior"] for p in told["passages"]) == pytest.approx(1, abs=1e-4)
    report = json.loads(cli("eval", "--json", "-q", "-c", path).out)
    assert report["n"] == 4 and 0 <= report["metrics"]["recall@2"]["value"] <= 1
    lines = (config.run_dir / "eval" / "test.tuned.predictions.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        read = [hit["prior"] for hit in line["hits"] if hit["prior"] is not None]
        assert len(read) == 3 and sum(read) == pytest.approx(1 - share, abs=1e-4)
    refused = cli("ask", "Who?", "-q", "-c", path, "--set", "rag.null_passage=false")
    assert refused.code == 2 and "tuned with rag.null_passage: true; say so" in refused.err
    exported = cli("export", tmp_path / "out", "-q", "-c", path)
    assert exported.code == 2 and "rag.null_passage: true: theirs has no answer without a passage" in exported.err


def test_drawn_answers_follow_from_seed_and_epoch():
    example = Example("a", "Who?", ("one", "two", "three"))
    drawn = [with_drawn_answer(example, 7, epoch).answers for epoch in range(20)]
    assert set(drawn) == {("one",), ("two",), ("three",)}
    assert drawn == [with_drawn_answer(example, 7, epoch).answers for epoch in range(20)]
    assert drawn != [with_drawn_answer(example, 8, epoch).answers for epoch in range(20)]


def test_answers_too_long_are_not_drawn(training, tmp_path, tiny_corpus):
    lines = [json.loads(line) for line in tiny_corpus.train.read_text().splitlines()]
    for line in lines:
        line["answers"].append("a very long answer indeed " * 20)
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, done, _ = training("drawn", data={"train": str(path)}, answers="drawn")
    assert done["questions"] == 12 and done["steps"] == 6
