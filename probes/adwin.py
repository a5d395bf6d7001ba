"""ADWIN: a window over 0/1 outcomes that lets go of its older part as soon as the two parts differ; its whole state is a list of counts.

A second opinion beside detectors whose false alarms are proved: its own bound holds for each look, not for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Buckets = tuple[tuple[int, int], ...]

DELTA = 0.002
"""Confidence of one look, as in the paper's implementation and in river."""
MOST_BUCKETS = 5
"""Buckets of a size that are kept before the two oldest are joined."""
GRACE, LEAST = 10, 5
"""Events in all, and in each part, below which nothing is compared (river's numbers)."""


@dataclass(frozen=True, kw_only=True)
class Adwin:
    """The window: `rows` from the finest to the coarsest, each the events that showed it in its buckets, the oldest first; row r has `grain` times 2**r events a bucket.

    Attributes:
        grain: Events of the smallest bucket. 1 is the algorithm of the paper; larger ones cost less, and see a cut only between buckets.
        clock: Buckets of the smallest size between two looks.
        rows: `[rows][buckets]` hits.
        partial: Events and hits that do not fill a bucket yet.
        taken: Smallest buckets that were filled since the beginning.
        cuts: How often the window was cut.
        last_cut: Event, counted from 1, of the last cut; 0 if there was none.
        rose: Whether what was kept at the last cut lay higher than what was let go.
    """

    grain: int = 32
    clock: int = 8
    rows: tuple[tuple[int, ...], ...] = ()
    partial: tuple[int, int] = (0, 0)
    taken: int = 0
    cuts: int = 0
    last_cut: int = 0
    rose: bool = False

    @property
    def events(self) -> int:
        """Events in the window."""
        return sum(len(row) * self.grain << place for place, row in enumerate(self.rows))

    @property
    def hits(self) -> int:
        """Of these, those that showed it."""
        return sum(map(sum, self.rows))


def slide(window: Adwin, outcomes: BoolArray, *, delta: float = DELTA) -> Adwin:
    """The window after a batch of events; batches of any size give what one event at a time would.

    Args:
        window: Where it stood.
        outcomes: `[n]` whether each event showed it, in the order in which they came.
        delta: Chance, at most about, that one look cuts a window without a change.

    Source:
        Bifet & Gavaldà 2007, SIAM Data Mining (ADWIN2), with the variance in the bound as in their implementation, and in river's.

    >>> quiet, loud = np.arange(3000) % 10 == 0, np.arange(1000) % 2 == 0
    >>> slide(Adwin(), quiet).cuts, slide(slide(Adwin(), quiet), loud).rose
    (0, True)
    """
    x = np.asarray(outcomes, dtype=bool)
    if x.ndim != 1:
        raise ValueError(f"outcomes are a vector, not of shape {x.shape}")
    count, hits = window.partial
    joined = np.concatenate([_unrolled(count, hits), x])  # within a bucket the order says nothing
    whole = len(joined) // window.grain
    sums = joined[: whole * window.grain].reshape(whole, window.grain).sum(axis=1)
    rows, taken, cuts, last_cut, rose = [list(row) for row in window.rows], window.taken, window.cuts, window.last_cut, window.rose
    for hit in sums.tolist():
        taken += 1
        _insert(rows, int(hit))
        if taken % window.clock == 0:
            cut, higher = _cut(rows, window.grain, delta)
            if cut:
                cuts, last_cut, rose = cuts + 1, taken * window.grain, higher
    left = joined[whole * window.grain :]
    return Adwin(
        grain=window.grain, clock=window.clock, rows=tuple(tuple(row) for row in rows), partial=(len(left), int(left.sum())), taken=taken,
        cuts=cuts, last_cut=last_cut, rose=rose,
    )  # fmt: skip


def _unrolled(count: int, hits: int) -> BoolArray:
    return np.arange(count) < hits


def _insert(rows: list[list[int]], hits: int) -> None:
    """Put a smallest bucket in front, and join the two oldest of each size of which there are too many."""
    held = hits
    for place in range(len(rows) + 1):
        if place == len(rows):
            rows.append([])
        rows[place].append(held)
        if len(rows[place]) <= MOST_BUCKETS:
            return
        held = rows[place].pop(0) + rows[place].pop(0)


def _cut(rows: list[list[int]], grain: int, delta: float) -> tuple[bool, bool]:
    """Let go of the oldest buckets while any division of the window shows two rates; whether it did, and whether the rate rose."""
    cut, rose = False, False
    while True:
        sizes = [grain << place for place in reversed(range(len(rows))) for _ in rows[place]]
        hits = [hit for row in reversed(rows) for hit in row]
        found = _differs(sizes, hits, delta)
        if found is None:
            return cut, rose
        cut, rose = True, found
        del rows[-1][0]
        while rows and not rows[-1]:
            rows.pop()


def _differs(sizes: Sequence[int], hits: Sequence[int], delta: float) -> bool | None:
    """Whether the later part lies higher, at the first division at which the parts differ; None if there is none."""
    events = sum(sizes)
    if events <= GRACE or len(sizes) < 2:
        return None
    first, ones = np.cumsum(sizes[:-1]).astype(np.float64), np.cumsum(hits[:-1]).astype(np.float64)
    second, rest, rate = events - first, sum(hits) - ones, sum(hits) / events
    allowed = (first >= LEAST) & (second >= LEAST)
    logarithm = math.log(2.0 * math.log(events) / delta)
    inverse = 1.0 / np.maximum(first - LEAST + 1.0, 1.0) + 1.0 / np.maximum(second - LEAST + 1.0, 1.0)
    bound = np.sqrt(2.0 * inverse * rate * (1.0 - rate) * logarithm) + 2.0 / 3.0 * inverse * logarithm
    apart = rest / second - ones / first
    over = np.flatnonzero(allowed & (np.abs(apart) > bound))
    return bool(apart[over[0]] > 0.0) if over.size else None
