"""Paired statistics: bounds hold what they promise, the test is exact, and power is what a simulation finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from probes.statistics import (
    Z_ONE_SIDED_95,
    detectable_drop,
    holm,
    mcnemar_p,
    mcnemar_power,
    paired_drop,
    prompts_to_clear,
    tango_bounds,
)

COUNTS = [(0, 0, 1), (0, 0, 50), (3, 0, 60), (0, 3, 60), (7, 2, 40), (25, 25, 50), (1, 0, 1), (49, 1, 50), (30, 0, 300)]


def constrained_score(lost, gained, n, delta):
    """Tango's statistic with the nuisance share found on a fine grid instead of by his formula."""
    reverse = np.linspace(max(0.0, -delta), (1.0 - delta) / 2.0, 400_001)[1:-1]
    likelihood = lost * np.log(reverse + delta) + gained * np.log(reverse) + (n - lost - gained) * np.log1p(-2 * reverse - delta)
    best = reverse[np.argmax(likelihood)]
    return (lost - gained - n * delta) / np.sqrt(n * (2 * best + delta - delta**2))


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 1, 60), (1, 3, 60), (7, 2, 40), (12, 12, 50), (40, 3, 50)])
def test_at_each_bound_the_score_is_the_quantile(lost, gained, n):
    low, high = tango_bounds(lost, gained, n)
    assert constrained_score(lost, gained, n, low) == pytest.approx(Z_ONE_SIDED_95, abs=1e-3)
    assert constrained_score(lost, gained, n, high) == pytest.approx(-Z_ONE_SIDED_95, abs=1e-3)


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
def test_swapping_the_sides_mirrors_the_bounds(lost, gained, n):
    low, high = tango_bounds(lost, gained, n)
    assert tango_bounds(gained, lost, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
def test_the_bounds_hold_the_estimate_and_stay_possible(lost, gained, n):
    low, high = tango_bounds(lost, gained, n)
    assert -1.0 <= low <= (lost - gained) / n <= high <= 1.0
    assert low < high


@pytest.mark.parametrize("n", [1, 10, 300])
def test_without_any_flip_the_bound_is_the_one_known_in_closed_form(n):
    z = Z_ONE_SIDED_95**2
    assert tango_bounds(0, 0, n) == pytest.approx((-z / (n + z), z / (n + z)), abs=1e-9)


@pytest.mark.parametrize("n", [1, 10, 300])
def test_if_everything_is_lost_the_upper_bound_is_one_and_the_lower_is_not(n):
    low, high = tango_bounds(n, 0, n)
    assert high == 1.0
    # All n pairs lost: the score at delta is sqrt(n (1 - delta) / (1 + delta)) by hand.
    z = Z_ONE_SIDED_95**2
    assert low == pytest.approx((n - z) / (n + z), abs=1e-6)
    assert tango_bounds(0, n, n)[0] == -1.0


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize(("forward", "reverse"), [(0.02, 0.02), (0.05, 0.05), (0.1, 0.02), (0.3, 0.05), (0.6, 0.02)])
def test_each_bound_covers_the_truth_at_least_93_times_in_100(n, forward, reverse):
    """Exact, not simulated: all outcomes are enumerated with their probabilities."""
    truth = forward - reverse
    covered = {"low": 0.0, "high": 0.0}
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            weight = stats.multinomial.pmf([lost, gained, n - lost - gained], n, [forward, reverse, 1 - forward - reverse])
            if weight < 1e-7:
                continue
            low, high = tango_bounds(lost, gained, n)
            covered["low"] += weight * (low <= truth)
            covered["high"] += weight * (high >= truth)
    assert min(covered.values()) >= 0.93
    assert min(covered.values()) < 0.9999  # it does miss: the bound is no triviality


@pytest.mark.parametrize(("lost", "gained"), [*itertools.product(range(8), repeat=2), (50, 3), (3, 50)])
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue if lost + gained else 1.0
    assert mcnemar_p(lost, gained) == pytest.approx(expected, rel=1e-12)


def test_a_drop_is_counted_pair_by_pair():
    base = [True] * 6 + [False] * 4
    candidate = [False] * 3 + [True] * 3 + [True] + [False] * 3
    drop = paired_drop(base, candidate)
    assert (drop.n, drop.lost, drop.gained) == (10, 3, 1)
    assert (drop.base_rate, drop.candidate_rate, drop.drop) == (60.0, 40.0, 20.0)
    assert drop.p_value == pytest.approx(5 / 16)
    assert (drop.low, drop.high) == tuple(100 * bound for bound in tango_bounds(3, 1, 10))


def test_a_gain_is_a_negative_drop():
    drop = paired_drop([False] * 20, [True] * 20)
    assert (drop.drop, drop.p_value, drop.low) == (-100.0, 1.0, -100.0)


def test_pairs_matter_not_only_rates():
    """The same two rates, from pairs that all agree and from pairs that all differ."""
    half = [True] * 20 + [False] * 20
    same, crossed = paired_drop(half, half), paired_drop(half, half[::-1])
    assert same.drop == crossed.drop == 0.0
    assert crossed.high > 3 * same.high


def test_arrays_and_lists_are_read_alike():
    base, candidate = [True, False, True, True], [False, False, True, True]
    assert paired_drop(np.array(base), np.array(candidate)) == paired_drop(base, candidate)


@pytest.mark.parametrize("n", [50, 100])
def test_the_detectable_drop_is_noticed_as_often_as_promised(n):
    chance = np.random.default_rng(0)
    drop = detectable_drop(n) / 100.0

    def noticed(true_drop):
        flips = chance.multinomial(n, [true_drop + 0.02, 0.02, 1.0 - true_drop - 0.04], size=20_000)
        rejected = {pair: mcnemar_p(*map(int, pair)) <= 0.05 for pair in {(lost, gained) for lost, gained, _ in flips}}
        return np.mean([rejected[lost, gained] for lost, gained, _ in flips])

    assert noticed(drop) >= 0.79
    assert noticed(drop - 0.01) < 0.81  # a point less would not do
    assert noticed(drop) == pytest.approx(mcnemar_power(n, drop, reverse=0.02), abs=0.01)


def test_without_a_drop_the_test_keeps_its_level():
    assert all(mcnemar_power(n, 0.0, reverse=0.05) <= 0.05 for n in (10, 50, 200))


def test_more_prompts_detect_smaller_drops():
    # The grid and the steps of an exact test allow a wobble of a point or two, not a trend.
    drops = [detectable_drop(n) for n in (5, 10, 20, 40, 80, 160, 320, 640)]
    assert drops == sorted(drops, reverse=True)
    assert len(set(drops[2:])) == len(drops[2:])
    for n in range(30, 120):
        assert detectable_drop(n + 1) <= detectable_drop(n) + 2.0


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_prompts_detect_nothing(n):
    assert detectable_drop(n) == 100.0  # four losses of four still have p = 0.0625


@pytest.mark.parametrize("margin", [1.0, 2.5, 5.0, 10.0, 20.0])
def test_prompts_to_clear_is_the_smallest_number_that_does(margin):
    n = prompts_to_clear(margin)
    assert 100 * tango_bounds(0, 0, n)[1] <= margin + 1e-9
    assert 100 * tango_bounds(0, 0, n - 1)[1] > margin


def test_holm_agrees_with_a_hand_worked_case():
    # Sorted: .005 .011 .02 .04 .13; times 5 4 3 2 1: .025 .044 .06 .08 .13; already rising.
    assert holm([0.04, 0.005, 0.13, 0.02, 0.011]) == pytest.approx([0.08, 0.025, 0.13, 0.06, 0.044])
    # Sorted: .01 .03 .04; times 3 2 1: .03 .06 .04; the last is lifted to .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_holm_never_reverses_an_order_nor_lowers_a_value():
    chance = np.random.default_rng(1)
    for _ in range(200):
        p = [float(value) for value in chance.choice([0.0, 1.0, *chance.uniform(size=6)], size=chance.integers(1, 8))]
        adjusted = holm(p)
        assert all(before <= after <= 1.0 for before, after in zip(p, adjusted, strict=True))
        order = np.argsort(p, kind="stable")
        assert list(np.array(adjusted)[order]) == sorted(adjusted)


def test_holm_of_none_or_one_is_itself():
    assert holm([]) == []
    assert holm([0.3]) == [0.3]


@pytest.mark.parametrize(("base", "candidate"), [([True], [True, False]), ([[True]], [[True]]), ([], [True])])
def test_outcomes_that_are_not_pairs_are_refused(base, candidate):
    with pytest.raises(ValueError, match="two vectors of one length"):
        paired_drop(base, candidate)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        paired_drop([], [])


@pytest.mark.parametrize(("lost", "gained", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0), (6, 0, 5)])
def test_impossible_counts_are_refused(lost, gained, n):
    with pytest.raises(ValueError, match="impossible counts"):
        tango_bounds(lost, gained, n)
