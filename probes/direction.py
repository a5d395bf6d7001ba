"""A direction in the residual stream: a unit vector, where it was read, and how it was found. Frozen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
FORMAT = "forensics.direction/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A unit vector that points from harmless to harmful (from answered to refused) prompts.

    Attributes:
        vector: `[d]`, float64, length 1.
        gap: Length of the difference of means it was made from, in units of the residual stream.
        layer: Block whose input it was read at; 0 is the embedding.
        position: Token it was read at, counted from the end of the prompt: -1 is the last.
        fitted: How, and on how many prompts, in words.
    """

    vector: Vector
    gap: float
    layer: int
    position: int
    fitted: str

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not np.isfinite(self.vector).all() or abs(float(np.linalg.norm(self.vector)) - 1.0) > 1e-6:
            raise ValueError("a direction is a finite vector of length 1")
        if not np.isfinite(self.gap) or self.gap <= 0.0 or self.layer < 0 or self.position >= 0:
            raise ValueError(
                f"a direction has a positive gap, a layer from 0 and a position below 0, got {self.gap, self.layer, self.position}"
            )

    @property
    def raw(self) -> Vector:
        """The difference of means itself: what is added to induce refusal."""
        return self.vector * self.gap

    def project(self, rows: NDArray[np.floating]) -> Vector:
        """Coordinate along the direction of each of `[..., d]` rows; larger is more like a refused prompt."""
        return np.asarray(rows, dtype=np.float64) @ self.vector

    def ablate(self, rows: NDArray[np.floating]) -> Vector:
        """`[..., d]` rows without their part along the direction: x - (x . v) v.

        >>> ahead = Direction(vector=np.array([0.6, 0.8]), gap=5.0, layer=0, position=-1, fitted="by hand")
        >>> ahead.ablate(np.array([[3.0, 4.0], [4.0, -3.0]])).round(6).tolist()
        [[0.0, 0.0], [4.0, -3.0]]
        """
        values = np.asarray(rows, dtype=np.float64)
        return values - self.project(values)[..., None] * self.vector

    def add(self, rows: NDArray[np.floating], coefficient: float = 1.0) -> Vector:
        """`[..., d]` rows shifted by `coefficient` times the raw difference of means."""
        return np.asarray(rows, dtype=np.float64) + coefficient * self.raw

    def save(self, stream: IO[bytes]) -> None:
        """Write it as npz without pickles, for `load`."""
        about = {"format": FORMAT, "gap": self.gap, "layer": self.layer, "position": self.position, "fitted": self.fitted}
        np.savez(stream, allow_pickle=False, vector=self.vector, about=np.array(json.dumps(about)))


def load(stream: IO[bytes]) -> Direction:
    """Read what `Direction.save` wrote.

    Raises:
        ValueError: It is something else, or damaged.
    """
    try:
        with np.load(stream, allow_pickle=False) as stored:
            vector, about = stored["vector"], json.loads(str(stored["about"]))
        return _rebuilt(vector, about)
    except (KeyError, TypeError, OSError, EOFError, AttributeError) as error:
        raise ValueError("this is not a saved direction") from error


def _rebuilt(vector: NDArray[Any], about: dict[str, Any]) -> Direction:
    if about.get("format") != FORMAT:
        raise ValueError(f"this is not a saved direction (format {about.get('format')!r}, expected {FORMAT!r})")
    return Direction(
        vector=vector.astype(np.float64),
        gap=float(about["gap"]),
        layer=int(about["layer"]),
        position=int(about["position"]),
        fitted=str(about["fitted"]),
    )


def from_difference(difference: Vector, *, layer: int, position: int, fitted: str) -> Direction:
    """The direction of a raw difference `[d]` of means, harmful minus harmless.

    Raises:
        ValueError: It is zero or not finite, so that it has no direction.

    >>> from_difference(np.array([3.0, 4.0]), layer=2, position=-1, fitted="3-4-5").gap
    5.0
    """
    wide = np.asarray(difference, dtype=np.float64)
    gap = float(np.linalg.norm(wide))
    if not np.isfinite(gap) or gap == 0.0:
        raise ValueError("a difference of means that is zero or not finite has no direction")
    return Direction(vector=wide / gap, gap=gap, layer=layer, position=position, fitted=fitted)
