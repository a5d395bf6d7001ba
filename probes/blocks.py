"""A tensor in two models, block of rows by block of rows: made ready once for all figures that are taken of it, and the plainest of them.

A block is small enough to stay in the processor's cache, so that what costs is to read it, not how many figures are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.rounding import ulp


class Block:
    """Both sides of a few rows, as matrices `[rows, columns]` in float32 (float64 where they are stored so), and their difference.

    `ours` is the base as it is stored, `before` as the candidate's dtype would hold it, `theirs` the candidate with what
    adapters add. `change` is `theirs - before`. Where a side is not finite all of them hold zeros; `not_finite` counts entries
    that newly are not, `mended` those that changed without a finite difference. `equal`: both sides are the same bytes.
    `units` are those in the last place. `squares`, `base_squares` and `unit_squares` `[rows]` are sums of squares by row, `zeros` the candidate's
    entries that are zero (not counted where the sides are equal). `broken` marks those that are not finite on
    either side; None if there are none.
    """

    def __init__(self, base: Tensor, candidate: Tensor, delta: Tensor | None = None) -> None:
        height = base.shape[0] if base.ndim > 1 else 1
        width = base.numel() // max(1, height)
        self.base, self.candidate = base.reshape(height, width), candidate.reshape(height, width)
        self.store, self.live = candidate.dtype, delta is not None
        self.wide = torch.float64 if self.store is torch.float64 else torch.float32
        self._different = None if self.live else different_bytes(self.base, self.candidate)
        self.equal = self._different == 0
        self.not_finite = self.mended = 0
        self.ours = self.base.to(self.wide)
        recast = base.dtype != self.store
        self.before = self.base.to(self.store).to(self.wide) if recast else self.ours
        self.theirs = self.ours if self.equal else self.candidate.to(self.wide)
        added = None if delta is None else delta.reshape(height, width).to(self.wide)
        self.change = torch.zeros(()).expand_as(self.ours) if self.equal else self.theirs - self.before
        if added is not None:
            self.change, self.theirs = self.change + added, self.theirs + added
        self.squares = torch.zeros(height, dtype=torch.float64) if self.equal else squares(self.change)
        self.base_squares = squares(self.before)
        self.zeros = 0 if self.equal else zero_bytes(self.candidate if added is None else self.theirs)
        self.broken: Tensor | None = None
        if not bool(torch.isfinite(self.squares.sum() + self.base_squares.sum())):
            self._mend(added)
        self.units = self._units()
        self.unit_squares = squares(self.units)

    def _units(self) -> Tensor:
        # It was the candidate's entries that were rounded; of those that were set to zero, the base's.
        units = ulp(self.theirs, self.store)
        if self.zeros:
            units = torch.where(self.theirs == 0.0, ulp(self.before, self.store), units)
        return units

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.ours.shape[0]

    @property
    def changed(self) -> int:
        """Entries that differ in value."""
        if self.equal:
            return 0
        if self._different is None or self.zeros or self.mended or self.not_finite:  # zero has two signs, and NaN many forms
            return self.mended + int(np.count_nonzero((self.change != 0.0).numpy()))
        return self._different

    def _mend(self, added: Tensor | None) -> None:
        """Count what is not finite, and put zeros in its place."""
        after = self.candidate.to(self.wide)
        self.broken = broken = ~torch.isfinite(self.change)
        # Only what is new counts: a base with the same infinities is the base's affair. A cast that overflows is new.
        self.not_finite = int((~torch.isfinite(after) & torch.isfinite(self.ours)).sum())
        # NaN differs from itself, and the difference of equal infinities is NaN: neither is a change.
        same = (self.before == after) | (torch.isnan(self.before) & torch.isnan(after))
        if added is not None:
            self.not_finite += int((~torch.isfinite(added)).sum())
            same &= torch.isfinite(added)
        self.mended = int((broken & ~same).sum())
        self.change = self.change.masked_fill(broken, 0.0)
        recast = self.before is not self.ours
        self.theirs = torch.nan_to_num(self.theirs, 0.0, 0.0, 0.0)
        self.ours = torch.nan_to_num(self.ours, 0.0, 0.0, 0.0)
        self.before = torch.nan_to_num(self.before, 0.0, 0.0, 0.0) if recast else self.ours
        self.squares, self.base_squares = squares(self.change), squares(self.before)
        self._different = None if not self.equal else 0


@dataclass(kw_only=True)
class TensorChange:
    """Running sums over the blocks of one tensor: how far the candidate moved, and what rounding alone would do.

    Feed it blocks with `update`; read the figures when all blocks are in.
    """

    elements: int = 0
    changed: int = 0
    base_square: float = 0.0
    change_square: float = 0.0
    rounding_square: float = 0.0
    not_finite: int = 0

    def update(self, base: Tensor, candidate: Tensor, delta: Tensor | None = None) -> None:
        """Add one block.

        A base of another storage dtype is first cast to the candidate's, so that a mere cast shows no change.

        Args:
            base: Block in storage dtype.
            candidate: The same block of the candidate, in its storage dtype.
            delta: What adapters add to it live, float32, or None. It is never rounded to the storage dtype.
        """
        self.add(Block(base, candidate, delta))

    def add(self, block: Block) -> None:
        """Add a block made ready."""
        self.elements += block.ours.numel()
        self.not_finite += block.not_finite
        self.changed += block.changed
        self.base_square += float(block.base_squares.sum())
        self.change_square += float(block.squares.sum())
        self.rounding_square += float(block.unit_squares.sum()) / 12.0

    @property
    def relative(self) -> float:
        """||change||_F / ||base||_F; where the base is all zeros, 0 or 1 for an unchanged or a changed tensor."""
        return _ratio(self.change_square, self.base_square)

    @property
    def floor(self) -> float:
        """The same ratio if every entry had merely been rounded again: errors uniform within half an ulp."""
        return _ratio(self.rounding_square, self.base_square)


def squares(matrix: Tensor) -> Tensor:
    """Square of the norm of each row, `[rows]` float64."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1).double()
    total = float(norms.sum())
    if total == 0.0 or not math.isfinite(total):  # squares of very small or large numbers have no place in float32
        norms = torch.linalg.vector_norm(matrix, dim=1, dtype=torch.float64)
    return norms**2


def different_bytes(one: Tensor, other: Tensor) -> int | None:
    """How many entries of two tensors of one shape differ in their bytes, NaNs included; None where their dtypes differ."""
    if one.dtype != other.dtype:
        return None
    return int(np.count_nonzero(_plain(one) != _plain(other)))  # NumPy counts several times faster than torch does


def zero_bytes(values: Tensor) -> int:
    """How many entries are zero or minus zero."""
    plain = _plain(values)
    plain = plain & np.iinfo(plain.dtype).max
    return int(plain.size - np.count_nonzero(plain)) if plain.size and not plain.min() else 0


def _plain(values: Tensor) -> np.ndarray[Any, Any]:
    """The same bytes as whole numbers."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    found: np.ndarray[Any, Any] = values.contiguous().view(kind).numpy()
    return found


def _ratio(part: float, whole: float) -> float:
    if whole <= 0.0:
        return 1.0 if part > 0.0 else 0.0
    return math.sqrt(part / whole)
