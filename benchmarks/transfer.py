"""Does `ragx finetune`, untuned by its user, beat what is assembled without it? Scores on the test questions of a set.

    python -m benchmarks.transfer CONFIG --out FOLDER [--rows ROWS] [--questions 100,500,all] [--seed 13,14,15]
                                  [--no-gold] [--set KEY=VALUE] ...
    python -m benchmarks.transfer --table FOLDER [--json]
    python -m benchmarks.transfer --quick [--out FOLDER]

ROWS, separated by commas (by default all but the last two, in this order):

ragx       the configuration as it stands, with what `--dry-run` said of it; and without reordering by the generator
frozen     nothing trained: BM25, dense and hybrid retrieval before the instruct model, which reads each passage alone
           (ragx's marginal) or all of them in one prompt
separate   a contrastively tuned retriever, the index built anew with it, and a generator tuned on gold passages
           (benchmarks.separate_peer): answers from the top passage, by ragx's marginal, and by the marginal with BM25,
           whose temperature and lexical weight are those that fit the dev questions best; and with a generator tuned
           on all that is retrieved, in one prompt (benchmarks.one_prompt), behind either retrieval.
           The generator may take PASSES times ragx's joint epochs, for it reads one passage a question where ragx
           reads K, and those in which ragx reads one, too; with all passages in one prompt it may have as many
rag        the recipe of transformers' RAG scripts: joint, dense only, raw inner products, no warm-up, all posterior
           mass, all weights of the generator, one learning rate of 3e-5, batches of 8, gradients clipped at 0.1.
           Not theirs: 500 steps of warm-up (a tenth of the steps here), label smoothing, dropout
corpus     no questions: `finetune.synthetic` ones from the corpus, without a dev set and with one
ablations  ragx without warm-up, without reading, reading for answers alone, with fixed passage vectors, on dense
           retrieval alone, and the warm-up of the question encoder alone before the untouched generator
depths     ragx's model with twice and four times `top_k` hits reordered, where its own is three times

Training questions are drawn from the set's by the seed, the same for every row; with `--no-gold` they and the dev
questions name no documents (the set's name then ends in `-nogold`), so that a passage is right where it holds an
answer. FOLDER keeps a line of facts and the
predictions of every finished row, which is not computed again, and `runs/`, where a training that was stopped goes on.
Several processes may work in one FOLDER, on different ROWS, questions or seeds.
"""

import argparse
import dataclasses
import gc
import json
import math
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.one_prompt import reading_all_at_once, with_hits
from benchmarks.separate_peer import Lesson, Tuning, lessons_of, tune_generator, tune_retriever
from benchmarks.transfer_table import AS_RETRIEVED, NONE, OURS, line_of, markdown, read_rows, stem_of
from ragx import load_config, stages
from ragx.artifacts import new_folder, write_json, write_text
from ragx.cli.common import progress_bar, start_log
from ragx.config import Config
from ragx.config.schema import Lora
from ragx.corpus.questions import read_examples
from ragx.evaluation.predictions import write_predictions
from ragx.models import model_fingerprint
from ragx.rag.generator import Generator
from ragx.rag.generators import add_lora
from ragx.rag.model import RagModel
from ragx.rag.retriever import Retriever
from ragx.records import Example, Report
from ragx.stages.models import MODEL_KIND, compute_dtype, open_index, open_model, pretrained_folders
from ragx.stages.questions import training_data, training_policy
from ragx.training.policy import generator_rate
from ragx.training.warmup import fit_prior, supervise

