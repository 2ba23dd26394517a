"""What the controls of a performance mean at each frame."""

from __future__ import annotations

import random

import pytest

from audiocraft_api.core.performance import Blends, Change, Controls, Timeline, WeightedPrompt


def controls(*prompts: tuple[str, float]) -> Controls:
    return Controls(tuple(WeightedPrompt(*prompt) for prompt in prompts))


@pytest.mark.parametrize(
    ("prompts", "blends"),
    [
        ([("a", 7.0)], Blends((("a", 1.0),), ())),
        ([("a", 1.0), ("b", 3.0)], Blends((("a", 0.25), ("b", 0.75)), ())),
        ([("a", 2.0), ("b", -1.0)], Blends((("a", 1.0),), (("b", 0.5),))),
        ([("a", 1.0), ("b", -1.0), ("c", -3.0)], Blends((("a", 1.0),), (("b", 0.25), ("c", 0.75)))),
    ],
)
def test_weights_are_normalized_and_negative_ones_belong_to_the_unconditional_row(
    prompts: list[tuple[str, float]], blends: Blends
) -> None:
    assert controls(*prompts).blends == blends


def test_a_transition_moves_the_weights_in_steps() -> None:
    timeline = Timeline(Change(0, controls(("a", 1))))
    assert timeline.blends(9) == Blends((("a", 1.0),), ())
    timeline.add(Change(10, controls(("b", 1), ("n", -1)), 20))
    for frame in range(10, 15):
        assert timeline.blends(frame) == Blends((("a", 0.75), ("b", 0.25)), (("n", 0.25),))
    assert timeline.blends(24).conditional == (("a", 0.25), ("b", 0.75))
    assert timeline.blends(25) == Blends((("b", 1.0),), (("n", 1.0),))
    assert [timeline.next_change(frame) for frame in (10, 14, 15, 24, 25, 99)] == [15, 15, 20, 25, None, None]


def test_an_interrupted_transition_goes_on_from_where_it_is() -> None:
    timeline = Timeline(Change(0, controls(("a", 1))))
    timeline.add(Change(10, controls(("b", 1)), 10))
    timeline.add(Change(12, controls(("c", 1)), 10))
    assert timeline.blends(12).conditional == (("a", 0.25), ("b", 0.25), ("c", 0.5))
    assert timeline.blends(17).conditional == (("c", 1.0),)


def test_weights_add_up_to_one_and_a_row_has_at_most_eight_texts() -> None:
    draw, frame = random.Random(0), 0
    timeline = Timeline(Change(0, controls(("a", 1))))
    for _ in range(50):
        frame += draw.randrange(1, 8)
        texts = draw.sample("abcdefghijkl", 4)
        timeline.add(Change(frame, controls(*((text, draw.uniform(0.1, 3)) for text in texts)), draw.randrange(60)))
        blend = timeline.blends(frame).conditional
        assert len(blend) <= 8
        assert sum(weight for _, weight in blend) == pytest.approx(1)
