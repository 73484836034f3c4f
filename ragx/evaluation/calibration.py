"""Whether p(y|x) can be trusted: calibration error, and what answering only the surest questions gains."""

from collections.abc import Sequence

import numpy as np

from ragx.evaluation.statistic import Floats, Statistic

BINS = 10


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[float]) -> Statistic:
    """Mean |share correct - confidence| over ten bins of equal width, weighed by their questions (Guo et al. 2017)."""
    sure, right = np.asarray(confidence), np.asarray(correct)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.where(bins[:, None] == np.arange(BINS), (right - sure)[:, None], 0.0)

    def figure(counts: Floats) -> Floats:
        error: Floats = np.abs(counts @ gaps).sum(-1) / counts.sum(-1)
        return error

    return figure


def selective_accuracy(confidence: Sequence[float], correct: Sequence[float], coverage: float) -> Statistic:
    """The share correct among the surest questions, `coverage` (0-1) of all; the last one may count in part."""
    order = _surest_first(confidence)
    right = np.asarray(correct)[order]

    def figure(counts: Floats) -> Floats:
        ordered = counts[:, order]
        wanted = coverage * ordered.sum(-1, keepdims=True)
        taken = np.clip(wanted - (ordered.cumsum(-1) - ordered), 0, ordered)
        share: Floats = (taken @ right) / wanted[:, 0]
        return share

    return figure


def area_under_risk(confidence: Sequence[float], correct: Sequence[float]) -> Statistic:
    """AURC: the mean over all coverages of the share wrong among the surest questions (Geifman et al. 2019)."""
    order = _surest_first(confidence)
    wrong = 1 - np.asarray(correct)[order]

    def figure(counts: Floats) -> Floats:
        ordered = counts[:, order]
        covered = ordered.cumsum(-1)
        risk = (ordered * wrong).cumsum(-1) / np.maximum(covered, 1)
        area: Floats = (risk * ordered).sum(-1) / ordered.sum(-1)
        return area

    return figure


def risk_coverage(confidence: Sequence[float], correct: Sequence[float]) -> list[tuple[float, float]]:
    """Coverage and the share wrong within it, the surest questions first."""
    wrong = 1 - np.asarray(correct)[_surest_first(confidence)]
    counted = np.arange(1, len(wrong) + 1)
    return list(zip((counted / len(wrong)).tolist(), (wrong.cumsum() / counted).tolist(), strict=True))


def reliability(confidence: Sequence[float], correct: Sequence[float]) -> list[tuple[float, float, int]]:
    """Mean confidence, share correct and number of questions of each bin that holds any."""
    sure, right = np.asarray(confidence), np.asarray(correct)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    held = [(bins == number) for number in range(BINS) if (bins == number).any()]
    return [(float(sure[rows].mean()), float(right[rows].mean()), int(rows.sum())) for rows in held]


def _surest_first(confidence: Sequence[float]) -> np.ndarray:
    return np.argsort(-np.asarray(confidence), kind="stable")
