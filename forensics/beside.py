"""The same prompts in front of both sides: what each makes of them, and which tokens of the two may be held against each other.

Two tokenizers can cut one text differently, and two templates put different things around it. A place counted from an end then means
another token on either side, and a difference between them says nothing about the weights. So tokens are held against each other by
how their tokenizers spell them, never by number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.case import Case
from forensics.errors import CannotCompare
from forensics.gate.replies import Side

if TYPE_CHECKING:
    from forensics.capture import Sites
    from forensics.model import Rendered

Array = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One side's activations by id of the prompt, `[layers, places, d]`, and the tokens read, as that side spells them, in order."""

    tokens: dict[str, tuple[str, ...]]
    states: dict[str, Array]


def reading(case: Case, side: Side, rendered: Mapping[str, Rendered], sites: Sites) -> Reading:
    """Read what one side made of prompts, those with a problem or too short left out; see `Case.activations`."""
    reach = -min(sites.positions)
    rows = {id: row for id, row in rendered.items() if not row.problem and len(row.ids) >= reach}
    if not rows:
        return Reading(tokens={}, states={})
    states = case.activations(side, list(rows.values()), sites)
    spelled = {id: case.model(side).spelling(row) for id, row in rows.items()}
    tokens = {id: tuple(row[place] for place in sites.positions) for id, row in spelled.items()}
    return Reading(tokens=tokens, states=dict(zip(rows, states, strict=True)))


def both(ours: Reading, theirs: Reading) -> list[str]:
    """Prompts that both sides could read."""
    return [id for id in ours.tokens if id in theirs.tokens]


def comparable(ours: Reading, theirs: Reading, *, shared: bool = False) -> list[int]:
    """Places counted from the end, the first of them -1, up to the first that is not the same token on both sides of every prompt.

    Args:
        ours: Of the base.
        theirs: Of the candidate.
        shared: Ask further that it is the same token in all prompts, as those of a chat template are.
    """
    rows = [(ours.tokens[id], theirs.tokens[id]) for id in both(ours, theirs)]
    found: list[int] = []
    for back in range(1, min((len(row) for pair in rows for row in pair), default=0) + 1):
        alike = all(first[-back] == second[-back] for first, second in rows)
        if not alike or (shared and len({first[-back] for first, _ in rows}) > 1):
            break
        found.append(-back)
    return found


def spelled_alike(ours: Reading, theirs: Reading) -> list[str]:
    """Prompts of which both sides read the very same tokens."""
    return [id for id in both(ours, theirs) if ours.tokens[id] == theirs.tokens[id]]


def shared_tokens(
    ours: Mapping[str, int], theirs: Mapping[str, int], widths: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids on either side of the tokens that both vocabularies spell alike, in the base's order.

    Args:
        ours: The base's tokens by spelling.
        theirs: The candidate's.
        widths: How many logits each side gives: a tokenizer can hold more tokens than its model.

    Raises:
        CannotCompare: They share no token.
    """
    pairs = sorted((id, theirs[token]) for token, id in ours.items() if id < widths[0] and theirs.get(token, widths[1]) < widths[1])
    if not pairs:
        raise CannotCompare("the two vocabularies share no token", where="tokenizer", hint="look at the tokenizers (files.surface)")
    first, second = np.array(pairs, dtype=np.int64).T
    return first, second


def layers_beside(case: Case, counts: Sequence[int]) -> tuple[int, ...]:
    """The base's layers that the candidate's stand for, and its own last; `counts` are the blocks of the two live models.

    Raises:
        CannotCompare: The models have other layers than their checkpoints.
    """
    layout = case.layout
    if layout.in_place and counts[0] == counts[1]:
        return tuple(range(counts[0] + 1))
    if tuple(counts) != (layout.base_layers, len(layout.layers)):
        raise CannotCompare(
            "layers were added, taken out or moved, and the models have other layers than their files",
            where="config.json: num_hidden_layers",
            hint="mend the config, or read weights.change alone",
        )
    return (*layout.layers, layout.base_layers)
