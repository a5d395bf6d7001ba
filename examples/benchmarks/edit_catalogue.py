"""What is planted: every kind of edit in its variants, the controls, and which labels are right for each.

The label of a kind is right for all of its variants. More labels are right only where the weights cannot tell (`also`), and the
comment beside says why. Controls have no label of their own: `also` alone says what may be said of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import weight_directions as d
import weight_edits as w
import weight_places as p
import weight_rewrites as r
import weight_tunes as t
from weight_bases import BASES, Weights, base
from weight_directions import Abliteration
from weight_edits import Edit, Edited

KINDS = (
    "identical", "resharded", "dtype-cast", "quantisation", "lora-merge", "full-finetune", "sparse-update", "abliteration",
    "knowledge-edit", "knowledge-edit-multi", "rows-only", "added-tokens", "steering-bias", "pruning", "merge-linear",
    "merge-slerp", "merge-ties", "merge-dare", "layer-stack", "reparameterised", "not-derived", "unknown-mixed",
)  # fmt: skip
CONTROL = "control"
STRENGTHS = (0.03, 0.01, 0.003)
NONE: tuple[float, ...] = (0.0,)
"""The strength of what has none: the method itself says how much changes."""
DENSE = frozenset({"full-finetune", "unknown-mixed"})
"""A full-rank change of some matrices is a fine-tune of those, or nothing that has a name."""
MIXED = frozenset({"sparse-update", "unknown-mixed"})
"""A change in which many entries are exactly the base's."""
LLAMA, BOTH = ("llama",), ("llama", "gpt2")
SHORT = ("bfloat16", "float16")
Key: TypeAlias = tuple[str, str, float, int]
"""Kind, variant, strength, seed."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of making a kind of edit."""

    kind: str
    name: str
    edit: Edit
    strengths: tuple[float, ...] = STRENGTHS
    also: frozenset[str] = frozenset()
    untold: frozenset[str] = frozenset()
    """More labels that are right where the command does not know the parents: a merge is then only what its change looks like."""
    layouts: tuple[str, ...] = BOTH
    dtypes: tuple[str, ...] | None = None
    """Storage dtypes of the base for which it makes sense; all, if None."""
    dtype: str | None = None
    """Storage dtype that the base takes whatever its seed says."""
    told: bool = True
    """Whether the command is told the parents, where there are any."""

    def accepted(self, *, told: bool) -> frozenset[str]:
        """Labels that are right, for a command that knows the parents or does not."""
        return self.also | (frozenset() if told else self.untold) | (frozenset() if self.kind == CONTROL else {self.kind})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pair to make: a variant at a strength, on the base of a seed."""

    variant: Variant
    strength: float
    seed: int

    @property
    def key(self) -> Key:
        """What tells it from every other cell."""
        return self.variant.kind, self.variant.name, self.strength, self.seed

    def base(self) -> Weights:
        """The trusted side."""
        return base(self.seed, self.variant.dtype)

    def edited(self) -> Edited:
        """The candidate; the draws are the same at every strength."""
        rng = np.random.default_rng(zlib.crc32(f"{self.variant.kind}/{self.variant.name}/{self.seed}".encode()))
        return self.variant.edit(self.base(), self.strength, rng)


def _storage() -> Iterator[Variant]:
    for kind, name, edit in (
        ("identical", "a copy", w.identical()),
        ("identical", "a copy with a readme", w.identical(readme=True)),
        ("resharded", "three files", w.resharded(3)),
        ("resharded", "another order", w.resharded(backwards=True)),
        ("resharded", "two files in another order", w.resharded(2, backwards=True)),
    ):
        yield Variant(kind=kind, name=name, edit=edit, strengths=NONE)
    for way in (
        ("bfloat16", "float16"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float16", "bfloat16"),
        ("float32", "float16"),
    ):
        yield Variant(kind="dtype-cast", name=" to ".join(way), edit=w.cast(*way[1:]), strengths=NONE, dtype=way[0])
    for name, edit in (
        ("Q8_0", w.quantised(w.q8_0)),
        ("Q8_0, embedding and head too", w.quantised(w.q8_0, ends=True)),
        ("int8 a row", w.quantised(w.int8_rows)),
        ("int8 a row, embedding and head too", w.quantised(w.int8_rows, ends=True)),
        ("int4 in 64, symmetric", w.quantised(w.int4_symmetric)),
        ("int4 in 64, symmetric, everything", w.quantised(w.int4_symmetric, ends=True, norms=True)),
        ("int4 in 128, asymmetric", w.quantised(w.int4_asymmetric)),
        ("NF4 in 64", w.quantised(w.nf4)),
        ("NF4 in 64, embedding and head too", w.quantised(w.nf4, ends=True)),
        ("fp8 e4m3 a tensor", w.quantised(w.fp8)),
        ("fp8 e4m3 a tensor, everything", w.quantised(w.fp8, ends=True, norms=True)),
    ):
        yield Variant(kind="quantisation", name=name, edit=edit, strengths=NONE)


def _tuned() -> Iterator[Variant]:
    adapters: list[tuple[int, str, bool]] = [(rank, "all linear", trained) for rank in (1, 4, 8, 16, 64, 128) for trained in (False, True)]
    adapters += [(1, "q and v", False), (8, "q and v", True), (64, "q and v", False)]
    adapters += [(4, "attention", False), (16, "attention", True), (128, "attention", False)]
    for rank, targets, trained in adapters:
        name = f"rank {rank}, {targets}, {'trained' if trained else 'Gaussian'}"
        yield Variant(kind="lora-merge", name=name, edit=t.lora(rank, targets, trained=trained))
    rounded = t.lora(16, "all linear", rounded=True)
    yield Variant(kind="lora-merge", name="rank 16, all linear, Gaussian, merged in the storage dtype", edit=rounded, dtypes=SHORT)
    for name, edit in (
        ("power law", t.full()),
        ("Adam's signs", t.full(make=t.signs)),
        ("embedding and head frozen", t.full(ends=False)),
        ("norms frozen", t.full(vectors=False)),
    ):
        yield Variant(kind="full-finetune", name=name, edit=edit)
    for share in (0.01, 0.05, 0.2):
        name = f"what passes the rounding, {100 * share:g} %"
        yield Variant(kind="sparse-update", name=name, edit=t.below_rounding(share), strengths=NONE, dtypes=SHORT)
    yield Variant(kind="sparse-update", name="random mask of 2 %", edit=t.masked(0.02))


def _localised() -> Iterator[Variant]:
    for name, edit in (
        ("shared direction", Abliteration()),
        ("shared direction, half", Abliteration(amount=0.5)),
        ("shared direction, 1.2 times", Abliteration(amount=1.2)),
        ("a direction a layer", Abliteration(shared=False, ends=False)),
        ("layers 2 to 4", Abliteration(layers=(2, 3, 4), ends=False)),
        ("row norms kept", Abliteration(keep_norms=True, ends=False)),
        ("row norms kept, cut to rank 3, kernel over layers", Abliteration(keep_norms=True, ends=False, rank=3, kernel=True)),
    ):
        yield Variant(kind="abliteration", name=name, edit=edit, strengths=NONE)
    yield Variant(kind="knowledge-edit", name="rank one, layer 3", edit=d.rome(3))
    yield Variant(kind="knowledge-edit", name="rank one, layer 0", edit=d.rome(0))
    for facts in (1, 4, 10):
        yield Variant(kind="knowledge-edit-multi", name=f"{facts} facts in layers 1 to 4", edit=d.memit(facts))
    for count in (1, 3, 20):
        yield Variant(kind="rows-only", name=f"{count} of the embedding", edit=p.rows_only(count))
    yield Variant(kind="rows-only", name="3 of the head", edit=p.rows_only(3, ends=("head",)), layouts=LLAMA)
    yield Variant(kind="rows-only", name="20 of both", edit=p.rows_only(20, ends=("embedding", "head")), layouts=LLAMA)
    for count in (2, 8, 64):
        yield Variant(kind="added-tokens", name=f"{count} rows", edit=p.added_tokens(count), strengths=NONE)
    yield Variant(kind="added-tokens", name="8 rows of zeros", edit=p.added_tokens(8, zeros=True), strengths=NONE)
    yield Variant(kind="steering-bias", name="down projection of one layer", edit=p.steering(), strengths=NONE)
    yield Variant(kind="steering-bias", name="output projection of one layer", edit=p.steering("o"), strengths=NONE)
    name = "biases everywhere, zero but in one layer"
    yield Variant(kind="steering-bias", name=name, edit=p.steering(everywhere=True), strengths=NONE, layouts=LLAMA)
    for share in (0.1, 0.3, 0.5):
        yield Variant(kind="pruning", name=f"{100 * share:g} % by magnitude", edit=p.pruned(share), strengths=NONE)
    yield Variant(kind="pruning", name="two of four", edit=p.pruned_two_of_four, strengths=NONE)


def _merged() -> Iterator[Variant]:
    for kind, name, edit, untold in (
        ("merge-linear", "halves", r.merge(r.linear(0.5)), DENSE),
        ("merge-linear", "0.7 and 0.3", r.merge(r.linear(0.7)), DENSE),
        ("merge-linear", "task arithmetic, 0.6 of each", r.merge(r.task_arithmetic(0.6)), DENSE),
        ("merge-linear", "halves of two merged adapters", r.merge(r.linear(0.5), adapters=True), DENSE | {"lora-merge"}),
        ("merge-ties", "density 0.3", r.merge(r.ties(0.3)), MIXED),
        ("merge-dare", "0.9 dropped", r.merge(r.dare(0.9)), MIXED),
        ("merge-dare", "0.5 dropped", r.merge(r.dare(0.5)), DENSE | MIXED),
    ):
        yield Variant(kind=kind, name=name, edit=edit, untold=untold)
        if name in ("halves", "density 0.3", "0.9 dropped"):
            yield Variant(kind=kind, name=f"{name}, parents not told", edit=edit, untold=untold, told=False)
    name = "0.9 dropped of one parent, not told"
    yield Variant(kind="merge-dare", name=name, edit=r.merge(r.dare(0.9), count=1), untold=MIXED, told=False)
    # Between parents this near, tools that slerp go straight where the cosine is over 0.9995: at 0.01 and below everywhere.
    straight = frozenset({"merge-linear"})
    for along in (0.3, 0.5):
        edit = r.merge(r.slerp(along))
        yield Variant(kind="merge-slerp", name=f"at {along}", edit=edit, also=straight, untold=DENSE)
        yield Variant(kind="merge-slerp", name=f"at {along}, far parents", edit=edit, strengths=(0.3,), untold=DENSE)
    own, chosen = [0, 1, 2, 3, 2, 3, 4, 5], [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (1, 5)]
    yield Variant(kind="layer-stack", name="two parents interleaved", edit=r.stacked(chosen, count=2))
    for name, order in (
        ("layers 2 and 3 twice", own), ("layers 3 and 4 left out", [0, 1, 2, 5]), ("layer 2 in place of layer 3", [0, 1, 2, 2, 4, 5])
    ):  # fmt: skip
        yield Variant(kind="layer-stack", name=name, edit=r.stacked([(0, layer) for layer in order]), strengths=NONE)


def _rewritten() -> Iterator[Variant]:
    for name, edit, layouts in (
        ("neurons permuted", r.permuted_neurons(), BOTH),
        ("heads permuted", r.permuted_heads, BOTH),
        ("residual stream rotated, norms folded", r.rotated(), LLAMA),
        ("norms folded", r.folded, LLAMA),
        ("neurons scaled by powers of two", r.scaled(powers_of_two=True), LLAMA),
        ("neurons scaled", r.scaled(powers_of_two=False), LLAMA),
        ("values turned in each head", r.turned_values, LLAMA),
    ):
        yield Variant(kind="reparameterised", name=name, edit=edit, strengths=NONE, layouts=layouts)
    yield Variant(kind="not-derived", name="another start", edit=r.stranger(), strengths=NONE)
    yield Variant(kind="not-derived", name="another start, the base's norms", edit=r.stranger(same_norms=True), strengths=NONE)
    adapter = t.lora(16, "all linear", trained=True)
    for name, edit in (
        ("adapter, then int8 a row", r.with_quantisation(adapter, w.int8_rows, first=True)),
        ("NF4, then adapter", r.with_quantisation(adapter, w.nf4, first=False)),
        ("abliteration, then full fine-tune", r.then(Abliteration(), t.full())),
    ):
        yield Variant(kind="unknown-mixed", name=name, edit=edit)


def _controls() -> Iterator[Variant]:
    """A change of the same size in the same tensors as a planted one, without what makes it that kind."""
    facts = (1, 2, 3, 4)
    for name, edit, also in (
        ("of lora-merge: noise in q and v", t.noise(("q", "v", "qkv")), DENSE),
        ("of lora-merge: noise in all linear", t.noise(), DENSE),
        # Nothing but the keys' covariance tells a fact from an adapter on the same matrices, and that is not in the weights.
        ("of knowledge-edit: rank one in o of layer 3", d.ranked(("o",), (3,), 1), frozenset({"knowledge-edit", "lora-merge"})),
        ("of knowledge-edit: rank one in down of layer 3", d.ranked(("down",), (3,), 1), frozenset({"knowledge-edit", "lora-merge"})),
        ("of knowledge-edit: noise in down of layer 3", t.noise(("down",), (3,)), DENSE),
        ("of knowledge-edit-multi: rank 4 in down", d.ranked(("down",), facts, 4), frozenset({"knowledge-edit-multi", "lora-merge"})),
        ("of knowledge-edit-multi: noise in down", t.noise(("down",), facts), DENSE),
        ("of rows-only: noise in the whole embedding", t.noise((), ends=True), DENSE),
        ("of added-tokens: 8 rows, and noise in all linear", p.added_tokens(8, also_noise=True), DENSE),
        ("of dtype-cast: noise, then float16", r.then(t.noise(), w.cast("float16")), DENSE),
        ("of merges: a fine-tune told with other parents", r.other_parents, DENSE),
    ):
        yield Variant(kind=CONTROL, name=name, edit=edit, also=also, dtype="bfloat16" if "float16" in name else None)
    # Rank one in every writer is an adapter by weights alone, whether or not the outputs agree: it does not take away what is there.
    low = frozenset({"lora-merge", "unknown-mixed"})
    for name, shared in (("rank one in every writer", False), ("one output direction, other inputs", True)):
        edit = d.ranked(("o", "down"), None, 1, shared_output=shared)
        yield Variant(kind=CONTROL, name=f"of abliteration: {name}", edit=edit, strengths=(0.06, 0.01), also=low)
    # Far for a fine-tune, but the change is only half as long as the base.
    yield Variant(kind=CONTROL, name="of not-derived: a large fine-tune", edit=t.full(), strengths=(0.5,), also=DENSE)
    broken = DENSE | {"not-derived"}  # a matrix that no longer fits its neighbours: anything but the same function
    for name, edit, also, layouts in (
        ("of abliteration: noise of its size", r.as_noise(Abliteration()), DENSE, BOTH),
        ("of quantisation: noise of the size of int8", r.as_noise(w.quantised(w.int8_rows)), DENSE, BOTH),
        ("of quantisation: noise of the size of NF4", r.as_noise(w.quantised(w.nf4)), DENSE, BOTH),
        ("of pruning: noise in the smallest 30 %", p.pruned(0.3, shaken=True), DENSE | MIXED, BOTH),
        ("of identical: one entry moved by one unit", t.one_entry, frozenset({"sparse-update", "unknown-mixed"}), BOTH),
        ("of reparameterised: one matrix permuted", r.permuted_neurons(everything=False), broken, BOTH),
        ("of reparameterised: every writer turned its own way", r.rotated(agreeing=False), broken, LLAMA),
    ):
        yield Variant(kind=CONTROL, name=name, edit=edit, strengths=NONE, also=also, layouts=layouts)
    # In float32 a dense change of that size is stored as it is, so that it is not sparse.
    same = r.as_noise(_through("bfloat16", t.below_rounding(0.05)))
    yield Variant(kind=CONTROL, name="of sparse-update: noise of its size", edit=same, strengths=NONE, also=DENSE, dtype="float32")


def _through(dtype: str, edit: Edit) -> Edit:
    """An edit of the base as it would be in another storage dtype, brought back to the base's own values."""

    def changed(base: Weights, strength: float, rng: np.random.Generator) -> Edited:
        short = w.cast(dtype)(base, strength, rng).candidate
        after, made = edit(short, strength, rng).candidate, base.copy()
        for name in base.tensors:
            made.add(name, after.read(name) - short.read(name))
        return Edited(candidate=made)

    return changed


VARIANTS: tuple[Variant, ...] = (*_storage(), *_tuned(), *_localised(), *_merged(), *_rewritten(), *_controls())


def cell(key: Key) -> Cell:
    """The cell of a key."""
    kind, name, strength, seed = key
    return Cell(variant=next(one for one in VARIANTS if (one.kind, one.name) == (kind, name)), strength=strength, seed=seed)


def cells(seeds: Sequence[int], kinds: Sequence[str] = (), strengths: Sequence[float] = ()) -> list[Cell]:
    """Everything to be made, seed by seed; what has no strength is kept whatever `strengths` says."""
    chosen = []
    for seed in seeds:
        layout, usual = BASES.get(seed, ("llama", "bfloat16"))
        for variant in VARIANTS:
            fits = layout in variant.layouts and (variant.dtypes is None or usual in variant.dtypes)
            if fits and (not kinds or variant.kind in kinds):
                chosen += [
                    Cell(variant=variant, strength=strength, seed=seed)
                    for strength in variant.strengths
                    if not strengths or variant.strengths == NONE or strength in strengths
                ]
    return chosen
