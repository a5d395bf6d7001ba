"""Whether weights that look unlike the base's compute the same: products that re-parameterisation leaves alone.

Neurons and attention heads can be permuted or scaled, and the residual stream rotated, without any change of the function; a
plain comparison of weights then sees another model. Rows that only moved are found again one by one; rows that were
all rotated keep their inner products.

Source: The invariants of HuRef (arXiv:2312.04828) and AWM (arXiv:2510.06738), used here to explain a difference, not to rank lineages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from forensics.case import Case
from forensics.differ import transposed
from forensics.roles import place

if TYPE_CHECKING:
    import torch

    from forensics.alignment import Pair
    from forensics.checkpoint import Checkpoint

ROWS = 64
"""Rows of each matrix that are looked for."""
SAME = 0.999
"""|cos| or correlation from which two rows, or two tables of inner products, are the same up to rounding."""
MOST = 0.9
MATRICES_LOOKED_AT = 24
READERS = ("qkv", "q", "k", "v", "gate", "up")
NORMS = {"q": "input_layernorm", "k": "input_layernorm", "v": "input_layernorm", "qkv": "input_layernorm", "gate": "post_attention_layernorm",
         "up": "post_attention_layernorm"}  # fmt: skip
"""The norm before each reading matrix, which a rotation folds into it, as Llama-like models call it."""


def same_function(case: Case) -> str:
    """How the candidate's matrices are the base's in another form; empty if they are not, or in no way we know."""
    moved, rotated, tried = 0, 0, 0
    for pair in list(_readers(case))[:MATRICES_LOOKED_AT]:
        ours, theirs = _matrix(case, case.base, pair.base.name), _matrix(case, case.candidate, pair.candidate.name)
        tried += 1
        if _found_again(ours, theirs):
            moved += 1
        elif any(_rotated(form, theirs) for form in (ours, *_folded(case, pair, ours))):
            rotated += 1
    if not tried or moved + rotated < MOST * tried:
        return ""
    if rotated > moved:
        return (
            f"{rotated} of {tried} matrices that read the residual stream keep the inner products of their rows, as under a rotation of it"
        )
    return f"in {moved} of {tried} matrices every row is a row of the base's, moved to another place or scaled"


def _readers(case: Case) -> Iterator[Pair]:
    for pair in case.pairs:
        if place(pair.name).role in READERS and pair.name.endswith("weight"):
            yield pair


def _matrix(case: Case, side: Checkpoint, name: str) -> torch.Tensor:
    import torch

    whole = torch.cat([block.float() for block in side.blocks(name)])
    return whole.T if transposed(case, place(name).role) else whole


def _found_again(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    import torch

    rows = torch.nn.functional.normalize(theirs[:: max(1, len(theirs) // ROWS)][:ROWS], dim=1)
    nearest = (rows @ torch.nn.functional.normalize(ours, dim=1).T).abs().amax(dim=1)
    return float(nearest.quantile(1.0 - MOST)) >= SAME


def _rotated(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    import torch

    products = [(rows @ rows.T).flatten() for rows in (ours[:ROWS], theirs[:ROWS])]
    together = torch.corrcoef(torch.stack(products))
    return float(together[0, 1]) >= SAME and bool(0.9 < float(products[1].norm() / products[0].norm()) < 1.1)


def _folded(case: Case, pair: Pair, ours: torch.Tensor) -> Iterator[torch.Tensor]:
    """The base's matrix with the norm before it written into its columns, if it has one of a name we know."""
    where = place(pair.name)
    wanted = NORMS.get(where.role, "")
    for other in case.pairs:
        if wanted and f".{where.layer}.{wanted}." in other.name and other.base.elements == ours.shape[1]:
            yield ours * next(case.base.blocks(other.base.name)).float()
