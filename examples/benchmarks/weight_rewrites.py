"""Checkpoints made of others: merges of fine-tunes, stacks of layers, the same function in other weights, two edits at once.

Each is an edit as in `weight_edits`, made from the base's stored weights; of a merge, the strength is that of its parents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from weight_bases import HEAD, HEADS, HIDDEN, KV_HEADS, Weights, gaussian, stored
from weight_edits import Edit, Edited, Rng, norm, quantised
from weight_places import smallest
from weight_tunes import full, lora

# Merges

Blend: TypeAlias = Callable[[Tensor, list[Tensor], Rng], Tensor]


def parents(base: Weights, strength: float, rng: Rng, *, count: int = 2, adapters: bool = False) -> tuple[Weights, ...]:
    """Fine-tunes of the base that know nothing of each other."""
    make = lora(16, "all linear", trained=True) if adapters else full()
    return tuple(make(base, strength, rng).candidate for _ in range(count))


def merge(blend: Blend, *, count: int = 2, adapters: bool = False) -> Edit:
    """Parents merged tensor by tensor, in float32, and rounded once."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made, both = base.copy(), parents(base, strength, rng, count=count, adapters=adapters)
        for name in base.tensors:
            made.put(name, blend(base.read(name), [parent.read(name) for parent in both], rng))
        return Edited(candidate=made, parents=both)

    return edit


def linear(first: float) -> Blend:
    """A weighted mean."""
    return lambda _base, both, _rng: first * both[0] + (1.0 - first) * both[1]


def task_arithmetic(weight: float) -> Blend:
    """The base and a part of every parent's change."""
    return lambda base, both, _rng: base + weight * sum((parent - base for parent in both), torch.zeros_like(base))


def slerp(along: float, straight: float = 0.9995) -> Blend:
    """On the arc between two tensors; on the straight line where they are nearly parallel, as merging tools do."""

    def blend(_base: Tensor, both: list[Tensor], _rng: Rng) -> Tensor:
        left, right = both
        cosine = float((left.double() * right.double()).sum()) / max(norm(left) * norm(right), 1e-30)
        if abs(cosine) > straight:
            return (1.0 - along) * left + along * right
        angle = math.acos(cosine)
        return (math.sin((1.0 - along) * angle) * left + math.sin(along * angle) * right) / math.sin(angle)

    return blend


def ties(density: float) -> Blend:
    """Trim each change to its largest entries, elect a sign for each entry, take the mean of those that agree (Yadav et al. 2023)."""

    def blend(base: Tensor, both: list[Tensor], _rng: Rng) -> Tensor:
        changes = torch.stack([parent - base for parent in both])
        trimmed = torch.stack([change.masked_fill(smallest(change, 1.0 - density), 0.0) for change in changes])
        agreeing = (trimmed.sign() == trimmed.sum(dim=0).sign()) & (trimmed != 0)
        return base + (trimmed * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)

    return blend


def dare(drop: float) -> Blend:
    """Drop entries of each change at random and scale up what is left (Yu et al. 2024); parents count alike."""

    def blend(base: Tensor, both: list[Tensor], rng: Rng) -> Tensor:
        total = torch.zeros_like(base)
        for parent in both:
            kept = torch.from_numpy(rng.random(tuple(base.shape), dtype=np.float32) >= drop)
            total += (parent - base) * kept / (1.0 - drop) / len(both)
        return base + total

    return blend


def other_parents(base: Weights, strength: float, rng: Rng) -> Edited:
    """A control of merges: a fine-tune, told together with two parents it does not have."""
    return Edited(candidate=full()(base, strength, rng).candidate, parents=parents(base, strength, rng))


