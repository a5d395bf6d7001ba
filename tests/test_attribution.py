"""Attribution: a part that is needed and enough comes first, sets are minimal, and layers are narrowed by halves."""

from __future__ import annotations

import numpy as np
import pytest

from probes.attribution import Effect, beyond, fewest, narrow, ranked
from probes.linear import share_interval


def effect(undone, caused, n=20):
    places = np.arange(n) / n
    return Effect(undone=places < undone, caused=places < caused)


@pytest.mark.parametrize(("undone", "caused", "value"), [(1.0, 1.0, 1.0), (1.0, 0.0, 0.5), (0.0, 1.0, 0.5), (0.5, 0.1, 0.3)])
def test_an_effect_is_the_mean_of_needed_and_enough_within_its_interval(undone, caused, value):
    found = effect(undone, caused).value

    assert found.value == pytest.approx(value)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.45


def test_the_interval_of_a_mean_of_halves_is_as_wide_as_that_of_as_many_hits():
    assert share_interval(7.5, 15).value == 0.5
    assert effect(0.5, 0.5).value == share_interval(10, 20)


def test_needed_and_enough_comes_before_either_alone_and_spoiling_less_before_spoiling_more():
    parts = [effect(1.0, 0.0), effect(0.0, 1.0), effect(0.9, 0.9), effect(0.0, 0.0)]

    assert ranked(parts, [0.5, 0.0, 0.5, 0.0]) == [2, 1, 0, 3]
    assert ranked([effect(0.5, 0.5)] * 2, [0.0, 0.0]) == [0, 1]


def test_beyond_its_control_is_told_on_the_same_prompts():
    part, twin = effect(1.0, 0.0).undone, effect(0.0, 0.0).undone

    assert beyond(part, twin).low > 50.0
    assert beyond(part, part).low <= 0.0


def asked(score):
    calls = []

    def count(parts):
        calls.append(parts)
        return score(parts)

    return count, calls


@pytest.mark.parametrize(
    ("needed", "found"),
    [({0}, (0,)), ({3}, (3,)), ({0, 3}, (0, 3)), ({1, 2, 3}, (1, 2, 3))],
)
def test_a_set_is_found_from_which_none_can_be_left_out(needed, found):
    score, calls = asked(lambda parts: len(parts & needed) / len(needed))

    assert fewest([0, 1, 2, 3], score, 1.0) == found
    assert len(calls) <= 8


def test_where_either_of_two_is_enough_the_first_is_taken_and_where_not_even_all_are_none():
    assert fewest([0, 1], lambda parts: float(bool(parts)), 1.0) == (0,)
    assert fewest([0, 1], lambda parts: 0.5, 0.8) is None


@pytest.mark.parametrize("planted", [(0, 0), (5, 5), (4, 7), (0, 15), (6, 9)])
def test_layers_are_narrowed_as_far_as_a_half_still_holds_all_that_was_planted(planted):
    first, last = narrow(0, 15, lambda low, high: float(low <= planted[0] and planted[1] <= high), 0.8)

    assert first <= planted[0] <= planted[1] <= last
    if planted != (6, 9):  # lies on the middle, which no half holds
        assert (first, last) == planted
