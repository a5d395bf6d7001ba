"""Edits that training leaves: adapters merged into their matrices, everything at once, a few entries only, and noise as their control.

Each is an edit as in `weight_edits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from weight_bases import Weights, gaussian
from weight_edits import Edit, Edited, Rng, norm, sized, uneven

# Low rank, and everything at once

TARGETS = {"q and v": ("q", "v", "qkv"), "attention": ("q", "k", "v", "o", "qkv"), "all linear": None}


def random_factors(rng: Rng, shapes: Sequence[tuple[int, int]], rank: int) -> list[tuple[Tensor, Tensor]]:
    """Gaussian factors: spectra that are nearly flat."""
    return [(gaussian(rng, out, rank), gaussian(rng, rank, width)) for out, width in shapes]


def trained_factors(
    rng: Rng, shapes: Sequence[tuple[int, int]], rank: int, *, steps: int = 30, examples: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Factors after a short training on a regression with unevenly distributed inputs and an uneven teacher: uneven spectra."""
    found: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(shapes)
    for shape in dict.fromkeys(shapes):
        where = [index for index, other in enumerate(shapes) if other == shape]
        (out, width), n = shape, len(where)
        mixing = gaussian(rng, n, width, width) * torch.arange(1, width + 1).pow(-0.6)[:, None] / math.sqrt(width)
        inputs = gaussian(rng, n, examples, width) @ mixing
        steep = torch.arange(1, 25).pow(-0.7)
        teacher = (gaussian(rng, n, out, 24) * steep) @ gaussian(rng, n, 24, width)
        wanted = inputs @ teacher.mT
        left = torch.zeros(n, out, rank, requires_grad=True)
        right = (torch.from_numpy(rng.uniform(-1, 1, (n, rank, width)).astype(np.float32)) / math.sqrt(width)).requires_grad_()
        optimizer = torch.optim.Adam([left, right], lr=5e-3)
        for _ in range(steps):
            loss = ((inputs @ right.mT) @ left.mT - wanted).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        for place, index in enumerate(where):
            found[index] = left[place].detach(), right[place].detach()
    return found


def lora(rank: int, targets: str, *, trained: bool = False, rounded: bool = False) -> Edit:
    """An adapter merged into its matrices; where `rounded`, the product is first rounded to the storage dtype, as a merge in it does."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made, names = base.copy(), base.linear(TARGETS[targets])
        shapes = [(base.read(name).shape[0], base.read(name).shape[1]) for name in names]
        pairs = (trained_factors if trained else random_factors)(rng, shapes, rank)
        lengths = uneven(rng, base, names, strength)
        factors = {}
        for name, (left, right) in zip(names, pairs, strict=True):
            right = right * (lengths[name] * norm(base.read(name)) / norm(left @ right))
            change = (left @ right).to(base.dtype).float() if rounded else left @ right
            made.add(name, change)
            factors[name] = left, right
        return Edited(candidate=made, factors=factors)

    return edit


def power_law(rng: Rng, height: int, width: int, decay: float = 0.8, noise: float = 0.3) -> Tensor:
    """A full-rank change whose singular values fall by a power law, on a floor of noise."""
    rank = min(height, width)
    values = (gaussian(rng, height, rank) * torch.arange(1, rank + 1).pow(-decay)) @ gaussian(rng, rank, width)
    other = gaussian(rng, height, width)
    return values / norm(values) + noise * other / norm(other)


def signs(rng: Rng, height: int, width: int, steps: int = 4) -> Tensor:
    """Four updates of Adam at a constant rate: each entry takes the sign of a noisy low-rank gradient."""
    drift = gaussian(rng, height, 8) @ gaussian(rng, 8, width) / math.sqrt(8)
    return torch.stack([(drift + 1.5 * gaussian(rng, height, width)).sign() for _ in range(steps)]).sum(dim=0)


def full(*, make: Callable[[Rng, int, int], Tensor] = power_law, ends: bool = True, vectors: bool = True) -> Edit:
    """Every tensor moves; embedding and head, or vectors, may be frozen."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made = base.copy()
        names = [
            name for name, values in base.tensors.items()
            if (vectors if values.ndim == 1 else ends or name.startswith(base.layout.block))
        ]  # fmt: skip
        lengths = uneven(rng, base, names, strength)
        for name in names:
            old = base.read(name)
            change = gaussian(rng, old.shape[0]) if old.ndim == 1 else make(rng, *old.shape)
            if old.ndim == 2 and not name.startswith(base.layout.block):  # tokens are met with very different frequency
                change = change * torch.from_numpy(rng.permutation(old.shape[0]) + 1.0).float().pow(-0.4)[:, None]
            made.add(name, sized(change, old, lengths[name]))
        return Edited(candidate=made)

    return edit


def noise(roles: Sequence[str] | None = None, layers: Sequence[int] | None = None, *, ends: bool = False) -> Edit:
    """Full-rank Gaussian noise on the matrices that some other edit would have changed."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made = base.copy()
        for name in [*base.linear(roles, layers), *([base.layout.embedding] if ends else [])]:
            made.add(name, sized(gaussian(rng, *base.read(name).shape), base.read(name), strength))
        return Edited(candidate=made)

    return edit


# Few entries


def below_rounding(share: float) -> Edit:
    """Many steps at a tiny rate on stored weights: only a `share` of all entries gets past the rounding, by one unit mostly."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        updates = {name: gaussian(rng, *base.read(name).shape) for name in base.tensors}
        sample = torch.cat([base.read(name).flatten()[::37] for name in base.tensors])
        moved = torch.cat([updates[name].flatten()[::37] for name in base.tensors])
        low, high = -30.0, 0.0
        for _ in range(30):
            rate = 2.0 ** ((low + high) / 2)
            changed = float(((sample + rate * moved).to(base.dtype).float() != sample).float().mean())
            low, high = ((low + high) / 2, high) if changed < share else (low, (low + high) / 2)
        made = base.copy()
        for name, update in updates.items():
            made.add(name, 2.0**high * update)
        return Edited(candidate=made)

    return edit


def masked(share: float) -> Edit:
    """A random `share` of the entries of every matrix is trained, the rest is frozen."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made = base.copy()
        for name in base.linear():
            old = base.read(name)
            kept = torch.from_numpy(rng.random(tuple(old.shape), dtype=np.float32) < share)
            made.add(name, sized(gaussian(rng, *old.shape) * kept, old, strength))
        return Edited(candidate=made)

    return edit


def one_entry(base: Weights, _strength: float, rng: Rng) -> Edited:
    """One entry of one matrix moves to its neighbour."""
    made, name = base.copy(), base.linear()[0]
    values = base.tensors[name].clone()
    bits = values.view(torch.int32 if values.element_size() == 4 else torch.int16)
    bits[int(rng.integers(values.shape[0])), int(rng.integers(values.shape[1]))] ^= 1
    made.tensors[name] = values
    return Edited(candidate=made)