def stacked(order: Sequence[tuple[int, int]], *, count: int = 0) -> Edit:
    """Layers put on one another: pairs of (which parent, which layer); without parents the base's own layers."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        both = parents(base, strength, rng, count=count)
        sources = both or (base,)
        made = sources[0].copy(**{base.layout.depth_key: len(order)})
        for name in base.tensors:
            if name.startswith(base.layout.block):
                del made.tensors[name]
        for place, (parent, layer) in enumerate(order):
            start = f"{base.layout.block}{layer}."
            moved = {name: values for name, values in sources[parent].tensors.items() if name.startswith(start)}
            made.tensors.update(
                {f"{base.layout.block}{place}.{name.removeprefix(start)}": values.clone() for name, values in moved.items()}
            )
        return Edited(candidate=made, parents=both)

    return edit


# The same function in other weights


def permuted_neurons(*, everything: bool = True) -> Edit:
    """Hidden units of every MLP in another order; as a control only the rows of one matrix are, which breaks the model."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        made = base.copy()
        for layer in range(base.depth):
            order = torch.from_numpy(rng.permutation(base.read(base.layout.part(layer, "up")).shape[0]))
            for role in ("gate", "up") if everything else ("up",):
                if role in base.layout.parts:
                    name = base.layout.part(layer, role)
                    made.put(name, base.read(name)[order])
                    bias = name.replace("weight", "bias")
                    if bias in base.tensors:
                        made.put(bias, base.read(bias)[order])
            if everything:
                down = base.layout.part(layer, "down")
                made.put(down, base.read(down)[:, order])
        return Edited(candidate=made)

    return edit


