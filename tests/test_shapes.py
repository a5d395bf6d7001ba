"""Blocks against the most similar of a reference: daily rhythm is no drift, drift is, and bins, vectors and permutations hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probes.drift import spent
from probes.shapes import (
    Bags,
    inflation_of_means,
    inflation_of_shares,
    nearest_mean,
    nearest_shares,
    population_stability,
    spread_within,
    two_shares,
)
from probes.statistics import holm

ALPHA = 0.05 * 0.125
"""What shapes may spend of a monitor's chance of a false alarm."""


def shares(hour, amplitude):
    """Shares that swing with the hour of the day."""
    weights = np.array([0.5, 0.2, 0.15, 0.1, 0.05]) * np.exp(amplitude * np.array([1, -1, 0.5, 0, -2]) * np.sin(hour / 24 * 2 * np.pi))
    return weights / weights.sum()


def days(generator, *, amplitude, count, moved=0.0):
    """Whether any look of four days alarms, over three shapes of two-hourly blocks, after a reference of one day. The pool would alarm every night."""
    phase = generator.random() * 24
    references = [np.stack([generator.multinomial(count, shares(2 * place + phase, amplitude)) for place in range(12)]) for _ in range(3)]
    inflations = [inflation_of_shares(reference) for reference in references]
    alarmed, pooled = False, False
    for look in range(1, 49):
        mixture = (1 - moved) * shares(2 * look + phase + generator.uniform(-1, 1), amplitude) + moved * np.array([0, 0, 0, 0, 1.0])
        blocks = [generator.multinomial(count, mixture if shape == 0 else shares(2 * look + phase, amplitude)) for shape in range(3)]
        chances = [nearest_shares(block, reference, inflation=by).p_value for block, reference, by in zip(blocks, references, inflations, strict=True)]  # fmt: skip
        alarmed |= min(holm(chances)) <= spent(ALPHA, look)
        statistic, freedom = two_shares(blocks[0], references[0].sum(axis=0))
        pooled |= bool(stats.chi2.sf(statistic, freedom) <= spent(ALPHA, look) / 3)
    return alarmed, pooled


@pytest.mark.parametrize("amplitude", [0.0, 0.7])
def test_days_that_are_alike_raise_no_alarm_whatever_their_rhythm(amplitude):
    generator = np.random.default_rng(5)
    found = [days(generator, amplitude=amplitude, count=500) for _ in range(12)]

    assert sum(alarmed for alarmed, _ in found) == 0
    assert all(pooled for _, pooled in found) == bool(amplitude)  # what a test against all of it together would say


@pytest.mark.parametrize("amplitude", [0.0, 0.7])
def test_a_bin_that_takes_a_quarter_of_the_traffic_is_noticed(amplitude):
    generator = np.random.default_rng(6)

    assert sum(days(generator, amplitude=amplitude, count=500, moved=0.25)[0] for _ in range(6)) >= 5


def test_chi_square_is_scipys_where_no_bin_is_rare():
    first, second = np.array([30, 50, 20]), np.array([60, 70, 90])

    assert two_shares(first, second) == (pytest.approx(stats.chi2_contingency([first, second], correction=False).statistic), 2)


@pytest.mark.parametrize(("first", "second"), [([500, 0], [480, 3]), ([0, 0], [10, 20]), ([5, 1, 1], [100, 0, 0])])
def test_where_nothing_can_be_compared_nothing_is_said(first, second):
    assert nearest_shares(np.array(first), np.array([second])).p_value > 0.05


def test_the_index_is_shown_with_a_chance_that_knows_how_many_events_there_were():
    few, many = population_stability(np.array([6, 4]), np.array([3, 7])), population_stability(np.array([600, 400]), np.array([300, 700]))

    assert few[0] > 0.25  # "a large shift" by the usual bands
    assert few[1] > 0.1
    assert many[1] == 0.001


def bags(generator, mean, *, count=500, width=8):
    vectors = generator.standard_t(4, size=(count, width)) + mean
    places = np.arange(count) // 10 % 10
    sums = np.zeros((10, width))
    np.add.at(sums, places, vectors)
    return Bags(sums=sums, events=np.bincount(places, minlength=10))


def test_means_that_swing_with_the_hour_are_no_drift_and_one_that_moves_is():
    generator = np.random.default_rng(1)
    along, away = np.eye(8)[0], np.eye(8)[1]
    reference = [bags(generator, 0.8 * along * np.sin(place / 12 * 2 * np.pi)) for place in range(12)]
    spread = spread_within(reference)
    by = inflation_of_means(reference, spread)

    quiet = [
        nearest_mean(bags(generator, 0.8 * along * np.sin((place + 0.5) / 12 * 2 * np.pi)), reference, spread, inflation=by)
        for place in range(36)
    ]
    moved = nearest_mean(bags(generator, 0.8 * away), reference, spread, inflation=by)

    assert min(one.p_value for one in quiet) > 1e-3
    assert moved.p_value < 1e-7
    assert moved.freedom == 8


def test_the_tail_has_no_floor():
    generator = np.random.default_rng(1)
    reference = [bags(generator, 0.0) for _ in range(12)]

    assert nearest_mean(bags(generator, 5.0), reference, spread_within(reference)).p_value < 1e-50
