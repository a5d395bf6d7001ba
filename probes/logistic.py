"""Logistic and discriminant probes, exactly as scikit-learn defines them, solved in the span of the rows.

A penalised linear probe is a combination of the rows it was fitted on, so that with fewer rows than columns everything about it is
in their products with each other, `[n, n]`. These are formed once, and any number of label sets and penalties are then fitted side
by side: real labels, shuffled ones, several strengths. Sharing them is what makes controls cheap; a single fit gains less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

Floats = NDArray[np.floating]
Array = NDArray[np.float64]
FLAT = 1e-12
"""Spread below which, or below the rounding of its mean, a column is left as it is: dividing by it would blow up that rounding."""
NEWTON, CONJUGATE, SEARCHED = 60, 400, 6
"""Most Newton steps and most steps within one, which stop long before; and looks for the best length of a step."""
SETTLED = 1e-4
"""A fit is done once a Newton step moves no score by more than this: the step after it would move them by far less."""
FORCING = 0.1
"""Share of a Newton system's residual that may be left: exact answers would cost more than the steps they save."""
SHORT = 0.5
"""Length of a step below which its system was not solved well enough, and the next ones are solved ten times better."""
SKETCH = 48
"""Large directions that are divided out of the systems: activations have few, and past them the rest is more even."""
DAMPED = 0.05
"""Least pull of a row, as a share of how far its weight is from where its score would put it: else one that is placed with certainty
on the wrong side has hardly any, and a system with both kinds of rows is not solved well. Without effect at the optimum."""
LONGEST = 2.0
"""Most of a Newton step that is taken at once: longer ones reach scores at which nothing pulls any more."""
LEAST_WEIGHT = 1e-9
"""Least p (1 - p) of a row: one that is placed with certainty has no pull, and would be divided by."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What standardises columns: `(rows - middle) / spread`; both `[d]`."""

    middle: Floats
    spread: Floats

    def apply(self, rows: Floats) -> Floats:
        """Standardised `[n, d]` rows."""
        return np.asarray((rows - self.middle) / self.spread)


def scaling_of(rows: Floats) -> Scaling:
    """Mean and standard deviation of the columns of `[n, d]`; a column that does not vary gets spread 1."""
    return _standardised(rows)[0]


