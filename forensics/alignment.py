"""Which tensor of the base is which tensor of the candidate, as far as the two can be laid side by side."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from forensics.checkpoint import Checkpoint
from forensics.dequantise import refuse_codes
from forensics.errors import CannotCompare
from forensics.headers import TensorInfo
from forensics.layers import Stack, stands_for

BUFFER_ENDINGS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Constants that older versions of transformers saved beside the weights (causal masks, rotary frequencies)."""
HEAD_ENDINGS = ("lm_head.weight", "embed_out.weight")
EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
VOCABULARY_ENDINGS = (*HEAD_ENDINGS, *EMBEDDING_ENDINGS, "lm_head.bias")
"""Tensors with one row a token: the only ones whose first axis may differ."""
PREFIXES = ("model.", "transformer.", "base_model.model.", "module.", "_orig_mod.", "language_model.")
"""What trainers, wrappers and versions of transformers put before a name, or leave out."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
LEAST_SHARE = 0.5
"""Share of the base's tensors that must have a counterpart: with fewer, what can be compared says little about the pair."""
UNKNOWN = -1
"""The place of a layer that stands for none."""
Place = tuple[str, int | None]
"""A tensor by what both sides call it: its name without prefix and number of layer, and the place of its layer if it has one."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One tensor as it is called in a report, and the stored tensor that holds it on each side.

    `rows` is how many leading rows both sides have where one of them knows more tokens, None where the shapes are equal.
    """

    name: str
    base: TensorInfo
    candidate: TensorInfo
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Both sides laid side by side.

    `pairs` are sorted by name, the candidate's. `added` are tensors that only the candidate has, `removed` those that only
    the base has. `layers` says for each layer of the candidate, in order, at which place of the base's `base_layers` the
    layer is that it stands for. `renamed` counts pairs whose names differ in their prefixes.
    """

    pairs: tuple[Pair, ...]
    added: tuple[TensorInfo, ...]
    removed: tuple[TensorInfo, ...]
    layers: tuple[int, ...]
    base_layers: int
    renamed: int

    @property
    def moved(self) -> tuple[int, ...]:
        """Places of the candidate's layers that stand for a layer at another place of the base."""
        return tuple(place for place, other in enumerate(self.layers) if place != other)

    @property
    def in_place(self) -> bool:
        """Whether both sides have the same layers in the same places: only then does a place mean the same on both."""
        return not self.moved and len(self.layers) == self.base_layers


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The weights of one side by their places, and what each is called without the number of its layer."""

    places: dict[Place, TensorInfo]
    templates: dict[str, str]

    def stack(self, side: Checkpoint) -> Stack:
        layers: dict[int, dict[str, TensorInfo]] = {}
        for (key, layer), info in self.places.items():
            if layer is not None:
                layers.setdefault(layer, {})[key] = info
        return Stack(side=side, layers=tuple(layers[place] for place in sorted(layers)))


def align(base: Checkpoint, candidate: Checkpoint) -> Layout:
    """Match the tensors of two full checkpoints, as far as they have counterparts.

    Names match with or without the prefixes of known wrappers; layers match by what they hold (`stands_for`). A tied head
    that only one side writes out is matched with the other side's embedding: what a loader would use. Matrices with a
    row a token match in the rows that both have. Constant buffers are left out.

    Raises:
        CannotCompare: The architectures differ, fewer than half of the base's tensors have a counterpart, a shape differs
            other than in the vocabulary, or a weight is stored as codes that cannot be read.
    """
    kinds = base.config.get("model_type"), candidate.config.get("model_type")
    if kinds[0] != kinds[1]:
        raise CannotCompare(
            f"base and candidate are different architectures ({kinds[0]} and {kinds[1]})",
            where="config.json: model_type",
            hint=CHECK_BASE,
        )
    weights = _weights(base), _weights(candidate)
    ours, theirs = _sides(*weights)
    stack = ours.stack(base)
    layers = stands_for(stack, theirs.stack(candidate))
    source: dict[int | None, int | None] = {None: None} | dict(enumerate(layers))
    pairs, renamed = [], 0
    for (key, layer), info in theirs.places.items():
        other = ours.places.get((key, source.get(layer, UNKNOWN)))
        if other is not None:
            pairs.append(_pair(info.name, other, info))
            renamed += ours.templates[other.name] != theirs.templates[info.name]
    pairs += _tied_heads(base, candidate, weights, pairs)
    held = {pair.base.name for pair in pairs}, {pair.candidate.name for pair in pairs}
    removed, added = (
        tuple(info for name, info in sorted(side.items()) if name not in names) for side, names in zip(weights, held, strict=True)
    )
    layout = Layout(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.name)),
        added=added,
        removed=removed,
        layers=layers,
        base_layers=len(stack.layers),
        renamed=renamed,
    )
    _refuse_strangers(f"{base.name} and {candidate.name}", layout, len(weights[0]))
    return layout


CHECK_BASE = "check that BASE is the model CANDIDATE was fine-tuned from"


def refuse_strangers(base: Checkpoint, parents: Sequence[Checkpoint]) -> None:
    """Refuse parents of a merge that do not have the base's tensors.

    Raises:
        CannotCompare: A parent lacks a tensor, or has it in another shape.
    """
    for parent in parents:
        for name, info in base.tensors.items():
            other = parent.tensors.get(name)
            if not is_buffer(info) and (other is None or other.shape != info.shape):
                raise CannotCompare(
                    f"this parent does not have the base's {name}, or has it in another shape",
                    where=parent.name,
                    hint="parents of a merge are models of the same architecture and vocabulary as BASE",
                )


def _weights(side: Checkpoint) -> dict[str, TensorInfo]:
    """Tensors that are weights; refuses codes of a quantised release that cannot be read."""
    weights = {name: info for name, info in side.tensors.items() if not is_buffer(info)}
    refuse_codes(weights.values(), side.recipes, side.config, side.name)
    return weights


def is_buffer(info: TensorInfo) -> bool:
    """Whether a tensor is a constant that older versions of transformers saved beside the weights."""
    # GPT-2's `attn.bias` is a [1, 1, n, n] mask; a true bias of that name would be a vector and must be compared.
    return info.name.endswith(BUFFER_ENDINGS) and (len(info.shape) != 1 or info.name.endswith("inv_freq"))


def _sides(ours: Mapping[str, TensorInfo], theirs: Mapping[str, TensorInfo]) -> tuple[_Side, _Side]:
    """Both sides' weights by places that mean the same on either."""
    stem = _main_stem(ours, theirs)
    cut = [{name: _template(name, stem) for name in side} for side in (ours, theirs)]
    keys = _shared_keys(*({template for template, _ in side.values()} for side in cut))
    sides = []
    for infos, names, key in zip((ours, theirs), cut, keys, strict=True):
        numbers = sorted({number for _, number in names.values() if number is not None})
        order: dict[int | None, int | None] = {None: None} | {number: place for place, number in enumerate(numbers)}
        sides.append(
            _Side(
                places={(key[template], order[number]): infos[name] for name, (template, number) in names.items()},
                templates={name: template for name, (template, _) in names.items()},
            )
        )
    return sides[0], sides[1]


