"""How alike two sets of vectors are: distance, angle, and what survives a rotation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Rows = NDArray[np.floating]


def relative_distance(base: Rows, candidate: Rows) -> float:
    """||candidate - base||_F / ||base||_F over `[n, d]` rows of the same inputs.

    Raises:
        ValueError: The shapes differ, or the base is all zeros and the candidate is not.

    >>> relative_distance(np.array([[3.0, 4.0]]), np.array([[3.0, 1.0]]))
    0.6
    """
    a, b = _alike(base, candidate)
    distance, size = float(np.linalg.norm(b - a)), float(np.linalg.norm(a))
    if distance == 0.0:
        return 0.0
    if size == 0.0:
        raise ValueError("a distance relative to a base of zeros is not a number")
    return distance / size


def mean_cosine(base: Rows, candidate: Rows) -> float:
    """Mean cosine between row `i` of one `[n, d]` matrix and row `i` of the other; pairs with a zero row are left out.

    Raises:
        ValueError: The shapes differ, or no pair is left.

    >>> round(mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 5.0]])), 4)
    0.8536
    """
    a, b = _alike(base, candidate)
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    usable = sizes > 0.0
    if not usable.any():
        raise ValueError("no pair of rows that are both different from zero")
    return float(np.mean(np.sum(a[usable] * b[usable], axis=1) / sizes[usable]))


def cosine(a: Rows, b: Rows) -> float:
    """Cosine between two `[d]` vectors; 0 if one of them is zero, which has no direction.

    >>> cosine(np.array([1.0, 0.0]), np.array([0.6, 0.8]))
    0.6
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    size = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / size if size > 0.0 else 0.0


def linear_cka(base: Rows, candidate: Rows) -> float:
    """Debiased linear centred kernel alignment of `[n, d]` and `[n, e]` rows of the same inputs.

    1 where one is a rotation, scaling or shift of the other; about 0, and possibly a little below, where they are
    unrelated, also with fewer inputs than dimensions, where the plain estimate is near 1 for anything.

    Raises:
        ValueError: Fewer than 4 rows, another number of them, or rows that do not vary on one side.

    Source:
        Kornblith et al. 2019, arXiv:1905.00414; unbiased HSIC of Song et al. 2012, JMLR 13.

    >>> rows = np.random.default_rng(0).normal(size=(20, 3))
    >>> round(linear_cka(rows, rows @ np.array([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, -2.0]]) + 5.0), 6)
    1.0
    """
    a, b = np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 4:
        raise ValueError(f"alignment needs two matrices with the same number of rows, at least 4; got {a.shape} and {b.shape}")
    kernels = []
    for rows in (a, b):
        centred = rows - rows.mean(axis=0)
        if np.linalg.norm(centred) <= 1e-12 * np.linalg.norm(rows):
            raise ValueError("the rows of one side do not vary")
        kernels.append(centred @ centred.T)
    left, right = kernels
    own = unbiased_hsic(left, left) * unbiased_hsic(right, right)
    if own <= 0.0:
        raise ValueError("the rows of one side vary too little for their number")
    return unbiased_hsic(left, right) / float(np.sqrt(own))


def unbiased_hsic(left: Rows, right: Rows) -> float:
    """Song's unbiased estimate of the Hilbert-Schmidt independence criterion from two `[n, n]` kernels, n >= 4."""
    k, m = np.array(left, dtype=np.float64), np.array(right, dtype=np.float64)
    n = len(k)
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    together = float(np.sum(k * m))
    apart = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    mixed = 2.0 / (n - 2) * float(k.sum(axis=0) @ m.sum(axis=0))
    return (together + apart - mixed) / (n * (n - 3))


def principal_cosines(a: Rows, b: Rows) -> NDArray[np.float64]:
    """Cosines of the principal angles between the column spans of `[d, k]` and `[d, m]`, largest first.

    Raises:
        ValueError: The heights differ, or a side has no independent column.

    Source:
        Björck and Golub 1973, Mathematics of Computation 27:579.

    >>> plane, line = np.eye(3)[:, :2], np.array([[1.0], [0.0], [1.0]])
    >>> principal_cosines(plane, line).round(4).tolist()
    [0.7071]
    """
    bases = []
    for columns in (a, b):
        u, values, _ = np.linalg.svd(np.asarray(columns, dtype=np.float64), full_matrices=False)
        rank = int(np.sum(values > values.max(initial=0.0) * 1e-10))
        if rank == 0:
            raise ValueError("a span needs at least one column that is not zero")
        bases.append(u[:, :rank])
    if len(bases[0]) != len(bases[1]):
        raise ValueError(f"the spans lie in spaces of {len(bases[0])} and {len(bases[1])} dimensions")
    return np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0.0, 1.0)


def span_share(vector: Rows, span: Rows) -> float:
    """Share of the squared length of `[d]` that lies in the span of orthonormal columns `[d, k]`; 0 of a vector of zeros.

    >>> round(span_share(np.array([3.0, 4.0]), np.array([[0.0], [1.0]])), 6)
    0.64
    """
    wide = np.asarray(vector, dtype=np.float64)
    whole = float(wide @ wide)
    return float(np.sum((np.asarray(span, dtype=np.float64).T @ wide) ** 2)) / whole if whole > 0.0 else 0.0


def random_share(width: int, size: int) -> tuple[float, float]:
    """What `span_share` gives for a random span of `size` directions in `width`: mean and 99th percentile, in closed form.

    The share is a Beta variable with parameters size / 2 and (width - size) / 2, since a random rotation of the span is one of the vector.

    Raises:
        ValueError: The span does not fit.

    >>> random_share(128, 8)[0]
    0.0625
    """
    if not 0 < size <= width:
        raise ValueError(f"a span of {size} directions does not fit into {width} dimensions")
    if size == width:
        return 1.0, 1.0
    return size / width, float(stats.beta.ppf(0.99, size / 2.0, (width - size) / 2.0))


def _alike(base: Rows, candidate: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"two matrices of one shape are needed, got {a.shape} and {b.shape}")
    return a, b
