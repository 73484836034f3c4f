"""What all benchmarks share: alternating timing, the ratio with its interval, and the JSON line of a claim."""

import json
import platform
import resource
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


def alternate(ours: Callable[[], object], peer: Callable[[], object], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of `pairs` runs of each, in turn, after one of each that does not count."""
    ours()
    peer()
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            seconds[which].append(_seconds((ours, peer)[which]))
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


def matrix_peak(dtype: torch.dtype, size: int = 1024, repeats: int = 10, device: str = "cpu") -> float:
    """GFLOP/s of square matrix products, the best of several: what this machine can do at most."""
    size = size if device == "cpu" else 8 * size
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        best = max(best, 2 * size**3 / _seconds(lambda: left @ right) / 1e9)
    return best


def share_of_peak(work: Callable[[], object], seconds: float, peak: float) -> float:
    """What a run of `work` computes, padding included, by the time it takes, of the GFLOP/s that could be."""
    with FlopCounterMode(display=False) as counter:
        work()
    done: int = counter.get_total_flops()
    return round(done / 1e9 / seconds / peak, 2)


def peak_mib(work: Callable[[], object], device: str = "cpu") -> float:
    """MiB that `work` needs at its peak above what is there before: resident memory, or the GPU's."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, seen, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return (max(seen) - before) / 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_claim(
    claim: str, values: tuple[float, float, float], *, peer: str, same_result: bool, n: int, **more: object
) -> None:
    """One JSON line on stdout; ratio > 1 means ragx is that many times better."""
    figures = dict(zip(("ratio", "low", "high"), (round(value, 3) for value in values), strict=True))
    facts = {"claim": claim, **figures, "peer": peer, "same_result": same_result, "n": n, "machine": machine(), **more}
    print(json.dumps(facts), flush=True)
