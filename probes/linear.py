"""Linear probes: how well two kinds of prompts can be told apart by a projection, and how well chance would do it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]
Z_95 = float(stats.norm.ppf(0.975))
BOOTSTRAPS = 1000
FOLDS = 4
PENALTY = 1.0
"""Inverse strength of the logistic probe's ridge penalty (scikit-learn's C), on standardised columns."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number between 0 and 1 with a two-sided 95 % interval, from `n` cases."""

    value: float
    low: float
    high: float
    n: int


def auroc(positive: Array, negative: Array) -> float:
    """Chance that a positive score lies above a negative one; ties count half.

    Raises:
        ValueError: A side is empty.

    >>> auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(positive) or not len(negative):
        raise ValueError("an AUROC needs cases of both kinds")
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2.0) / (n * m))


def auroc_interval(positive: Array, negative: Array) -> Estimate:
    """AUROC with a score interval that keeps its width at 1.0, where a bootstrap claims certainty.

    Source:
        Newcombe 2006, Statistics in Medicine 25:559, method 5: bounds are the values whose own standard error (Hanley
        and McNeil 1982, exponential model) puts them just 1.96 away from the estimate.

    >>> found = auroc_interval(np.arange(20.0) + 20.0, np.arange(20.0))
    >>> found.value, round(found.low, 3), found.high
    (1.0, 0.899, 1.0)
    """
    value, n, m = auroc(positive, negative), len(positive), len(negative)

    def away(theta: float) -> float:
        middle = (n + m) / 2.0
        variance = theta * (1.0 - theta) / (n * m) * (2.0 * middle - 1.0 - 3.0 * (middle - 1.0) / ((2.0 - theta) * (1.0 + theta)))
        return abs(value - theta) - Z_95 * math.sqrt(max(variance, 0.0))

    # At 0 and 1 themselves the standard error vanishes and every search would stop there, so it starts just inside.
    edge, inside = 1e-12, min(max(value, 1e-9), 1.0 - 1e-9)
    low = float(optimize.brentq(away, edge, inside)) if value > 1e-9 and away(edge) > 0.0 else 0.0
    high = float(optimize.brentq(away, inside, 1.0 - edge)) if value < 1.0 - 1e-9 and away(1.0 - edge) > 0.0 else 1.0
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n + m)


def sensitivity(positive: Array, negative: Array, *, false_positives: float = 0.01) -> float:
    """Share of positive scores above the threshold that at most `false_positives` of the negative ones exceed.

    >>> sensitivity(np.array([5.0, 1.0]), np.arange(4.0))
    0.5
    """
    if not len(positive) or not len(negative):
        raise ValueError("a sensitivity needs cases of both kinds")
    allowed = math.floor(false_positives * len(negative))
    threshold = np.sort(negative)[::-1][allowed]
    return float(np.mean(positive > threshold))


def sensitivity_interval(positive: Array, negative: Array, *, seed: int, false_positives: float = 0.01) -> Estimate:
    """`sensitivity` with a bootstrap interval (percentiles of `BOOTSTRAPS` resamples of both kinds)."""
    rng = np.random.default_rng(seed)
    draws = [
        sensitivity(rng.choice(positive, len(positive)), rng.choice(negative, len(negative)), false_positives=false_positives)
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = sensitivity(positive, negative, false_positives=false_positives)
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=len(positive) + len(negative))


def share_interval(count: float, n: int) -> Estimate:
    """A share with its 95 % score interval (Wilson 1927), which keeps its width at 0 and 1.

    `count` may be the sum of values in [0, 1] as well: none vary more than as many 0 and 1, so the interval is wide enough.

    Raises:
        ValueError: There is no case, or more hits than cases.

    >>> round(share_interval(0, 100).high, 4)
    0.037
    """
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"impossible counts: {count} of {n}")
    share = count / n
    spread = Z_95 * math.sqrt(share * (1.0 - share) / n + Z_95**2 / (4.0 * n * n))
    middle, whole = share + Z_95**2 / (2.0 * n), 1.0 + Z_95**2 / n
    low, high = max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)
    return Estimate(value=share, low=min(low, share), high=max(high, share), n=n)


def grouped_scores(rows: Array, labels: Sequence[bool], groups: Sequence[Hashable], *, seed: int) -> Array:
    """Out-of-fold scores `[n]` of a logistic probe that never saw another row of the same group.

    Args:
        rows: Activations `[n, d]`.
        labels: True for positive rows.
        groups: What must not stand on both sides of a split, for example the category of each prompt.
        seed: Of the folds.

    Raises:
        ValueError: A kind has fewer than 2 groups, so that none can be held out.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.model_selection import StratifiedGroupKFold

    y, codes = np.asarray(labels, dtype=bool), np.unique([str(group) for group in groups], return_inverse=True)[1]
    held = min(len(set(codes[y])), len(set(codes[~y])))
    if held < 2:
        raise ValueError("a grouped split needs at least 2 groups of each kind")
    scores = np.zeros(len(y))
    folds = StratifiedGroupKFold(n_splits=min(FOLDS, held), shuffle=True, random_state=seed)
    for train, test in folds.split(rows, y, codes):
        if len(set(y[train])) < 2:
            raise ValueError("a fold holds one kind only; more groups are needed")
        middle, spread = rows[train].mean(axis=0), rows[train].std(axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        probe = LogisticRegression(C=PENALTY, max_iter=1000).fit((rows[train] - middle) / spread, y[train])
        # Scores of different folds have different scales; ranks within a fold can be put side by side.
        raw = probe.decision_function((rows[test] - middle) / spread)
        scores[test] = stats.rankdata(raw) / (len(raw) + 1)
    return scores


def shuffled_auroc(rows: Array, labels: Sequence[bool], groups: Sequence[Hashable], *, seed: int, times: int = 10) -> Array:
    """AUROC `[times]` of the same probe on labels dealt out anew: about 0.5 unless the procedure itself leaks."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(times):
        y = rng.permutation(np.asarray(labels, dtype=bool))
        scores = grouped_scores(rows, y.tolist(), groups, seed=seed)
        found.append(auroc(scores[y], scores[~y]))
    return np.array(found)


def random_aurocs(positive: Array, negative: Array, *, seed: int, count: int = 1000) -> Array:
    """How well `count` random directions tell `[n, d]` from `[m, d]` rows, each turned the way it does better."""
    rng = np.random.default_rng(seed)
    vectors = random_units(rng, count, positive.shape[1])
    found = np.array([auroc(positive @ vector, negative @ vector) for vector in vectors])
    return np.asarray(np.maximum(found, 1.0 - found))


def random_units(rng: np.random.Generator, count: int, width: int) -> Array:
    """`[count, width]` vectors of length 1, spread evenly over the sphere."""
    vectors = rng.normal(size=(count, width))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float64)


def stratified_parts(groups: Sequence[Hashable], sizes: Sequence[int], *, seed: int) -> tuple[tuple[int, ...], ...]:
    """Disjoint random parts of `range(len(groups))`, each with about the same mix of groups.

    Args:
        groups: Group of each item.
        sizes: Items in each part; together at most all of them.
        seed: Of the shuffle within groups.

    Raises:
        ValueError: The parts ask for more items than there are.

    >>> parts = stratified_parts(["a"] * 4 + ["b"] * 4, [4, 2], seed=0)
    >>> [sorted(index // 4 for index in part) for part in parts]
    [[0, 0, 1, 1], [0, 1]]
    """
    if sum(sizes) > len(groups):
        raise ValueError(f"{sum(sizes)} items asked for, {len(groups)} held")
    rng = np.random.default_rng(seed)
    by_group: dict[Hashable, list[int]] = {}
    for index in rng.permutation(len(groups)).tolist():
        by_group.setdefault(groups[index], []).append(index)
    # Each item stands at its share of the way through its group; cutting that order anywhere keeps the mix.
    places = [(((rank + 0.5) / len(held)), str(group), index) for group, held in by_group.items() for rank, index in enumerate(held)]
    order = [index for _, _, index in sorted(places)]
    parts, start = [], 0
    for size in sizes:
        parts.append(tuple(order[start : start + size]))
        start += size
    return tuple(parts)
