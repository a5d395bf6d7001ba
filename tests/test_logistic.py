"""Probes in the span of the rows: the very ones scikit-learn fits, whatever the shape, and no other on shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from probes.logistic import fit_discriminant, fit_logistic, scaling_of, shrinkage_of, span

SHAPES = {"fewer rows than columns": (80, 200), "more rows than columns": (200, 30), "as many": (60, 60), "one column": (50, 1)}


def drawn(n, d, *, seed=0, shift=0.6):
    """Rows with a few loud directions, as activations have them, whose kinds overlap; and a row far outside."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) + rng.normal(size=(n, 3)) @ rng.normal(size=(3, d)) * 5.0 + 20.0 * rng.normal(size=d)
    labels = np.arange(n) % 3 == 0
    rows[labels] += shift * rng.normal(size=d)
    rows[0] *= 10.0
    return rows, labels


def reference(rows, labels, penalty):
    scaling = scaling_of(rows)
    # Newton, not lbfgs: that one stops where its loss no longer falls by what float64 can tell, 1e-3 short of the scores where they are large.
    fitted = LogisticRegression(C=penalty, tol=1e-12, max_iter=100_000, solver="newton-cholesky").fit(scaling.apply(rows), labels)
    return lambda other: fitted.decision_function(scaling.apply(other))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_held_out_scores_are_scikit_learns(shape, penalty):
    rows, labels = drawn(*shape)
    others = drawn(40, shape[1], seed=1)[0]

    found = fit_logistic(span(rows), labels, penalty)

    assert found.scores(others)[:, 0] == pytest.approx(reference(rows, labels, penalty)(others), abs=1e-3, rel=1e-5)
    assert found.probe().score(others) == pytest.approx(found.scores(others)[:, 0], rel=1e-9, abs=1e-9)


def test_float32_rows_are_fitted_in_float32_and_give_the_same_scores():
    rows, labels = drawn(80, 200)
    rows = rows.astype(np.float32)

    held = span(rows)

    assert held.products.dtype == np.float32
    assert fit_logistic(held, labels).scores(rows)[:, 0] == pytest.approx(reference(rows.astype(float), labels, 1.0)(rows), abs=1e-3)


def test_many_label_sets_and_penalties_side_by_side_are_each_fitted_as_if_alone():
    rows, labels = drawn(70, 150)
    rng = np.random.default_rng(3)
    sets = np.stack([labels, *(rng.permutation(labels) for _ in range(4)), labels], axis=1)
    penalties = np.array([1.0, 1.0, 0.1, 10.0, 1.0, 0.01])

    together = fit_logistic(span(rows), sets, penalties).scores(rows)

    for column, penalty in enumerate(penalties):
        assert together[:, column] == pytest.approx(reference(rows, sets[:, column], penalty)(rows), abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_the_discriminant_is_scikit_learns(shape, shrinkage):
    rows, labels = drawn(*shape)
    others = drawn(40, shape[1], seed=1)[0]
    scaling = scaling_of(rows)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaling.apply(rows), labels)

    found = fit_discriminant(span(rows), labels, shrinkage).score(others)

    assert found == pytest.approx(fitted.decision_function(scaling.apply(others)), rel=1e-6, abs=1e-6)


def test_the_share_to_shrink_by_is_ledoit_and_wolfs():
    rows, labels = drawn(80, 200)
    within = scaling_of(rows).apply(rows)
    for kind in (labels, ~labels):
        within[kind] -= within[kind].mean(axis=0)

    assert shrinkage_of(span(rows), labels) == pytest.approx(ledoit_wolf_shrinkage(within, assume_centered=True))


def test_a_column_that_never_varies_takes_no_part():
    rows, labels = drawn(60, 100)
    rows[:, 7] = 3.0

    found = fit_logistic(span(rows), labels).probe()

    assert found.vector[7] == 0.0
    assert np.isfinite(found.vector).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rows_that_are_all_the_same_say_nothing(kind):
    """The embedding of a template's last token is the same for every prompt; what its mean rounds to must not become a signal."""
    rows, labels = np.tile(np.random.default_rng(0).normal(size=50).astype(kind) * 0.1, (30, 1)), np.arange(30) < 10

    for found in (fit_logistic(span(rows), labels).probe(), fit_discriminant(span(rows), labels)):
        assert np.abs(found.vector).max() < 1e-6
        assert found.intercept == pytest.approx(np.log(0.5), abs=1e-6)


def test_what_cannot_be_fitted_is_refused():
    rows, labels = drawn(20, 30)
    for wrong, match in ((np.ones(20, dtype=bool), "both kinds"), (np.zeros(20, dtype=bool), "both kinds"), (labels[:10], "every row")):
        with pytest.raises(ValueError, match=match):
            fit_logistic(span(rows), wrong)
    with pytest.raises(ValueError, match="positive penalties"):
        fit_logistic(span(rows), labels, 0.0)
    with pytest.raises(ValueError, match="both kinds"):
        fit_discriminant(span(rows), np.ones(20, dtype=bool))
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="shrinkage"):
            fit_discriminant(span(rows), labels, share)
    rows[3, 4] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        span(rows)
    for shape in ((1, 5), (5, 0)):
        with pytest.raises(ValueError, match="n >= 2"):
            span(np.zeros(shape))
