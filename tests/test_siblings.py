"""One of many siblings that is unlike the rest: found where it is, and seldom called where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from probes.siblings import LEAST, LEVEL, apart, smallest_called

FIGURES = 8


def alarms(draw, *, siblings, tables=400):
    """Share of tables without an outlier in which some sibling is called on some figure."""
    rng = np.random.default_rng(11)
    called = 0
    for _ in range(tables):
        found = [apart(draw(rng, siblings), figures=FIGURES) for _ in range(FIGURES)]
        called += any(one is not None and one.p_values.min() <= LEVEL for one in found)
    return called / tables


DRAWN = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy": lambda rng, n: rng.standard_t(5, n),
}


@pytest.mark.parametrize("siblings", [LEAST, 24, 100])
@pytest.mark.parametrize("kind", DRAWN)
def test_tables_without_an_outlier_are_seldom_called(kind, siblings):
    # 400 tables at 5 % give 20, and more than 36 less often than once in a thousand.
    assert alarms(DRAWN[kind], siblings=siblings) <= {"normal": 0.03}.get(kind, 36 / 400)


def test_the_usual_limit_would_call_most_tables():
    """The control: at 3.5 robust standard deviations, whatever the number of tests, tables without an outlier are called."""
    rng = np.random.default_rng(5)
    tables = [[apart(rng.laplace(size=24)) for _ in range(FIGURES)] for _ in range(100)]

    assert np.mean([any(np.abs(one.distances).max() > 3.5 for one in found) for found in tables]) > 0.9


@pytest.mark.parametrize(("siblings", "least"), [(LEAST, 0.85), (24, 0.95), (200, 0.95)])
def test_an_outlier_of_twenty_standard_deviations_is_found(siblings, least):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        values = rng.standard_normal(siblings)
        values[4] -= 20.0
        one = apart(values, figures=FIGURES)
        found.append(one.p_values[4] <= LEVEL and one.distances[4] < 0 and int(one.p_values.argmin()) == 4)

    assert np.mean(found) >= least


def test_several_outliers_do_not_hide_each_other():
    values = np.concatenate([np.random.default_rng(0).standard_normal(20), [40.0, 41.0, 42.0, 43.0]])

    found = apart(values, figures=FIGURES)

    assert list(np.flatnonzero(found.p_values <= LEVEL)) == [20, 21, 22, 23]


def test_order_scale_and_place_of_a_figure_do_not_matter():
    values = np.random.default_rng(1).laplace(size=30)
    order = np.random.default_rng(2).permutation(30)

    plain, moved = apart(values), apart(1000.0 * values[order] - 5.0)

    np.testing.assert_allclose(moved.distances, plain.distances[order], rtol=1e-9)
    np.testing.assert_allclose(moved.p_values, plain.p_values[order])


def test_more_figures_ask_for_more():
    values = [*np.random.default_rng(1).standard_normal(23), 9.0]

    assert apart(values, figures=8).p_values[-1] == pytest.approx(8 * apart(values).p_values[-1])
    assert smallest_called(24, figures=1) < smallest_called(24, figures=8) < smallest_called(12, figures=8)


@pytest.mark.parametrize(("factor", "called"), [(1.02, True), (0.98, False)])
def test_the_smallest_distance_that_is_called_is_that(factor, called):
    values = np.random.default_rng(1).standard_normal(24)
    values[7] = 1000.0  # far out in either case, so that middle and spread stay as they are
    others = apart(values)
    values[7] = others.middle + factor * smallest_called(24, figures=FIGURES) * others.spread

    assert bool(apart(values, figures=FIGURES).p_values[7] <= LEVEL) is called


def test_absent_values_are_left_out_and_never_called():
    values = np.random.default_rng(1).standard_normal(LEAST + 2)
    values[[0, 5]] = np.nan

    found = apart(values)

    assert found.count == LEAST
    assert (found.distances[[0, 5]].tolist(), found.p_values[[0, 5]].tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("values", [np.arange(LEAST - 1.0), [1.0] * 20 + [2.0], [np.nan] * 3 + list(range(LEAST - 1))])
def test_too_few_siblings_and_no_spread_say_nothing(values):
    assert apart(values) is None


def test_what_is_infinite_is_refused():
    with pytest.raises(ValueError, match="infinite"):
        apart([float("inf")] * 20)
    with pytest.raises(ValueError, match="none is tested"):
        apart(range(20), figures=0)
