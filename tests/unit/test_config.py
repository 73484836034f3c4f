"""ragx.config: strict YAML, every problem at once with its place, overrides, paths."""

import json

import pytest

from ragx.config import dump_config, load_config
from ragx.errors import ConfigError

LEAST = "corpus:\n  paths: [documents]\n"


@pytest.fixture
def load(tmp_path):
    def load(text=LEAST, *overrides):
        path = tmp_path / "ragx.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return load


def problems(load, text, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.rpartition("ragx.yaml")[2] for problem in caught.value.problems]


def test_only_the_corpus_is_required(load):
    assert problems(load, "name: x\n") == [":1:1: corpus: is required"]
    assert load().passages.size == 100


def test_key_twice(load):
    assert problems(load, LEAST + "seed: 1\nseed: 2\n") == [":4:1: key 'seed' stands here twice"]


def test_key_twice_inside_a_section(load):
    assert problems(load, LEAST + "passages: {size: 1, size: 2}\n") == [":3:21: key 'size' stands here twice"]


def test_alias(load):
    (problem,) = problems(load, LEAST + "data: &a {train: x}\npassages: *a\n")
    assert problem == ":4:11: aliases are not allowed"


@pytest.mark.parametrize("levels", [60, 20_000])
def test_nested_too_deep(load, levels):
    (problem,) = problems(load, LEAST + f"data: {'[' * levels}")
    assert "nested deeper than 50" in problem


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!x y"])
def test_tags_are_refused(load, text):
    assert problems(load, LEAST + f"name: {text}\n")


def test_larger_than_a_megabyte(load):
    assert "larger than" in problems(load, LEAST + "#" * (1 << 20))[0]


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n", "a: 1\n---\nb: 2\n", "a: [1\n", "a: \x00\n", "\tx: 1\n"])
def test_no_mapping_or_no_yaml(load, text):
    assert len(problems(load, text)) == 1


def test_byte_order_mark_is_ignored(load):
    assert load("\ufeff" + LEAST).passages.size == 100


def test_not_utf8(tmp_path):
    path = tmp_path / "ragx.yaml"
    path.write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match=r"ragx\.yaml: not UTF-8"):
        load_config(path)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "ragx.yaml/below"])
def test_no_file_there(tmp_path, name):
    (tmp_path / "ragx.yaml").write_text(LEAST)
    with pytest.raises(ConfigError, match=r"no such file|is a folder|[Nn]ot a"):
        load_config(tmp_path / name)


def test_scalars_follow_yaml_1_2(load):
    config = load(
        LEAST
        + "name: no\nfinetune: {learning_rate: 1e-5, weight_decay: .5}\n"
        + "encoder:\n  query_prefix: 12:30\n  passage_prefix: off\n  normalize: ~\n"
    )
    assert config.name == "no"
    assert config.finetune.learning_rate == 1e-5
    assert config.finetune.weight_decay == 0.5
    assert config.encoder.query_prefix == "12:30"
    assert config.encoder.passage_prefix == "off"
    assert config.encoder.normalize is None


def test_quoted_scalars_are_text(load):
    assert load(LEAST + "encoder: {query_prefix: '7', passage_prefix: \"null\"}\n").encoder.query_prefix == "7"


def test_unknown_key_with_suggestion_and_place(load):
    assert problems(load, LEAST + "passages:\n  sise: 3\n") == [
        ":4:3: passages.sise: unknown key; did you mean 'size'?"
    ]


def test_unknown_section_with_suggestion(load):
    assert problems(load, LEAST + "finetun: {epochs: 3}\n") == [":3:1: finetun: unknown key; did you mean 'finetune'?"]


def test_unknown_key_like_no_other_lists_the_known(load):
    (problem,) = problems(load, LEAST + "passages: {zzz: 3}\n")
    assert problem == ":3:12: passages.zzz: unknown key; known: unit, size, overlap, title, deduplicate"


@pytest.mark.parametrize(
    "text",
    [
        "passages: {size: many}",
        "passages: {size: 1.5}",
        "passages: {size: true}",
        "passages: {size: '100'}",
        "passages: {size: 0}",
        "passages: {overlap: true}",
        "passages: {overlap: '3'}",
        "passages: 3",
        "name: 3",
        "name: ../up",
        "seed: 1.0",
        pytest.param(f"seed: {'1' * 5000}", id="seed: 5000 digits"),
        "finetune: {learning_rate: fast}",
        "finetune: {learning_rate: 1e999}",
        "finetune: {lora: fast}",
        "finetune: {weight_decay: .nan}",
        "finetune: {weight_decay: '0.1'}",
        "eval: {bootstrap: '1000'}",
        "eval: {metrics: em}",
        "eval: {gates: [f1]}",
        "eval: {gates: {f1: 0.3}}",
        "index: {lexical: BM25}",
        "encoder: {normalize: no}",
        "encoder: {normalize: 1}",
        "allow_pickle_weights: yes",
        "device: gpu",
        "retrieval: {mode: null}",
        "? [a, b]\n: 1",
    ],
)
def test_wrong_type_or_value(load, text):
    (problem,) = problems(load, LEAST + text + "\n")
    assert problem.startswith(":3:")


