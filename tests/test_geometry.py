"""Distances and alignments against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from probes.geometry import cosine, linear_cka, mean_cosine, principal_cosines, relative_distance, unbiased_hsic

RNG = np.random.default_rng(0)


def rotation(width, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def test_alignment_ignores_rotation_scale_and_shift():
    rows = RNG.normal(size=(40, 8))

    assert linear_cka(rows, -3.0 * rows @ rotation(8) + 5.0) == pytest.approx(1.0)


def test_unrelated_rows_are_not_aligned_even_with_more_dimensions_than_inputs():
    found = [linear_cka(*np.random.default_rng(seed).normal(size=(2, 30, 300))) for seed in range(20)]

    assert abs(np.mean(found)) < 0.03  # the plain estimate gives 0.9 here


def test_alignment_does_not_see_which_side_is_which():
    a, b = RNG.normal(size=(2, 20, 5))

    assert linear_cka(a, a + b) == pytest.approx(linear_cka(a + b, a))


def test_the_unbiased_estimate_is_zero_on_average_where_nothing_depends():
    values = []
    for seed in range(400):
        a, b = np.random.default_rng(seed).normal(size=(2, 6, 2))
        values.append(unbiased_hsic(a @ a.T, b @ b.T))

    assert abs(np.mean(values)) < 3 * np.std(values) / 20


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((9, 3)), RNG.normal(size=(9, 3))),
        (RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3))),
        (RNG.normal(size=(9, 3)), RNG.normal(size=(8, 3))),
    ],
    ids=["no variation", "too few rows", "other number of rows"],
)
def test_alignment_refuses_what_it_cannot_measure(a, b):
    with pytest.raises(ValueError, match="rows"):
        linear_cka(a, b)


def test_distance_is_relative_to_the_base():
    base = RNG.normal(size=(5, 4))

    assert relative_distance(base, 1.25 * base) == pytest.approx(0.25)
    assert relative_distance(np.zeros((2, 2)), np.zeros((2, 2))) == 0.0
    with pytest.raises(ValueError, match="zeros"):
        relative_distance(np.zeros((2, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="one shape"):
        relative_distance(np.ones((2, 2)), np.ones((2, 3)))


def test_cosines():
    rows = RNG.normal(size=(5, 4))

    assert mean_cosine(rows, 7.0 * rows) == pytest.approx(1.0)
    assert cosine(rows[0], np.zeros(4)) == 0.0
    with pytest.raises(ValueError, match="zero"):
        mean_cosine(rows, 0.0 * rows)


def test_principal_angles_between_planes_that_share_a_line():
    angle = 0.3
    first = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    second = np.array([[1.0, 0.0], [0.0, np.cos(angle)], [0.0, np.sin(angle)]]) @ np.array([[2.0, 1.0], [0.0, 3.0]])

    assert principal_cosines(first, second) == pytest.approx([1.0, np.cos(angle)])
    with pytest.raises(ValueError, match="not zero"):
        principal_cosines(first, np.zeros((3, 1)))
