"""What storing numbers in a short format does to them: the smallest change a checkpoint can show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
SMALLEST_EXPONENT = {torch.float64: -1022, torch.float32: -126, torch.float16: -14, torch.bfloat16: -126}


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of `dtype` at each of `values`.

    Args:
        values: Any shape, float32 or float64.
        dtype: Storage format: float64, float32, float16 or bfloat16.

    Returns:
        Same shape and dtype as `values`.

    >>> ulp(torch.tensor([1.0, 1.5, 2.0]), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.015625]
    """
    _, exponent = torch.frexp(values)
    # frexp gives zero the exponent of 0.5; its neighbours are the smallest subnormals.
    exponent = exponent.masked_fill(values == 0, SMALLEST_EXPONENT[torch.float64])
    exponent = (exponent - 1).clamp(min=SMALLEST_EXPONENT[dtype]) - MANTISSA_BITS[dtype]
    return torch.ldexp(torch.ones_like(values), exponent)


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
    largest: float = 0.0
    not_finite: int = 0

    def update(self, base: Tensor, candidate: Tensor, delta: Tensor | None = None) -> None:
        """Add one block.

        A base of another storage dtype is first cast to the candidate's, so that a mere cast shows no change.

        Args:
            base: Block in storage dtype.
            candidate: The same block of the candidate, in its storage dtype.
            delta: What adapters add to it live, float32, or None. It is never rounded to the storage dtype.
        """
        self.elements += base.numel()
        store = candidate.dtype
        wide = torch.float64 if store is torch.float64 else torch.float32
        before, after = base.to(store).to(wide), candidate.to(wide)
        change = after - before
        if delta is not None:
            change = change + delta.to(wide)
        broken = ~torch.isfinite(change)
        # Only what is new counts: a base with the same infinities is the base's affair. A cast that overflows is new.
        self.not_finite += int((~torch.isfinite(after) & torch.isfinite(base)).sum())
        if delta is not None:
            self.not_finite += int((~torch.isfinite(delta)).sum())
        # NaN differs from itself, and the difference of equal infinities is NaN: neither is a change.
        same = (before == after) | (torch.isnan(before) & torch.isnan(after))
        if delta is not None:
            same &= torch.isfinite(delta)
        change = change.masked_fill(broken, 0.0)
        before = before.masked_fill(~torch.isfinite(before), 0.0)
        self.changed += int(torch.count_nonzero(change)) + int((broken & ~same).sum())
        self.base_square += _square(before)
        self.change_square += _square(change)
        self.rounding_square += _square(ulp(before, store)) / 12.0
        self.largest = max(self.largest, float(change.abs().max()) if change.numel() else 0.0)

    @property
    def relative(self) -> float:
        """||change||_F / ||base||_F; where the base is all zeros, 0 or 1 for an unchanged or a changed tensor."""
        return _ratio(self.change_square, self.base_square)

    @property
    def floor(self) -> float:
        """The same ratio if every entry had merely been rounded again: errors uniform within half an ulp."""
        return _ratio(self.rounding_square, self.base_square)


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _ratio(part: float, whole: float) -> float:
    if whole <= 0.0:
        return 1.0 if part > 0.0 else 0.0
    return math.sqrt(part / whole)
