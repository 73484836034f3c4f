"""`retrieval.rerank`: the generator's likelihood of the question orders and weighs the first hits anew."""

import json
from types import SimpleNamespace

import pytest
import torch

from ragx import build_index, finetune, load_config
from ragx.errors import ConfigError
from ragx.rag.model import RagModel
from ragx.rag.rerank import QUESTION_WEIGHT, Rerank, question_log_probs, reordered
from ragx.stages.models import open_model
from ragx.training import rerank
from ragx.training.rerank import fit_rerank
from ragx.training.warmup import Supervised

QUESTIONS = ["Who lights the kiln?", "Where is the clay dug?", "What is the glaze made of?"]


@pytest.fixture
def opened(tiny_config):
    """opened("t5", rerank=4) -> an untrained model over its index."""

    def open_it(generator="causal", **retrieval):
        config = load_config(tiny_config(generator, retrieval=retrieval))
        build_index(config)
        return open_model(config, "base")

    return open_it


@pytest.mark.parametrize("generator", ["causal", "causal_chat", "t5", "bart"])
def test_hits_are_ordered_by_the_stated_sum(generator, opened):
    model, change = opened(generator), Rerank(6, weight=1e4, scale=0.5)
    found = model.retriever(QUESTIONS, 6)
    likely = question_log_probs(model.generator, QUESTIONS, found)
    now, places = reordered(found, likely, change)
    sums = 0.5 * found.scores + 1e4 * likely
    for row, wanted in enumerate(sums.tolist()):
        order = sorted(range(6), key=lambda place: -wanted[place])
        assert places[row].tolist() == order
        assert now.passages[row] == [found.passages[row][place] for place in order]
    assert now.passages != found.passages
    torch.testing.assert_close(now.scores, sums.gather(1, places))
    torch.testing.assert_close(now.log_prior, torch.log_softmax(now.scores, dim=-1))


def test_without_weight_nothing_moves(opened):
    model = opened()
    found = model.retriever(QUESTIONS, 5)
    now, _ = reordered(found, question_log_probs(model.generator, QUESTIONS, found), Rerank(5, weight=0.0))
    assert now.passages == found.passages
    torch.testing.assert_close(now.log_prior, found.log_prior)


@pytest.mark.parametrize("null_bias", [None, -1.0])
@pytest.mark.parametrize("generator", ["causal", "causal_chat", "t5", "bart"])
def test_an_answer_is_that_from_the_reordered_passages(generator, null_bias, opened):
    """One pass over the prompts weighs and reads them, and says what weighing and then reading the best ones says."""
    model = opened(generator, rerank=6)
    model = RagModel(model.retriever, model.generator, "sequence", null_bias, Rerank(6, weight=1e4))
    references = ["Marta Veld", "Orrin", "copper"]
    told = model.answer(QUESTIONS, decoding="thorough", num_beams=2, references=references)
    wanted = model.retrieve(QUESTIONS)
    assert wanted.passages != model.retriever(QUESTIONS).passages
    model.rerank = None
    apart = model.answer(QUESTIONS, decoding="thorough", num_beams=2, references=references, retrieval=wanted)
    assert told.retrieval.passages == apart.retrieval.passages
    assert [one.text for one in told.decoded] == [one.text for one in apart.decoded]
    assert told.reference_nll == pytest.approx(apart.reference_nll, rel=1e-4)
    torch.testing.assert_close(told.retrieval.log_prior, apart.retrieval.log_prior, rtol=1e-4, atol=1e-3)
    assert [row[:2] for row in told.hits.passages] == wanted.passages


