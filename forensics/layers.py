"""Which layer of the base each layer of the candidate stands for, where layers were added, taken out or put elsewhere.

Layers are told by a sample of two of their matrices, which costs next to nothing and survives fine-tuning and casts;
whole layers are hashed only where samples leave several to choose from. At most a few rows are held of any matrix.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from forensics.checkpoint import Checkpoint
from forensics.headers import TensorInfo

if TYPE_CHECKING:
    import torch

MOST = 500
"""Layers above which none are looked for: their distances would fill the memory, and no model has as many."""
SAMPLE = 1 << 14
"""Values of a matrix that are compared, from its first rows."""
MUCH_NEARER = 0.5
"""A layer left its place only if it is nearer to another one by this factor. What is fine-tuned moves by far less than
the distance between two layers, about 1.4 times the norm of either."""
ALIKE = 1e-6
"""Relative distance by which two samples may differ and count as equally near."""
PIECE = 1 << 20
"""Bytes hashed at once."""
KINDS = (re.compile(r"attn|attention", re.IGNORECASE), re.compile(r"mlp|ffn|feed_forward|experts", re.IGNORECASE))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The layers of one side in order: of each, its tensors by what they are called within a layer, alike on both sides."""

    side: Checkpoint
    layers: tuple[Mapping[str, TensorInfo], ...]


def stands_for(base: Stack, candidate: Stack) -> tuple[int, ...]:
    """For each layer of the candidate, the place of the base's layer that it stands for.

    Where there are as many layers on both sides each stands for the one at its place, unless it is much nearer to
    another. Else it stands for the nearest. Of several that are equally near, it is the one of the very same bytes if
    there is one, then the one that keeps the order.
    """
    ours, theirs = len(base.layers), len(candidate.layers)
    if not min(ours, theirs) or max(ours, theirs) > MOST:
        return tuple(range(min(ours, theirs)))
    own, others = cache(partial(_digest, candidate)), cache(partial(_digest, base))
    found: list[int] = []
    for place, row in enumerate(_distances(base, candidate)):
        nearest = _nearest(row, place if ours == theirs else None)
        if len(nearest) > 1:
            nearest = [other for other in nearest if others(other) == own(place)] or nearest
        wanted = place if ours == theirs else found[-1] + 1 if found else 0
        found.append(min((abs(other - wanted), other) for other in nearest)[1])
    return tuple(found)


def _nearest(row: Sequence[float], place: int | None) -> list[int]:
    """Layers of the base that come into question by their distances; `place` is the one to stay at, if any."""
    least = min(row)
    if place is not None and row[place] > ALIKE and least >= MUCH_NEARER * row[place]:
        return [place]
    return [other for other, distance in enumerate(row) if distance <= least + ALIKE]


def _distances(base: Stack, candidate: Stack) -> list[list[float]]:
    """Relative Frobenius distance of the samples, `[candidate layers][base layers]`; equal where there is nothing to compare."""
    import torch  # heavy

    names = _sampled(base, candidate)
    if not names:
        return [[math.inf] * len(base.layers) for _ in candidate.layers]
    ours, theirs = _samples(base, names), _samples(candidate, names)
    apart = torch.cdist(theirs, ours, compute_mode="donot_use_mm_for_euclid_dist")
    rows: list[list[float]] = (apart / torch.linalg.vector_norm(ours, dim=1).clamp(min=1e-30)).tolist()
    return rows


def _sampled(base: Stack, candidate: Stack) -> list[str]:
    """An attention and an MLP matrix that every layer has, in one shape; others where layers hold no such."""
    every = [*base.layers, *candidate.layers]
    shared = [
        name
        for name, info in sorted(every[0].items())
        if len(info.shape) >= 2 and info.elements and all(name in layer and layer[name].shape == info.shape for layer in every)
    ]
    kinds = [next((name for name in shared if kind.search(name)), None) for kind in KINDS]
    return list(dict.fromkeys(name for name in kinds if name)) or shared[:2]


def _samples(stack: Stack, names: Sequence[str]) -> torch.Tensor:
    """First values of the named matrices, `[layers, values]`, float32; what is not finite counts as 0."""
    import torch  # heavy

    rows = []
    for layer in stack.layers:
        infos = [layer[name] for name in names]
        heights = [max(1, SAMPLE * info.shape[0] // info.elements) for info in infos]
        parts = [next(stack.side.blocks(info.name, rows=height)) for info, height in zip(infos, heights, strict=True)]
        rows.append(torch.cat([part.flatten()[:SAMPLE].float() for part in parts]))
    return torch.stack(rows).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _digest(stack: Stack, place: int) -> str:
    """sha256 of all stored bytes of a layer, with names, dtypes and shapes; equal digests mean equal layers."""
    whole = hashlib.sha256()
    for name, info in sorted(stack.layers[place].items()):
        recipe = stack.side.recipes.get(info.name)
        for part in recipe.stored if recipe else (info,):
            whole.update(f"{name} {part.name.removeprefix(info.name)} {part.dtype} {part.shape}\n".encode())
            with (stack.side.path / part.file).open("rb") as stream:
                stream.seek(part.start)
                for start in range(part.start, part.end, PIECE):
                    whole.update(stream.read(min(PIECE, part.end - start)))
    return whole.hexdigest()
