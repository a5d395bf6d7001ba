"""A monitor along given directions: how far clean text goes along them, and how often a text outside of that range is clean all the same.

Every direction asks its own question of every token, so that the chance that one of them is answered wrongly grows with their number.
Here a text has one figure, how far it goes beyond the range in whatever direction it goes furthest, and one threshold is set on that
figure by clean texts that had no part in the range: its false alarms do not grow with the number of directions.

Source: Zhong and Raghunathan 2025, arXiv:2508.00161, who take the range itself (with a fixed slack of 0.01) for the threshold of each
direction. The threshold by order statistics is split conformal prediction (Vovk, Gammerman and Shafer 2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NARROW = 1e-4
"""Least width of a range, in cosine: where clean text does not move at all rounding would be the only unit."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """How far clean texts went along each direction: least and largest cosine, `[k]` each."""

    low: Array
    high: Array

    def beyond(self, extremes: Array) -> Array:
        """How far texts go beyond it, in widths of the range, at the direction where each goes furthest.

        Args:
            extremes: `[n, 2, k]`, from `extremes_of`.

        Returns:
            `[n]`; 0 at the edge, below 0 inside, -0.5 at most.

        >>> Range(low=np.array([0.0]), high=np.array([2.0])).beyond(np.array([[[0.5], [3.0]], [[0.5], [1.0]]])).tolist()
        [0.5, -0.25]
        """
        return np.asarray(self.by_direction(extremes).max(axis=1))

    def by_direction(self, extremes: Array) -> Array:
        """The same for each direction, `[n, k]`."""
        width = np.maximum(self.high - self.low, NARROW)
        return np.asarray(np.maximum(self.low - extremes[:, 0], extremes[:, 1] - self.high) / width)


def extremes_of(cosines: NDArray[np.floating]) -> Array:
    """Least and largest cosine `[2, k]` over the tokens of one text, `[tokens, k]`."""
    return np.stack([cosines.min(axis=0), cosines.max(axis=0)]).astype(np.float64)


def range_of(extremes: Array) -> Range:
    """The range of clean texts `[n, 2, k]`.

    Raises:
        ValueError: There is no text.
    """
    if not len(extremes):
        raise ValueError("a range needs at least one text")
    return Range(low=extremes[:, 0].min(axis=0), high=extremes[:, 1].max(axis=0))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A figure above which a text is flagged, and the share of clean texts that are flagged at most, on average over draws."""

    value: float
    promised: float


def threshold_of(figures: Sequence[float] | Array, wanted: float) -> Threshold:
    """The least threshold that promises at most `wanted` false alarms, or as few as so many clean texts can promise.

    Args:
        figures: Of clean texts that had no part in the range, `[n]`.
        wanted: Share of clean texts that may be flagged.

    Returns:
        An order statistic: a new text of the same kind lies above the m-th largest of n with probability m / (n + 1) at most.

    Raises:
        ValueError: There is no text.

    >>> threshold_of(np.arange(99.0), 0.02)
    Threshold(value=97.0, promised=0.02)
    """
    ordered = np.sort(np.asarray(figures, dtype=np.float64))[::-1]
    if not len(ordered):
        raise ValueError("a threshold needs at least one text")
    rank = max(1, math.floor(wanted * (len(ordered) + 1)))
    return Threshold(value=float(ordered[rank - 1]), promised=rank / (len(ordered) + 1))


def texts_needed(wanted: float) -> int:
    """Texts from which on a threshold can promise so few false alarms.

    >>> texts_needed(0.01)
    99
    """
    return math.ceil(1.0 / wanted) - 1
