"""What carries refusals: forms, levels, random ones alike, and which is taken."""

from __future__ import annotations

import numpy as np
import pytest

from probes.carrier import ENOUGH, Attempt, alike, one, own_columns, per_layer, smallest, subspace, widened
from probes.direction import from_difference

WIDTH, BLOCKS = 12, 3


def rng():
    return np.random.default_rng(0)


DIRECTION = from_difference(np.random.default_rng(7).normal(size=WIDTH), layer=1, position=-1, fitted="by hand")


def carriers():
    columns = np.linalg.qr(rng().normal(size=(WIDTH, 3)))[0]
    differences = rng().normal(size=(BLOCKS, WIDTH))
    differences[0] = 0.0
    return [
        carrier
        for affine in (False, True)
        for carrier in (
            one(DIRECTION, BLOCKS, affine=affine),
            per_layer(differences, DIRECTION, affine=affine),
            subspace(columns, BLOCKS, DIRECTION, affine=affine),
        )
    ]


@pytest.mark.parametrize("carrier", carriers(), ids=lambda one: one.words)
def test_a_random_one_has_the_same_form_size_and_length_and_another_direction(carrier):
    random = alike(carrier, rng())

    assert (random.form, random.affine, random.coefficient) == (carrier.form, carrier.affine, carrier.coefficient)
    assert [block.shape for block in random.columns] == [block.shape for block in carrier.columns]
    assert np.linalg.norm(random.push) == pytest.approx(np.linalg.norm(carrier.push))
    for block in random.columns:
        assert block.T @ block == pytest.approx(np.eye(block.shape[1]), abs=1e-12)
    assert abs(random.direction.vector @ carrier.direction.vector) < 0.9
    assert alike(carrier, rng()).push == pytest.approx(random.push)


def test_levels_are_the_means_of_answered_prompts_at_the_chosen_position():
    answered = rng().normal(size=(BLOCKS + 1, 2, WIDTH))
    affine, linear = one(DIRECTION, BLOCKS, affine=True), one(DIRECTION, BLOCKS, affine=False)

    assert np.stack(affine.levels(answered))[:, 0] == pytest.approx(answered[:, -1] @ DIRECTION.vector)
    assert linear.levels(answered) == ()


def test_layers_without_a_difference_are_left_alone():
    carrier = carriers()[1]

    assert [block.shape[1] for block in carrier.columns] == [0, 1, 1]
    assert [block.shape[1] for block in own_columns(np.stack([np.zeros(4), np.ones(4), np.arange(4.0)]))] == [1, 2]


def test_what_lies_in_the_span_does_not_widen_it():
    columns = np.linalg.qr(rng().normal(size=(WIDTH, 2)))[0]

    assert widened(columns, columns @ np.array([1.0, 2.0])) is None
    assert widened(columns, rng().normal(size=WIDTH)).shape == (WIDTH, 3)


def attempt(answered, refused, divergence=0.0):
    return Attempt(carrier=one(DIRECTION, BLOCKS, affine=False), answered=answered, refused=refused, divergence=divergence)


@pytest.mark.parametrize(
    ("shares", "taken"),
    [
        ([(ENOUGH, ENOUGH), (1.0, 1.0)], 0),  # a larger one that does more is not wanted
        ([(1.0, 0.7), (0.9, 0.9)], 1),
        ([(0.5, 0.0), (0.4, 0.3), (0.1, 0.1)], 1),  # none does: the one that does most
        ([(1.0, 1.0, 5.0), (0.9, 0.9)], 1),  # the first changes what harmless prompts are told
        ([(1.0, 1.0, 5.0), (0.3, 0.3)], 1),
    ],
)
def test_the_smallest_that_does_is_taken(shares, taken):
    attempts = [attempt(*pair) for pair in shares]

    assert smallest(attempts) is attempts[taken]