def test_hits_below_the_first_k_can_come_up(opened):
    model = opened(rerank=8)
    assert model.rerank == Rerank(8)
    model.rerank = Rerank(8, weight=1e4)
    before, now = model.retriever(QUESTIONS, 8), model.retrieve(QUESTIONS)
    assert [len(row) for row in now.passages] == [2] * 3
    likely = question_log_probs(model.generator, QUESTIONS, before)
    best = [row[int(best)] for row, best in zip(before.passages, likely.argmax(-1), strict=True)]
    assert [row[0] for row in now.passages] == best
    assert any(row[0] not in first[:2] for row, first in zip(now.passages, before.passages, strict=True))
    torch.testing.assert_close(now.log_prior.exp().sum(-1), torch.ones(3))


def test_through_all_commands(tiny_config, cli, tmp_path):
    path = tiny_config(retrieval={"rerank": 4})
    config = load_config(path)
    build_index(config)
    plan = json.loads(cli("finetune", "--dry-run", "--json", "-q", "-c", path).out)
    assert "reranking" in plan["seconds"]
    assert cli("finetune", "-q", "-c", path).code == 0
    learnt = json.loads((config.run_dir / "model" / "manifest.json").read_text())["rerank"]
    assert set(learnt) == {"weight", "scale"} and learnt != Rerank(4).values()
    model = open_model(config, "tuned")
    assert model.rerank == Rerank(4, **learnt)

    told = json.loads(cli("ask", QUESTIONS[0], "--json", "-c", path).out)
    wanted = model.retrieve(QUESTIONS[:1])
    assert [p["id"] for p in told["passages"]] == [passage.id for passage in wanted.passages[0]]
    assert [p["prior"] for p in told["passages"]] == pytest.approx(wanted.log_prior[0].exp().tolist(), rel=1e-4)

    assert cli("eval", "-q", "-c", path).code == 0
    lines = (config.run_dir / "eval" / "test.tuned.predictions.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        first, rest = model.retrieve([line["question"]], 4), model.retriever([line["question"]], len(line["hits"]))
        hits = [*first.passages[0], *rest.passages[0][4:]]
        assert [hit["id"] for hit in line["hits"]] == [passage.id for passage in hits]
    plain = open_model(load_config(path, ["retrieval.rerank=0"]), "tuned")
    assert plain.rerank is None and plain.retriever.prior.values() == model.retriever.prior.values()

    exported = cli("export", tmp_path / "out", "-q", "-c", path)
    assert exported.code == 2 and "retrieval.rerank: 4: their prior is of vectors alone; say 0" in exported.err


def test_training_does_not_reorder(tiny_config):
    weights = []
    for hits in (0, 4):
        config = load_config(tiny_config(retrieval={"rerank": hits}, finetune={"warmup_epochs": 1}))
        build_index(config)
        done = finetune(config)
        weights.append((done["dev_nll_per_token"], done["prior"]))
        assert (done["rerank"] is None) is not hits
    assert weights[0] == weights[1]


def test_the_question_must_come_last_in_a_causal_prompt(tiny_config, cli):
    prompt = "question: {question}\npassage: {title} {passage}"
    path = tiny_config(retrieval={"rerank": 4}, generator={"prompt": prompt})
    build_index(load_config(path))
    for command in (("ask", "Who?"), ("finetune",), ("eval",)):
        refused = cli(*command, "-q", "-c", path)
        assert (
            refused.code == 2 and "put {question} after {passage} in generator.prompt, or say rerank: 0" in refused.err
        )
        assert len(refused.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("retrieval", "words"),
    [
        ({"rerank": 1}, "rerank (1) must be auto, 0, or lie between top_k (2) and candidates (8)"),
        ({"rerank": 9}, "rerank (9) must be auto, 0, or lie between top_k (2) and candidates (8)"),
        ({"rerank": 4, "prior": "corpus"}, "say prior: topk"),
        ({"rerank": -1}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_reordered_is_refused(retrieval, words, tiny_config):
    with pytest.raises(ConfigError) as refused:
        load_config(tiny_config(retrieval=retrieval))
    assert words in str(refused.value)


@pytest.fixture
def fit(monkeypatch):
    """fit(scores, likely, right) -> what is fitted where this is what the dev questions show, [n, N] each."""

    def run(*shown):
        monkeypatch.setattr(rerank, "_seen", lambda *_: shown)
        items = [Supervised(SimpleNamespace(question="?"), (0,))]
        return fit_rerank(None, items, shown[0].shape[1])

    return run


def test_the_weight_follows_what_tells_right_passages(fit):
    source = torch.Generator().manual_seed(0)
    right = torch.nn.functional.one_hot(torch.randint(5, (200,), generator=source), 5).bool()
    told = 12.0 * right + 4.0 * torch.randn(200, 5, generator=source)
    noise = 4.0 * torch.randn(200, 5, generator=source)
    by_likelihood, by_retriever = fit(noise, told, right), fit(told, noise, right)
    assert 0.5 < by_likelihood.weight < 1 and by_likelihood.scale < 0.2
    assert by_retriever.weight < 0.1 and 0.5 < by_retriever.scale < 1


def test_without_dev_questions_nothing_is_fitted(fit):
    empty = torch.zeros(0, 4)
    assert fit(empty, empty, empty.bool()) is None
    assert fit_rerank(None, [], 4) is None


def test_by_default_a_training_says_how_three_times_top_k_are_reordered(tiny_config, cli):
    path = tiny_config()
    config = load_config(path)
    build_index(config)
    assert "reranking" in json.loads(cli("finetune", "--dry-run", "--json", "-q", "-c", path).out)["seconds"]
    learnt = finetune(config)["rerank"]
    assert open_model(config, "base").rerank is None
    assert open_model(config, "tuned").rerank == Rerank(6, **learnt)
    assert open_model(load_config(path, ["retrieval.candidates=3"]), "tuned").rerank == Rerank(3, **learnt)
    for other in ("retrieval.rerank=0", "retrieval.prior=corpus"):
        assert open_model(load_config(path, [other]), "tuned").rerank is None


@pytest.mark.parametrize(
    ("generator", "changes"),
    [
        ("t5", []),
        ("causal", ["data.dev=null", "finetune.dev_share=0"]),
        ("causal", ["retrieval.prior=corpus"]),
        ("causal", ["generator.prompt='question: {question} passage: {title} {passage}'"]),
    ],
    ids=["another pass", "no dev questions", "all passages weighed", "question first"],
)
def test_by_default_hits_stay_where_reordering_costs_a_pass_or_nothing_tells_its_worth(generator, changes, tiny_config):
    config = load_config(tiny_config(generator), changes)
    build_index(config)
    assert "reranking" not in finetune(config, dry_run=True)["seconds"]
    assert finetune(config)["rerank"] is None
    assert open_model(config, "tuned").rerank is None


def test_questions_of_the_generator_do_not_say_what_its_likelihood_is_worth(tiny_config):
    written = {"train": None, "dev": None}
    section = {"synthetic": 6, "synthetic_f1": 0.0, "dev_share": 0.4}
    config = load_config(tiny_config(data=written, finetune=section))
    build_index(config)
    done = finetune(config)
    assert done["synthetic_questions"] and done["rerank"] is None
    asked = finetune(load_config(tiny_config(data=written, finetune=section, retrieval={"rerank": 4})))
    assert asked["rerank"] is not None


def test_a_wanted_reordering_starts_from_its_own_weights_where_no_dev_question_tells(tiny_config):
    config = load_config(tiny_config(data={"dev": None}, finetune={"dev_share": 0}, retrieval={"rerank": 4}))
    build_index(config)
    assert finetune(config)["rerank"] == {"weight": QUESTION_WEIGHT, "scale": 1.0}


def test_a_prompt_that_no_longer_asks_last_is_refused_after_training(tiny_config, cli):
    path = tiny_config()
    build_index(load_config(path))
    finetune(load_config(path))
    refused = cli("ask", "Who?", "-q", "-c", path, "--set", "generator.prompt='{question} {title} {passage}'")
    assert refused.code == 2 and "retrieval.rerank: auto: this generator weighs passages by a question" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
