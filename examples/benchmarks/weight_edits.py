"""Edits of a checkpoint, each made the way its public description says, from the base's stored weights alone.

An edit is a function of the base, a strength and a random source. The strength is the relative Frobenius change
||dW|| / ||W|| over the tensors (or rows) that the edit touches; where the method itself says how much changes, it is not used.
Changes are added in float32 and rounded once to the storage dtype, unless the edit says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from weight_bases import DTYPES, HIDDEN, Weights, gaussian

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


# Rows, tokens, biases, zeros


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
