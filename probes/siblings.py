"""Whether one of many siblings stands outside of all others: robust distances, with a false-alarm rate for the whole table.

Siblings are made of one base by like means, so each figure of theirs has a middle and a spread. Every sibling is tested on every figure, and
most tests are of nothing, so what counts is how far out the furthest of all of them would lie if none were unlike the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 12
"""Siblings below which nothing is said. Of so many, with eight figures each, an outlier of 20 standard deviations is found nine times in ten."""
LEVEL = 0.05
"""Share of tables without any outlier in which one is called, over all siblings and figures together."""
MAD_TO_SIGMA = 1.4826
DRAWS = 20_000
DRAWN_AT_ONCE = 1 << 20
"""Values of the reference held at a time."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far each of n siblings lies from the middle of one figure.

    `distances` `[n]` are signed, in robust standard deviations, and 0 where the figure is absent; `p_values` `[n]` are adjusted for all
    siblings and figures, and 1 where it is absent. `middle` and `spread` are those of the siblings that have it, of which there are `count`.
    """

    distances: Array
    p_values: Array
    middle: float
    spread: float
    count: int


def apart(values: ArrayLike, *, figures: int = 1) -> Apart | None:
    """Hold every sibling's value of one figure against the others'.

    Args:
        values: `[n]` the figure of each sibling, NaN where it is absent.
        figures: How many figures are tested in all; the p-values are adjusted for them.

    Returns:
        `Apart`; None where fewer than `LEAST` siblings have the figure, or half of them or more have the same value, so that there is no
        spread to measure by.

    Raises:
        ValueError: A value is infinite, or `figures` is not positive.

    Source:
        Distances by median and median absolute deviation (Iglewicz and Hoaglin 1993, who put the limit at 3.5 whatever the number of tests).
        The limit here is the distribution of the furthest of n (single-step maximum, Westfall and Young 1993), by simulation of the same
        statistic on n independent draws, times the number of figures (Bonferroni). The draws are Laplace's: a normal reference would call one
        in five tables of 12, and nearly all of 200, whose tails are only somewhat heavier than normal. So normal siblings are called far more seldom than
        `LEVEL`, at the price of outliers under ten standard deviations.

    >>> found = apart([1.0, 1.1, 0.9, 1.2, 0.8, 1.05, 0.95, 1.15, 0.85, 1.02, 0.98, 9.0])
    >>> int(found.p_values.argmin()), bool(found.p_values.min() < 0.01)
    (11, True)
    """
    whole = np.asarray(values, dtype=np.float64)
    if np.isinf(whole).any() or figures < 1:
        raise ValueError("a figure is infinite, or none is tested")
    there = ~np.isnan(whole)
    held = whole[there]
    if len(held) < LEAST:
        return None
    middle = float(np.median(held))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(held - middle)))
    if not spread > 0.0:
        return None
    distances, p_values = np.zeros(len(whole)), np.ones(len(whole))
    distances[there] = (held - middle) / spread
    furthest = _furthest(len(held))
    above = DRAWS - np.searchsorted(furthest, np.abs(distances[there]), side="left")
    p_values[there] = np.minimum(1.0, figures * (1.0 + above) / (1.0 + DRAWS))
    return Apart(distances=distances, p_values=p_values, middle=middle, spread=spread, count=len(held))


def smallest_called(count: int, *, figures: int, level: float = LEVEL) -> float:
    """The distance, in robust standard deviations, from which a sibling among `count` is called at `level`.

    >>> 10 < smallest_called(24, figures=8) < 12
    True
    """
    beyond = int(level * (1.0 + DRAWS) / figures) - 1
    furthest = _furthest(count)
    return float(furthest[-1] if beyond < 1 else furthest[-beyond])


@lru_cache(maxsize=16)
def _furthest(count: int) -> Array:
    """`[DRAWS]` the largest distance in each of so many tables of `count` draws, sorted; the same for everybody."""
    rng = np.random.default_rng(count)
    step = max(1, DRAWN_AT_ONCE // count)
    parts = []
    for start in range(0, DRAWS, step):
        drawn = np.abs(_centred(rng.laplace(size=(min(step, DRAWS - start), count))))
        spread = MAD_TO_SIGMA * np.median(drawn, axis=1)
        parts.append(drawn.max(axis=1) / spread)
    return np.sort(np.concatenate(parts))


def _centred(drawn: Array) -> Array:
    centred: Array = drawn - np.median(drawn, axis=1, keepdims=True)
    return centred
