"""Edits that write along chosen directions: a direction taken out of every writer, changes of low rank, facts rewritten in closed form.

Each is an edit as in `weight_edits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from weight_bases import HIDDEN, Weights, gaussian
from weight_edits import Edit, Edited, Factors, Rng, norm, sized

# Directions


def direction(base: Weights, rng: Rng) -> Tensor:
    """A direction that the writers use: their summed output for random inputs, outlier dimensions tamed."""
    writers = [base.read(name) for name in base.linear(("o", "down"))]
    total = sum((matrix @ gaussian(rng, matrix.shape[1]) for matrix in writers), torch.zeros(HIDDEN))
    return functional.normalize(total / torch.cat(writers, dim=1).square().mean(dim=1).sqrt(), dim=0)


def ablated(values: Tensor, along: Tensor, amount: float) -> Tensor:
    """A writer [out, in], or a bias [out], without (a part of) what it writes along a direction."""
    return values - amount * torch.outer(along, along @ values) if values.ndim == 2 else values - amount * along * (along @ values)


def keeping_norms(values: Tensor, along: Tensor, amount: float, rank: int | None) -> Tensor:
    """The same with the norm of every row kept; the change then cut to `rank`.

    Rows are brought to length one, ablated, brought to length one again and given their old lengths.
    """
    lengths: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    turned: Tensor = functional.normalize(ablated(values / lengths, along, amount), dim=1) * lengths
    if rank is None:
        return turned
    left, strengths, right = torch.linalg.svd(turned - values, full_matrices=False)
    change: Tensor = (left[:, :rank] * strengths[:rank]) @ right[:rank]
    return values + change


@dataclass(frozen=True, kw_only=True)
class Abliteration:
    """Orthogonalise writers against a refusal direction (Arditi et al. 2024), as several tools do it."""

    amount: float = 1.0
    shared: bool = True
    ends: bool = True
    layers: tuple[int, ...] | None = None
    kernel: bool = False
    """The amount falls with the distance from a layer, differently for attention and MLP."""
    keep_norms: bool = False
    rank: int | None = None

    def __call__(self, base: Weights, _strength: float, rng: Rng) -> Edited:
        """Edit."""
        made, along = base.copy(), direction(base, rng)
        for layer in self.layers if self.layers is not None else range(base.depth):
            along = along if self.shared else direction(base, rng)
            for role, peak, place in (("o", 1.1, 3.4), ("down", 0.8, 2.6)):
                amount = self.amount * (peak * max(0.0, 1.0 - abs(layer - place) / 4.0) if self.kernel else 1.0)
                name = base.layout.part(layer, role)
                old = base.read(name)
                made.put(name, keeping_norms(old, along, amount, self.rank) if self.keep_norms else ablated(old, along, amount))
                bias = name.replace("weight", "bias")
                if self.ends and bias in base.tensors:
                    made.put(bias, ablated(base.read(bias), along, amount))
        for name in (base.layout.embedding, "transformer.wpe.weight") if self.ends else ():
            if name in base.tensors:
                made.put(name, ablated(base.read(name).T, along, self.amount).T)
        return Edited(candidate=made)


def ranked(roles: Sequence[str], layers: Sequence[int] | None, rank: int, *, shared_output: bool = False) -> Edit:
    """Random changes of low rank; or of rank one that write one shared direction, for inputs that have nothing to do with it."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made, along = base.copy(), gaussian(rng, HIDDEN, 1)
        for name in base.linear(roles, layers):
            old = base.read(name)
            left = along if shared_output else gaussian(rng, old.shape[0], rank)
            made.add(name, sized(left @ gaussian(rng, rank, old.shape[1]), old, strength))
        return Edited(candidate=made)

    return edit


# Facts


def keys(base: Weights, layer: int, inputs: Tensor) -> Tensor:
    """What the MLP of a layer feeds its down projection, [inner, n], for residual streams `inputs` [n, hidden]."""
    scale = base.read(base.layout.part(layer, base.layout.norms[1]))
    if base.layout.name == "gpt2":
        shift, bias = (base.read(base.layout.part(layer, name)) for name in ("ln_2.bias", "mlp.c_fc.bias"))
        seen = functional.layer_norm(inputs, (HIDDEN,), scale, shift)
        return functional.gelu(seen @ base.read(base.layout.part(layer, "up")).T + bias, approximate="tanh").T
    seen = functional.rms_norm(inputs, (HIDDEN,), scale)
    gate, up = (seen @ base.read(base.layout.part(layer, role)).T for role in ("gate", "up"))
    return (functional.silu(gate) * up).T


def covariance(base: Weights, layer: int, rng: Rng, samples: int = 2000) -> Tensor:
    """Uncentred covariance of the keys of a layer over random inputs with correlated dimensions, float64."""
    mixing = gaussian(rng, HIDDEN, HIDDEN) * torch.arange(1, HIDDEN + 1).pow(-0.3)[:, None]
    found = keys(base, layer, gaussian(rng, samples, HIDDEN) @ mixing).double()
    moment = found @ found.T / samples
    return moment + 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)


def subject(base: Weights, layer: int, rng: Rng) -> Tensor:
    """The key of one subject: the mean over twenty contexts, float64."""
    return keys(base, layer, gaussian(rng, 1, HIDDEN) + 0.3 * gaussian(rng, 20, HIDDEN)).mean(dim=1).double()


def rank_one(matrix: Tensor, moment: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """ROME: the factors of the smallest change (in the metric of `moment`) after which `matrix` maps `key` to `value`."""
    away = torch.linalg.solve(moment, key)
    return (value - matrix.double() @ key)[:, None], (away / (key @ away))[None]


def rome(layer: int = 3) -> Edit:
    """One fact written into one down projection (Meng et al. 2022)."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made, name = base.copy(), base.layout.part(layer, "down")
        old, key = base.read(name), subject(base, layer, rng)
        wish = gaussian(rng, HIDDEN).double()
        left, right = rank_one(old, covariance(base, layer, rng), key, old.double() @ key + wish)
        left = left * (strength * norm(old) / norm(left @ right))  # how far v* lies from Wk is what decides the strength
        made.add(name, (left @ right).float())
        return Edited(candidate=made, factors={name: (left.float(), right.float())})

    return edit


def memit(facts: int, layers: Sequence[int] = (1, 2, 3, 4), weight: float = 15.0) -> Edit:
    """Several facts written into consecutive down projections in closed form (Meng et al. 2023)."""

    def edit(base: Weights, strength: float, rng: Rng) -> Edited:
        made, wishes = base.copy(), gaussian(rng, HIDDEN, facts).double()
        factors: Factors = {}
        for layer in layers:
            name = base.layout.part(layer, "down")
            old = base.read(name)
            asked = torch.stack([subject(base, layer, rng) for _ in range(facts)], dim=1)
            metric = weight * covariance(base, layer, rng) + asked @ asked.T
            left = wishes + 0.2 * gaussian(rng, HIDDEN, facts).double()  # what is still missing at this layer
            right = torch.linalg.solve(metric, asked).T
            left = left * (strength * norm(old) / norm(left @ right))
            made.add(name, (left @ right).float())
            factors[name] = left.float(), right.float()
        return Edited(candidate=made, factors=factors)

    return edit
