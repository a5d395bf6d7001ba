"""Mean and covariance of rows that come in batches, or on several machines, and are not kept.

Everything is float64 and centred as it goes: sums of squares of an activation whose mean is a thousand times its spread would lose
the spread. What one accumulator has seen can be merged into another's, and batches may come in any order and size.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DIRECTIONS = 64
"""Strongest directions that a sketch keeps, unless told otherwise: of width 4096 it then takes at most 4 MiB a place, the covariance
128 MiB."""


class Mean:
    """Number and mean of rows of `width` numbers.

    >>> seen = Mean(2)
    >>> seen.add(np.array([[1.0, 2.0], [3.0, 2.0]]))
    >>> seen.count, seen.mean.tolist()
    (2, [2.0, 2.0])
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(width)

    def add(self, rows: NDArray[np.floating]) -> None:
        """See `rows`, `[n, width]`.

        Raises:
            ValueError: They have another width, or hold a number that is not finite.
        """
        wide = np.asarray(rows, dtype=np.float64)
        if wide.ndim != 2 or wide.shape[1] != len(self.mean) or not np.isfinite(wide).all():
            raise ValueError(f"finite rows of width {len(self.mean)} are needed, got {wide.shape}")
        if len(wide):
            mean = wide.mean(axis=0)
            between = self._join(len(wide), mean)
            self._spread(np.concatenate([wide - mean, between]))

    def merge(self, other: Self) -> None:
        """See all that `other`, of the same kind and width, has seen.

        Raises:
            ValueError: It is of another kind or width.
        """
        if type(other) is not type(self) or len(other.mean) != len(self.mean):
            raise ValueError(f"{type(self).__name__} of width {len(self.mean)} cannot take in {type(other).__name__} of {len(other.mean)}")
        if other.count:
            between = self._join(other.count, other.mean)
            self._take(other)
            self._spread(between)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All it holds, by name, for `restore`."""
        return {"count": np.array(self.count), "mean": self.mean}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> Self:
        """Itself, with what `arrays` of another held."""
        self.count, self.mean = int(arrays["count"]), np.array(arrays["mean"], dtype=np.float64)
        return self

    def _join(self, count: int, mean: Array) -> Array:
        """Move the mean; gives the one row `[1, width]` that stands for the distance between the two groups in the scatter.

        Source:
            Chan, Golub and LeVeque 1983, The American Statistician 37:242, pairwise updating.
        """
        total, apart = self.count + count, mean - self.mean
        row: Array = (np.sqrt(self.count * count / total) * apart)[None]
        self.mean = self.mean + (count / total) * apart
        self.count = total
        return row

    def _spread(self, rows: Array) -> None:
        """Take in centred rows; a mean alone does nothing with them."""

    def _take(self, other: Self) -> None:
        """Take in the scatter of another."""


class Covariance(Mean):
    """Number, mean and whole covariance, `width * width` numbers; see `Sketch` where that is too much.

    >>> seen = Covariance(2)
    >>> seen.add(np.array([[0.0, 1.0], [2.0, 1.0]]))
    >>> seen.covariance().tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scatter: Array = np.zeros((width, width))

    def covariance(self) -> Array:
        """Unbiased covariance `[width, width]`, as `numpy.cov` gives it.

        Raises:
            ValueError: Fewer than 2 rows were seen.
        """
        return self.scatter / _freedom(self.count)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All it holds, by name, for `restore`."""
        return super().arrays() | {"scatter": self.scatter}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> Self:
        """Itself, with what `arrays` of another held."""
        self.scatter = np.array(arrays["scatter"], dtype=np.float64)
        return super().restore(arrays)

    def _spread(self, rows: Array) -> None:
        self.scatter += rows.T @ rows

    def _take(self, other: Self) -> None:
        self.scatter += other.scatter


class Sketch(Mean):
    """Number, mean, and the directions that the rows vary along most, in `2 * size * width` numbers.

    For every unit vector x the scatter along it, the sum of squared deviations, is `||rows @ x||^2` or up to `lost` more, where
    `lost` is measured, not a bound for the worst case; it is 0 as long as no more than `size` directions were needed.

    Source:
        Frequent directions: Liberty 2013, arXiv:1206.0594; Ghashami et al. 2016, arXiv:1501.01711. There rows are not centred; here
        they are, batch by batch, with one more row for what lies between the means.
    """

    def __init__(self, width: int, size: int = DIRECTIONS) -> None:
        super().__init__(width)
        if size < 1:
            raise ValueError(f"a sketch keeps at least 1 direction, not {size}")
        self.size = size
        self.rows: Array = np.zeros((0, width))
        self.lost = 0.0

    def variances(self, count: int) -> tuple[Array, Array]:
        """The `count` strongest directions `[width, count]` as orthonormal columns, and the variance along each, at least.

        Fewer where the rows vary along fewer; `lost / (self.count - 1)` is the most by which a variance may be larger.

        Raises:
            ValueError: Fewer than 2 rows were seen.
        """
        freedom = _freedom(self.count)
        _, values, directions = np.linalg.svd(self.rows, full_matrices=False)
        kept = int(np.sum(values[:count] > values.max(initial=0.0) * 1e-12))
        return directions[:kept].T, values[:kept] ** 2 / freedom

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All it holds, by name, for `restore`."""
        return super().arrays() | {"rows": self.rows, "lost": np.array(self.lost)}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> Self:
        """Itself, with what `arrays` of another held."""
        self.rows, self.lost = np.array(arrays["rows"], dtype=np.float64), float(arrays["lost"])
        return super().restore(arrays)

    def _spread(self, rows: Array) -> None:
        for start in range(0, len(rows), self.size):  # never more than 3 * size rows at a time, however large the batch
            self.rows = np.concatenate([self.rows, rows[start : start + self.size]])
            if len(self.rows) > 2 * self.size:  # not as soon as there are more than `size`: a shrink costs the same for any number
                self._shrink()

    def _take(self, other: Self) -> None:
        self.lost += other.lost
        self._spread(other.rows)

    def _shrink(self) -> None:
        """Bring the rows down to `size`: all squared lengths are cut by the first one that is left out."""
        # By the small Gram matrix, which is `3 * size` wide at most: an SVD of wide rows would cost many times more.
        squares, vectors = np.linalg.eigh(self.rows @ self.rows.T)
        squares, vectors = squares[::-1], vectors[:, ::-1]
        cut = max(float(squares[self.size]), 0.0)
        kept = squares[: self.size]
        scale = np.sqrt(np.clip(kept - cut, 0.0, None) / np.where(kept > 0.0, kept, 1.0))
        self.rows = scale[:, None] * (vectors[:, : self.size].T @ self.rows)
        self.lost += cut


def _freedom(count: int) -> int:
    if count < 2:
        raise ValueError(f"a variance needs at least 2 rows, not {count}")
    return count - 1
