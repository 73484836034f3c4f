"""What `ragx finetune` will do, decided before anything is trained: models, data, settings and the plan they make."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ragx.artifacts import fingerprint
from ragx.config import Config, Lora
from ragx.errors import ConfigError, DataError
from ragx.records import Example, Progress
from ragx.stages.models import compute_device, compute_dtype, open_index, open_model
from ragx.stages.questions import fitting, hold_out, training_data, training_policy
from ragx.stages.synthetic import synthetic_questions

if TYPE_CHECKING:
    from ragx.rag.generator import Generator
    from ragx.rag.model import RagModel
    from ragx.rag.retriever import Retriever
    from ragx.training.policy import Policy
    from ragx.training.processes import Processes
    from ragx.training.settings import TrainSettings

log = logging.getLogger(__name__)

WHOLE_BELOW = 500_000_000
"""Encoder-decoder generators with fewer weights are trained whole when `lora: auto`; causal ones never are."""
QUESTION_LOSS = 0.2
"""The weight of -log p(x|z) beside -log p(y|x,z) when `question_loss: auto`; measured beside 0 and 1."""
PAIRS_A_PASS = {"cpu": 16, "cuda": 64}
"""(question, passage) pairs that go through the generator with gradient at once when `micro_batch_size: auto`: on a GPU
launching takes longer than computing where they are few."""
PARTS = {
    "question_encoder": "retriever.question_encoder",
    "passage_encoder": "retriever.passage_encoder",
    "prior": "retriever.prior",
    "generator": "generator_module",
}
"""The parts that a training may change, and how the names of their weights begin."""


@dataclass(frozen=True)
class Job:
    """A training as it was decided: its parts, data and settings, and the plan that its checkpoints must match."""

    config: Config
    model: RagModel
    examples: Sequence[Example]
    dev: Sequence[Example]
    settings: TrainSettings
    folds: int
    plan: dict[str, Any]
    rerank_hits: int


def decide(config: Config, processes: Processes, dry_run: bool, progress: Progress) -> Job:
    """Read the data, write questions where wanted, choose what is trained how long, and open the models for it."""
    with processes.before_others(processes.is_first_on_host):  # models are fetched, questions written once
        examples, dev = training_data(config)
        synthetic, statements = synthetic_questions(config, examples, dev, dry_run=dry_run, progress=progress)
        policy = training_policy(
            config,
            len(examples) + len(synthetic),
            has_dev=bool(dev),
            passages=open_index(config).passages_count,
            statements=statements and not examples,
        )
        config = _with_parts(config, policy)
        prepare = partial(prepare_training, few=policy.few, prior_learns=policy.prior_learns)
        model = open_model(config, "base", prepare=prepare)
    _require_enough_passages(config, model.retriever.index.passages_count)
    synthetic = fitting(synthetic, model.generator, config)
    examples = fitting(examples, model.generator, config)
    if not examples and not synthetic:
        limit = config.generator.max_answer_tokens
        raise DataError(f"{config.data.train}: every answer exceeds generator.max_answer_tokens: {limit}; raise it")
    written = synthetic
    if policy.held_out:
        examples, synthetic, dev = hold_out(examples, synthetic, policy.held_out, config)
    examples = [*examples, *synthetic]
    settings = _train_settings(config, policy, model.generator, written=bool(synthetic))
    plan = _plan(config, model, examples, dev, settings, synthetic=len(synthetic))
    several = f", by {processes.count} processes" if processes.count > 1 else ""
    log.info("%s", policy.text)
    log.info("%s%s", plan["text"], several)
    hits = _rerank_hits(config, model, dev, written)
    return Job(config, model, examples, dev, settings, policy.folds, plan | {"policy": policy.text}, hits)


def _with_parts(config: Config, policy: Policy) -> Config:
    """The configuration with the parts that the policy says are trained."""
    section = config.finetune.model_copy(update={"train": policy.parts})
    return config.model_copy(update={"finetune": section})


def _require_enough_passages(config: Config, passages: int) -> None:
    wanted = config.finetune.top_k
    if wanted is not None and wanted > passages:
        raise ConfigError(f"finetune.top_k: {wanted} passages wanted, the index holds {passages}; lower it")


def _train_settings(config: Config, policy: Policy, generator: Generator, *, written: bool) -> TrainSettings:
    from ragx.training.policy import generator_rate
    from ragx.training.settings import TrainSettings

    section = config.finetune
    top_k = section.top_k or config.retrieval.top_k
    pairs = PAIRS_A_PASS["cuda" if compute_device(config).startswith("cuda") else "cpu"]
    micro = max(1, pairs // top_k) if section.micro_batch_size == "auto" else section.micro_batch_size
    micro = math.ceil(section.batch_size / math.ceil(section.batch_size / micro))
    shared = {field.name for field in dataclasses.fields(TrainSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in shared}
    values |= {
        "learning_rate": generator_rate(section.learning_rate, width=generator.width, adapted=generator.is_adapted),
        "epochs": policy.epochs,
        "reading_epochs": policy.reading_epochs,
        "question_loss": _question_loss(config, generator, written),
        "top_k": top_k,
        "micro_batch_size": micro,
        "seed": config.seed,
        "dtype": compute_dtype(config),
    }
    return TrainSettings(**values)


def _question_loss(config: Config, generator: Generator, written: bool) -> float:
    """The weight of -log p(x|z) while reading. `auto` leaves it out where the generator does not weigh as it reads, or
    has `written` some of the questions.

    Raises:
        ConfigError: it is wanted of a generator that cannot.
    """
    wanted = config.finetune.question_loss
    if wanted == "auto":
        return QUESTION_LOSS if generator.weighs_as_it_reads and not written else 0.0
    if wanted and not generator.weighs_as_it_reads:
        raise ConfigError(
            f"finetune.question_loss: {wanted} needs a causal generator and a prompt with {{question}} after "
            "{{passage}}; say 0, or auto"
        )
    return wanted


def _rerank_hits(config: Config, model: RagModel, dev: Sequence[Example], written: Sequence[Example]) -> int:
    """The hits whose reordering is fitted to the dev questions, 0 for none.

    `auto` asks for a generator that weighs as it reads, and for questions that it has not `written` itself: those are
    likely after their passages.
    """
    if config.retrieval.rerank == "auto" and not (
        model.generator.weighs_as_it_reads and dev and all(example not in written for example in dev)
    ):
        return 0
    return config.retrieval.rerank_hits


def prepare_training(
    config: Config, retriever: Retriever, generator: Generator, *, few: bool, prior_learns: bool = True
) -> None:
    """Freeze what is not trained; wrap the generator with LoRA where wanted, or where questions are few."""
    from ragx.rag.causal import CausalGenerator
    from ragx.rag.generators import add_lora, choose_attention

    section = config.finetune
    choose_attention(
        generator, compute_dtype(config), config.generator.max_input_tokens + config.generator.max_answer_tokens
    )
    trained = set(section.named) - ({"question_encoder"} if config.retrieval.mode == "lexical" else set())
    retriever.question_encoder.requires_grad_("question_encoder" in trained)
    if retriever.passage_encoder is not None:
        retriever.passage_encoder.requires_grad_(True)
    if not prior_learns:
        retriever.prior.requires_grad_(False)
    generator.model.requires_grad_("generator" in trained)
    generator.recompute = section.gradient_checkpointing
    generator.label_smoothing = section.label_smoothing
    adapted = few or isinstance(generator, CausalGenerator) or generator.parameters_count >= WHOLE_BELOW
    wanted = adapted if section.lora == "auto" else section.lora
    if wanted and "generator" in trained:
        lora = wanted if isinstance(wanted, Lora) else Lora()
        import torch

        torch.manual_seed(config.seed)
        add_lora(generator, rank=lora.rank, alpha=lora.alpha)


def _plan(
    config: Config,
    model: RagModel,
    examples: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    *,
    synthetic: int,
) -> dict[str, Any]:
    """What will be trained, on what, for how many steps; with a fingerprint that a checkpoint must match."""
    from ragx.training.checkpoints import trainable

    sizes = {name: value.numel() for name, value in trainable(model).items()}
    counts = {part: sum(n for name, n in sizes.items() if name.startswith(prefix)) for part, prefix in PARTS.items()}
    steps = settings.steps(len(examples))
    text = _told(config, model, settings, counts, questions=len(examples), synthetic=synthetic, dev=len(dev))
    index = model.retriever.index
    facts = {
        "config": config.model_dump(mode="json", exclude={"output_dir", "eval", "data", "corpus", "name"}),
        "index": index.manifest["fingerprint"],
        "data": [dataclasses.asdict(example) for example in (*examples, *dev)],
        "dtype": str(settings.dtype),
    }
    return {
        "text": text,
        "questions": len(examples),
        "synthetic_questions": synthetic,
        "dev_questions": len(dev),
        "documents": index.manifest["documents"],
        "passages": index.passages_count,
        "steps": steps,
        "trained_weights": {name: counts[name] for name in ("question_encoder", "generator", "passage_encoder")},
        "fingerprint": fingerprint(facts),
    }


def _told(
    config: Config,
    model: RagModel,
    settings: TrainSettings,
    counts: Mapping[str, int],
    *,
    questions: int,
    synthetic: int,
    dev: int,
) -> str:
    """The plan in a sentence, from the weights of each part and the numbers of questions."""
    encoder, passages, generator = (
        f"{counts[name] / 1e6:.1f}M" for name in ("question_encoder", "passage_encoder", "generator")
    )
    and_prior = ", and the prior's temperature and lexical weight," if counts["prior"] else ""
    side = "question encoder"
    if model.retriever.passage_side is not None:
        side = "question and passage encoder, which are one" if config.ties_encoders else "question encoder, "
        side += "" if config.ties_encoders else f"{passages} of the passage encoder"
    steps, reading = settings.steps(questions), settings.reading_steps(questions)
    learnt = f" that learn its question, too (weight {settings.question_loss:g})" if settings.question_loss else ""
    after = f", after {reading} on one right passage each{learnt}" if reading else ""
    of_them = f" ({synthetic} of them synthetic, written from the corpus)" if synthetic else ""
    return (
        f"training {encoder} weights of the {side}, {generator} of the generator's "
        f"{model.generator.parameters_count / 1e6:.1f}M{and_prior} on "
        f"{questions} questions{of_them} with {settings.top_k} passages each: {settings.epochs} epochs, "
        f"{steps - reading} steps of {settings.batch_size} questions in "
        f"{str(settings.dtype).removeprefix('torch.')}{after}, at a learning rate of {settings.learning_rate:.1e}, "
        f"{dev} dev questions after each epoch"
    )