def _standardised(rows: Floats) -> tuple[Scaling, Floats]:
    """The scaling of rows, and the rows by it: in one go, since going through a large matrix is what takes the time."""
    middle = rows.mean(axis=0)
    standard = rows - middle
    spread = np.sqrt(np.einsum("nd,nd->d", standard, standard) / len(rows))
    rounding = 4.0 * np.finfo(rows.dtype).eps * np.abs(middle)
    spread = np.where(spread > np.maximum(FLAT, rounding), spread, np.ones_like(spread)).astype(rows.dtype)
    standard /= spread
    return Scaling(middle=middle, spread=spread), standard


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear probe in units of the rows as they came: the score of `x` is `x . vector + intercept`, larger for positive rows."""

    vector: Array
    intercept: float

    def score(self, rows: Floats) -> Array:
        """Scores `[...]` of `[..., d]` rows: log odds of the positive kind, as the probe has them."""
        return np.asarray(rows, dtype=np.float64) @ self.vector + self.intercept


@dataclass(frozen=True, kw_only=True)
class Leading:
    """The large directions of the products: about eigenvectors `[n, r]` and eigenvalues `[r]`, and the mean of all others.

    They need not be exact: they only ease systems that are solved to the end anyway.
    """

    vectors: Array
    values: Array
    rest: float


@dataclass(frozen=True, kw_only=True)
class Span:
    """Standardised rows `[n, d]` with their products, ready for any number of fits.

    `products` is `[n, n]`, or None where there are more rows than columns and going through the columns is cheaper.
    """

    rows: Floats
    scaling: Scaling
    products: Floats | None

    @cached_property
    def leading(self) -> Leading:
        """A few leading directions by one round of subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061)."""
        n, width = self.rows.shape
        sketch = np.random.default_rng(0).standard_normal((n, min(SKETCH, n, width))).astype(self.rows.dtype)
        basis, _ = np.linalg.qr(self.times(sketch))
        basis, _ = np.linalg.qr(self.times(basis))
        image = self.times(basis)
        values, turn = np.linalg.eigh((basis.T @ image).astype(np.float64))
        values = np.maximum(values, np.finfo(np.float32).tiny)
        left = max(0.0, float(np.square(self.rows, dtype=np.float64).sum()) - float(values.sum())) / max(1, n - len(values))
        return Leading(vectors=basis.astype(np.float64) @ turn, values=values, rest=left)

    def times(self, weights: Floats) -> Floats:
        """The products times `[n, k]` weights."""
        return self.products @ weights if self.products is not None else self.rows @ (self.rows.T @ weights)

    def probe(self, weights: Floats, intercept: float) -> Probe:
        """The probe that combines the rows with `[n]` weights, in units of the rows as they came."""
        vector = np.asarray(self.rows.T @ weights.astype(self.rows.dtype), dtype=np.float64) / self.scaling.spread
        return Probe(vector=vector, intercept=intercept - float(np.asarray(self.scaling.middle, dtype=np.float64) @ vector))


def span(rows: Floats) -> Span:
    """Standardise `[n, d]` rows and take their products, in float32 where they are float32, else in float64.

    Raises:
        ValueError: There are fewer than two rows, or a value is not finite.
    """
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        raise ValueError(f"rows [n, d] with n >= 2 are needed, got {list(rows.shape)}")
    kept: Floats = rows if rows.dtype == np.float32 else rows.astype(np.float64)
    scaling, standard = _standardised(kept)
    if not np.isfinite(scaling.middle).all() or not np.isfinite(scaling.spread).all():
        raise ValueError("a row holds a value that is not finite")
    return _ready(standard, scaling)


def _ready(standard: Floats, scaling: Scaling) -> Span:
    # numpy takes the product of a matrix with its own transpose by the routine that computes one half.
    return Span(rows=standard, scaling=scaling, products=standard @ standard.T if len(standard) <= standard.shape[1] else None)


@dataclass(frozen=True, kw_only=True)
class Fits:
    """Several fits on the same rows: of each, weights of the rows `[n, k]` and an intercept `[k]`."""

    held: Span
    weights: Array
    intercepts: Array

    def probe(self, column: int = 0) -> Probe:
        """One of them."""
        return self.held.probe(self.weights[:, column], float(self.intercepts[column]))

    def scores(self, rows: Floats) -> Array:
        """Scores `[m, k]` of other rows `[m, d]` by every fit."""
        vectors = self.held.rows.T @ self.weights.astype(self.held.rows.dtype)
        return np.asarray(self.held.scaling.apply(rows) @ vectors, dtype=np.float64) + self.intercepts


def fit_logistic(held: Span, labels: NDArray[np.bool_], penalty: float | Array = 1.0) -> Fits:
    """Ridge-penalised logistic regressions with a free intercept, at the optimum.

    Args:
        held: The rows.
        labels: `[n]`, or `[n, k]` for `k` fits at once.
        penalty: Inverse strength of the penalty, scikit-learn's C; one for all, or `[k]`.

    Raises:
        ValueError: A label set holds one kind only, or a penalty is not positive.

    Source:
        The objective of scikit-learn's `LogisticRegression(C=penalty)` on the standardised columns: half the squared length of the
        vector plus C times the summed logistic loss. By the representer theorem the vector is a combination of the rows, and
        Newton's method (as in Rasmussen and Williams 2006, algorithm 3.1) needs their products alone; its linear systems are solved
        by conjugate gradients on the weights that sum to zero, which is what a free intercept asks for.
    """
    targets = np.asarray(labels, dtype=bool)
    targets = targets[:, None] if targets.ndim == 1 else targets
    strengths = np.broadcast_to(np.asarray(penalty, dtype=np.float64), (targets.shape[1],))
    if len(targets) != len(held.rows) or not (strengths > 0.0).all():
        raise ValueError("labels of every row and positive penalties are needed")
    if targets.all(axis=0).any() or not targets.any(axis=0).all():
        raise ValueError("a probe needs rows of both kinds")
    state = _State.start(targets, strengths)
    for _ in range(NEWTON):
        if not state.improve(held):
            return Fits(held=held, weights=state.weights, intercepts=state.intercepts)
    if held.rows.dtype == np.float32:
        return fit_logistic(_ready(held.rows.astype(np.float64), held.scaling), targets, strengths)
    raise ValueError("the fit did not settle; the rows hold values of very different size")


@dataclass(kw_only=True)
class _State:
    """Where the fits stand: weights `[n, k]`, what they say of the rows without intercept (`inner`), and which still move."""

    targets: Array
    strengths: Array
    weights: Array
    inner: Array
    intercepts: Array
    moving: NDArray[np.bool_]
    forcing: float = FORCING

    @classmethod
    def start(cls, targets: NDArray[np.bool_], strengths: Array) -> _State:
        zero = np.zeros(targets.shape)
        share = targets.mean(axis=0)
        return cls(
            targets=targets.astype(np.float64), strengths=strengths, weights=zero, inner=zero.copy(), intercepts=np.log(share / (1.0 - share)),
            moving=np.ones(targets.shape[1], dtype=bool),
        )  # fmt: skip

    def improve(self, held: Span) -> bool:
        """One Newton step of every fit that still moves; False once none does."""
        on = np.flatnonzero(self.moving)
        targets, strengths = self.targets[:, on], self.strengths[on]
        share = special.expit(self.inner[:, on] + self.intercepts[on])
        missing = strengths * (targets - share) - self.weights[:, on]
        roots = np.sqrt(np.maximum(strengths * np.maximum(share * (1.0 - share), LEAST_WEIGHT), DAMPED * np.abs(missing)))
        step, change, shift = _solve(held, roots, missing / roots, self.forcing)
        step = roots * step
        length = self._length(on, step, change, shift)
        if (length < SHORT).any():
            self.forcing /= 10.0
        self.weights[:, on] += length * step
        self.inner[:, on] += length * change
        self.intercepts[on] += length * shift
        moved = np.abs(change + shift).max(axis=0)
        self.moving[on[moved < SETTLED]] = False
        return bool(self.moving.any())

    def _length(self, on: NDArray[np.intp], step: Array, change: Array, shift: Array) -> Array:
        """How much of a step to take: the least of the objective along it, which is convex, by Newton's method kept in bounds.

        The first steps are too short by themselves: where rows are parted with ease, scores grow by about one a step.
        """
        inner, targets = self.inner[:, on], self.targets[:, on]
        low, high, length = np.zeros(len(on)), np.full(len(on), np.inf), np.ones(len(on))
        ridge_slope, ridge_bend = np.einsum("nk,nk->k", step, inner), np.einsum("nk,nk->k", step, change)
        moved = change + shift
        for _ in range(SEARCHED):
            share = special.expit(inner + self.intercepts[on] + length * moved)
            slope = ridge_slope + length * ridge_bend + self.strengths[on] * np.einsum("nk,nk->k", share - targets, moved)
            bend = ridge_bend + self.strengths[on] * np.einsum("nk,nk->k", share * (1.0 - share), moved**2)
            low, high = np.where(slope < 0.0, length, low), np.where(slope > 0.0, length, high)
            wanted = length - slope / np.maximum(bend, np.finfo(np.float64).tiny)
            halfway = np.where(np.isinf(high), 2.0 * length, (low + high) / 2.0)
            length = np.minimum(np.where((wanted > low) & (wanted < high), wanted, halfway), LONGEST)
        return length


def _solve(held: Span, roots: Array, goal: Array, forcing: float) -> tuple[Array, Array, Array]:
    """The Newton systems of all columns at once: v with (I + S K S) v + s b = goal and s . v = 0, then K S v, and b.

    By conjugate gradients on the vectors at right angles to s, after the few large directions of the products were divided out.
    """
    kind = held.rows.dtype
    length = np.einsum("nk,nk->k", roots, roots)
    eased = _ease(held, roots)

    def flat(columns: Array) -> Array:
        return np.asarray(columns - roots * (np.einsum("nk,nk->k", roots, columns) / length))

    found, pushed = np.zeros_like(goal), np.zeros_like(goal)
    rest = flat(goal)
    soft = flat(eased(rest))
    ahead, size = soft, np.einsum("nk,nk->k", rest, soft)
    enough = size * forcing**2
    tiny = np.finfo(np.float64).tiny
    for _ in range(CONJUGATE):
        live = size > enough
        if not live.any():
            break
        product = held.times((roots * ahead).astype(kind))
        image = flat(ahead + roots * product)
        stretch = np.where(live, size / np.maximum(np.einsum("nk,nk->k", ahead, image), tiny), 0.0)
        found += stretch * ahead
        pushed += stretch * product
        rest -= stretch * image
        soft = flat(eased(rest))
        after = np.einsum("nk,nk->k", rest, soft)
        ahead = soft + np.where(live, after / np.maximum(size, tiny), 0.0) * ahead
        size = np.where(live, after, size)
    left = goal - found - roots * pushed
    return found, pushed, np.asarray(np.einsum("nk,nk->k", roots, left) / length)


def _ease(held: Span, roots: Array) -> Callable[[Array], Array]:
    """About the inverse of I + S K S, column by column: exact for the leading directions, and as if the rest were even (Woodbury)."""
    vectors, values, rest = held.leading.vectors, held.leading.values, held.leading.rest
    within = 1.0 / (1.0 + rest * roots**2)
    side = roots * within
    over = np.maximum(values - rest, 1e-6 * values[-1])
    inner = np.stack([vectors.T @ (column[:, None] * vectors) for column in (roots * side).T]) + np.diag(1.0 / over)
    turned = np.linalg.inv(inner)

    def ease(columns: Array) -> Array:
        along = vectors.T @ (side * columns)
        return np.asarray(within * columns - side * (vectors @ np.einsum("krs,sk->rk", turned, along)))

    return ease


def fit_discriminant(held: Span, labels: NDArray[np.bool_], shrinkage: float | None = None) -> Probe:
    """Linear discriminant analysis with a shrunk covariance, on the standardised columns.

    Args:
        held: The rows.
        labels: `[n]`.
        shrinkage: Share of the covariance that is replaced by its mean variance, above 0 and at most 1; left out, by `shrinkage_of`.

    Raises:
        ValueError: One kind only, or a shrinkage out of bounds.

    Source:
        scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)`; here by Woodbury's identity in the span of the rows.
        Its "auto" shrinks either kind by itself; here one share is taken for the pooled covariance.
    """
    y = np.asarray(labels, dtype=bool)
    if y.all() or not y.any():
        raise ValueError("a probe needs rows of both kinds")
    share = shrinkage_of(held, y) if shrinkage is None else shrinkage
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a shrinkage lies above 0 and at most at 1, got {share}")
    n, width = held.rows.shape
    aside = np.where(y, 1.0 / y.sum(), -1.0 / (~y).sum())
    inner = _within(held, y)
    level = share * float(np.trace(inner)) / n / width
    prior = float(np.log(y.sum() / (~y).sum()))
    if level <= 0.0:  # rows of a kind do not differ at all, as before a model has mixed tokens: nothing is said by them
        return held.probe(np.zeros(n), prior)
    far = np.asarray(held.times(aside[:, None].astype(held.rows.dtype)), dtype=np.float64)[:, 0]
    if share < 1.0:
        mixed = inner + np.eye(n) * (level * n / (1.0 - share))
        aside = aside - _centred(linalg.solve(mixed, _centred(far, y), assume_a="pos"), y)
    weights = aside / level
    scores = np.asarray(held.times(weights[:, None].astype(held.rows.dtype)), dtype=np.float64)[:, 0]
    middle = (scores[y].mean() + scores[~y].mean()) / 2.0
    return held.probe(weights, float(prior - middle))


def shrinkage_of(held: Span, labels: NDArray[np.bool_]) -> float:
    """Share by which the pooled covariance is best shrunk towards its mean variance.

    Source:
        Ledoit and Wolf 2004, J. Multivariate Analysis 88:365; equals scikit-learn's `ledoit_wolf_shrinkage` of the rows less the mean
        of their kind, from their products.
    """
    n, width = held.rows.shape
    inner = _within(held, np.asarray(labels, dtype=bool))
    whole, square = float(np.trace(inner)) / n, float(np.square(inner).sum()) / n**2
    apart = (square - whole**2 / width) / width
    noise = (float(np.square(np.diag(inner)).sum()) / n - square) / n / width
    return float(np.clip(noise / apart, LEAST_SHRINKAGE, 1.0)) if apart > 0.0 else 1.0


LEAST_SHRINKAGE = 1e-4
"""Least share: with fewer rows than columns a covariance that is not shrunk at all cannot be inverted."""


def _within(held: Span, labels: NDArray[np.bool_]) -> Array:
    """Products `[n, n]` of the rows less the mean of their kind."""
    products = held.products if held.products is not None else held.rows @ held.rows.T
    return _centred(_centred(np.asarray(products, dtype=np.float64), labels).T, labels)


def _centred(values: Array, labels: NDArray[np.bool_]) -> Array:
    """`[n, ...]` less the mean over the rows of the same kind."""
    result = np.array(values)
    for kind in (labels, ~labels):
        result[kind] -= result[kind].mean(axis=0)
    return result
