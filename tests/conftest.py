"""What all tiers share: a tiny corpus, tiny randomly initialised models, a configuration that joins them, the CLI."""

import io
import json
import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models only lose by threads

DOCUMENTS = [
    ("kiln", "The kiln", "The kiln at Orrin burns beech wood. Marta Veld lights it on Monday and it cools by Friday."),
    ("glaze", "Glazes", "Green glaze holds copper. Blue glaze holds cobalt. White glaze is made with tin and sand."),
    ("clay", "Clay pits", "The clay comes from the pit below Tarn Hill. Red clay is dug in May, grey clay in August."),
    ("wheel", "The wheels", "Nine wheels stand in the long room. The oldest wheel was built by Joris Hale in 1912."),
    (
        "market",
        "Market day",
        "Pots are sold on the square every Thursday. A small bowl costs four crowns, a jug costs nine.",
    ),
    (
        "school",
        "The school",
        "The pottery school opened in 1934. Its first teacher was Ansel Brook. It takes twelve pupils.",
    ),
    ("dog", "The dog", "A brown dog called Biscuit sleeps beside the kiln. It barks when the kiln door is opened."),
    (
        "flood",
        "The flood",
        "In 1951 the river Sile flooded the cellar. Three hundred jugs were lost and two were found.",
    ),
    (
        "museum",
        "The museum",
        "The museum keeps the tallest jar, one hundred and forty centimetres high. Entry costs two crowns.",
    ),
    (
        "train",
        "Getting there",
        "A train runs from Halden to Orrin at noon. The journey takes fifty minutes along the river.",
    ),
    ("bread", "The bakery", "The bakery next door sells rye bread. Its oven is fired with the ends of the beech wood."),
    ("song", "The song", "Potters sing The Turning Stone at midwinter. Its words were written by Elin Roake in 1888."),
]

QUESTIONS = [
    ("What wood does the kiln burn?", "beech", "kiln"),
    ("Who lights the kiln?", "Marta Veld", "kiln"),
    ("What metal does green glaze hold?", "copper", "glaze"),
    ("What metal does blue glaze hold?", "cobalt", "glaze"),
    ("Where does the clay come from?", "Tarn Hill", "clay"),
    ("When is red clay dug?", "May", "clay"),
    ("How many wheels stand in the long room?", "Nine", "wheel"),
    ("Who built the oldest wheel?", "Joris Hale", "wheel"),
    ("When are pots sold on the square?", "Thursday", "market"),
    ("What does a small bowl cost?", "four crowns", "market"),
    ("When did the pottery school open?", "1934", "school"),
    ("Who was the first teacher?", "Ansel Brook", "school"),
    ("What is the dog called?", "Biscuit", "dog"),
    ("Which river flooded the cellar?", "Sile", "flood"),
    ("How many jugs were lost?", "Three hundred", "flood"),
    ("What does entry to the museum cost?", "two crowns", "museum"),
    ("When does the train run?", "noon", "train"),
    ("How long does the journey take?", "fifty minutes", "train"),
    ("What bread does the bakery sell?", "rye bread", "bread"),
    ("Who wrote the words of the song?", "Elin Roake", "song"),
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_configure(config):
    """peft still asks transformers for a property that was renamed; nothing of ours."""
    config.addinivalue_line("filterwarnings", "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _by_marker(request, monkeypatch):
    """Only a test marked `network` may fetch packages; only one marked `slow` computes on all cores."""
    if request.node.get_closest_marker("network"):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if request.node.get_closest_marker("slow"):
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        request.addfinalizer(lambda: torch.set_num_threads(1))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def tiny_corpus(tmp_path):
    """Twelve documents (.corpus) and twenty questions: 12 .train, 4 .dev, 4 .test, paths of .jsonl files."""
    questions = [
        {"id": f"q{number}", "question": question, "answers": [answer], "doc_ids": [document]}
        for number, (question, answer, document) in enumerate(QUESTIONS)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    return SimpleNamespace(
        corpus=write_lines(
            folder / "corpus.jsonl", [dict(zip(("id", "title", "text"), d, strict=True)) for d in DOCUMENTS]
        ),
        train=write_lines(folder / "train.jsonl", [q for n, q in enumerate(questions) if n % 5 < 3]),
        dev=write_lines(folder / "dev.jsonl", questions[3::5]),
        test=write_lines(folder / "test.jsonl", questions[4::5]),
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of randomly initialised models: .encoder .causal .causal_chat .t5 .bart."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        _encoder(folder / "encoder", transformers)
        for name in ("causal", "causal_chat"):
            _causal(folder / name, transformers, CHAT_TEMPLATE if name == "causal_chat" else None)
        _t5(folder / "t5", transformers)
        _bart(folder / "bart", transformers)
    return SimpleNamespace(**{name: folder / name for name in ("encoder", "causal", "causal_chat", "t5", "bart")})


def _texts():
    return [f"{title}\n{text}" for _, title, text in DOCUMENTS] + [f"{q} {a}" for q, a, _ in QUESTIONS]


def _encoder(folder, transformers):
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(_texts()).lower())))
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]
    )
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=128)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(transformers, begins, ends, **extra):
    """Byte-level BPE trained on the tiny corpus, which puts `begins` before a text and `ends` after it."""
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", *extra.get("additional_special_tokens", [])]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(), trainer)
    pattern = " ".join([*begins, "$A", *ends])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=pattern,
        pair=f"{pattern} $B:1",
        special_tokens=[(token, core.token_to_id(token)) for token in {*begins, *ends}],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **extra
    )


