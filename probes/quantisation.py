"""Round trips through few-bit formats: which of them, if any, made one tensor of the other.

Source: Formats as documented by llama.cpp (Q8_0, Q4_0, Q4_1), bitsandbytes (int8 by rows; NF4 and FP4, Dettmers et al. 2023,
arXiv:2305.14314) and the OCP float8 formats. Trying the formats themselves on a few rows, instead of judging the error by
its size, is ours; formats that are not in the list are still told by their error, uniform within each block's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (-1.0, -0.6667, -0.5, -0.3333, -0.25, -0.1667, -0.0052, 0.0, 0.0052, 0.1667, 0.25, 0.3333, 0.5, 0.6667, 1.0)
TINY = 1e-30
BLOCKS = (16, 32, 64, 128, 256)
BITS = (8, 6, 5, 4, 3, 2)
UNEXPLAINED = 0.06
"""Share of the change that a scheme's round trip may leave: rounding to where it is stored may fall the other way."""
UNMOVED = 0.45
"""Share of a round trip's usual error below which a tensor has been through it already: its storage format rounds it anew."""
TELLING = 1024
"""Weights of a row on which schemes are tried first."""
NEAR = 0.7
"""Either share on a single row, from which on a scheme is tried on all of them."""
LEAST_SHARE = 0.3
"""Share of entries that any round trip through few bits changes at least."""
STEADY, UNIFORM = 0.2, (0.5, 0.66)
"""Of an unknown format: how little a block's largest error varies as a share of its largest weight (coefficient of
variation), and the errors' standard deviation as a share of the largest (0.577 if uniform)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A few rows of both sides, `[rows, columns]` float32, and the dtype they are stored in."""

    before: Tensor
    after: Tensor
    store: torch.dtype


def explains(sample: Sample, largest: float) -> tuple[str, str]:
    """The round trip that gives `sample.after` from `sample.before`, and one that leaves `sample.after` as it is; each empty if none does.

    Args:
        sample: Rows of a tensor that changed.
        largest: Largest absolute weight of the whole tensor, for schemes with one scale.
    """
    change = sample.after - sample.before
    size = float(change.norm())
    if not math.isfinite(size) or size <= TINY or float((change != 0).float().mean()) < LEAST_SHARE:
        return "", ""
    if not _likely(sample, largest):
        return _unknown_scheme(sample), ""
    least, name, closest, fixed = UNEXPLAINED, "", UNMOVED, ""
    for scheme, trip in round_trips(sample.before, largest):
        tried = trip(sample.before)
        left = float((sample.after - tried.to(sample.store).float()).norm()) / size
        if left < least:
            least, name = left, scheme
        step = float((tried - sample.before).norm())
        moved = float((trip(sample.after) - sample.after).norm()) / step if step > 0.0 else 1.0
        if moved < closest:
            closest, fixed = moved, scheme
    return (name or _unknown_scheme(sample)), fixed


def _likely(sample: Sample, largest: float) -> bool:
    """Whether any scheme comes near on the first row: to try all of them on all rows takes longer than to read the tensor."""
    places = _telling(sample.before[0])
    both = torch.cat([sample.before[:1, places], sample.after[:1, places]])
    size = float((both[1] - both[0]).square().sum())
    for _, trip in round_trips(both, largest):
        tried = trip(both)
        (step, moved), left = (tried - both).square().sum(dim=1).tolist(), float((both[1] - tried[0]).square().sum())
        if size == 0.0 or step == 0.0 or left < NEAR**2 * size or moved < NEAR**2 * step:
            return True
    return False


