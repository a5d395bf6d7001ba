"""What an edit of a checkpoint is, and the edits of its storage alone: other files, another dtype, quantised and back.

Each is made the way its public description says, from the base's stored weights alone; `weight_tunes`, `weight_directions`,
`weight_places` and `weight_rewrites` hold the others. An edit is a function of the base, a strength and a random source. The
strength is the relative Frobenius change ||dW|| / ||W|| over the tensors (or rows) that the edit touches; where the method itself
says how much changes, it is not used. Changes are added in float32 and rounded once to the storage dtype, unless the edit says
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from weight_bases import DTYPES, Weights

Rng: TypeAlias = np.random.Generator
Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A candidate, what it was made of, and what is known about the change before it was rounded."""

    candidate: Weights
    parents: tuple[Weights, ...] = ()
    factors: Factors = field(default_factory=dict, repr=False)
    """Of a low-rank change: the two factors whose product was added, [out, r] and [r, in]."""
    shards: int = 1
    backwards: bool = False
    readme: bool = False
    also: frozenset[str] = frozenset()
    """Labels that are right as well, because of what was measured while the pair was made."""


Edit: TypeAlias = Callable[[Weights, float, Rng], Edited]


def norm(values: Tensor) -> float:
    """Frobenius norm, summed in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def sized(change: Tensor, like: Tensor, strength: float) -> Tensor:
    """The change made `strength` times as large as `like`."""
    return change * (strength * norm(like) / max(norm(change), 1e-30))


def uneven(rng: Rng, base: Weights, names: Sequence[str], strength: float, spread: float = 0.3) -> dict[str, float]:
    """How far each tensor moves, some farther than others, so that together they move by `strength`."""
    share = {name: float(factor) for name, factor in zip(names, rng.lognormal(0.0, spread, len(names)), strict=True)}
    lengths = {name: norm(base.read(name)) for name in names}
    together = math.sqrt(sum((share[name] * lengths[name]) ** 2 for name in names))
    whole = math.sqrt(sum(length**2 for length in lengths.values()))
    return {name: strength * share[name] * whole / together for name in names}


# Nothing but storage


def identical(readme: bool = False) -> Edit:
    """The base itself, perhaps with prose beside it."""
    return lambda base, _strength, _rng: Edited(candidate=base.copy(), readme=readme)


def resharded(shards: int = 1, backwards: bool = False) -> Edit:
    """The same tensors in other files, or in another order."""
    return lambda base, _strength, _rng: Edited(candidate=base.copy(), shards=shards, backwards=backwards)


def cast(*dtypes: str) -> Edit:
    """Every tensor stored in another dtype, one after the other."""

    def edit(base: Weights, _strength: float, _rng: Rng) -> Edited:
        made = base.copy(torch_dtype=dtypes[-1])
        for dtype in dtypes:
            made.tensors.update({name: values.to(DTYPES[dtype]) for name, values in made.tensors.items()})
        return Edited(candidate=made)

    return edit


# Quantised and written out as numbers again

NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""The sixteen values of NormalFloat4 (Dettmers et al. 2023, appendix E)."""


def in_blocks(values: Tensor, size: int, work: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `work` to [n, size] blocks along the last axis; what is left over at its end is a shorter block."""
    flat = values.reshape(-1, values.shape[-1])
    whole = flat.shape[1] // size * size
    parts = [work(flat[:, :whole].reshape(-1, size)).reshape(flat.shape[0], whole)] if whole else []
    parts += [work(flat[:, whole:])] if whole < flat.shape[1] else []
    return torch.cat(parts, dim=1).reshape(values.shape)


def to_grid(block: Tensor, levels: int, *, half: bool = False) -> Tensor:
    """Symmetric integers up to `levels`, one scale a row of `block`; the scale in float16 where `half`."""
    scale = block.abs().amax(dim=1, keepdim=True) / levels
    scale = (scale.half().float() if half else scale).clamp(min=1e-12)
    return (block / scale).round().clamp(-levels, levels) * scale


def to_range(block: Tensor, levels: int) -> Tensor:
    """Integers 0 to `levels` with a scale and a zero point a row of `block`."""
    low, high = block.amin(dim=1, keepdim=True).clamp(max=0.0), block.amax(dim=1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / levels).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((block / scale + zero).round().clamp(0, levels) - zero) * scale


def to_nf4(block: Tensor) -> Tensor:
    """The nearest value of NormalFloat4, one scale a row of `block`."""
    scale = block.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    codes = torch.bucketize(block / scale, (NF4[1:] + NF4[:-1]) / 2)
    return NF4[codes] * scale


def q8_0(values: Tensor) -> Tensor:
    """Q8_0 of GGUF: blocks of 32, a scale in float16."""
    return in_blocks(values, 32, lambda block: to_grid(block, 127, half=True))


def int8_rows(values: Tensor) -> Tensor:
    """Eight bits with one scale a row."""
    return in_blocks(values, values.shape[-1], lambda block: to_grid(block, 127))


def int4_symmetric(values: Tensor) -> Tensor:
    """Four bits around zero in blocks of 64."""
    return in_blocks(values, 64, lambda block: to_grid(block, 7))


def int4_asymmetric(values: Tensor) -> Tensor:
    """Four bits with a zero point in groups of 128, as GPTQ and AWQ store them."""
    return in_blocks(values, 128, lambda block: to_range(block, 15))


def nf4(values: Tensor) -> Tensor:
    """NormalFloat4 in blocks of 64 of the flattened tensor."""
    return in_blocks(values.reshape(1, -1), 64, to_nf4).reshape(values.shape)


def fp8(values: Tensor) -> Tensor:
    """Float8 e4m3 with one scale a tensor."""
    scale = values.abs().max() / 448.0
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def quantised(method: Callable[[Tensor], Tensor], *, ends: bool = False, norms: bool = False) -> Edit:
    """Matrices inside the layers through a quantiser and back; embedding and head, or vectors as well."""

    def edit(base: Weights, _strength: float, _rng: Rng) -> Edited:
        made = base.copy()
        for name in base.tensors:
            inside = name.startswith(base.layout.block)
            if norms if base.tensors[name].ndim == 1 else ends or inside:
                made.put(name, method(base.read(name)))
        return Edited(candidate=made)

    return edit