def permuted_heads(base: Weights, _strength: float, rng: Rng) -> Edited:
    """Attention heads in another order, with the groups that share keys and values."""
    made = base.copy()
    for layer in range(base.depth):
        fused = "qkv" in base.layout.parts
        groups = HEADS if fused else KV_HEADS
        order = rng.permutation(groups)
        within = np.concatenate([group * (HEADS // groups) + rng.permutation(HEADS // groups) for group in order])
        queries, shared = (torch.from_numpy((heads[:, None] * HEAD + np.arange(HEAD)).ravel()) for heads in (within, order))
        moves = {"qkv": torch.cat([queries, HIDDEN + shared, 2 * HIDDEN + shared])} if fused else {"q": queries, "k": shared, "v": shared}
        for role, rows in moves.items():
            name = base.layout.part(layer, role)
            made.put(name, base.read(name)[rows])
            bias = name.replace("weight", "bias")
            if bias in base.tensors:
                made.put(bias, base.read(bias)[rows])
        out = base.layout.part(layer, "o")
        made.put(out, base.read(out)[:, queries])
    return Edited(candidate=made)


def folded(base: Weights, *_: object) -> Edited:
    """The scales of every norm taken into the matrices that read it; Llama's layout."""
    made = base.copy()
    for layer in range(base.depth):
        for norm_name, roles in zip(base.layout.norms, (("q", "k", "v"), ("gate", "up")), strict=True):
            scale = base.read(base.layout.part(layer, norm_name))
            for role in roles:
                name = base.layout.part(layer, role)
                made.put(name, base.read(name) * scale)
            made.put(base.layout.part(layer, norm_name), torch.ones_like(scale))
    assert base.layout.head
    made.put(base.layout.head, base.read(base.layout.head) * base.read(base.layout.final_norm))
    made.put(base.layout.final_norm, torch.ones(HIDDEN))
    return Edited(candidate=made)


def rotated(*, agreeing: bool = True) -> Edit:
    """The residual stream in another orthonormal basis, norms folded first; as a control every writer takes a basis of its own."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        wide = replace(base, tensors={name: base.tensors[name].float() for name in base.tensors})
        made, turn = folded(wide).candidate, orthogonal(rng, HIDDEN)
        assert base.layout.head
        for name in (base.layout.embedding, base.layout.head, *base.linear(("q", "k", "v", "gate", "up"))):
            made.put(name, made.read(name) @ turn)
        for name in base.linear(("o", "down")):
            made.put(name, (turn if agreeing else orthogonal(rng, HIDDEN)).T @ made.read(name))
        return Edited(candidate=replace(made, tensors={name: values.to(base.dtype) for name, values in made.tensors.items()}))

    return edit


def orthogonal(rng: Rng, size: int) -> Tensor:
    """A random orthogonal matrix."""
    basis, triangle = torch.linalg.qr(gaussian(rng, size, size).double())
    turned: Tensor = basis * triangle.diagonal().sign()
    return turned.float()


def scaled(*, powers_of_two: bool) -> Edit:
    """Every hidden unit of an MLP scaled up in `up` and down in `down`; by powers of two nothing is rounded."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        made = base.copy()
        for layer in range(base.depth):
            up, down = (base.layout.part(layer, role) for role in ("up", "down"))
            units = base.read(up).shape[0]
            exponents = rng.integers(-2, 3, units) if powers_of_two else rng.normal(0.0, 0.7, units)
            factor = torch.from_numpy(2.0**exponents).float()
            made.put(up, base.read(up) * factor[:, None])
            made.put(down, base.read(down) / factor)
        return Edited(candidate=made)

    return edit


def along_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """One matrix of several along its diagonal, and zeros."""
    made: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]  # torch declares no types for it: tensors in, a tensor out
    return made


def turned_values(base: Weights, _strength: float, rng: Rng) -> Edited:
    """What each head reads out turned by a matrix that the output projection turns back."""
    made = base.copy()
    for layer in range(base.depth):
        value, out = (base.layout.part(layer, role) for role in ("v", "o"))
        turns = [orthogonal(rng, HEAD) for _ in range(KV_HEADS)]
        made.put(value, along_diagonal(turns) @ base.read(value))
        each = [turns[head // (HEADS // KV_HEADS)] for head in range(HEADS)]
        made.put(out, base.read(out) @ along_diagonal(each).T)
    return Edited(candidate=made)


# Another model, or two edits at once


def stranger(*, same_norms: bool = False) -> Edit:
    """A model of the same shape that was trained from another start; perhaps with the base's norms."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        other = stored(base.layout.name, 1000 + int(rng.integers(1000)), str(base.dtype).removeprefix("torch."))
        kept = {name: values for name, values in base.tensors.items() if values.ndim == 1} if same_norms else {}
        return Edited(candidate=replace(other, tensors=other.tensors | kept))

    return edit


def then(first: Edit, second: Edit) -> Edit:
    """One edit after the other."""
    return lambda base, strength, rng: Edited(candidate=second(first(base, strength, rng).candidate, strength, rng).candidate)


def with_quantisation(adapter: Edit, method: Callable[[Tensor], Tensor], *, first: bool) -> Edit:
    """An adapter merged before or after quantising. Where quantising moves more than the adapter shows, naming it alone is right too."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        merged = adapter(base, strength, rng)
        quantise = quantised(method)
        below = quantise(base, strength, rng).candidate
        hidden = all(
            torch.linalg.matrix_norm(left @ right, 2) < torch.linalg.matrix_norm(below.read(name) - base.read(name), 2)
            for name, (left, right) in merged.factors.items()
        )
        if first:
            made = quantise(merged.candidate, strength, rng).candidate
        else:
            made = below.copy()
            for name, (left, right) in merged.factors.items():
                made.add(name, left @ right)
        return Edited(candidate=made, also=frozenset({"quantisation"} if hidden else ()))

    return edit


def as_noise(edit_first: Edit) -> Edit:
    """A control: Gaussian noise of the size that another edit has in each tensor."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        like, made = edit_first(base, strength, rng).candidate, base.copy()
        for name in base.tensors:
            length = norm(like.read(name) - base.read(name))
            if length:
                change = gaussian(rng, *base.read(name).shape)
                made.add(name, change * (length / norm(change)))
        return Edited(candidate=made)

    return edit
