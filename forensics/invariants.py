"""Whether weights that look unlike the base's compute the same.

Neurons and attention heads can be permuted, scaled or mixed, and the residual stream rotated, without any change of the function; a
plain comparison of weights then sees another model. What such a change leaves alone is compared instead: what each MLP answers
to random inputs, the products of an attention's matrices, and all of it after undoing one rotation of the residual stream.

Source: The invariants of HuRef (arXiv:2312.04828) and AWM (arXiv:2510.06738), used here to explain a difference, not to rank lineages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from forensics.case import Case
from forensics.checkpoint import Checkpoint
from forensics.differ import transposed
from forensics.roles import place

if TYPE_CHECKING:
    import torch

    Matrices: TypeAlias = dict[str, torch.Tensor]
LAYERS_LOOKED_AT = 8
INPUTS = 64
SAME = 0.03
"""Relative difference up to which two results are the same: both were rounded where they are stored."""
EMBEDDINGS = 4096
"""Rows of the embedding from which a rotation is learnt."""
WIDEST = 4096
"""Widest residual stream for which a rotation is looked for."""
NORMS = {
    "q": "input_layernorm",
    "k": "input_layernorm",
    "v": "input_layernorm",
    "gate": "post_attention_layernorm",
    "up": "post_attention_layernorm",
}
"""The norm before each reading matrix, which a rotation folds into it, as Llama-like models call it."""


def same_function(case: Case) -> str:
    """How the candidate computes what the base does by other weights; empty if it does not, or in no way we know."""
    layers = sorted({place(pair.name).layer for pair in case.pairs} - {-1})
    looked = layers[:: max(1, len(layers) // LAYERS_LOOKED_AT)][:LAYERS_LOOKED_AT]
    rotation = _rotation(case)
    ways: list[tuple[str, Callable[[Matrices, Matrices], bool]]] = [
        ("its MLPs and attention heads answer alike, neurons or heads permuted, scaled or mixed", partial(_alike, case, None))
    ]
    if rotation is not None:
        ways.append(("all of it is the base's after one rotation of the residual stream", partial(_alike, case, rotation)))
    for said, way in ways:
        if layers and all(way(*_layer(case, layer)) for layer in looked):
            return said
    return ""


def _layer(case: Case, layer: int) -> tuple[Matrices, Matrices]:
    """The matrices of one layer by role, `[out, in]` float32, of base and candidate; norms before reading ones are folded in."""
    pairs = {place(pair.name).role: pair for pair in case.pairs if place(pair.name).layer == layer and len(pair.base.shape) == 2}
    sides = []
    for side, which in ((case.base, "base"), (case.candidate, "candidate")):
        matrices = {role: _matrix(case, side, getattr(pair, which).name, role) for role, pair in pairs.items()}
        for role in matrices.keys() & NORMS.keys():
            norm = _norm(case, side, layer, NORMS[role], which)
            if norm is not None and norm.shape[0] == matrices[role].shape[1]:
                matrices[role] = matrices[role] * norm
        sides.append(matrices)
    return sides[0], sides[1]


def _matrix(case: Case, side: Checkpoint, name: str, role: str) -> torch.Tensor:
    import torch

    whole = torch.cat([block.float() for block in side.blocks(name)])
    return whole.T if transposed(case, role) else whole


def _norm(case: Case, side: Checkpoint, layer: int, wanted: str, which: str) -> torch.Tensor | None:
    for pair in case.pairs:
        if f".{layer}.{wanted}.weight" in pair.name:
            return next(side.blocks(getattr(pair, which).name)).float()
    return None


def _rotation(case: Case) -> torch.Tensor | None:
    """The rotation that takes the base's embedding to the candidate's (orthogonal Procrustes); None if they are no rotation apart."""
    import torch

    pair = next((pair for pair in case.pairs if place(pair.name).role == "embedding"), None)
    if pair is None or pair.base.shape[1] > WIDEST:
        return None
    ours, theirs = (_rows(side, name, pair.rows) for side, name in ((case.base, pair.base.name), (case.candidate, pair.candidate.name)))
    u, _, vh = torch.linalg.svd(ours.T @ theirs)
    turn = u @ vh
    apart = float((ours - theirs).norm() / ours.norm())
    return turn if apart > SAME and _near(ours @ turn, theirs) else None


def _rows(side: Checkpoint, name: str, common: int | None) -> torch.Tensor:
    import torch

    rows: list[torch.Tensor] = []
    for block in side.blocks(name, rows=common):
        rows.append(block.float())
        if sum(map(len, rows)) >= EMBEDDINGS:
            break
    return torch.cat(rows)[:EMBEDDINGS]


def _alike(case: Case, turn: torch.Tensor | None, ours: Matrices, theirs: Matrices) -> bool:
    """Whether one layer computes the same on both sides, `turn` undone in the candidate."""
    if turn is not None:
        theirs = {role: turn @ matrix if role in ("o", "down") else matrix @ turn.T for role, matrix in theirs.items()}
    if ours.keys() != theirs.keys() or not ours:
        return False
    parts: list[Callable[[Matrices], torch.Tensor | None]] = [
        _mlp,
        partial(_reads_from, case.base.config),
        partial(_looks_at, case.base.config),
    ]
    for part in parts:
        before, after = part(ours), part(theirs)
        if (before is None) != (after is None) or (before is not None and after is not None and not _near(before, after)):
            return False
    return True


def _mlp(matrices: Matrices) -> torch.Tensor | None:
    """What the MLP answers to random inputs, `[n, d]`; the nonlinearity matters only in being the same on both sides."""
    import torch

    if "up" not in matrices or "down" not in matrices:
        return None
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(INPUTS, matrices["up"].shape[1], generator=generator)
    inside = inputs @ matrices["up"].T
    inside = torch.nn.functional.silu(inputs @ matrices["gate"].T) * inside if "gate" in matrices else torch.nn.functional.gelu(inside)
    return inside @ matrices["down"].T


def _reads_from(config: dict[str, Any], matrices: Matrices) -> torch.Tensor | None:
    """W_o W_v summed over heads, `[d, d]`: what attention moves, wherever it looks."""
    heads = _heads(config, matrices)
    if heads is None or "o" not in matrices:
        return None
    return matrices["o"] @ heads[2]


def _looks_at(config: dict[str, Any], matrices: Matrices) -> torch.Tensor | None:
    """W_q^T W_k summed over heads, `[d, d]`: where attention looks."""
    heads = _heads(config, matrices)
    return None if heads is None else heads[0].T @ heads[1]


def _heads(config: dict[str, Any], matrices: Matrices) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Queries, keys and values `[heads * size, d]`, shared keys and values repeated for each head that uses them."""
    if "qkv" in matrices:
        parts = matrices["qkv"].chunk(3)
        return parts[0], parts[1], parts[2]
    if not {"q", "k", "v"} <= matrices.keys():
        return None
    q, k, v = matrices["q"], matrices["k"], matrices["v"]
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads") or config.get("num_attention_heads")
    if not isinstance(heads, int) or not isinstance(shared, int) or shared < 1 or len(k) % shared or heads % shared:
        return None
    size = len(k) // shared
    k, v = (part.reshape(shared, size, -1).repeat_interleave(heads // shared, dim=0).reshape(heads * size, -1) for part in (k, v))
    return (q, k, v) if len(q) == len(k) else None


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and float((one - other).norm()) <= SAME * float(one.norm())
