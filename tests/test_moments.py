"""Streamed statistics against those of the whole matrix, in one piece, in batches, and merged."""

from __future__ import annotations

import numpy as np
import pytest

from probes.moments import Covariance, Mean, Sketch

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 24)) * np.geomspace(10.0, 0.01, 24) @ np.linalg.qr(RNG.normal(size=(24, 24)))[0] + 1e4
CUTS = {"one piece": (), "single rows": tuple(range(1, 200)), "uneven": (1, 7, 8, 100, 199), "an empty one": (50, 50)}


def pieces(cuts):
    return np.split(ROWS, cuts)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("merged", [False, True], ids=["added", "merged"])
def test_mean_and_covariance_are_those_of_the_whole_matrix(cuts, merged):
    seen = Covariance(24)
    for rows in pieces(cuts):
        if merged:
            part = Covariance(24)
            part.add(rows)
            seen.merge(part)
        else:
            seen.add(rows)

    right = np.cov(ROWS, rowvar=False)
    assert seen.count == 200
    assert seen.mean == pytest.approx(ROWS.mean(axis=0), rel=1e-13)
    # The mean is a thousand times the largest deviation, which a plain sum of squares would feel (see the next test).
    assert np.abs(seen.covariance() - right).max() < 1e-10 * np.abs(right).max()


def test_a_sum_of_squares_would_fail_that_test():
    shifted = ROWS + 1e6

    naive = (shifted.T @ shifted - len(shifted) * np.outer(shifted.mean(axis=0), shifted.mean(axis=0))) / (len(shifted) - 1)

    right = np.cov(shifted, rowvar=False)
    assert np.abs(naive - right).max() > 1e-6 * np.abs(right).max()


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_a_sketch_loses_no_more_than_it_says_along_any_direction(cuts, size):
    seen = Sketch(24, size=size)
    for rows in pieces(cuts):
        seen.add(rows)

    missing = np.linalg.eigvalsh((ROWS - ROWS.mean(axis=0)).T @ (ROWS - ROWS.mean(axis=0)) - seen.rows.T @ seen.rows)

    scale = seen.lost + np.linalg.norm(seen.rows) ** 2
    assert seen.rows.shape[0] <= 2 * size
    assert missing.min() > -1e-9 * scale
    assert missing.max() <= seen.lost + 1e-9 * scale
    # The bound of the paper, which makes `lost` worth having: a share of all that varies.
    assert 0.0 < seen.lost <= np.sum((ROWS - ROWS.mean(axis=0)) ** 2) / size * (1 + 1e-9)


def test_merged_sketches_keep_the_same_promise():
    first, second = Sketch(24, size=6), Sketch(24, size=6)
    first.add(ROWS[:120])
    second.add(ROWS[120:])

    first.merge(second)

    scatter = (ROWS - ROWS.mean(axis=0)).T @ (ROWS - ROWS.mean(axis=0))
    missing = np.linalg.eigvalsh(scatter - first.rows.T @ first.rows)
    assert (first.count, first.mean) == (200, pytest.approx(ROWS.mean(axis=0)))
    assert -1e-9 * np.trace(scatter) < missing.min() <= missing.max() <= first.lost + 1e-9 * np.trace(scatter)


def test_a_sketch_of_few_directions_is_exact():
    flat = RNG.normal(size=(500, 3)) * (5.0, 2.0, 1.0) @ np.linalg.qr(RNG.normal(size=(64, 3)))[0].T
    seen = Sketch(64, size=8)
    for rows in np.split(flat, 10):
        seen.add(rows)

    directions, variances = seen.variances(5)

    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    assert seen.lost < 1e-9
    assert variances == pytest.approx(values[::-1][:3])
    assert np.abs(np.sum(directions * vectors[:, ::-1][:, :3], axis=0)) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("kind", [Mean, Covariance, Sketch])
def test_what_was_saved_goes_on_where_it_stopped(kind):
    whole, half = kind(24), kind(24)
    whole.add(ROWS[:90])
    whole.add(ROWS[90:])
    half.add(ROWS[:90])

    again = kind(24).restore(half.arrays())
    again.add(ROWS[90:])

    assert again.arrays().keys() == whole.arrays().keys()
    assert all(np.array_equal(array, whole.arrays()[name]) for name, array in again.arrays().items())


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: Covariance(3).add(np.ones((2, 4))), "width 3"),
        (lambda: Mean(2).add(np.array([[1.0, np.nan]])), "finite"),
        (lambda: Covariance(3).merge(Covariance(4)), "cannot take in"),
        (lambda: Covariance(3).merge(Sketch(3)), "cannot take in"),
        (lambda: Covariance(3).covariance(), "at least 2 rows, not 0"),
        (lambda: Sketch(3).variances(1), "at least 2 rows, not 0"),
        (lambda: Sketch(3, size=0), "at least 1 direction"),
    ],
)
def test_what_cannot_be_measured_is_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask()
