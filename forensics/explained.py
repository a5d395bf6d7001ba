"""Whether the change of the weights explains the difference of the activations: by the directions that changed matrices write along.

What enters a layer differs because matrices before it write something else. Where few directions of their change hold most of the mean
difference, the difference is what these matrices were taught to write; where they hold no more than any directions would, it comes of
what later, unchanged parts make of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forensics.case import Case
from forensics.differ import measured, spread, transposed
from forensics.roles import WRITES, place
from probes.geometry import random_share, span_share

SPAN = 8
"""Directions taken, those along which the changes write most: few beside any width, and more than a merged adapter of usual rank puts
into its first matrices."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """By layer: the share of a mean difference that `size` directions of the change hold, and what random ones would.

    `chance` and `rare` are the mean and the 99th percentile over random spans of the same size. Layers before which no writing matrix
    changed measurably are left out.
    """

    layers: tuple[int, ...]
    shares: Array
    chance: Array
    rare: Array
    sizes: tuple[int, ...]


def explained(case: Case, differences: Array) -> Explained:
    """Hold mean differences `[layers + 1, d]` of what enters each layer, and leaves the last, against the change of the weights before.

    Raises:
        CannotCompare: What several adapters do to one tensor does not add up.
    """
    written: list[tuple[int, Array]] = [(layer, columns) for layer, columns in _written(case) if len(columns) == differences.shape[1]]
    layers, rows = [], []
    for layer, difference in enumerate(differences):
        before = [columns for where, columns in written if where < layer]
        if not before or not np.any(difference):
            continue
        left, values, _ = np.linalg.svd(np.concatenate(before, axis=1), full_matrices=False)
        size = min(SPAN, int(np.sum(values > 1e-10 * values.max())))
        layers.append(layer)
        rows.append((span_share(difference, left[:, :size]), *random_share(len(difference), size), size))
    shares, chance, rare, sizes = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 4
    return Explained(layers=tuple(layers), shares=shares, chance=chance, rare=rare, sizes=tuple(int(size) for size in sizes))


def _written(case: Case) -> list[tuple[int, Array]]:
    """For each changed matrix that writes to the residual stream its layer and `[d, k]`, its strongest directions times their sizes."""
    profiles, found = measured(case), []
    for pair in case.pairs:
        where, profile = place(pair.name), profiles[pair.name]
        spectrum = profile.spectrum
        if where.role not in WRITES or spectrum is None or not len(spectrum.sizes) or not spectrum.left.shape[1]:
            continue
        turned = transposed(case, where.role)
        side, entries, axis = (spectrum.right, profile.columns, 1) if turned else (spectrum.left, profile.rows, 0)
        directions = spread(side, entries, profile.shape[axis]).double().numpy()
        sizes = spectrum.sizes[: directions.shape[1]].double().numpy()
        if np.isfinite(directions).all() and np.isfinite(sizes).all() and sizes.max() > 0.0:
            found.append((where.layer, directions[:, : len(sizes)] * sizes))
    return found
