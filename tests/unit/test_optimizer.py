"""In each phase the learning rates rise and fall to nearly zero."""

import pytest

from ragx.training.optimizer import JOINT_SHARE, share_of_rate


def shares(reading, total, ratio=0.1):
    return [share_of_rate(step, reading, total, ratio) for step in range(total)]


def test_both_phases_rise_and_fall():
    found = shares(40, 60)
    for phase, highest in ((found[:40], 1.0), (found[40:], JOINT_SHARE)):
        top = phase.index(max(phase))
        assert phase[top] == pytest.approx(highest, abs=0.1) and phase[top] <= highest
        assert phase[: top + 1] == sorted(phase[: top + 1]) and phase[top:] == sorted(phase[top:], reverse=True)
        assert 0 < phase[-1] <= 0.05 and 0 < phase[0] < phase[top]


@pytest.mark.parametrize("total", [1, 3, 30])
def test_without_reading_the_joint_phase_has_the_whole_rate(total):
    warm = max(1, round(0.1 * total))
    assert shares(0, total) == [min(1, (n + 1) / warm) * (1 - n / (total + 1)) for n in range(total)]


def test_a_phase_of_one_step_has_a_rate():
    assert shares(1, 2) == [1.0, JOINT_SHARE]