ALL = "all"
PASSES = 3
"""A step of ragx costs K passes forward and one or two forward and back; one on a gold passage costs one of these."""
CONTRASTIVE_EPOCHS = 8
CONTRASTIVE_RATES = (2e-5, 1e-4)
SYNTHETIC = 200
ONE_PROMPT = ("generator.max_input_tokens=2048", "eval.cache=false")
COMMON = ("eval.metrics=[em, f1, recall@1, recall@5, nll]", "eval.gates={}", "eval.slices=[]", "eval.closed_book=false")
RAG_RECIPE = (
    "retrieval.mode=dense",
    "retrieval.temperature=1.0",
    "retrieval.prior=topk",
    "retrieval.rerank=0",
    "rag.marginal=sequence",
    "finetune.warmup_epochs=0",
    "finetune.reading_epochs=0",
    "finetune.train=[question_encoder, generator]",
    "finetune.posterior_mass=1.0",
    "finetune.lora=false",
    "finetune.learning_rate=3e-5",
    "finetune.retriever_learning_rate=3e-5",
    "finetune.prior_learning_rate=1e-12",
    "finetune.weight_decay=0.001",
    "finetune.max_grad_norm=0.1",
    "finetune.batch_size=8",
    "finetune.checkpoint_steps=500",  # one holds all weights of the generator and their moments
)
ABLATIONS = {
    "ragx, no warm-up": ("finetune.warmup_epochs=0",),
    "ragx, no reading": ("finetune.reading_epochs=0",),
    "ragx, answers alone": ("finetune.question_loss=0.0",),
    "ragx, question side": ("finetune.train=[question_encoder, generator]",),
    "ragx, dense": ("retrieval.mode=dense",),
    "warm-up alone": (
        "finetune.train=[question_encoder]",
        "finetune.max_steps=1",  # of a rate that changes nothing; the prior's temperature moves by a hundredth
        "finetune.retriever_learning_rate=1e-12",
    ),
}
DEPTHS = {"ragx, 2 top_k hits": 2, "ragx, 4 top_k hits": 4}
QUICK = (
    "retrieval.top_k=2",
    "finetune.max_steps=2",
    "finetune.batch_size=4",
    "finetune.warmup_epochs=1",
    "finetune.sample_answers=1",
    "finetune.synthetic_f1=0.0",
    "generator.max_input_tokens=128",
)
QUICK_COUNTS = {"train": 40, "dev": 4, "test": 20}


@dataclass(frozen=True, slots=True)
class Cell:
    """One set with one number of training questions and one seed; `cut` questions of each split where it is quick."""

    path: Path
    out: Path
    questions: str
    seed: int
    overrides: tuple[str, ...] = ()
    cut: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gold: bool = True

    @property
    def domain(self) -> str:
        """The set's name, which its configuration gives."""
        return f"{load_config(self.path).name}{'' if self.gold else '-nogold'}"

    def load(self, family: str, *own: str) -> Config:
        """The configuration of a family of rows, whose run folder they share."""
        name = f"{self.domain}.{self.questions}.{self.seed}.{family}"
        where = (f"name={name}", f"output_dir={self.out.resolve() / 'runs'}", f"seed={self.seed}")
        config = load_config(self.path, (*COMMON, *self.overrides, *where, *own))
        counts: dict[str, int | None] = {} if self.gold else {"train": None, "dev": None}
        counts |= self.cut
        counts |= {} if self.questions in (ALL, NONE) else {"train": int(self.questions)}
        gold = {"train": self.gold, "dev": self.gold, "test": True}
        there = [split for split in counts if getattr(config.data, split)]
        files = [_drawn(config, split, counts[split], gold=gold[split]) for split in there]
        return load_config(self.path, (*COMMON, *self.overrides, *where, *files, *own))

    def has(self, name: str) -> bool:
        """Whether a row stands in the folder."""
        return (self.out / f"{self._stem(name)}.row.json").is_file()

    def keep(self, name: str, report: Report, **facts: object) -> None:
        """Write a scored row, the facts last, and print its line."""
        write_predictions(report.predictions, self.out / f"{self._stem(name)}.predictions.jsonl")
        row = {
            **{"set": self.domain, "questions": self.questions, "seed": self.seed, "row": name, "n": report.n},
            "metrics": {
                metric: {key: round(value, 4) for key, value in dataclasses.asdict(found).items()}
                for metric, found in report.metrics.items()
            },
            **{"training_seconds": None, **facts, "peak_mib": _peak_mib(), "machine": machine()},
        }
        write_json(self.out / f"{self._stem(name)}.row.json", row)
        rows = read_rows(self.out)
        print(json.dumps(next(line_of(r, rows) for r in rows if r.stem == self._stem(name))), flush=True)

    def _stem(self, name: str) -> str:
        return stem_of(self.domain, self.questions, self.seed, name)


