"""What follows from the number of training questions, where the configuration leaves it open.

With few questions a whole generator is overfitted before it is of use, so that only the question side and adapters are
trained; an epoch is so few steps that more of them are wanted; and a dev set of one's own is often missing. A share of
the questions held out by seed then says when to stop: it costs those questions and no time, where k-fold
cross-validation would cost k trainings.
"""

import math
from dataclasses import dataclass
from typing import Literal

FEW = 300
"""Questions below which only question side and LoRA are trained."""
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 3, 30, 10
READING_EPOCHS = 2
"""Epochs on one right passage a question before the joint ones: each costs a third of a joint one."""
HELD_OUT, MOST_HELD_OUT = 0.15, 200
ENOUGH = 40
"""Questions below which none are held out: what they say could not be told from chance."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Epochs of reading and joint epochs at most, questions held out as a dev set, folds of the warm-up (0: none),
    whether questions are few."""

    reading_epochs: int
    epochs: int
    held_out: int
    folds: int
    few: bool
    text: str


def choose(
    questions: int,
    *,
    has_dev: bool,
    batch_size: int,
    reading_epochs: Literal["auto"] | int,
    epochs: Literal["auto"] | int,
    dev_share: Literal["auto"] | float,
    cross_fit: int,
) -> Policy:
    """The policy for so many training questions; what is not "auto" stays as it is said."""
    share = (HELD_OUT if questions >= ENOUGH else 0.0) if dev_share == "auto" else dev_share
    held_out = 0 if has_dev else min(MOST_HELD_OUT, round(share * questions))
    steps = math.ceil((questions - held_out) / batch_size)
    chosen = min(MOST_EPOCHS, max(EPOCHS, math.ceil(LEAST_STEPS / max(1, steps)))) if epochs == "auto" else epochs
    reading = READING_EPOCHS if reading_epochs == "auto" else reading_epochs
    folds = min(cross_fit, questions - held_out)
    few = questions < FEW
    parts = [
        f"{questions} training questions{' are few: question side and LoRA only' if few else ''}",
        f"{reading} epochs on one right passage each" if reading else "",
        f"at most {chosen} joint epochs",
        "the dev set says when to stop"
        if has_dev
        else f"{held_out} of them held out to say when to stop, as there is no data.dev"
        if held_out
        else "no data.dev and none held out: training runs to its end and keeps the last weights",
        f"their passages from a warm-up on {folds} folds" if folds else "",
    ]
    return Policy(reading, chosen, held_out, folds, few, "; ".join(part for part in parts if part))
