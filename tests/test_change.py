"""A rise at a point nobody named: noticed against all that came before, seldom seen where there is none, and the same in batches as at once."""

from __future__ import annotations

import numpy as np
import pytest

from probes.change import Change, follow

ALPHA = 0.05


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_constant_rates_alarm_no_more_often_than_stated(rate):
    generator = np.random.default_rng(7)

    alarmed = sum(follow(Change(), generator.random(1500) < rate).alarms(ALPHA) for _ in range(60))

    assert alarmed <= 60 * ALPHA


def test_opinions_that_turn_from_ten_to_twenty_percent_are_noticed_and_dated():
    generator = np.random.default_rng(0)
    found = [follow(Change(), np.r_[generator.random(1000) < 0.1, generator.random(2000) < 0.2]) for _ in range(20)]

    assert sum(change.alarms(0.004) for change in found) >= 18
    assert np.median([abs(change.before[0] - 1000) for change in found]) < 200
    assert all(change.before[0] + change.after[0] <= 3000 for change in found)


def test_a_rate_that_falls_or_moves_a_little_is_no_rise():
    generator = np.random.default_rng(1)

    fallen = follow(Change(), np.r_[generator.random(2000) < 0.3, generator.random(2000) < 0.1])
    nudged = follow(Change(), np.r_[generator.random(20_000) < 0.10, generator.random(20_000) < 0.105])

    assert not fallen.alarms(ALPHA)
    assert not nudged.alarms(ALPHA)


def test_batches_give_what_all_at_once_gives():
    outcomes = np.random.default_rng(2).random(2111) < 0.2
    whole, parts = follow(Change(), outcomes), Change()
    for first in range(0, len(outcomes), 83):
        parts = follow(parts, outcomes[first : first + 83])

    assert parts == whole
    assert (whole.events, whole.hits) == (2111, int(outcomes.sum()))


def test_a_table_of_outcomes_is_refused():
    with pytest.raises(ValueError, match="vector"):
        follow(Change(), np.zeros((2, 2), dtype=bool))
