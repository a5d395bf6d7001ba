"""Probes and their controls: closed forms, brute force, and leaks that must not pay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probes.linear import (
    auroc,
    auroc_interval,
    grouped_scores,
    random_aurocs,
    sensitivity,
    sensitivity_interval,
    share_interval,
    shuffled_auroc,
    stratified_parts,
)


def drawn(seed=0, n=40, m=30, shift=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, n).round(1), rng.normal(0.0, 1.0, m).round(1)  # rounded: ties occur


def test_auroc_is_the_share_of_pairs_in_order():
    positive, negative = drawn()
    gaps = positive[:, None] - negative[None, :]

    assert auroc(positive, negative) == pytest.approx(np.mean(gaps > 0) + 0.5 * np.mean(gaps == 0))
    assert auroc(np.zeros(3), np.zeros(4)) == 0.5


def test_the_interval_of_an_auroc_covers_the_truth_about_as_often_as_it_says():
    truth = stats.norm.cdf(1.5 / np.sqrt(2.0))
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = auroc_interval(rng.normal(1.5, 1.0, 30), rng.normal(0.0, 1.0, 30))
        inside += found.low <= truth <= found.high

    assert inside >= 0.92 * 300


def test_a_perfect_auroc_is_not_certain():
    few, many = (auroc_interval(np.arange(n) + 1000.0, np.arange(float(n))) for n in (10, 100))

    assert few.value == many.value == few.high == 1.0
    assert few.low < 0.85 < 0.97 < many.low
    mirrored = auroc_interval(np.arange(10.0), np.arange(10.0) + 1000.0)
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1.0 - few.low))


def test_sensitivity_counts_above_the_allowed_false_positives():
    negative = np.arange(200.0)

    assert sensitivity(np.array([196.5, 198.5, 500.0]), negative) == pytest.approx(2 / 3)  # two of 200 may lie above
    found = sensitivity_interval(np.array([150.0, 250.0] * 20), negative, seed=0)
    assert found.low < found.value == 0.5 < found.high


@pytest.mark.parametrize(("count", "n"), [(0, 16), (3, 20), (100, 100)])
def test_the_interval_of_a_share_is_wilsons(count, n):
    wilson = stats.binomtest(count, n).proportion_ci(method="wilson")
    found = share_interval(count, n)

    assert (found.low, found.high) == (pytest.approx(wilson.low), pytest.approx(wilson.high))


def test_impossible_counts_are_refused():
    for count, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="impossible"):
            share_interval(count, n)
    for score in (auroc, sensitivity):
        with pytest.raises(ValueError, match="both kinds"):
            score(np.array([]), np.array([1.0]))


def grouped(seed=0, per=12, groups=8, width=6):
    rng = np.random.default_rng(seed)
    names = np.repeat(np.arange(groups), per)
    return rng, rng.normal(size=(groups * per, width)), (names % 2 == 0).tolist(), names.tolist()


def test_a_probe_finds_what_all_groups_share():
    _, rows, labels, names = grouped()
    rows[:, 0] += 3.0 * np.array(labels)

    scores = grouped_scores(rows, labels, names, seed=0)

    assert auroc(scores[np.array(labels)], scores[~np.array(labels)]) > 0.95


def test_a_probe_gains_nothing_from_what_only_its_own_group_shows():
    """Every group has a mark of its own, by which a split that mixes groups would tell labels without fail."""
    rng, rows, labels, names = grouped(width=40)
    rows += 5.0 * rng.normal(size=(8, 40))[names]

    scores = grouped_scores(rows, labels, names, seed=0)

    assert auroc(scores[np.array(labels)], scores[~np.array(labels)]) < 0.85


def test_shuffled_labels_leave_chance():
    _, rows, labels, names = grouped()
    rows[:, 0] += 3.0 * np.array(labels)

    assert shuffled_auroc(rows, labels, names, seed=0).mean() == pytest.approx(0.5, abs=0.08)


def test_one_group_of_a_kind_cannot_be_held_out():
    _, rows, labels, _ = grouped()

    with pytest.raises(ValueError, match="at least 2 groups"):
        grouped_scores(rows, labels, ["a" if label else f"b{index}" for index, label in enumerate(labels)], seed=0)


def test_random_directions_tell_little_apart_where_there_is_little():
    _, rows, _, _ = grouped(width=50)

    assert random_aurocs(rows[:48], rows[48:], seed=0).mean() < 0.62


def test_parts_are_disjoint_keep_the_mix_and_depend_on_the_seed_alone():
    groups = ["a"] * 100 + ["b"] * 50 + ["c"] * 10
    parts = stratified_parts(groups, [64, 32, 64], seed=5)

    assert sorted(index for part in parts for index in part) == list(range(160))
    assert [sum(groups[index] == "a" for index in part) for part in parts] == [
        pytest.approx(40, abs=1),
        pytest.approx(20, abs=1),
        pytest.approx(40, abs=1),
    ]
    assert parts == stratified_parts(groups, [64, 32, 64], seed=5) != stratified_parts(groups, [64, 32, 64], seed=6)
    with pytest.raises(ValueError, match="161 items asked for"):
        stratified_parts(groups, [161], seed=0)
