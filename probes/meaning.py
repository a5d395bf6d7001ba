"""Which tokens a direction of the residual stream stands for, against directions that stand for nothing in particular.

A readout gives every direction a number for every token of the vocabulary: its logit, its log probability, how much likelier it got. Some
tokens come out high for any direction, so a number is held against what control directions of the same length give for the same token.

Source: Minder et al. 2025, arXiv:2510.13900 (activation difference lens), who list the likeliest tokens and let a language model choose
among them. Standing each token against random directions, and one list out of several readouts by a rule without a judge, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Table = NDArray[np.floating]
LEAST_CONTROLS = 8
"""Fewest control directions: a standard deviation of fewer is itself no more than a guess."""
NARROWEST = 1e-3
"""Least spread of a token over the controls, as a share of the median token's: a token that hardly moves for any direction would
otherwise stand out for nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """One list of all tokens: `scores` `[tokens]`, higher is further out; `readouts` `[readouts, tokens]` are what they are made of.

    `controls` `[r]` are the highest scores that each control direction reached when it was held against the others, by itself and in no group.
    So of `g` groups that stand for no token about one control in `g + 1` comes further out than the list where the directions of a group are
    one and the same (the best of `g` is held against one), and up to every control where they have nothing in common: the mean of
    unrelated directions stands out less than one of them. A list that no control reaches is rare either way.
    """

    scores: Array
    readouts: Array
    controls: Array

    def order(self) -> NDArray[np.int64]:
        """Token ids, the furthest out first; equal ones by id."""
        return np.argsort(-self.scores, kind="stable").astype(np.int64)

    def places(self) -> NDArray[np.int64]:
        """Place of each token in the list; 1 is the first."""
        found = np.empty(len(self.scores), dtype=np.int64)
        found[self.order()] = np.arange(1, len(self.scores) + 1)
        return found

    @property
    def exceeded(self) -> int:
        """How many controls have a token as far out as this list's first."""
        return int(np.sum(self.controls >= self.scores.max()))


def rank(readouts: Sequence[tuple[Table, Table]], groups: Sequence[Sequence[int]]) -> Ranking:
    """One list out of several readouts of several directions: the mean over readouts and over the directions of a group, the best group.

    Numbers are levelled first. The mean over a group keeps what its directions have in common; a group by itself can say what others do not.

    Args:
        readouts: For each readout the numbers of the directions `[k, tokens]`, and of the controls `[r, tokens]`.
        groups: Which directions belong together, by row.

    Raises:
        ValueError: There is no readout or no group, tables differ in tokens, or there are fewer than 8 controls.
    """
    if not readouts or not groups or not all(groups):
        raise ValueError("a list needs at least one readout, and one group of directions")
    level = [(levelled(values), levelled(controls)) for values, controls in readouts]
    own = np.stack([standing(values, controls) for values, controls in level])
    against = np.stack([standing_of_controls(controls) for _, controls in level])
    together = np.stack([own[:, list(rows)].mean(axis=1) for rows in groups])
    best = together.mean(axis=1).argmax(axis=0)
    parts = np.take_along_axis(together, best[None, None], axis=0)[0]
    return Ranking(scores=parts.mean(axis=0), readouts=parts, controls=against.mean(axis=0).max(axis=1))


def levelled(table: Table) -> Array:
    """Each direction's numbers `[k, tokens]` with mean 0 and spread 1 over the tokens.

    A direction that makes all tokens likelier, or all differences larger, says nothing by that; only which tokens stand before which does.
    """
    wide = _checked(table)
    spread = wide.std(axis=1, keepdims=True)
    return np.asarray((wide - wide.mean(axis=1, keepdims=True)) / np.maximum(spread, np.finfo(np.float64).tiny))


def standing(values: Table, controls: Table) -> Array:
    """How far each token stands out for each direction `[k, tokens]`, in standard deviations of the controls `[r, tokens]`."""
    wide, against = _checked(values), _checked(controls)
    if wide.shape[1:] != against.shape[1:] or len(against) < LEAST_CONTROLS or not len(wide):
        raise ValueError(f"directions {wide.shape} cannot be held against controls {against.shape}; at least {LEAST_CONTROLS} are needed")
    return np.asarray((wide - against.mean(axis=0)) / _spread(against.var(axis=0, ddof=1)))


def standing_of_controls(controls: Table) -> Array:
    """The same for each control `[r, tokens]`, held against the others."""
    against = _checked(controls)
    count = len(against)
    if count < LEAST_CONTROLS:
        raise ValueError(f"{count} controls are too few; at least {LEAST_CONTROLS} are needed")
    total, centred = against.sum(axis=0), against - against.mean(axis=0)
    # Leaving one out shifts the mean by its own deviation, and takes n / (n - 1) of its square out of the sum of squares.
    squares = (centred**2).sum(axis=0) - centred**2 * count / (count - 1)
    others = (total - against) / (count - 1)
    return np.asarray((against - others) / _spread(np.maximum(squares, 0.0) / (count - 2)))


def _checked(table: Table) -> Array:
    wide = np.asarray(table, dtype=np.float64)
    if wide.ndim != 2 or not wide.size or not np.isfinite(wide).all():
        raise ValueError("a readout is a finite table of directions by tokens")
    return wide


def _spread(variances: Array) -> Array:
    deviations = np.sqrt(variances)
    least = NARROWEST * float(np.median(deviations))
    return np.maximum(deviations, max(least, np.finfo(np.float64).tiny))