def _cut(name: str) -> tuple[str, int, str] | None:
    """What stands before the first number in a dotted name, the number, and what stands after it."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if NUMBER.fullmatch(part):
            return "".join(f"{one}." for one in parts[:place]), int(part), ".".join(parts[place + 1 :])
    return None


def _main_stem(ours: Mapping[str, TensorInfo], theirs: Mapping[str, TensorInfo]) -> str | None:
    """What stands before the numbers of the layers, without prefixes: of all lists that both sides have, the largest."""
    sizes: list[Counter[str]] = [Counter(), Counter()]
    for side, size in zip((ours, theirs), sizes, strict=True):
        for name, info in side.items():
            if cut := _cut(name):
                size[_bare(cut[0])] += info.elements
    return max(sorted(sizes[0].keys() & sizes[1].keys()), key=lambda stem: sizes[0][stem], default=None)


def _template(name: str, stem: str | None) -> tuple[str, int | None]:
    """`name` without the number of its layer, and that number; other numbers stay."""
    cut = _cut(name)
    if cut is None or _bare(cut[0]) != stem:
        return name, None
    return f"{cut[0]}*.{cut[2]}", cut[1]


def _bare(name: str) -> str:
    """`name` without any of the known prefixes."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _shared_keys(ours: set[str], theirs: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """One key for what both sides call alike, or alike but for a prefix; what that leaves ambiguous keeps its name."""
    same = ours & theirs
    keys = []
    for side in (ours, theirs):
        bare = Counter(_bare(name) for name in side - same)
        rest = {name: _bare(name) if bare[_bare(name)] == 1 and _bare(name) not in same else name for name in side - same}
        keys.append({name: name for name in same} | rest)
    return keys[0], keys[1]


def _pair(name: str, ours: TensorInfo, theirs: TensorInfo) -> Pair:
    alike = len(ours.shape) == len(theirs.shape) and ours.shape[1:] == theirs.shape[1:]
    grown = ours.shape != theirs.shape and alike and name.endswith(VOCABULARY_ENDINGS)
    return Pair(name=name, base=ours, candidate=theirs, rows=min(ours.shape[0], theirs.shape[0]) or None if grown else None)


def _tied_heads(
    base: Checkpoint, candidate: Checkpoint, weights: tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]], pairs: Collection[Pair]
) -> list[Pair]:
    """Heads without a counterpart, matched with the embedding that the other side uses as its head."""
    matched = {pair.base.name for pair in pairs}, {pair.candidate.name for pair in pairs}
    alone = [
        [info for name, info in sorted(side.items()) if name.endswith(HEAD_ENDINGS) and name not in names]
        for side, names in zip(weights, matched, strict=True)
    ]
    embeddings = tied_embedding(base), tied_embedding(candidate)
    return [_pair(head.name, head, embeddings[1]) for head in alone[0] if embeddings[1]] + [
        _pair(head.name, embeddings[0], head) for head in alone[1] if embeddings[0]
    ]


def tied_embedding(side: Checkpoint) -> TensorInfo | None:
    """The embedding of a model that may use it as its head as well; None where its config says that it does not."""
    # Many configs leave the key out when it has the default of their class, so only an explicit False says "untied".
    if side.config.get("tie_word_embeddings") is False:
        return None
    return next((info for name, info in sorted(side.tensors.items()) if name.endswith(EMBEDDING_ENDINGS)), None)


def _refuse_strangers(where: str, layout: Layout, count: int) -> None:
    """Refuse a pair of which too little has a counterpart, or whose counterparts are of other shapes."""
    found = len({pair.base.name for pair in layout.pairs})
    if not found or found < LEAST_SHARE * count:
        raise CannotCompare(
            f"cannot compare these checkpoints: {count - found} of {count} tensors of the base have no counterpart",
            where=where,
            details=(
                *(f"{info.name}  only in the base" for info in layout.removed),
                *(f"{info.name}  only in the candidate" for info in layout.added),
            ),
            hint=CHECK_BASE,
        )
    rows = [
        f"{pair.name}  base {list(pair.base.shape)}  candidate {list(pair.candidate.shape)}"
        for pair in layout.pairs
        if pair.base.shape != pair.candidate.shape and pair.rows is None
    ]
    if rows:
        raise CannotCompare(
            f"cannot compare these checkpoints: {len(rows)} of {len(layout.pairs)} tensors differ in shape",
            where=where,
            details=tuple(rows),
            hint=f"{CHECK_BASE}; only vocabularies and numbers of layers may differ",
        )