def frozen(cell: Cell) -> None:
    """The untouched models with three kinds of retrieval, and with all passages in one prompt."""
    rows = {
        "frozen BM25": ("retrieval.mode=lexical",),
        "frozen dense": ("retrieval.mode=dense",),
        "frozen hybrid": ("retrieval.mode=hybrid",),
        "frozen dense, one prompt": ("retrieval.mode=dense", *ONE_PROMPT),
        "frozen hybrid, one prompt": ("retrieval.mode=hybrid", *ONE_PROMPT),
    }
    for name, own in rows.items():
        if not cell.has(name):
            config = cell.load("frozen", *own)
            stages.build_index(config)
            cell.keep(name, _scored(config, "base", at_once=own[1:] == ONE_PROMPT))


def trained(cell: Cell, *, name: str, family: str, overrides: tuple[str, ...] = ()) -> None:
    """What ragx trains under some configuration."""
    if cell.has(name):
        return
    config = cell.load(family, *overrides)
    stages.build_index(config)
    facts = _finetuned(config, estimate=name == OURS)
    cell.keep(name, stages.evaluate(config, split="test", which="tuned"), **facts)


def ours(cell: Cell) -> None:
    """What ragx trains, and the same model's answers where its hits are not reordered."""
    trained(cell, name=OURS, family="ragx")
    reordering(cell, AS_RETRIEVED, 0)


def reordering(cell: Cell, name: str, hits: int) -> None:
    """What ragx has trained, with a number of hits reordered."""
    if not cell.has(name):
        config = cell.load("ragx", f"retrieval.rerank={hits}")
        cell.keep(name, stages.evaluate(config, split="test", which="tuned"))


def rag(cell: Cell) -> None:
    """The recipe of transformers' scripts; of a limit in steps, its smaller batches take as many questions."""
    section = cell.load("rag").finetune
    steps = () if section.max_steps is None else (f"finetune.max_steps={section.max_steps * section.batch_size // 8}",)
    trained(cell, name="transformers RAG recipe", family="rag", overrides=(*RAG_RECIPE, *steps))


def corpus(cell: Cell) -> None:
    """Adaptation to the corpus alone: no training questions; with a dev set's best weights, and without one."""
    count = 4 if cell.cut else SYNTHETIC
    own = ("data.train=null", f"finetune.synthetic={count}")
    trained(cell, name="corpus only", family="corpus", overrides=(*own, "data.dev=null"))
    trained(cell, name="corpus only, dev", family="corpus-dev", overrides=own)


def ablations(cell: Cell) -> None:
    """ragx with one part of it left out."""
    for name, overrides in ABLATIONS.items():
        trained(cell, name=name, family=name.replace(", ", "-").replace(" ", "-"), overrides=overrides)


def depths(cell: Cell) -> None:
    """What ragx trains, with other numbers of hits reordered."""
    trained(cell, name=OURS, family="ragx")
    top_k = load_config(cell.path, cell.overrides).retrieval.top_k
    for name, times in DEPTHS.items():
        reordering(cell, name, times * top_k)


