"""What all benchmarks share: alternating timing, the ratio with its interval, and the JSON line of a claim."""

import json
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch


def alternate(ours: Callable[[], object], peer: Callable[[], object], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of `pairs` runs of each, in turn, after one of each that does not count."""
    ours()
    peer()
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            started = time.perf_counter()
            (ours, peer)[which]()
            seconds[which].append(time.perf_counter() - started)
    return seconds


def ratio(ours: Sequence[float], peer: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median of peer / ours over the pairs, with its 95 % bootstrap interval."""
    ratios = np.asarray(peer) / np.asarray(ours)
    draws = np.random.default_rng(seed).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def machine() -> str:
    """The processor, its cores, and the GPU where there is one."""
    processor = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {torch.get_num_threads()} threads{gpu}"


def matrix_peak(dtype: torch.dtype, size: int = 1024, repeats: int = 10) -> float:
    """GFLOP/s of square matrix products, the best of several: what this machine can do at most."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def print_claim(
    claim: str, values: tuple[float, float, float], *, peer: str, same_result: bool, n: int, **more: object
) -> None:
    """One JSON line on stdout; ratio > 1 means ragx is that many times better."""
    figures = dict(zip(("ratio", "low", "high"), (round(value, 3) for value in values), strict=True))
    facts = {"claim": claim, **figures, "peer": peer, "same_result": same_result, "n": n, "machine": machine(), **more}
    print(json.dumps(facts), flush=True)
