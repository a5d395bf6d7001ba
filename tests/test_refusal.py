"""Fitting, choosing and following a refusal direction, on numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from probes.carrier import one, subspace
from probes.refusal import (
    Effect,
    Openings,
    causal_span,
    divergence,
    fit,
    gains_along,
    gains_by_layer,
    learn_openings,
    least_gain,
    select,
)

WIDTH = 16


def means(layers=5, positions=2, gap=3.0):
    rng = np.random.default_rng(0)
    answered = rng.normal(size=(layers, positions, WIDTH))
    refused = answered + gap * rng.normal(size=(layers, positions, WIDTH))
    refused[0] = answered[0] * (1.0 + 1e-9)  # the embedding of a template token: equal but for rounding
    return refused, answered


def candidates():
    return fit(*means(), fitted="by hand")


def test_differences_point_from_answered_to_refused_at_every_layer_that_may_be_chosen():
    refused, answered = means()

    found = candidates()

    # Layer 0 has none, layer 4 of 5 is too deep; positions count from the end.
    assert [(each.layer, each.position) for each in found] == [(layer, position) for layer in (1, 2, 3) for position in (-2, -1)]
    for each in found:
        difference = (refused - answered)[each.layer, each.position]
        assert each.raw == pytest.approx(difference)


def test_a_plant_in_layer_0_is_found_in_layer_0():
    answered = np.ones((2, 1, 3))
    refused = answered.copy()
    refused[0, 0, 1] += 2.0

    (found,) = fit(refused, answered, fitted="")

    assert (found.layer, found.position, found.raw.tolist()) == (0, -1, [0.0, 2.0, 0.0])


def test_means_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        fit(np.ones((2, 1, 3)), np.ones((2, 2, 3)), fitted="")


def chosen(effects, worth=None):
    found = candidates()
    table = dict(zip(found, effects, strict=True))
    return select(found, table.__getitem__, lambda one: (worth or {}).get(found.index(one), 0.0))


FINE = Effect(ablated=0.0, induced=1.0, divergence=0.05)


@pytest.mark.parametrize(
    "spoilt",
    [
        Effect(ablated=-9.0, induced=-0.1, divergence=0.0),
        Effect(ablated=-9.0, induced=1.0, divergence=0.11),
        Effect(ablated=-9.0, induced=1.0, divergence=float("nan")),
    ],
    ids=["induces nothing", "harms harmless prompts", "not a number"],
)
def test_the_strongest_ablation_is_not_taken_where_it_does_not_qualify(spoilt):
    better = Effect(ablated=-2.0, induced=0.0, divergence=0.1)  # on both boundaries

    found = chosen([FINE, spoilt, better, FINE, FINE, FINE])

    assert (found.chosen, found.qualified) == (2, True)


def test_without_a_qualified_candidate_the_strongest_ablation_is_taken_and_marked():
    weak = Effect(ablated=1.0, induced=-1.0, divergence=0.0)

    found = chosen([weak, weak, weak, Effect(ablated=-1.0, induced=-1.0, divergence=0.0), weak, weak])

    assert (found.chosen, found.qualified) == (3, False)


def test_replies_decide_among_the_few_best():
    assert chosen([FINE] * 6, worth={4: 1.5}).chosen == 4
    assert chosen([FINE] * 6).chosen == 0


def test_nothing_finite_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        chosen([Effect(ablated=float("nan"), induced=0.0, divergence=0.0)] * 6)


def test_openings_that_overlap_are_not_usable():
    apart = learn_openings([1] * 50, [2] * 50)
    mixed = learn_openings([1] * 30 + [2] * 20, [2] * 50)

    assert (apart.refusing, apart.usable) == ((1,), True)
    assert (mixed.refusing, mixed.usable) == ((1,), False)
    assert not learn_openings([1, 2], [1, 2]).usable
    with pytest.raises(ValueError, match="at least one"):
        learn_openings([], [1])


def test_the_score_keeps_its_meaning_where_probabilities_round_to_one():
    logs = np.array([[0.0, -50.0, -60.0], [-50.0, 0.0, -60.0]])

    assert Openings(refusing=(0,), apart=1.0).score(logs) == pytest.approx([50.0, -50.0], abs=1e-3)


def test_divergence_is_zero_only_for_equals():
    logs = np.log(np.random.default_rng(0).dirichlet(np.ones(5), size=4))

    assert divergence(logs, logs) == 0.0
    assert divergence(logs, np.roll(logs, 1, axis=1)) > 0.0
    assert np.isfinite(divergence(np.array([[0.0, -np.inf]]), np.array([[-1.0, -0.5]])))


def grams(matrices, span):
    return [span.T @ matrix @ matrix.T @ span for matrix in matrices]


def test_a_direction_taken_out_of_the_weights_is_found_within_the_span():
    """What was removed is a mixture of the directions we know; along each of them alone much is still written."""
    rng = np.random.default_rng(0)
    found = chosen([FINE] * 6)
    span = causal_span(found, one(found.direction, 4, affine=False))
    matrices = [rng.normal(size=(WIDTH, 40)) * size for size in (100.0, 1.0, 1.0)]
    removed = span @ np.array([0.6, 0.8, 0.0])
    edited = [matrix - np.outer(removed, removed @ matrix) for matrix in matrices]
    before, after = grams(matrices, span), grams(edited, span)

    assert span.T @ span == pytest.approx(np.eye(3), abs=1e-12)
    assert span[:, 0] == pytest.approx(found.direction.vector)
    assert abs(least_gain(before, after) @ (span.T @ removed)) == pytest.approx(1.0, abs=1e-3)
    assert gains_along(least_gain(before, after), before, after).middle < 0.03
    assert gains_along(np.array([1.0, 0.0, 0.0]), before, after).middle > 0.6


def test_a_dense_change_of_a_larger_size_takes_nothing_out():
    rng = np.random.default_rng(0)
    found = chosen([FINE] * 6)
    span = causal_span(found, one(found.direction, 4, affine=False))
    matrices = [rng.normal(size=(WIDTH, 200)) for _ in range(4)]
    changed = [matrix + 0.3 * rng.normal(size=matrix.shape) for matrix in matrices]
    before, after = grams(matrices, span), grams(changed, span)

    assert gains_along(least_gain(before, after), before, after).middle == pytest.approx(1.0, abs=0.1)


def test_gains_need_matrices():
    with pytest.raises(ValueError, match="as many"):
        least_gain([np.eye(1)], [])
    with pytest.raises(ValueError, match="writes nothing"):
        least_gain([np.zeros((1, 1))], [np.eye(1)])
    with pytest.raises(ValueError, match="beside the embedding"):
        gains_along(np.ones(1), [np.eye(1)], [np.eye(1)])


def test_the_span_of_a_subspace_holds_all_of_it():
    found = chosen([FINE] * 6)
    columns = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, 4)))[0]

    span = causal_span(found, subspace(columns, 4, found.direction, affine=False))

    assert np.linalg.norm(span.T @ columns, axis=0) == pytest.approx(np.ones(4), abs=0.05)
    assert span.T @ span == pytest.approx(np.eye(span.shape[1]), abs=1e-12)


def test_a_direction_of_its_own_taken_out_of_every_matrix_is_seen_by_layer():
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(WIDTH, 40)) for _ in range(3)]
    units = [np.eye(WIDTH)[:, [layer, layer + 1]] for layer in range(3)]
    edited = [matrix - np.outer(own[:, 1], own[:, 1] @ matrix) for matrix, own in zip(matrices, units, strict=True)]

    before, after = (
        [np.square(own.T @ matrix).sum(axis=1) for matrix, own in zip(side, units, strict=True)] for side in (matrices, edited)
    )

    assert gains_by_layer(before, before) == pytest.approx(np.ones(3))
    assert gains_by_layer(before, after) == pytest.approx(np.zeros(3), abs=1e-9)