def _telling(row: Tensor) -> Tensor:
    """Places in a row: whole blocks, those of its largest and smallest weight among them, which set the steps."""
    width = BLOCKS[-1]
    if len(row) <= TELLING or len(row) % width:
        return torch.arange(len(row))
    blocks = {int(row.argmax()) // width, int(row.argmin()) // width, *range(TELLING // width - 2)}
    return torch.cat([torch.arange(block * width, (block + 1) * width) for block in sorted(blocks)])


Trip: TypeAlias = Callable[[Tensor], Tensor]


def round_trips(before: Tensor, largest: float) -> Iterator[tuple[str, Trip]]:
    """Every scheme that fits the columns of `before` `[rows, columns]`, by name: a function that takes a matrix through it and back.

    `largest` is the largest absolute weight of the whole tensor, for schemes with one scale.
    """
    columns = before.shape[1]
    blocks = [block for block in BLOCKS if columns % block == 0]
    for kind, dtype, top in (("fp8 e4m3", torch.float8_e4m3fn, 448.0), ("fp8 e5m2", torch.float8_e5m2, 57344.0)):
        yield f"{kind}, no scale", partial(_float8, dtype=dtype, scale=1.0)
        yield f"{kind} by tensor", partial(_float8, dtype=dtype, scale=largest / top)
        yield f"{kind} by row", partial(_float8, dtype=dtype, scale=None)
    for bits in BITS:
        steps = 2 ** (bits - 1) - 1
        yield f"int{bits} by tensor", partial(_integer, steps=steps, scale=largest / steps)
        yield f"int{bits} by row", partial(_integer, steps=steps)
        yield f"int{bits} by row, asymmetric", partial(_asymmetric, bits=bits)
        for block in blocks:
            yield f"int{bits} block {block}", partial(_folded, block=block, trip=partial(_integer, steps=steps))
            yield f"int{bits} block {block}, float16 scales", partial(_folded, block=block, trip=partial(_integer, steps=steps, half=True))
            yield f"int{bits} block {block}, full range", partial(_folded, block=block, trip=partial(_full_range, steps=steps))
            yield f"int{bits} block {block}, asymmetric", partial(_folded, block=block, trip=partial(_asymmetric, bits=bits))
    for name, levels in (("NF4", NF4), ("FP4", FP4)):
        for block in blocks:
            yield f"{name} block {block}", partial(_folded, block=block, trip=partial(_table, levels=levels))


def _folded(x: Tensor, block: int, trip: Trip) -> Tensor:
    return trip(x.reshape(x.shape[0], -1, block)).reshape(x.shape)


def _integer(x: Tensor, steps: int, scale: float | None = None, *, half: bool = False) -> Tensor:
    unit = _unit(x, steps) if scale is None else torch.tensor(max(scale, TINY))
    unit = unit.half().float().clamp(min=TINY) if half else unit
    return torch.round(x / unit).clamp(-steps - 1, steps) * unit


def _unit(x: Tensor, steps: float) -> Tensor:
    return (x.abs().amax(dim=-1, keepdim=True) / steps).clamp(min=TINY)


def _full_range(x: Tensor, steps: int) -> Tensor:
    # llama.cpp's Q4_0: the value furthest from zero becomes the most negative code, so all codes are used.
    furthest = torch.gather(x, -1, x.abs().argmax(dim=-1, keepdim=True))
    scale = furthest / -(steps + 1)
    scale = torch.where(scale == 0, torch.full_like(scale, TINY), scale)
    return torch.round(x / scale).clamp(-steps - 1, steps) * scale


def _asymmetric(x: Tensor, bits: int) -> Tensor:
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=TINY)
    rounded: Tensor = torch.round((x - low) / scale) * scale + low
    return rounded


def _float8(x: Tensor, dtype: torch.dtype, scale: float | None) -> Tensor:
    unit = _unit(x, torch.finfo(dtype).max) if scale is None else torch.tensor(max(scale, TINY))
    return (x / unit).to(dtype).float() * unit


def _table(x: Tensor, levels: tuple[float, ...]) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    table = torch.tensor(sorted(levels))
    index = torch.bucketize(x / scale, (table[1:] + table[:-1]) / 2.0)
    near: Tensor = table[index] * scale
    return near


def _unknown_scheme(sample: Sample) -> str:
    """A format that is not in the list: errors uniform within a step that follows each block's largest weight."""
    change = (sample.after - sample.before).abs()
    for block in (*BLOCKS, sample.before.shape[1]):
        if sample.before.shape[1] % block or block < BLOCKS[1]:
            continue
        tops = sample.before.abs().reshape(-1, block).amax(dim=1)
        errors = change.reshape(-1, block)
        whole = tops > 0
        ratio = errors.amax(dim=1)[whole] / tops[whole]
        if len(ratio) < 8 or float(ratio.mean()) <= 0.0:
            continue
        spread = float(ratio.std() / ratio.mean())
        shape = float(errors[whole].square().mean(dim=1).sqrt().div(errors[whole].amax(dim=1).clamp(min=TINY)).mean())
        if spread < STEADY and UNIFORM[0] < shape < UNIFORM[1]:
            return f"about {max(2, round(-math.log2(float(ratio.mean()))))} bits, block {block}"
    return ""
