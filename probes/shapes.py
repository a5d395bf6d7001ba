"""Whether a block of events looks like any block of a reference: shares by bin, and means of vectors, each held against the block that is most alike.

Traffic changes with the hour, so that blocks differ honestly, and a test against their pool would alarm every night. The null here is that the
new block comes from where at least one block of the reference came from; a reference that spans a whole day has such a block for every hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

RARE = 10
"""Events of both blocks below which bins are joined."""
PERMUTATIONS = 999


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """How far a block is from the block of the reference that is most like it.

    `statistic` and `freedom` belong to the test of these two, before `inflation` divides the statistic; `place` is the block's number.
    """

    p_value: float
    place: int
    statistic: float
    freedom: int


def two_shares(first: Counts, second: Counts) -> tuple[float, int]:
    """Pearson's chi-square that two blocks have the same shares, and its degrees of freedom; (0.0, 0) where nothing can be compared.

    Args:
        first: `[k]` events of a block by bin.
        second: `[k]` those of the other. Bins with fewer than `RARE` events in both together are joined.

    >>> two_shares(np.array([90, 10, 1]), np.array([50, 50, 3]))  # the last bin is rare, and joins the smaller of the others
    (38.97520976092062, 1)
    """
    both = first + second
    rare = both < RARE
    pairs = np.stack([first, second])
    if rare.any():
        pairs = np.concatenate([pairs[:, ~rare], pairs[:, rare].sum(axis=1, keepdims=True)], axis=1)
        if pairs.shape[1] > 1 and pairs[:, -1].sum() < RARE:  # still rare together: to the smallest of the others
            smallest = int(pairs[:, :-1].sum(axis=0).argmin())
            pairs[:, smallest] += pairs[:, -1]
            pairs = pairs[:, :-1]
    if pairs.shape[1] < 2 or not pairs.sum(axis=1).all():
        return 0.0, 0
    total = pairs.sum()
    expected = pairs.sum(axis=1, keepdims=True) * pairs.sum(axis=0, keepdims=True) / total
    return float(((pairs - expected) ** 2 / expected).sum()), pairs.shape[1] - 1


def nearest_shares(block: Counts, reference: Counts, *, inflation: float = 1.0) -> Nearest:
    """The chance of as much difference from the most similar block, if some block of the reference comes from where this one does.

    Args:
        block: `[k]` events by bin.
        reference: `[r, k]` those of each block.
        inflation: By how much more than chance even the nearest blocks of the reference differ (`inflation_of_shares`).

    Returns:
        `Nearest`. The p-value is the largest of those against each block, so it is no smaller than that against the one that the null speaks of.
        It has no floor, as one by permutation of blocks would: chi-square's tail, which takes the events of a block for independent of one another,
        or dependent by no more than `inflation`.

    Source:
        Pearson 1900. Taking the largest of the p-values tests a union of hypotheses (intersection-union, Berger 1982, Technometrics 24:295).
    """
    return _nearest([two_shares(block, other) for other in reference], inflation)


def inflation_of_shares(reference: Counts) -> float:
    """By how much the statistics between nearest blocks of a reference exceed what chance allows for the worst of so many; at least 1."""
    return _inflation([nearest_shares(reference[place], np.delete(reference, place, axis=0)) for place in range(len(reference))])


@dataclass(frozen=True, kw_only=True)
class Bags:
    """Vectors of a block, summed in bags: `sums` `[b, d]`, `events` `[b]`. Nothing of a single event is in it, and bags of one block can be added up."""

    sums: Floats
    events: Counts

    @property
    def means(self) -> Floats:
        """`[b', d]` of the bags that hold anything."""
        held = self.events > 0
        return np.asarray(self.sums[held] / self.events[held, None])

    @property
    def mean(self) -> Floats:
        """`[d]` of the block."""
        return np.asarray(self.sums.sum(axis=0) / max(1, int(self.events.sum())))


def spread_within(reference: Sequence[Bags]) -> tuple[Floats, int]:
    """`[d, d]` covariance of one event's vector as far as bags of one block tell, and its degrees of freedom.

    Events of a bag that go together make it larger, as they should.
    """
    width = reference[0].sums.shape[1]
    total, freedom = np.zeros((width, width)), 0
    for block in reference:
        held = block.events > 0
        away = block.means - block.mean
        total += (away * block.events[held, None]).T @ away
        freedom += max(0, int(held.sum()) - 1)
    return total / max(1, freedom), freedom


def nearest_mean(block: Bags, reference: Sequence[Bags], spread: tuple[Floats, int], *, inflation: float = 1.0) -> Nearest:
    """As `nearest_shares`, of the mean vector: Hotelling's test of two means under the spread within blocks of the reference.

    On embeddings it is the maximum mean discrepancy with a linear kernel, in units of its own noise.

    Args:
        block: Of the new traffic.
        reference: The other blocks.
        spread: Of `spread_within`.
        inflation: See `nearest_shares`.

    Source:
        Hotelling 1931, Annals of Mathematical Statistics 2:360; as a kernel two-sample test with few features: Chwialkowski et al. 2015, arXiv:1506.04725.
    """
    covariance, freedom = spread
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-6 * max(float(values[-1]), 1e-12)
    width = int(kept.sum())
    n = int(block.events.sum())
    if not width or freedom <= width or not n:
        return Nearest(p_value=1.0, place=0, statistic=0.0, freedom=0)
    tests = []
    for other in reference:
        m = int(other.events.sum())
        along = (block.mean - other.mean) @ vectors[:, kept] if m else np.zeros(width)
        squared = n * m / (n + m) * float((along**2 / values[kept]).sum())
        # Hotelling's statistic is an F; what chi-square has of the same chance stands in the common currency of this module.
        chance = float(stats.f.logsf(squared * (freedom - width + 1) / (freedom * width), width, freedom - width + 1))
        tests.append((_chi_square_of(chance, width), width))
    return _nearest(tests, inflation)


def inflation_of_means(reference: Sequence[Bags], spread: tuple[Floats, int]) -> float:
    """As `inflation_of_shares`, of mean vectors."""
    others = [[other for place, other in enumerate(reference) if place != left] for left in range(len(reference))]
    return _inflation([nearest_mean(block, rest, spread) for block, rest in zip(reference, others, strict=True)])


def population_stability(first: Counts, second: Counts, *, permutations: int = PERMUTATIONS, seed: int = 0) -> tuple[float, float]:
    """The population stability index of two blocks, and the chance of as much if their events were dealt out at random.

    The usual bands of the index (0.1, 0.25) know nothing of how many events there were; the second number does.

    Args:
        first: `[k]` events of a block by bin.
        second: `[k]` those of the other.
        permutations: How often they are dealt out; the chance is at least 1 / (permutations + 1).
        seed: Of the dealing.
    """
    both = first + second
    dealt = np.random.default_rng(seed).multivariate_hypergeometric(both, int(first.sum()), size=permutations, method="marginals")
    observed = _index(first[None, :], second[None, :])[0]
    return float(observed), float((1 + np.sum(_index(dealt, both - dealt) >= observed - 1e-12)) / (permutations + 1))


def _index(first: Counts, second: Counts) -> Floats:
    p, q = (
        (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True) for counts in (first, second)
    )  # half an event keeps logarithms finite
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=1))


def _chi_square_of(log_chance: float, freedom: int) -> float:
    """The chi-square with this upper tail, also where the tail is below what numbers hold."""
    if log_chance > -600.0:
        return float(stats.chi2.isf(np.exp(log_chance), freedom))
    return -2.0 * log_chance  # the tail falls as exp(-x / 2)


def _nearest(tests: Sequence[tuple[float, int]], inflation: float) -> Nearest:
    chances = [float(stats.chi2.sf(statistic / inflation, freedom)) if freedom else 1.0 for statistic, freedom in tests]
    place = int(np.argmax(chances))
    return Nearest(p_value=chances[place], place=place, statistic=tests[place][0], freedom=tests[place][1])


def _inflation(found: Sequence[Nearest]) -> float:
    """The worst of so many should reach what one of twice as many does by chance."""
    return max(
        [1.0, *(one.statistic / float(stats.chi2.isf(1.0 / (2.0 * len(found)), one.freedom)) for one in found if one.freedom)],
    )
