"""ragx.training.policy: what follows from the number of questions, and what the configuration says against it."""

import pytest

from ragx.training.policy import choose, generator_rate

AUTO = {
    "parts": None,
    "passages": 500,
    "device": "cpu",
    "moving": True,
    "has_dev": False,
    "statements": False,
    "batch_size": 16,
    "warmup_epochs": "auto",
    "reading_epochs": "auto",
    "epochs": "auto",
    "dev_share": "auto",
    "cross_fit": 0,
}


@pytest.mark.parametrize(
    ("questions", "changed", "expected"),
    [
        (12, {}, (10, 10, 0, 0, True)),
        (39, {}, (7, 4, 0, 0, True)),
        (40, {}, (7, 4, 6, 0, True)),
        (100, {}, (4, 2, 15, 0, True)),
        (100, {"has_dev": True}, (3, 2, 0, 0, True)),
        (299, {}, (2, 1, 45, 0, True)),
        (300, {}, (2, 1, 45, 0, False)),
        (5000, {}, (2, 1, 200, 0, False)),
        (5000, {"reading_epochs": 0}, (0, 3, 200, 0, False)),
        (100, {"reading_epochs": 0}, (0, 5, 15, 0, True)),
        (5000, {"parts": ("question_encoder",)}, (0, 3, 200, 0, False)),
        (100, {"reading_epochs": 1, "epochs": 2, "dev_share": 0.0}, (1, 2, 0, 0, True)),
        (12, {"dev_share": 0.25, "cross_fit": 3}, (10, 10, 3, 3, True)),
        (3, {"cross_fit": 5}, (10, 10, 0, 3, True)),
    ],
)
def test_policy(questions, changed, expected):
    found = choose(questions, **{**AUTO, **changed})
    assert (found.reading_epochs, found.epochs, found.held_out, found.folds, found.few) == expected


@pytest.mark.parametrize(
    ("changed", "learns", "told"),
    [
        ({}, True, "the encoder of questions learns on passages, too, for 500 are soon encoded anew"),
        ({"passages": 5_000}, True, "too, for 5000"),
        ({"passages": 5_001}, False, "on questions only, for 5001 passages take long to encode anew"),
        ({"passages": 5_001, "device": "cuda:1"}, True, "too, for 5001"),
        ({"passages": 100_001, "device": "cuda"}, False, "on questions only"),
        ({"dev_share": 0.0}, False, "nothing would tell when passages are overfitted"),
        ({"dev_share": 0.0, "has_dev": True}, True, "too"),
        ({"moving": False}, False, ""),
        ({"parts": ("generator",)}, False, ""),
    ],
)
def test_passages_learn_where_they_are_few_and_a_dev_set_watches(changed, learns, told):
    found = choose(400, **{**AUTO, **changed})
    assert ("passage_encoder" in found.parts) is learns
    assert told in found.text
    assert bool(told) is ("encoder" in found.text)


QUESTION_SIDE = ("question_encoder", "generator")
BOTH_SIDES = ("question_encoder", "passage_encoder", "generator")


@pytest.mark.parametrize(
    ("changed", "parts", "prior_learns"),
    [
        ({}, ("generator",), False),
        ({"has_dev": True}, ("generator",), False),
        ({"moving": False}, ("generator",), False),
        ({"warmup_epochs": 0}, ("generator",), False),
        ({"parts": ("generator",)}, ("generator",), False),
        ({"cross_fit": 4, "moving": False}, ("generator",), False),
        ({"warmup_epochs": 2}, BOTH_SIDES, True),
        ({"warmup_epochs": 2, "parts": ("generator",)}, ("generator",), True),
        ({"parts": QUESTION_SIDE}, QUESTION_SIDE, True),
        ({"parts": QUESTION_SIDE, "warmup_epochs": 0}, QUESTION_SIDE, True),
        ({"parts": ("question_encoder",)}, ("question_encoder",), True),
        ({"statements": False}, BOTH_SIDES, True),
        ({"statements": False, "parts": ("generator",)}, ("generator",), True),
    ],
)
def test_statements_teach_the_generator_alone_unless_more_is_asked_for(changed, parts, prior_learns):
    found = choose(400, **{**AUTO, "statements": True, **changed})
    assert (found.parts, found.prior_learns) == (parts, prior_learns)
    assert ("the generator alone learns, for statements share their words" in found.text) is not prior_learns
    if not prior_learns:
        assert found.folds == 0 and "encoder" not in found.text and "folds" not in found.text
        rest = choose(400, **{**AUTO, **changed})
        assert (found.reading_epochs, found.epochs, found.held_out, found.few) == (2, 1, rest.held_out, rest.few)


@pytest.mark.parametrize(
    ("width", "adapted", "rate"), [(64, True, 1e-3), (576, True, 1e-3), (1152, True, 5e-4), (768, False, 7.5e-5)]
)
def test_the_learning_rate_falls_with_the_width_and_is_less_for_whole_weights(width, adapted, rate):
    assert generator_rate("auto", width=width, adapted=adapted) == pytest.approx(rate)
    assert generator_rate(3e-4, width=width, adapted=adapted) == 3e-4


def test_the_line_says_what_was_chosen_and_why():
    text = choose(100, **{**AUTO, "cross_fit": 4}).text
    assert "\n" not in text
    for part in ("100 training questions are few", "LoRA", "15 of them held out", "4 folds"):
        assert part in text
    assert "4 epochs on one right passage each; at most 2 joint epochs" in text
    assert "right passage" not in choose(100, **{**AUTO, "reading_epochs": 0}).text
    assert "none held out" in choose(12, **AUTO).text
    assert "the dev set says" in choose(1000, **{**AUTO, "has_dev": True}).text
