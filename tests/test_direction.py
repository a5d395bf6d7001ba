"""A direction: what it does to rows, and that a saved one comes back or is refused."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from probes.direction import Direction, from_difference, load

DIFFERENCE = np.random.default_rng(3).normal(size=12)


def direction(**changes):
    return from_difference(DIFFERENCE, **({"layer": 0, "position": -2, "fitted": "in a test"} | changes))


def test_rows_lose_their_part_along_it_and_nothing_else():
    found, rows = direction(), np.random.default_rng(4).normal(size=(7, 12))

    left = found.ablate(rows)

    assert found.project(left) == pytest.approx(np.zeros(7), abs=1e-12)
    assert left + found.project(rows)[:, None] * found.vector == pytest.approx(rows)
    assert found.ablate(left) == pytest.approx(left)


def test_adding_it_moves_the_projection_by_the_gap():
    found, rows = direction(), np.random.default_rng(4).normal(size=(3, 2, 12))

    assert found.project(found.add(rows, 2.0)) - found.project(rows) == pytest.approx(np.full((3, 2), 2.0 * np.linalg.norm(DIFFERENCE)))
    assert found.raw == pytest.approx(DIFFERENCE)


def test_a_saved_direction_comes_back_the_same():
    found, stream = direction(layer=7), io.BytesIO()

    found.save(stream)
    again = load(io.BytesIO(stream.getvalue()))

    assert again.vector.tolist() == found.vector.tolist()
    assert (again.gap, again.layer, again.position, again.fitted) == (found.gap, 7, -2, "in a test")


def test_nothing_pickled_is_loaded():
    stream = io.BytesIO()
    np.savez(stream, vector=DIFFERENCE, about=np.array([{"a": 1}], dtype=object))

    with pytest.raises(ValueError, match=r"allow_pickle|saved direction"):
        load(io.BytesIO(stream.getvalue()))
    with pytest.raises(ValueError, match=r"pickle|saved direction"):
        load(io.BytesIO(pickle.dumps(DIFFERENCE)))


def test_another_format_is_refused_by_name():
    stream = io.BytesIO()
    np.savez(stream, vector=DIFFERENCE, about=np.array('{"format": "other/9"}'))

    with pytest.raises(ValueError, match="other/9"):
        load(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("difference", [np.zeros(4), np.array([1.0, np.nan]), np.array([np.inf, 0.0])])
def test_what_has_no_direction_is_refused(difference):
    with pytest.raises(ValueError, match="no direction"):
        from_difference(difference, layer=1, position=-1, fitted="")


@pytest.mark.parametrize("wrong", [{"vector": np.array([2.0, 0.0])}, {"gap": 0.0}, {"gap": float("nan")}, {"layer": -1}, {"position": 0}])
def test_impossible_directions_cannot_be_built(wrong):
    right = {"vector": np.array([1.0, 0.0]), "gap": 1.0, "layer": 0, "position": -1, "fitted": ""}

    with pytest.raises(ValueError, match="direction"):
        Direction(**(right | wrong))
