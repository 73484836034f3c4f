"""What follows from the number of training questions and passages, where the configuration leaves it open.

The generator first reads right passages alone, which costs a fraction of a joint step and gets it nearly as far; a
joint epoch then teaches it to tell passages apart. With few questions a whole generator is overfitted before it is of
use, so that only adapters are trained; an epoch is so few steps that more of them are wanted; and a dev set of one's
own is often missing. A share of the questions held out by seed then says when to stop: it costs those questions and no
time, where k-fold cross-validation would cost k trainings.

Statements cut from the corpus share their words with their passage, which real questions do not. The generator learns
from them; a retriever would learn to look for words, and where there is nothing else to learn from it stays as it is.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ragx.config.schema import Part

GENERATOR: tuple[Part, ...] = ("generator",)
QUESTION_SIDE: tuple[Part, ...] = ("question_encoder", "generator")
BOTH_SIDES: tuple[Part, ...] = ("question_encoder", "passage_encoder", "generator")
FEW = 300
"""Questions below which only adapters of the generator are trained."""
READING, JOINT, JOINT_ALONE = (2, 20), (1, 10), (3, 30)
"""Least epochs and steps of reading, of joint training after it, and of joint training alone."""
MOST_EPOCHS = 10
PASSAGES_UP_TO = {"cpu": 5_000, "cuda": 100_000}
"""Passages up to which their encoder is trained, too: all of them are encoded anew before the first step and at the
end, which takes some minutes for so many."""
HELD_OUT, MOST_HELD_OUT = 0.15, 200
ENOUGH = 40
"""Questions below which none are held out: what they say could not be told from chance."""
ADAPTER_RATE, WHOLE_RATE, AT_WIDTH = 1e-3, 1e-4, 576
"""Learning rates of a generator's adapters and of its whole weights up to so many hidden units, measured there; beyond,
they fall with the width (Yang et al. 2022, Tensor Programs V: Adam's rate for hidden matrices)."""
_TOLD_OF_STATEMENTS = (
    "the generator alone learns, for statements share their words with their passage and would teach the retriever to "
    "look for words"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The parts that are trained, and whether the prior learns beside them; epochs of reading and joint epochs at most,
    questions held out as a dev set, folds of the warm-up (0: none), whether questions are few."""

    parts: tuple[Part, ...]
    prior_learns: bool
    reading_epochs: int
    epochs: int
    held_out: int
    folds: int
    few: bool
    text: str


def choose(
    questions: int,
    *,
    parts: tuple[Part, ...] | None,
    passages: int,
    device: str,
    moving: bool,
    has_dev: bool,
    statements: bool,
    batch_size: int,
    warmup_epochs: Literal["auto"] | int,
    reading_epochs: Literal["auto"] | int,
    epochs: Literal["auto"] | int,
    dev_share: Literal["auto"] | float,
    cross_fit: int,
) -> Policy:
    """The policy for so many training questions and passages; what is not "auto" (or None) stays as it is said.

    `moving` tells whether passage vectors may move: not with two towers, a prior over the corpus, or cross-fitting.
    `statements`: all questions are statements from the corpus. Then nothing of the retriever learns, unless one of its
    encoders is named in `parts`, or a number of `warmup_epochs` asks for its warm-up.
    """
    share = (HELD_OUT if questions >= ENOUGH else 0.0) if dev_share == "auto" else dev_share
    held_out = 0 if has_dev else min(MOST_HELD_OUT, round(share * questions))
    most = PASSAGES_UP_TO.get(device.partition(":")[0], PASSAGES_UP_TO["cpu"])
    both = moving and (has_dev or held_out > 0) and passages <= most
    alone = statements and parts in (None, GENERATOR) and warmup_epochs in ("auto", 0)
    trained = parts or (GENERATOR if alone else BOTH_SIDES if both else QUESTION_SIDE)
    steps = max(1, math.ceil((questions - held_out) / batch_size))

    def at_least(least_epochs: int, least_steps: int) -> int:
        return min(MOST_EPOCHS, max(least_epochs, math.ceil(least_steps / steps)))

    reading = at_least(*READING) if reading_epochs == "auto" else reading_epochs
    reading = reading if "generator" in trained else 0
    joint = at_least(*(JOINT if reading else JOINT_ALONE)) if epochs == "auto" else epochs
    folds = 0 if alone else min(cross_fit, questions - held_out)
    few = questions < FEW
    told = [
        f"{questions} training questions{' are few: adapters of the generator only (LoRA)' if few else ''}",
        _TOLD_OF_STATEMENTS if alone else "" if parts or not moving else _told_of_passages(both, passages, most),
        f"{reading} epochs on one right passage each" if reading else "",
        f"at most {joint} joint epochs",
        "the dev set says when to stop"
        if has_dev
        else f"{held_out} of them held out to say when to stop, as there is no data.dev"
        if held_out
        else "no data.dev and none held out: training runs to its end and keeps the last weights",
        f"their passages from a warm-up on {folds} folds" if folds else "",
    ]
    return Policy(trained, not alone, reading, joint, held_out, folds, few, "; ".join(part for part in told if part))


def generator_rate(wanted: Literal["auto"] | float, *, width: int, adapted: bool) -> float:
    """The generator's learning rate: the wanted one, or what follows from its `width` in hidden units."""
    if wanted != "auto":
        return wanted
    return (ADAPTER_RATE if adapted else WHOLE_RATE) * min(1.0, AT_WIDTH / width)


def _told_of_passages(both: bool, passages: int, most: int) -> str:
    if both:
        return f"the encoder of questions learns on passages, too, for {passages} are soon encoded anew"
    if passages > most:
        return f"the encoder learns on questions only, for {passages} passages take long to encode anew"
    return "the encoder learns on questions only, as nothing would tell when passages are overfitted"
