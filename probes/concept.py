"""A concept read off a model by linear probes: fitted layer by layer, tested on groups that were held out, followed into another model.

Everything is said of rows that a probe has not seen, and of no group that it has seen a part of; also the layer is chosen without them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.geometry import cosine
from probes.linear import Indices, auroc, auroc_interval, grouped_folds
from probes.logistic import Floats, Probe, fit_discriminant, fit_logistic, span

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]
SHUFFLES = 20
"""Label sets dealt out anew: enough to show that the procedure itself finds nothing."""
ALLOWED = 0.01
"""Share of negative rows that a threshold may let pass as positive."""


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """Probes of every layer, fitted once a fold without it.

    Attributes:
        folds: Rows each was fitted on, and rows it was tested on.
        probes: By fold and layer.
        scores: `[n, layers]` of each row by the probes that had not seen it.
        discriminant: The same of linear discriminants with a shrunk covariance; empty if they were not asked for.
        shuffled: AUROC `[shuffles, layers]` of probes fitted to labels dealt out anew, on theirs.
    """

    folds: tuple[tuple[Indices, Indices], ...]
    probes: tuple[tuple[Probe, ...], ...]
    scores: Array
    discriminant: Array
    shuffled: Array


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How probes are fitted: with so many shuffled label sets, by their own seed, with discriminants beside them, or by means alone."""

    shuffles: int = 0
    seed: int = 0
    discriminants: bool = False
    by_means: bool = False


def cross_fit(rows: Floats, labels: Labels, folds: Sequence[tuple[Indices, Indices]], plan: Plan = Plan()) -> Crossed:
    """Fit every layer of `[n, layers, d]` rows once a fold; real labels and shuffled ones share what is expensive about it.

    Raises:
        ValueError: A fold holds one kind only, or a value is not finite.
    """
    n, layers, _ = rows.shape
    rng = np.random.default_rng(plan.seed)
    dealt = np.stack([labels, *(rng.permutation(labels) for _ in range(plan.shuffles))], axis=1)
    scores = np.zeros((1 + plan.shuffles, n, layers))
    discriminant = np.zeros((n, layers) if plan.discriminants else (0, layers))
    probes = []
    for train, test in folds:
        of_fold = []
        for layer in range(layers):
            held = span(rows[train, layer])
            if plan.by_means:
                fitted = [mean_difference(rows[train, layer], kinds) for kinds in dealt[train].T]
                scores[:, test, layer] = np.stack([probe.score(rows[test, layer]) for probe in fitted])
                of_fold.append(fitted[0])
            else:
                fits = fit_logistic(held, dealt[train])
                scores[:, test, layer] = fits.scores(rows[test, layer]).T
                of_fold.append(fits.probe())
            if plan.discriminants:
                discriminant[test, layer] = fit_discriminant(held, labels[train]).score(rows[test, layer])
        probes.append(tuple(of_fold))
    shuffled = np.array([by_layer(scores[1 + index], dealt[:, 1 + index]) for index in range(plan.shuffles)]).reshape(plan.shuffles, layers)
    return Crossed(folds=tuple(folds), probes=tuple(probes), scores=scores[0], discriminant=discriminant, shuffled=shuffled)


def by_layer(scores: Array, labels: Labels) -> Array:
    """AUROC `[layers]` of scores `[n, layers]`."""
    return np.array([auroc(column[labels], column[~labels]) for column in scores.T])


def elsewhere(crossed: Crossed, rows: Floats) -> Array:
    """Scores `[n, layers]` of other rows `[n, layers, d]` of the same prompts by the probes that had not seen the prompt."""
    scores = np.zeros(rows.shape[:2])
    for (_, test), probes in zip(crossed.folds, crossed.probes, strict=True):
        for layer, probe in enumerate(probes):
            scores[test, layer] = probe.score(rows[test, layer])
    return scores