def separate(cell: Cell) -> None:
    """Retriever and generator tuned apart, joined five ways."""
    wanted = {
        "separate, top passage": ("retrieval.mode=dense", "retrieval.top_k=1"),
        "separate, one prompt": ("retrieval.mode=dense", *ONE_PROMPT),
        "separate, hybrid, one prompt": ("retrieval.mode=hybrid", *ONE_PROMPT),
        "separate, marginal": ("retrieval.mode=dense",),
        "separate, hybrid marginal": ("retrieval.mode=hybrid",),
    }
    missing = {name: own for name, own in wanted.items() if not cell.has(name)}
    for name, own in missing.items():
        at_once = own[1:] == ONE_PROMPT
        config, facts = retriever_apart(cell, *own)
        encoder = Path(config.encoder.model)
        reader = encoder.with_name("generator-one-prompt" if at_once else "generator")
        facts |= _tuned_apart(cell, reader, _tune_generator, *(ONE_PROMPT if at_once else ()))
        seconds = sum(facts[f"{part}_seconds"] for part in ("retriever", "generator", "index"))
        _join(config, encoder, reader)
        cell.keep(name, _scored(config, "tuned", at_once=at_once), **facts, training_seconds=round(seconds, 1))


def retriever_apart(cell: Cell, *own: str) -> tuple[Config, dict[str, Any]]:
    """The configuration whose encoder is the retriever tuned apart, its index built with it, and facts about both."""
    parts = cell.load("separate", "retrieval.mode=dense").run_dir / "parts"
    facts = _tuned_apart(cell, parts / "encoder", _tune_retriever)
    config = cell.load("separate-tuned", f"encoder.model={parts.resolve() / 'encoder'}", *own)
    started = time.monotonic()
    stages.build_index(config)
    index = parts / "index.json"
    if not index.is_file():
        write_json(index, {"index_seconds": round(time.monotonic() - started, 1)})
    return config, facts | json.loads(index.read_text(encoding="utf-8"))


def _tuned_apart(cell: Cell, folder: Path, tune: Callable[..., dict[str, Any]], *own: str) -> dict[str, Any]:
    """Tune a part and save it in `folder`, unless it is there; returns facts about it."""
    done = folder.with_name(f"{folder.name}.json")
    if not done.is_file():
        config = cell.load("separate", "retrieval.mode=dense", *own)
        stages.build_index(config)
        model = open_model(config, "base", prepare=_with_lora)
        train, dev = (
            _lessons(config, path, model.retriever, model.generator) for path in (config.data.train, config.data.dev)
        )
        if not train:
            raise SystemExit(f"{config.data.train}: no training question has a gold passage")
        if own == ONE_PROMPT:
            train, dev = with_hits(model.retriever, train), with_hits(model.retriever, dev)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(
            done, {"lessons": len(train), **tune(config, model, train, dev[: config.finetune.dev_limit], folder)}
        )
    return dict(json.loads(done.read_text(encoding="utf-8")))


def _tune_retriever(
    config: Config, model: RagModel, train: Sequence[Lesson], dev: Sequence[Lesson], folder: Path
) -> dict[str, Any]:
    started, encoder = time.monotonic(), model.retriever.encoder
    facts = tune_retriever(
        encoder, train, dev, model.retriever.index.all_passages(), _retriever_tuning(config, len(train))
    )
    encoder.save(folder)
    return {**facts, "retriever_seconds": round(time.monotonic() - started, 1)}


def _tune_generator(
    config: Config, model: RagModel, train: Sequence[Lesson], dev: Sequence[Lesson], folder: Path
) -> dict[str, Any]:
    started = time.monotonic()
    facts = tune_generator(model.generator, train, dev, _generator_tuning(config, model.generator, len(train)))
    model.generator.save(folder)
    return {**facts, "generator_seconds": round(time.monotonic() - started, 1)}


def _scored(config: Config, which: str, *, at_once: bool) -> Report:
    with reading_all_at_once() if at_once else nullcontext():
        return stages.evaluate(config, split="test", which=which)


def _retriever_tuning(config: Config, questions: int) -> Tuning:
    """How the retriever is tuned: in ragx's own batches of its warm-up."""
    section = config.finetune
    epochs = CONTRASTIVE_EPOCHS if section.warmup_epochs == "auto" else section.warmup_epochs
    return Tuning(
        batch_size=section.warmup_batch_size,
        steps=epochs * math.ceil(questions / section.warmup_batch_size),
        rates=CONTRASTIVE_RATES,
        weight_decay=section.weight_decay,
        patience=section.patience,
        seed=config.seed,
        dtype=compute_dtype(config),
    )


