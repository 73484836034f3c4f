"""Does the gate hold still when nothing changed, and fail when quality fell? And do intervals cover?

    python -m benchmarks.gate [--quick] [--json] [--before A.predictions.jsonl --after B.predictions.jsonl]

Pairs of per-question F1 are a population: those of two real runs where files are given, else 5,000 drawn from a stated
distribution (45 % wrong, 30 % right, the rest Beta(2, 2); of a tenth of the questions the second run drew anew). Each
of 1,000 repetitions draws 200 questions of it. No true change: which of the two is the baseline is a coin's throw,
question by question. True drop of twice the detectable effect that the report states: the share of questions that
yields it loses its answer, others keep the coin's. Coverage: how often the interval of F1 holds the population's mean.
The peer of the false alarms is the plain gate `after >= before`, of the missed drops the test of unpaired means.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from benchmarks.common import print_claim
from ragx.evaluation.gates import judge, parse_gates
from ragx.evaluation.metrics import parse_metrics
from ragx.evaluation.significance import Bootstrap, Sampled, difference, sample
from ragx.evaluation.statistic import mean

QUESTIONS = 200
CONFIDENCE = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one comparison said: ragx's gate and the two peers."""

    failed: bool
    plain: bool
    unpaired: bool
    detectable: float


def main() -> None:
    """Print one JSON line a claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 repetitions")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    arguments = parser.parse_args()
    repetitions = 100 if arguments.quick else 1000
    generator = np.random.default_rng(13)
    given = arguments.before is not None and arguments.after is not None
    pairs = _read(arguments.before, arguments.after) if given else _population(generator)
    facts = {"source": "two runs" if given else "synthetic", "population": len(pairs), "questions": QUESTIONS}

    still = [_compare(*_draw(pairs, generator), seed) for seed in range(repetitions)]
    effect = 2 * float(np.median([each.detectable for each in still]))
    fell = [_compare(*_drop(*_draw(pairs, generator), effect, generator), seed) for seed in range(repetitions)]
    covered = [_covers(pairs, generator, seed) for seed in range(repetitions)]
    false_alarms, misses = _share(each.failed for each in still), 1 - _share(each.failed for each in fell)
    _claim(
        "gate_false_alarms",
        false_alarms,
        _share(each.plain for each in still),
        "after >= before",
        0.05,
        facts,
        len(still),
    )
    _claim(
        "gate_missed_drops",
        misses,
        1 - _share(each.unpaired for each in fell),
        "unpaired t",
        0.05,
        facts,
        len(fell),
        effect=effect,
    )
    off = abs(_share(covered) - CONFIDENCE)
    print_claim(
        "interval_coverage",
        (_share(covered) / CONFIDENCE,) * 3,
        peer="nominal 0.95",
        same_result=off <= 0.02,
        n=repetitions,
        coverage=_share(covered),
        **facts,
    )


def _claim(
    claim: str, ours: float, peer: float, name: str, most: float, facts: Mapping[str, object], n: int, **more: float
) -> None:
    """Ratio: how many times rarer than the peer's; `same_result` says that the share keeps its promise."""
    ratio = peer / max(ours, 1 / n)
    print_claim(
        claim,
        (ratio, ratio, ratio),
        peer=name,
        same_result=ours <= most,
        n=n,
        share=round(ours, 4),
        share_peer=round(peer, 4),
        **more,
        **facts,
    )


def _population(generator: np.random.Generator) -> Floats:
    """F1 of 5,000 questions under two runs [N, 2]."""

    def scores(count: int) -> Floats:
        kind = generator.random(count)
        return np.where(kind < 0.45, 0.0, np.where(kind < 0.75, 1.0, generator.beta(2, 2, count)))

    before = scores(5000)
    redrawn = generator.random(5000) < 0.1
    return np.stack([before, np.where(redrawn, scores(5000), before)], axis=1)


def _read(before: Path, after: Path) -> Floats:
    """F1 of the questions of two predictions files [N, 2]."""
    runs = []
    for path in (before, after):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        runs.append({record["id"]: record["scores"]["f1"] for record in records})
    return np.array([[runs[0][name], runs[1][name]] for name in runs[0]])


def _draw(pairs: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Two runs over drawn questions, between which nothing truly changed."""
    drawn = pairs[generator.integers(len(pairs), size=QUESTIONS)]
    swap = generator.random(QUESTIONS) < 0.5
    return np.where(swap, drawn[:, 1], drawn[:, 0]), np.where(swap, drawn[:, 0], drawn[:, 1])


def _drop(before: Floats, after: Floats, effect: float, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """The second run with answers lost at random, so that its mean falls by `effect` on average."""
    lost = generator.random(QUESTIONS) < effect / after.mean()
    return before, np.where(lost, 0.0, after)


def _compare(before: Floats, after: Floats, seed: int) -> Outcome:
    metrics = parse_metrics(["f1"])
    gates = parse_gates({"f1": "no worse than baseline"}, metrics)
    then, now = mean(before.tolist()), mean(after.tolist())
    statistics = {"f1": now, "change": difference(then, now)}
    found = sample(statistics, QUESTIONS, Bootstrap(1000, CONFIDENCE, seed), units={"change": 1.0})
    change: Sampled = found["change"]
    (gate,) = judge(gates, {"f1": found["f1"].interval(CONFIDENCE)}, {"f1": change}, CONFIDENCE)
    unpaired = float(ttest_ind(after, before, alternative="less").pvalue) < (1 - CONFIDENCE) / 2
    return Outcome(
        not gate.passed, bool(after.mean() < before.mean()), unpaired, change.interval(CONFIDENCE).detectable
    )


def _covers(pairs: Floats, generator: np.random.Generator, seed: int) -> bool:
    drawn = pairs[generator.integers(len(pairs), size=QUESTIONS), 0]
    found = sample({"f1": mean(drawn.tolist())}, QUESTIONS, Bootstrap(1000, CONFIDENCE, seed))["f1"].interval(
        CONFIDENCE
    )
    return bool(found.low <= pairs[:, 0].mean() <= found.high)


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


if __name__ == "__main__":
    main()