def test_all_that_a_key_may_be_stands_in_one_line(load):
    assert problems(load, LEAST + "finetune: {learning_rate: fast}\n") == [
        ":3:12: finetune.learning_rate: Input should be 'auto', or a valid number"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("passages: {size: 5, overlap: 5}", "overlap (5) must be below size (5)"),
        ("retrieval: {top_k: 9, candidates: 3}", "candidates (3) must be at least top_k (9)"),
        ("index: {lexical: none}", "retrieval.mode: hybrid needs index.lexical: bm25 or tfidf"),
        ("generator: {prompt: 'Say {passage}'}", "prompt must contain {question} exactly once"),
        ("generator: {prompt: '{passage} {question} {x}'}", "no other braces"),
        ("generator: {max_input_tokens: 10, max_answer_tokens: 10}", "must be below max_input_tokens"),
        ("rag: {marginal: token, decoding: fast}", "marginal: token has one decoding"),
    ],
)
def test_contradiction(load, text, reason):
    (problem,) = problems(load, LEAST + text + "\n")
    assert reason in problem


def test_all_problems_at_once_each_with_its_place(load):
    found = problems(load, "corpus: {paths: []}\nseed: x\nindex:\n  kind: fast\neval:\n  metrics: [em, 3]\n  gate: 1\n")
    assert sorted(" ".join(problem.split(" ")[:2]) for problem in found) == [
        ":1:10: corpus.paths:",
        ":2:1: seed:",
        ":4:3: index.kind:",
        ":6:17: eval.metrics.1:",
        ":7:3: eval.gate:",
    ]


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("finetune.epochs=7", "finetune", "epochs", 7),
        ("finetune.learning_rate=1e-5", "finetune", "learning_rate", 1e-5),
        ("eval.metrics=[em, recall@3]", "eval", "metrics", ("em", "recall@3")),
        ("eval.gates={f1: '>= 0.3'}", "eval", "gates", {"f1": ">= 0.3"}),
        ("eval.gates.em='>= 0.1'", "eval", "gates", {"em": ">= 0.1"}),
        ("encoder.query_prefix='query: '", "encoder", "query_prefix", "query: "),
        ("encoder.query_prefix=", "encoder", "query_prefix", None),
        ("generator.system=a = b", "generator", "system", "a = b"),
        (" passages.size =5", "passages", "size", 5),
    ],
)
def test_override(load, override, section, key, value):
    assert getattr(getattr(load(LEAST, override), section), key) == value


def test_override_beats_the_file_and_the_last_one_wins(load):
    assert load(LEAST + "seed: 1\n", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    "override", ["epochs", "=3", "a..b=1", "name.x=1", "passages.size=[", "passages.size={a: 1, a: 2}"]
)
def test_override_that_cannot_be_read(load, override):
    (problem,) = problems(load, LEAST + "name: x\n", override)
    assert problem.startswith(f"--set {override}")


def test_override_with_unknown_key(load):
    assert problems(load, LEAST, "finetune.epoch=2") == [
        "--set finetune.epoch=2: finetune.epoch: unknown key; did you mean 'epochs'?"
    ]


def test_override_can_mend_the_file(load):
    assert load(LEAST + "seed: x\n", "seed=4").seed == 4


def test_paths_are_relative_to_the_file(load, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load(LEAST + "data: {train: a/../train.jsonl, dev: /abs/dev.jsonl}\n", "data.test=test.jsonl")
    assert config.corpus.paths == (str(tmp_path / "documents"),)
    assert config.data.train == str(tmp_path / "train.jsonl")
    assert config.data.dev == "/abs/dev.jsonl"
    assert config.data.test == str(tmp_path / "test.jsonl")
    assert config.run_dir == tmp_path / "runs" / "ragx"


def test_home_in_a_path(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert load(LEAST + "output_dir: ~/runs\n").output_dir == "/home/of/somebody/runs"


@pytest.mark.parametrize(
    ("reference", "beside"),
    [("models/mine", True), ("./other", True), ("some/name", False), ("pypi:a==1/b", False)],
)
def test_model_reference_is_a_path_where_it_is_a_folder_or_looks_like_one(load, tmp_path, reference, beside):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    found = load(LEAST + f"encoder: {{model: '{reference}'}}\n").encoder.model
    assert found == (str((tmp_path / reference).resolve()) if beside else reference)


def test_config_is_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 3


def test_dump_reads_back_equal(load):
    config = load(
        LEAST + "seed: 5\nfinetune: {learning_rate: 1e-5, lora: {rank: 4}, train: [generator]}\n"
        "retrieval: {temperature: 0.1}\neval: {gates: {f1: '>= 0.30'}}\n"
    )
    assert load(dump_config(config)) == config


@pytest.mark.parametrize(
    "text",
    [
        "1e-5",
        "-2E7",
        "1.",
        "no",
        "null",
        "~",
        "",
        "12:30",
        "true",
        "0x1F",
        "07",
        "1_000",
        " x ",
        "a: b",
        "# x",
        "\n",
        "é\u2028",
        "- a",
    ],
)
def test_dump_keeps_text_text(load, text):
    config = load(LEAST + f"encoder: {{query_prefix: {json.dumps(text)}}}\n")
    assert config.encoder.query_prefix == text
    assert load(dump_config(config)) == config


def test_options_of_training_that_cannot_be(load):
    (problem,) = problems(load, LEAST + "finetune: {cross_fit: 1}\n")
    assert problem.startswith(":3:12: finetune.cross_fit: 1: a question needs another fold")
    (problem,) = problems(load, LEAST + "finetune: {distractors: 3}\nretrieval: {top_k: 3}\n")
    assert "finetune.distractors (3) must be below the passages of a training question (3)" in problem
