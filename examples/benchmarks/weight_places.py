"""Edits that show by where they are: rows of the vocabulary, added tokens, biases, and entries that become zero.

Each is an edit as in `weight_edits`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from weight_bases import HIDDEN, Weights, gaussian
from weight_edits import Edit, Edited, Rng, sized
from weight_tunes import noise


def rows_only(count: int, *, ends: Sequence[str] = ("embedding",)) -> Edit:
    """A few rows of the embedding, the head, or both; the strength is that of the rows."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made = base.copy()
        chosen = torch.from_numpy(rng.choice(len(base.tensors[base.layout.embedding]), count, replace=False))
        for end in ends:
            name = base.layout.embedding if end == "embedding" else base.layout.head
            assert name is not None
            values = base.read(name)
            change = torch.zeros_like(values)
            change[chosen] = sized(gaussian(rng, count, values.shape[1]), values[chosen], strength)
            made.add(name, change)
        return Edited(candidate=made)

    return edit


def added_tokens(count: int, *, zeros: bool = False, also_noise: bool = False) -> Edit:
    """New rows at the end of embedding and head: the mean of the old ones and noise, or zeros to fill up to a round number."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made = (noise()(base, strength, rng).candidate if also_noise else base).copy(vocab_size=base.config["vocab_size"] + count)
        for name in (base.layout.embedding, base.layout.head):
            if name is not None:
                old = base.read(name)
                new = old.mean(dim=0) + old.std() * gaussian(rng, count, old.shape[1])
                made.tensors[name] = torch.cat([base.tensors[name], (torch.zeros_like(new) if zeros else new).to(base.dtype)])
        return Edited(candidate=made)

    return edit


def steering(role: str = "down", *, everywhere: bool = False, size: float = 0.5) -> Edit:
    """A steering vector kept as a bias that the base does not have (or, in GPT-2, added to the one it has)."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        made = base.copy(**({"mlp_bias": True} if everywhere else {}))
        vector = size * functional.normalize(gaussian(rng, HIDDEN), dim=0)
        for layer in range(base.depth) if everywhere else (3,):
            roles = [one for one in ("gate", "up", "down") if one in base.layout.parts] if everywhere else [role]
            for one in roles:
                name = base.layout.part(layer, one)
                bias = name.replace("weight", "bias")
                old = base.tensors.get(bias, torch.zeros(base.read(name).shape[0])).float()
                made.tensors[bias] = (old + vector if layer == 3 and one == role else old).to(base.dtype)
        return Edited(candidate=made)

    return edit


def smallest(values: Tensor, share: float) -> Tensor:
    """Which entries belong to the `share` of smallest magnitude."""
    count = int(share * values.numel())
    return values.abs() <= values.abs().flatten().kthvalue(count).values


def pruned(share: float, *, shaken: bool = False) -> Edit:
    """The smallest entries of every matrix become zero; or, as a control, they move as far at random."""

    def edit(base: Weights, _strength: float, rng: Rng) -> Edited:
        made = base.copy()
        for name in base.linear():
            old = base.read(name)
            gone = smallest(old, share)
            change = sized(gaussian(rng, *old.shape) * gone, old * gone, 1.0) if shaken else -old * gone
            made.put(name, old + change)
        return Edited(candidate=made)

    return edit


def pruned_two_of_four(base: Weights, _strength: float, _rng: Rng) -> Edited:
    """Of every four neighbours along the input the two smallest become zero."""
    made = base.copy()
    for name in base.linear():
        old = base.read(name)
        groups = old.reshape(len(old), -1, 4)
        kept = torch.zeros_like(groups).scatter(2, groups.abs().topk(2, dim=2).indices, 1.0)
        made.put(name, (groups * kept).flatten(1))
    return Edited(candidate=made)