def _generator_tuning(config: Config, generator: Generator, questions: int) -> Tuning:
    """How the generator is tuned: ragx's own batches and learning rate, and PASSES times as many of its epochs."""
    section = config.finetune
    chosen = training_policy(config, questions, has_dev=True, passages=open_index(config).passages_count)
    reading, joint = (
        min(epochs * math.ceil(questions / section.batch_size), section.max_steps or sys.maxsize)
        for epochs in (chosen.reading_epochs, chosen.epochs)
    )
    return dataclasses.replace(
        _retriever_tuning(config, questions),
        batch_size=section.batch_size,
        steps=reading + PASSES * joint,
        rates=(generator_rate(section.learning_rate, width=generator.width, adapted=True),),
    )


def _lessons(config: Config, path: str | None, retriever: Retriever, generator: Generator) -> list[Lesson]:
    """Lessons from a question file, without those whose answer exceeds the budget, as ragx leaves them out."""
    examples = [] if path is None else read_examples(path, config.data.on_error)
    most = config.generator.max_answer_tokens
    return lessons_of(retriever, [e for e in examples if len(generator.answer_ids(e.answers[0])) <= most])


def _with_lora(config: Config, retriever: Retriever, generator: Generator) -> None:
    """The adapter that ragx would train."""
    torch.manual_seed(config.seed)
    lora = config.finetune.lora if isinstance(config.finetune.lora, Lora) else Lora()
    generator.model.requires_grad_(False)
    add_lora(generator, rank=lora.rank, alpha=lora.alpha)


def fitted_apart(config: Config) -> Retriever:
    """The retriever of a configuration with the prior that fits the dev questions best, or the starting one without
    any: those of the training, learnt by heart, would have it believe too much."""
    retriever = open_model(config, "base").retriever
    if dev := supervise(training_data(config)[1], retriever.index.all_passages()):
        fit_prior(retriever, dev)
    return retriever


def _join(config: Config, encoder: Path, generator: Path) -> None:
    """The separately tuned parts, with the prior fitted to them, as a tuned model of ragx."""
    retriever = fitted_apart(config)
    facts: dict[str, object] = {
        "mode": config.retrieval.mode,
        "prior": retriever.prior.values(),
        "adapter": True,
        "base_generator": model_fingerprint(pretrained_folders(config)[1]),
        "passage_encoder": retriever.index.manifest["encoder"],
        "plan": "tuned separately",
    }
    with new_folder(config.run_dir / "model", MODEL_KIND, **facts) as beside:
        shutil.copytree(encoder, beside / "question_encoder")
        shutil.copytree(generator, beside / "generator")


def _finetuned(config: Config, *, estimate: bool) -> dict[str, object]:
    """Train, unless it is done, and say how long it took; null where an earlier process did a part of it."""
    done = config.run_dir / "finetune.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    resume = (config.run_dir / "training" / "checkpoints" / "last").is_dir()
    facts: dict[str, object] = {}
    if estimate and not resume:
        plan = stages.finetune(config, dry_run=True)
        facts = {"estimated_seconds": plan["seconds"]["total"], "planned_steps": plan["steps"]}
        gc.collect()
    with progress_bar(False) as progress:
        result = stages.finetune(config, resume=resume, progress=progress)
    facts |= {name: result[name] for name in ("steps", "best_step", "rollbacks", "synthetic_questions")}
    facts |= {"train_questions": result["questions"], "training_seconds": None if resume else result["seconds"]}
    write_json(done, facts)
    return facts