def _causal(folder, transformers, chat_template):
    roles = ["<|system|>", "<|user|>", "<|assistant|>"] if chat_template else []
    tokenizer = _tokenizer(transformers, [], [], **({"additional_special_tokens": roles} if roles else {}))
    tokenizer.chat_template = chat_template
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        **_special(tokenizer),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _t5(folder, transformers):
    tokenizer = _tokenizer(transformers, [], ["</s>"])
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        **_special(tokenizer),
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _bart(folder, transformers):
    tokenizer = _tokenizer(transformers, ["<s>"], ["</s>"])
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        dropout=0.0,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        **_special(tokenizer),
    )
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _special(tokenizer):
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


@pytest.fixture
def draw_dpr(tiny_models):
    """draw_dpr(seed, hidden_size=16): random DPR question and passage towers of one shape, and their tokenizer."""
    import torch
    import transformers

    def draw(seed, **shape):
        words = transformers.AutoTokenizer.from_pretrained(tiny_models.encoder)
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.DPRConfig(vocab_size=len(words), **{**small, "max_position_embeddings": 300, **shape})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers.DPRQuestionEncoder(config), transformers.DPRContextEncoder(config), words

    return draw


@pytest.fixture
def save_rag():
    """save_rag(folder, "token", (tower, its tokenizer), (generator, its tokenizer), n_docs=3): transformers' RAG model
    of these parts, saved as they save it."""
    import transformers

    kinds = {"sequence": transformers.RagSequenceForGeneration, "token": transformers.RagTokenForGeneration}

    def save(folder, marginal, questions, writer, **config):
        joint = transformers.RagConfig.from_question_encoder_generator_configs(
            questions[0].config, writer[0].config, **config
        )
        model = kinds[marginal](config=joint, question_encoder=questions[0], generator=writer[0]).eval()
        model.save_pretrained(folder)
        transformers.RagTokenizer(questions[1], writer[1]).save_pretrained(folder)
        return model

    return save


@pytest.fixture
def tiny_config(tmp_path, tiny_corpus, tiny_models):
    """A factory: tiny_config(generator="t5", retrieval={"mode": "dense"}, seed=3) -> path of a written ragx.yaml.

    Keyword arguments override keys at the top, and keys inside of sections. `generator` names one of the tiny models,
    or is a section like the others.
    """

    def write(generator="causal", **overrides) -> Path:
        lora = generator not in ("t5", "bart") and "auto"  # adapters on random encoder-decoders would learn nothing
        section = generator if isinstance(generator, dict) else {"model": str(getattr(tiny_models, generator))}
        tree = {
            "name": "tiny",
            "device": "cpu",
            "dtype": "float32",
            "corpus": {"paths": [str(tiny_corpus.corpus)]},
            "passages": {"size": 12},
            "data": {name: str(getattr(tiny_corpus, name)) for name in ("train", "dev", "test")},
            "encoder": {"model": str(tiny_models.encoder), "max_tokens": 48, "batch_size": 8},
            "index": {"shard_size": 8},
            "retrieval": {"top_k": 2, "candidates": 8},
            "generator": {
                "model": str(tiny_models.causal),
                "max_input_tokens": 200,
                "max_answer_tokens": 12,
                **section,
            },
            "finetune": {
                "epochs": 1,
                "batch_size": 4,
                "warmup_epochs": 1,
                "reading_epochs": 0,
                "train": ["question_encoder", "generator"],
                "checkpoint_steps": 2,
                "lora": lora,
            },
            "eval": {"metrics": ["em", "f1", "recall@2", "nll"], "bootstrap": 100},
        }
        for key, value in overrides.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / "ragx.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line in this process: cli("ask", "Who?", stdin="") -> .code .out .err; `stdin` may be a file."""
    from ragx.cli.main import run

    root, ours = logging.getLogger(), logging.getLogger("ragx")
    state = root.handlers[:], root.level, ours.level, signal.getsignal(signal.SIGTERM)

    def call(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["ragx", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                run()
        except SystemExit as stop:
            code = stop.code
        finally:  # what one command sets for its process
            logging.captureWarnings(False)
            root.handlers[:], root.level, ours.level = state[0], state[1], state[2]
            signal.signal(signal.SIGTERM, state[3])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call
