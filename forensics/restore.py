"""Put the base's tensors back into the live candidate, group by group and in place, streamed from the files; and out again.

One model is in memory. What is written is what a loader would have read: where a tensor is whole on either side its stored values
are copied, so that putting everything back gives the base to the last digit.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from forensics.adapters import Adapter
from forensics.alignment import Pair
from forensics.case import Case
from forensics.deltas import Change
from forensics.errors import CannotCompare
from forensics.model import LiveModel
from forensics.record import sha256_text
from forensics.roles import place

WEIGHTS = "weights"
"""The source of what the candidate's own files change; an adapter is a source by its name in the run, `adapter:<name>`."""
BANDS = 4
"""Runs of layers that a model is cut into: few enough to measure every one from both ends, and the best is narrowed afterwards."""
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_forward|experts|\.fc\d", re.IGNORECASE)
KINDS_BY_ROLE = {
    "norm": "norms",
    "embedding": "embedding",
    "position": "embedding",
    "head": "head",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
IN_LAYERS = ("attention", "mlp", "other")
"""Kinds of tensors that make a group for every run of layers; the rest make one group each."""


class Mode(enum.Enum):
    """What stands in the model of one change D: all of it, none of it, or for control a step of the same size beside either.

    The value is how often D, and how often D with its entries shuffled, is added to the base.
    """

    CANDIDATE = (1, 0)
    BASE = (0, 0)
    BESIDE_CANDIDATE = (1, -1)
    BESIDE_BASE = (0, 1)

    @property
    def plain(self) -> int:
        """How often D is added to the base."""
        return int(self.value[0])

    @property
    def shuffled(self) -> int:
        """How often D with its entries shuffled is added."""
        return int(self.value[1])


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The change of one tensor by one source: `change` and `base` are squared Frobenius norms, of it and of the base's tensor."""

    tensor: str
    source: str
    layer: int
    kind: str
    change: float
    base: float


@dataclass(frozen=True, kw_only=True)
class Region:
    """A group of pieces that are taken out together; `layers` are the first and the last, None for what is in no layer."""

    name: str
    kind: str
    layers: tuple[int, int] | None
    pieces: tuple[Piece, ...]

    @property
    def relative_change(self) -> float:
        """Norm of the change over that of the base's tensors, each tensor counted once; 0 where these are all zero."""
        base = sum({piece.tensor: piece.base for piece in self.pieces}.values())
        return math.sqrt(sum(piece.change for piece in self.pieces) / base) if base else 0.0


def kind_of(tensor: str) -> str:
    """What a tensor is for, as groups go: attention, mlp, norms, embedding, head, or other.

    >>> kind_of("model.layers.3.mlp.down_proj.weight"), kind_of("model.layers.3.post_attention_layernorm.weight")
    ('mlp', 'norms')
    """
    role = place(tensor).role
    if role in KINDS_BY_ROLE:
        return KINDS_BY_ROLE[role]
    if ATTENTION.search(tensor):
        return "attention"
    if MLP.search(tensor):
        return "mlp"
    return "head" if "lm_head" in tensor else "other"


def regions(pieces: Iterable[Piece], layers: int) -> tuple[Region, ...]:
    """Pieces grouped by kind and by runs of layers, in the order of the model; every piece is in one group.

    Args:
        pieces: What changed.
        layers: How many layers the model has; they make at most `BANDS` runs.
    """
    bands = min(BANDS, max(1, layers))
    groups: dict[tuple[int, str], list[Piece]] = {}
    for piece in pieces:
        banded = piece.layer >= 0 and piece.kind in IN_LAYERS
        groups.setdefault((piece.layer * bands // layers if banded else -1, piece.kind), []).append(piece)
    return tuple(_region(band, kind, bands, layers, members) for (band, kind), members in sorted(groups.items()))


def _region(band: int, kind: str, bands: int, layers: int, members: Sequence[Piece]) -> Region:
    if band < 0:
        return Region(name=kind, kind=kind, layers=None, pieces=tuple(members))
    inside = [layer for layer in range(layers) if layer * bands // layers == band]
    return Region(name=layers_name(inside[0], inside[-1], kind), kind=kind, layers=(inside[0], inside[-1]), pieces=tuple(members))


def layers_name(first: int, last: int, kind: str) -> str:
    """How a group of one kind of tensors in a run of layers is called.

    >>> layers_name(4, 7, "mlp"), layers_name(2, 2, "attention")
    ('layers 4-7, mlp', 'layer 2, attention')
    """
    return f"layer {first}, {kind}" if first == last else f"layers {first}-{last}, {kind}"


class Patchwork:
    """The live candidate, each of whose changes can be taken out and put in. Use it as a context manager: it leaves the model as it was."""

    def __init__(self, case: Case, model: LiveModel) -> None:
        """Find every change, and the parameter it stands in.

        Args:
            case: Base and candidate with its adapters. These are written into the weights here, and not worn.
            model: The candidate's live model (`case.model("candidate")`).

        Raises:
            CannotCompare: Layers were moved, a changed tensor is not in the live model as it is stored, a value is not finite, or the
                candidate ties what the base does not.
        """
        if not case.layout.in_place:
            raise CannotCompare(
                "layers were added, taken out or moved, so the base has no tensor to put back in their places",
                where=f"{case.base.name} and {case.candidate.name}",
                hint="see weights.change for the layers that were moved; causes can be told where layers are in place",
            )
        self._case = case
        self._pairs = {pair.name: pair for pair in case.pairs}
        self._adapters = {f"adapter:{adapter.name}": adapter for adapter in case.adapters}
        self.pieces = tuple(sorted((*self._own(), *self._worn()), key=lambda piece: (piece.layer, piece.tensor, piece.source)))
        self._live = self._placed(model, {piece.tensor for piece in self.pieces})
        self._by_tensor: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            self._by_tensor.setdefault(piece.tensor, []).append(piece)
        self._drop_twins()
        self._refuse_others()
        self._loaded = {name: tuple(self._as_loaded(piece) for piece in held) for name, held in self._by_tensor.items()}
        self._held = dict(self._loaded)

    def __enter__(self) -> Patchwork:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, modes in self._loaded.items():
            self._write(name, modes)

    def show(self, rest: Mode, chosen: Collection[Piece] = (), mode: Mode = Mode.BASE) -> None:
        """Make the model hold `chosen` pieces in one mode and all others in another; only what differs from now is written."""
        chosen = frozenset(chosen)
        for name, held in self._by_tensor.items():
            self._write(name, tuple(mode if piece in chosen else rest for piece in held))

    def _own(self) -> Iterator[Piece]:
        """What the candidate's files change."""
        if self._case.candidate is self._case.base:
            return
        for pair, blocks in self._case.tensors():
            change = base = 0.0
            differs = False
            for ours, theirs in blocks:
                before, after = ours.double(), theirs.double()
                differs = differs or not torch.equal(before, after)
                change += float((after - before).square().sum())
                base += float(before.square().sum())
            if differs:
                yield self._piece(pair.name, WEIGHTS, change, base)

    def _worn(self) -> Iterator[Piece]:
        """What each adapter changes."""
        known = {pair.name for pair in self._case.layout.pairs}
        for name, worn in self._case.changes.items():
            if name not in known:
                raise CannotCompare(
                    f"an adapter gives {name}, which is tied to the embedding, weights of its own",
                    where=worn[0][0].name,
                    hint="merge the adapter into a full checkpoint (merge_and_unload), and audit and investigate that",
                )
            base = sum(float(block.double().square().sum()) for block in self._blocks(name, ours=True))
            for adapter, change in worn:
                size = float(adapter.delta(change).double().square().sum())
                if size != 0.0:
                    yield self._piece(name, f"adapter:{adapter.name}", size, base)

    def _piece(self, tensor: str, source: str, change: float, base: float) -> Piece:
        if not math.isfinite(change) or not math.isfinite(base):
            raise CannotCompare(
                f"{tensor} holds values that are not finite, so nothing can be put in its place and out again",
                where=source,
                hint="see weights.change; a model with such weights answers nothing, and the cause is known",
            )
        return Piece(tensor=tensor, source=source, layer=place(tensor).layer, kind=kind_of(tensor), change=change, base=base)

    def _placed(self, model: LiveModel, needed: set[str]) -> dict[str, Any]:
        """The live parameter of each stored tensor: by its name, by its end where wrappers put a prefix before it on either side, or,
        where a loader calls it otherwise, as the only parameter left that holds its very values.

        Raises:
            CannotCompare: One of the `needed` ones is not found, or not as plain numbers.
        """
        with model.wearing(()) as whole:
            every: dict[str, Any] = whole.state_dict(keep_vars=True)
        live = {name: weight for name, weight in every.items() if weight.is_floating_point() and weight.device.type != "meta"}
        found = {name: live[name] for name in self._pairs if name in live}
        for name in self._pairs.keys() - found.keys():
            ends = [other for other in live if other.endswith(f".{name}") or name.endswith(f".{other}")]
            if len(ends) == 1:
                found[name] = live[ends[0]]
        taken = {id(weight) for weight in found.values()}
        for name in sorted(needed - found.keys()):
            left = {id(weight): weight for weight in live.values() if id(weight) not in taken and self._held_by(weight, name)}
            if len(left) == 1:
                found[name] = next(iter(left.values()))
        lost = sorted(set(needed) - found.keys())
        if lost:
            raise CannotCompare(
                f"{len(lost)} changed tensors are not in the live model as they are stored",
                where=model.name,
                details=tuple(lost),
                hint="its loader fuses, converts or quantises them; save it with save_pretrained, and audit and investigate that",
            )
        return found

    def _held_by(self, live: Tensor, name: str) -> bool:
        """Whether a live tensor holds what the candidate's files hold under `name`, in the rows that both sides have."""
        info, start = self._pairs[name].candidate, 0
        if tuple(live.shape) != tuple(info.shape):
            return False
        for block in self._blocks(name, ours=False):
            here = live[start : start + len(block)] if block.ndim else live
            if not torch.equal(here, block.to(live)):
                return False
            start += len(block) if block.ndim else 0
        return True

    def _drop_twins(self) -> None:
        """Where two stored tensors are one parameter in the live model, keep one; refuse where the base has two that differ."""
        owners: dict[int, list[str]] = {}
        for name, live in sorted(self._live.items()):
            owners.setdefault(id(live), []).append(name)
        for first, *others in owners.values():
            for name in others if any(one in self._by_tensor for one in (first, *others)) else ():
                if not self._alike(first, name):
                    raise CannotCompare(
                        f"the candidate uses one tensor for {first} and {name}, where the base has two",
                        where=self._case.candidate.name,
                        hint="causes can be told only where both sides tie their head to the embedding, or neither does",
                    )
                gone = set(self._by_tensor.pop(name, ()))
                self.pieces = tuple(piece for piece in self.pieces if piece not in gone)

    def _alike(self, name: str, other: str) -> bool:
        """Whether the base stores the same values under both names."""
        if self._pairs[name].base.shape != self._pairs[other].base.shape:
            return False
        blocks = zip(self._blocks(name, ours=True), self._blocks(other, ours=True), strict=True)
        return all(torch.equal(one, two) for one, two in blocks)

    def _refuse_others(self) -> None:
        """Refuse a live model that does not hold what the candidate's files hold: what is put back would go elsewhere."""
        for name in self._by_tensor:
            if not self._held_by(self._live[name], name):
                raise CannotCompare(
                    f"the live model does not hold {name} as the candidate's files do",
                    where=self._case.candidate.name,
                    hint="its loader converts or quantises its weights; save it unquantised with save_pretrained and audit that",
                )

    @staticmethod
    def _as_loaded(piece: Piece) -> Mode:
        return Mode.CANDIDATE if piece.source == WEIGHTS else Mode.BASE

    def _write(self, name: str, modes: tuple[Mode, ...]) -> None:
        if self._held.get(name) == modes:
            return
        self._held.pop(name, None)  # a block that cannot be read leaves some of either here: whoever comes next has to write it anew
        own = next((mode for piece, mode in zip(self._by_tensor[name], modes, strict=True) if piece.source == WEIGHTS), Mode.CANDIDATE)
        others = [mode for piece, mode in zip(self._by_tensor[name], modes, strict=True) if piece.source != WEIGHTS]
        live = self._live[name]
        with torch.no_grad():
            if own in (Mode.BASE, Mode.CANDIDATE) and all(mode is Mode.BASE for mode in others):
                start = 0
                for block in self._blocks(name, ours=own is Mode.BASE):
                    (live[start : start + len(block)] if block.ndim else live).copy_(block)
                    start += len(block) if block.ndim else 0
            else:
                value = self._mixed(name, modes)
                (live[: len(value)] if value.ndim else live).copy_(value)
        self._held[name] = modes

    def _mixed(self, name: str, modes: tuple[Mode, ...]) -> Tensor:
        """The tensor with some of its changes, float32, whole."""
        held = list(zip(self._by_tensor[name], modes, strict=True))
        own = next((mode for piece, mode in held if piece.source == WEIGHTS), Mode.CANDIDATE)
        # Stored values to start from, so that only what is no stored value goes through a sum.
        value = _whole(self._blocks(name, ours=own.plain == 0))
        for piece, mode in held:
            added = mode.plain if piece.source != WEIGHTS else 0
            if added or mode.shuffled:
                change = self._change(piece)
                value += added * change
                if mode.shuffled:
                    value += mode.shuffled * _shuffle(change, f"{piece.source} {name}")
        return value

    def _change(self, piece: Piece) -> Tensor:
        before = _whole(self._blocks(piece.tensor, ours=True))
        if piece.source == WEIGHTS:
            return _whole(self._blocks(piece.tensor, ours=False)) - before
        adapter, change = self._worn_by(piece)
        delta = adapter.delta(change)
        return delta[: len(before)] if delta.ndim else delta

    def _worn_by(self, piece: Piece) -> tuple[Adapter, Change]:
        mine = self._adapters[piece.source]
        return next((adapter, change) for adapter, change in self._case.changes[piece.tensor] if adapter is mine)

    def _blocks(self, name: str, *, ours: bool) -> Iterator[Tensor]:
        """The tensor as the base or the candidate stores it, in the rows that both have."""
        pair: Pair = self._pairs[name]
        side, info = (self._case.base, pair.base) if ours else (self._case.candidate, pair.candidate)
        return side.blocks(info.name, rows=pair.rows)


def _whole(blocks: Iterator[Tensor]) -> Tensor:
    parts = [block.float() for block in blocks]
    return torch.cat(parts) if parts[0].ndim else parts[0]


def _shuffle(change: Tensor, key: str) -> Tensor:
    """`change` with its entries moved so that its norm and, of a matrix, its singular values stay: rows and columns permuted."""
    generator = torch.Generator().manual_seed(int(sha256_text(key)[:15], 16))
    for axis in range(change.ndim):
        change = change.index_select(axis, torch.randperm(change.shape[axis], generator=generator))
    return change