def _drawn(config: Config, split: str, count: int | None, *, gold: bool) -> str:
    """The override that names a file of `count` questions: of train drawn by the seed, else the first."""
    examples: list[Example] = read_examples(getattr(config.data, split), config.data.on_error)
    count = len(examples) if count is None else min(count, len(examples))
    chosen = random.Random(config.seed).sample(examples, count) if split == "train" else examples[:count]
    rows = [{"id": e.id, "question": e.question, "answers": e.answers} for e in chosen]
    if gold:
        rows = [{**row, "doc_ids": e.doc_ids} for row, e in zip(rows, chosen, strict=True)]
    drawn = config.run_dir / f"{split}.jsonl"
    write_text(drawn, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return f"data.{split}={drawn}"


def _peak_mib() -> int:
    """What this family of rows has needed at most so far: memory of the GPU, else of the process since its start."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


FAMILIES: dict[str, Callable[[Cell], None]] = {
    "ragx": ours,
    "frozen": frozen,
    "separate": separate,
    "rag": rag,
    "corpus": corpus,
    "ablations": ablations,
    "depths": depths,
}
UNTAUGHT = ("frozen", "corpus")
"""Families that see no training question: they are run once, the frozen ones whatever the seed."""


def cells_of(options: argparse.Namespace) -> list[tuple[str, Cell]]:
    """Families with the cells they are run in; counts that the set does not have are left out.

    Raises:
        SystemExit: a family or a count is unknown.
    """
    unknown = [name for name in options.rows if name not in FAMILIES]
    if unknown:
        raise SystemExit(f"--rows {unknown[0]}: known are {', '.join(FAMILIES)}")
    for count in options.questions:
        if count != ALL and not (count.isdecimal() and int(count) > 0):
            raise SystemExit(f"--questions {count}: expected numbers above 0, or all")
    config = load_config(options.config, options.set)
    there = len(read_examples(config.data.train, config.data.on_error)) if config.data.train else 0
    counts = [count for count in options.questions if count == ALL or int(count) < there]
    if left_out := [count for count in options.questions if count not in counts]:
        sys.stderr.write(f"{options.config}: {there} training questions; left out: {', '.join(left_out)}\n")
    cut = QUICK_COUNTS if options.quick else {}
    found = []
    for family in options.rows:
        seeds = [0] if family == "frozen" else options.seed
        for count in [NONE] if family in UNTAUGHT else counts:
            found += [
                (family, Cell(options.config, options.out, count, s, tuple(options.set), cut, options.gold))
                for s in seeds
            ]
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", help="a configuration of ragx")
    parser.add_argument("--out", type=Path, help="the folder of rows and runs")
    parser.add_argument("--rows", type=_listed, default=list(FAMILIES)[:-2], help="families of rows")
    parser.add_argument("--questions", type=_listed, default=["100", "500", ALL], help="training questions")
    parser.add_argument("--seed", type=lambda text: [int(seed) for seed in _listed(text)], default=[13])
    parser.add_argument("--no-gold", dest="gold", action="store_false", help="train without gold documents")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for every row")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the rows of a folder and stop")
    parser.add_argument("--json", action="store_true", help="with --table: JSON lines; rows are JSON in any case")
    parser.add_argument("--quick", action="store_true", help="the sample domain, cut, a few steps")
    options = parser.parse_args(arguments)
    if options.table is None and not options.quick and (options.config is None or options.out is None):
        parser.error("CONFIG and --out are needed, or --quick, or --table")
    return options


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Print one JSON line a row, or the table of a folder."""
    options = parse()
    if options.table is not None:
        rows = read_rows(options.table)
        print("\n".join(json.dumps(line_of(row, rows)) for row in rows) if options.json else markdown(rows))
        return
    start_log(False, False)
    if options.quick:
        options.out = options.out or Path(tempfile.mkdtemp(prefix="ragx-transfer-"))
        options.config = options.out / "sample" / "ragx.yaml"
        if not options.config.is_file():
            stages.init(options.config.parent, sample=True)
        options.questions, options.set = [ALL], [*QUICK, *options.set]
    for family, cell in cells_of(options):
        FAMILIES[family](cell)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if options.quick:
        print(markdown(read_rows(options.out)), file=sys.stderr)


if __name__ == "__main__":
    main()
