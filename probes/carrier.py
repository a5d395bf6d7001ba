"""What carries a model's refusals, as far as removing it shows: one direction, one for every layer, or a small subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probes.direction import Direction, from_difference
from probes.linear import random_units

Array = NDArray[np.float64]
Form = Literal["direction", "per-layer", "subspace"]
WORDS: dict[Form, str] = {"direction": "one direction", "per-layer": "one direction for every layer", "subspace": "a subspace"}
SPAN_MOST = 8
"""Most columns: among many directions the smallest gain is small by chance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Carrier:
    """What is taken out of the residual stream to end refusal, and what is added to bring it about.

    Attributes:
        form: How much is taken out: the smallest form that does is wanted.
        affine: False takes the components out of every token, and adds to every token (Arditi et al. 2024), which edited weights
            could do as well. True sets them, on the tokens of the prompt alone, to what they are on answered prompts
            (Marshall et al. 2024, arXiv:2411.09003: refusal is an affine function), and adds to those tokens alone: where
            the absence of a component means refusal, taking it out makes a model refuse everything.
        columns: Orthonormal columns `[d, k]` for each block.
        direction: What is added, at its layer.
        coefficient: Times the direction's gap that is added.
    """

    form: Form
    affine: bool
    columns: tuple[Array, ...]
    direction: Direction
    coefficient: float = 1.0

    @property
    def size(self) -> int:
        """Most directions that are taken out of one place."""
        return max(int(block.shape[1]) for block in self.columns)

    @property
    def push(self) -> Array:
        """The vector `[d]` that is added."""
        return self.coefficient * self.direction.raw

    @property
    def words(self) -> str:
        """What it is, in words."""
        form = f"{WORDS[self.form]} of {self.size} dimensions" if self.form == "subspace" else WORDS[self.form]
        return f"{form}, {'set to its mean over answered prompts on the tokens of the prompt' if self.affine else 'removed everywhere'}"

    def levels(self, answered: Array) -> tuple[Array, ...]:
        """What the components are set to, `[k]` for each of the layers 0 to `blocks`; nothing where they are taken out.

        Args:
            answered: Mean activations `[layers + 1, positions, d]` of answered prompts.
        """
        if not self.affine:
            return ()
        places = [*self.columns, self.columns[-1]]
        return tuple(mean[self.direction.position] @ columns for mean, columns in zip(answered, places, strict=True))


def one(direction: Direction, blocks: int, *, affine: bool) -> Carrier:
    """The same single direction in every block."""
    return Carrier(form="direction", affine=affine, columns=(direction.vector[:, None],) * blocks, direction=direction)


def per_layer(differences: Array, direction: Direction, *, affine: bool) -> Carrier:
    """For every block the direction of its own difference of means.

    Args:
        differences: Raw differences `[blocks, d]`; a block with one of zeros is left alone.
        direction: What is added.
        affine: See `Carrier`.
    """
    return Carrier(form="per-layer", affine=affine, columns=tuple(unit_columns(row) for row in differences), direction=direction)


def subspace(columns: Array, blocks: int, direction: Direction, *, affine: bool) -> Carrier:
    """The same orthonormal columns `[d, k]` in every block."""
    return Carrier(form="subspace", affine=affine, columns=(columns,) * blocks, direction=direction)


def unit_columns(vector: Array) -> Array:
    """A vector `[d]` as one column of length 1; no column where it is zero.

    >>> unit_columns(np.array([0.0, 2.0])).tolist(), unit_columns(np.zeros(2)).shape
    ([[0.0], [1.0]], (2, 0))
    """
    size = float(np.linalg.norm(vector))
    return vector[:, None] / size if size > 0.0 else np.zeros((len(vector), 0))


def own_columns(differences: Array) -> tuple[Array, ...]:
    """For each block the directions `[d, j]`, of length 1, of what enters it and of what leaves it.

    Args:
        differences: Raw differences of means `[layers + 1, d]`; rows of zeros have no direction.

    >>> [columns.shape for columns in own_columns(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]))]
    [(2, 1), (2, 2)]
    """
    units = [unit_columns(row) for row in differences]
    return tuple(np.hstack(pair) for pair in pairwise(units))


def widened(columns: Array, vector: Array) -> Array | None:
    """Columns `[d, k + 1]` that span `vector` as well; None where it lies in their span, but for a part that is noise.

    >>> widened(np.array([[1.0], [0.0]]), np.array([3.0, 4.0])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rest = vector - columns @ (columns.T @ vector)
    size = float(np.linalg.norm(rest))
    if size <= SPAN_NEW * float(np.linalg.norm(vector)):
        return None
    return np.hstack([columns, rest[:, None] / size])


SPAN_NEW = 0.3
"""Least part of a direction that must lie outside the span so far for it to be widened: less is noise of the means."""


def alike(carrier: Carrier, rng: np.random.Generator) -> Carrier:
    """A random carrier of the same form, size and length: the control."""
    width = len(carrier.direction.vector)
    if carrier.form == "per-layer":
        columns = tuple(random_units(rng, 1, width).T if block.shape[1] else block for block in carrier.columns)
    else:
        drawn, _ = np.linalg.qr(rng.normal(size=(width, carrier.size)))
        columns = (drawn,) * len(carrier.columns)
    there = columns[carrier.direction.layer]
    pushed = there[:, 0] if there.shape[1] else random_units(rng, 1, width)[0]
    random = from_difference(
        carrier.direction.gap * pushed, layer=carrier.direction.layer, position=carrier.direction.position, fitted="random"
    )
    return replace(carrier, columns=columns, direction=random)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One carrier on the prompts it was chosen with: share of refused prompts that were answered when it was removed, share
    of answered ones that were refused when it was added, and KL(plain || removed) on answered prompts, in nats.
    """

    carrier: Carrier
    answered: float
    refused: float
    divergence: float

    @property
    def worth(self) -> float:
        """What it does, both ways, between 0 and 2."""
        return self.answered + self.refused

    @property
    def spares(self) -> bool:
        """Whether its removal leaves harmless prompts alone."""
        return self.divergence <= MAX_KL

    @property
    def does(self) -> bool:
        """Whether no larger one need be looked for."""
        return self.spares and min(self.answered, self.refused) >= ENOUGH


MAX_KL = 0.1
"""Largest mean divergence of the first reply token on harmless prompts under ablation (Arditi et al. 2024)."""
ENOUGH = 0.8
"""Share of prompts whose treatment must turn both ways for a carrier to be taken without trying a larger one."""


def smallest(attempts: Sequence[Attempt]) -> Attempt:
    """The first that does, of attempts in the order of their size; else the one that does most, of those that spare harmless prompts
    if there are such.
    """
    return next((attempt for attempt in attempts if attempt.does), max(attempts, key=lambda attempt: (attempt.spares, attempt.worth)))
