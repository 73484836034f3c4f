"""What a joint training is told: settings, and the steps that follow from them."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Epochs, questions a step and a pass, learning rates, where to stop, and what is added to the plain loss: the
    weight of the retriever's distillation and, while reading, of -log p(x|z); passages of K that are drawn, whether
    answers are drawn."""

    epochs: int
    batch_size: int
    micro_batch_size: int
    top_k: int
    posterior_mass: float
    learning_rate: float
    retriever_learning_rate: float
    prior_learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    patience: int
    checkpoint_steps: int
    rollbacks: int
    sample_answers: int
    seed: int
    dtype: torch.dtype
    max_steps: int | None = None
    tracker: str | None = None
    distillation: float = 0.0
    distractors: int = 0
    answers: str = "first"
    refresh_steps: int = 20
    refresh_cosine: float = 0.9
    reading_epochs: int = 0
    question_loss: float = 0.0

    def steps(self, questions: int) -> int:
        """Optimizer steps of the whole training."""
        return self.reading_steps(questions) + self._bounded(self.epochs, questions)

    def reading_steps(self, questions: int) -> int:
        """Optimizer steps on one right passage a question, before the joint ones."""
        return self._bounded(self.reading_epochs, questions)

    def _bounded(self, epochs: int, questions: int) -> int:
        steps = epochs * self.steps_per_epoch(questions)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def steps_per_epoch(self, questions: int) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(questions / self.batch_size)

    def evaluations(self, questions: int) -> int:
        """Looks at the dev set: before the first step, after every epoch and at the end."""
        return 1 + math.ceil(self.steps(questions) / self.steps_per_epoch(questions))