def best_layer(scores: Array, labels: Labels) -> int:
    """The layer with the highest AUROC; of equals the one whose kinds lie furthest apart in units of their spread."""
    found = by_layer(scores, labels)
    gap = scores[labels].mean(axis=0) - scores[~labels].mean(axis=0)
    spread = np.sqrt((scores[labels].var(axis=0) + scores[~labels].var(axis=0)) / 2.0)
    apart = gap / np.where(spread > 0.0, spread, 1.0)
    return max(range(len(found)), key=lambda layer: (found[layer], apart[layer]))


def nested_scores(rows: Floats, labels: Labels, groups: Sequence[Hashable], crossed: Crossed, *, seed: int) -> Array:
    """Scores `[n]` by probes that had not seen the row, at layers chosen without it: by folds within each part fitted on.

    Raises:
        ValueError: A kind has fewer than 3 groups, so that none is left to choose by.
    """
    found = np.zeros(len(labels))
    for train, test in crossed.folds:
        inner = grouped_folds(labels[train], [groups[index] for index in train], seed=seed)
        chosen = best_layer(cross_fit(rows[train], labels[train], inner).scores, labels[train])
        found[test] = crossed.scores[test, chosen]
    return found


def threshold_for(negative: Array) -> float:
    """The least score that at most `ALLOWED` of the negative ones lie above.

    >>> threshold_for(np.arange(200.0))
    197.0
    """
    return float(np.sort(negative)[::-1][math.floor(ALLOWED * len(negative))])


def whole_fit(rows: Floats, labels: Labels, *, by_means: bool = False) -> tuple[Probe, ...]:
    """A probe a layer, fitted on all of `[n, layers, d]`: to be kept and used, not to be judged by these rows."""
    layers = (rows[:, layer] for layer in range(rows.shape[1]))
    return tuple(mean_difference(part, labels) if by_means else fit_logistic(span(part), labels).probe() for part in layers)


def mean_difference(rows: Floats, labels: Labels) -> Probe:
    """The direction from the mean of negative rows `[n, d]` to that of positive ones, of length 1; 0 half-way between them.

    Raises:
        ValueError: There is only one kind.

    >>> mean_difference(np.array([[0.0, 0.0], [6.0, 8.0]]), np.array([False, True])).score(np.array([[3.0, 4.0], [6.0, 8.0]])).tolist()
    [0.0, 5.0]
    """
    if labels.all() or not labels.any():
        raise ValueError("a difference of means needs rows of both kinds")
    high, low = (np.asarray(rows[kind].mean(axis=0, dtype=np.float64)) for kind in (labels, ~labels))
    length = float(np.linalg.norm(high - low))
    vector = (high - low) / (length if length > 0.0 else 1.0)
    return Probe(vector=vector, intercept=-float(vector @ (high + low)) / 2.0)


def cosines(ours: Sequence[Probe], theirs: Sequence[Probe]) -> Array:
    """Cosine `[layers]` between the probes of two models."""
    return np.array([cosine(one.vector, other.vector) for one, other in zip(ours, theirs, strict=True)])


def mean_cosines(ours: Floats, theirs: Floats, labels: Labels) -> Array:
    """Cosine `[layers]` between the differences of means of two models on the same prompts, `[n, layers, d]`."""
    gaps = [
        np.asarray(rows[labels].mean(axis=0, dtype=np.float64) - rows[~labels].mean(axis=0, dtype=np.float64)) for rows in (ours, theirs)
    ]
    return np.array([cosine(one, other) for one, other in zip(*gaps, strict=True)])


def known_above(n: int) -> float:
    """What the 95 % interval of a perfect AUROC on `n` rows of either kind still leaves open downwards.

    >>> round(known_above(20), 2)
    0.9
    """
    return auroc_interval(np.arange(float(n)) + n, np.arange(float(n))).low


def needed_for(least: float) -> int:
    """Rows of either kind from which on a perfect AUROC is known to lie above `least`.

    >>> needed_for(0.9)
    21
    """
    n = 2
    while known_above(n) < least:
        n += max(1, n // 50)
    return n
