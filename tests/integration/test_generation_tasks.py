"""Translation and long answers, not only short ones: index -> finetune -> eval on small sets written here."""

import json

import pytest

from ragx import build_index, evaluate, finetune, load_config

QUICK = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "retriever_learning_rate": 1e-3, "patience": 100}
MEMORY = [
    ("Der Ofen brennt am Montag.", "The kiln burns on Monday."),
    ("Die Glasur ist grün.", "The glaze is green."),
    ("Der Krug kostet neun Kronen.", "The jug costs nine crowns."),
    ("Der Hund schläft beim Ofen.", "The dog sleeps by the kiln."),
    ("Der Ton kommt aus der Grube.", "The clay comes from the pit."),
    ("Das Rad ist sehr alt.", "The wheel is very old."),
    ("Der Fluss überschwemmte den Keller.", "The river flooded the cellar."),
    ("Der Zug fährt am Mittag.", "The train runs at noon."),
]
"""Translation with retrieval: the passages are in the target language (a translation memory), the source is asked."""
CHINESE = [
    ("What is the capital of Japan?", "日本的首都是東京。"),
    ("What is the capital of China?", "中國的首都是北京。"),
    ("Where is the old bridge?", "舊橋在河的北邊。"),
    ("Who built the tower?", "塔是王師傅建的。"),
]
LONG = [
    (
        "How is a jug made?",
        "First the clay is dug and washed. Then it is thrown on the wheel. At last it is glazed and fired in the kiln.",
    ),
    (
        "What happened in the flood?",
        "In 1951 the river rose over night. It flooded the cellar of the pottery. Three hundred jugs were lost.",
    ),
    (
        "How does one reach the pottery?",
        "A train runs from Halden at noon. The journey takes fifty minutes. From there one walks along the river.",
    ),
    (
        "What does the school teach?",
        "Twelve pupils learn to throw and to glaze. They work at the nine wheels. In spring they fire their own pots.",
    ),
]


@pytest.fixture
def domain(tiny_config, tmp_path):
    """domain(pairs, prompt, **sections): a configuration whose documents are the answers' sentences, asked by pairs."""

    def write(pairs, generator="t5", **sections):
        documents = [{"id": f"d{n}", "title": "", "text": answer} for n, (_, answer) in enumerate(pairs)]
        questions = [
            {"id": f"q{n}", "question": question, "answers": [answer], "doc_ids": [f"d{n}"]}
            for n, (question, answer) in enumerate(pairs)
        ]
        paths = {}
        for name, records in {"corpus": documents, "train": questions, "dev": questions, "test": questions}.items():
            paths[name] = tmp_path / f"{name}.jsonl"
            paths[name].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        data = {name: str(paths[name]) for name in ("train", "dev", "test")}
        corpus = {"paths": [str(paths["corpus"])]}
        model = {"model": generator, "max_input_tokens": 300, "max_answer_tokens": 80}
        return load_config(
            tiny_config(model, corpus=corpus, data=data, finetune=QUICK, passages={"size": 40}, **sections)
        )

    return write


@pytest.mark.parametrize(
    ("pairs", "metrics", "prompt"),
    [
        (MEMORY, ["bleu", "chrf", "chrf++", "nll", "recall@2"], "{passage}\n\nGerman: {question}\nEnglish:"),
        (CHINESE, ["bleu", "chrf", "em", "f1", "rougeL", "nll"], "{passage}\n\n{question}"),
        (LONG, ["rouge1", "rouge2", "rougeL", "rougeLsum", "f1", "nll"], "{passage}\n\nExplain: {question}"),
    ],
    ids=["translation", "unspaced", "long"],
)
@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_index_finetune_eval(domain, tiny_models, tmp_path, pairs, metrics, prompt, kind):
    config = domain(pairs, str(getattr(tiny_models, kind)), eval={"metrics": metrics, "bootstrap": 100})
    config = config.model_copy(update={"generator": config.generator.model_copy(update={"prompt": prompt})})
    build_index(config)
    before = evaluate(config, which="base")
    finetune(config)
    report = config.run_dir / "eval/test.base.report.json"
    after = evaluate(config, baseline=report)
    assert (before.n, after.n, after.model) == (len(pairs), len(pairs), "tuned")
    assert after.metrics["nll"].value < before.metrics["nll"].value
    assert all(0 <= value.value <= 1 for name, value in after.metrics.items() if name != "nll")
    assert set(after.differences) == set(metrics)
    assert sum(after.outcomes.values()) == len(pairs)

    right = tmp_path / "right.predictions.jsonl"
    right.write_text(
        "".join(
            json.dumps({**json.loads(line), "answer": json.loads(line)["answers"][0]}) + "\n"
            for line in (config.run_dir / "eval/test.tuned.predictions.jsonl").read_text(encoding="utf-8").splitlines()
        )
    )
    perfect = evaluate(config, predictions=right)
    figures = {name: value.value for name, value in perfect.metrics.items() if not name.startswith(("nll", "recall"))}
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0))
