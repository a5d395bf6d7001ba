"""What storing numbers in a short format does to them: the smallest change a checkpoint can show."""

from __future__ import annotations

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
    power = power_of_two(values)
    return power.clamp_(min=2.0 ** SMALLEST_EXPONENT[dtype]).mul_(2.0 ** -MANTISSA_BITS[dtype])


def power_of_two(values: Tensor) -> Tensor:
    """The power of two at or below each absolute value, same shape and dtype; 0 for zero and subnormals.

    >>> power_of_two(torch.tensor([1.0, -1.5, 3.0, 0.0])).tolist()
    [1.0, 1.0, 2.0, 0.0]
    """
    # The exponent's bits alone are that number.
    whole, bits = (torch.int64, 0x7FF0000000000000) if values.dtype is torch.float64 else (torch.int32, 0x7F800000)
    return (values.contiguous().view(whole) & bits).view(values.dtype)
