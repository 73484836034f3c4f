"""ragx.training.policy: what follows from the number of questions, and what the configuration says against it."""

import pytest

from ragx.training.policy import choose

AUTO = {
    "has_dev": False,
    "batch_size": 16,
    "reading_epochs": "auto",
    "epochs": "auto",
    "dev_share": "auto",
    "cross_fit": 0,
}


@pytest.mark.parametrize(
    ("questions", "changed", "expected"),
    [
        (12, {}, (10, 0, 0, True)),
        (39, {}, (10, 0, 0, True)),
        (40, {}, (10, 6, 0, True)),
        (100, {}, (5, 15, 0, True)),
        (100, {"has_dev": True}, (5, 0, 0, True)),
        (299, {}, (3, 45, 0, True)),
        (300, {}, (3, 45, 0, False)),
        (5000, {}, (3, 200, 0, False)),
        (100, {"epochs": 2, "dev_share": 0.0}, (2, 0, 0, True)),
        (12, {"dev_share": 0.25, "cross_fit": 3}, (10, 3, 3, True)),
        (3, {"cross_fit": 5}, (10, 0, 3, True)),
    ],
)
def test_policy(questions, changed, expected):
    found = choose(questions, **{**AUTO, **changed})
    assert (found.epochs, found.held_out, found.folds, found.few) == expected


def test_the_line_says_what_was_chosen_and_why():
    text = choose(100, **{**AUTO, "cross_fit": 4}).text
    assert "\n" not in text
    for part in ("100 training questions are few", "LoRA", "15 of them held out", "4 folds"):
        assert part in text
    assert "2 epochs on one right passage each; at most 5 joint epochs" in text
    assert "right passage" not in choose(100, **{**AUTO, "reading_epochs": 0}).text
    assert "none held out" in choose(12, **AUTO).text
    assert "the dev set says" in choose(1000, **{**AUTO, "has_dev": True}).text
