"""The parents that a merge is said to have: aligned with the base, and un-mixed from the candidate."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from forensics.case import Case
from forensics.checkpoint import Checkpoint
from forensics.roles import LAYER

if TYPE_CHECKING:
    from probes.tensor_edits import Kind


def merge_kind(case: Case) -> Kind | None:
    """The merge of `case.parents` that explains the candidate; None if none does, or none were given."""
    if not case.parents:
        return None
    stacked = _stacked(case)
    if stacked is not None:
        return stacked
    from probes.merges import Unmixing  # heavy: brings torch

    unmixing = Unmixing(parents=len(case.parents))
    for pair, blocks in case.tensors():
        unmixing.begin()
        sides = [parent.blocks(pair.base.name, rows=pair.rows) for parent in case.parents]
        for ours, theirs in blocks:
            unmixing.update(ours, theirs, [next(side) for side in sides])
    return unmixing.kind()


def _stacked(case: Case) -> Kind | None:
    """Layers taken over whole from more than one parent."""
    from probes.tensor_edits import Kind, Measure

    ours = _layers(case.candidate)
    held = [_layers(parent) for parent in case.parents]
    origins = []
    for layer in sorted(ours):
        found = [
            (number, other) for number, layers in enumerate(held, start=1) for other, digest in layers.items() if digest == ours[layer]
        ]
        if not found:
            return None
        origins.append(next((one for one in found if one[1] == layer), found[0]))
    straight = [(number, layer) for number in {number for number, _ in origins} for layer in sorted(ours)]
    if not origins or origins == straight:
        return None
    told = ", ".join(f"{number}:{layer}" for number, layer in origins[:80])
    return Kind(
        label="layer-stack", claim=f"Each of its {len(origins)} layers is a layer of one of its parents, byte for byte (parent:layer {told}).",
        measures=(Measure(name="edit.layers-taken", value=len(origins), unit="layers", where="all parents", expected="0"),),
    )  # fmt: skip


def _layers(side: Checkpoint) -> dict[int, str]:
    """A digest of each layer's tensors, names without the layer's number."""
    parts: dict[int, list[str]] = {}
    for name, info in sorted(side.tensors.items()):
        found = LAYER.search(name)
        if found is not None:
            digest = hashlib.sha256()
            with (side.path / info.file).open("rb") as stream:
                stream.seek(info.start)
                left = info.end - info.start
                while left > 0:
                    block = stream.read(min(left, 1 << 24))
                    digest.update(block)
                    left -= len(block)
            parts.setdefault(int(found[1]), []).append(f"{LAYER.sub('.', name)} {digest.hexdigest()}")
    return {layer: "\n".join(sorted(rows)) for layer, rows in parts.items()}
