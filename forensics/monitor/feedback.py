"""What users say: whether opinions against, or comments with words of harm, became more at some point; and in which categories there are more than elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.errors import BadInput
from forensics.monitor.batch import Count, Key
from forensics.monitor.database import damaged
from forensics.monitor.signals import DOWN
from probes.change import Change, follow
from probes.drift import rises

KEPT = "change:"
"""How the names of states begin."""
CONCERN = "concern"
"""Comments with a word of harm, among all comments."""
PARTS: Mapping[str, float] = {DOWN: 2 / 3, CONCERN: 1 / 3}
"""Signals that are followed, and the part of the chance of a false alarm that each may spend."""
LEAST_OPINIONS = 10
"""Opinions of a category below which nothing is said of it."""
Number = Annotated[int, Field(ge=0)]
Pair = tuple[Number, Number]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    events: Number
    hits: Number
    points: tuple[Pair, ...]
    log_evidence: FiniteFloat
    log_peak: Annotated[FiniteFloat, Field(ge=0.0)]
    before: Pair
    after: Pair


@dataclass(frozen=True, kw_only=True)
class Enriched:
    """A category in which opinions are more often against than in the others: its opinions, those against, and the chance of as many (Fisher, Holm)."""

    category: str
    events: int
    hits: int
    p_value: float


def read_changes(states: Mapping[str, str], *, where: str) -> dict[str, Change]:
    """The evidence on every signal, by name.

    Raises:
        BadInput: It is damaged.
    """
    try:
        kept = {name: _Kept.model_validate_json(states[KEPT + name]) for name in PARTS if KEPT + name in states}
    except ValidationError as error:
        raise BadInput("the state of a detector in this store is damaged", where=where, hint="restore the store from a copy") from error
    return {name: Change(**dict(kept[name])) if name in kept else Change() for name in PARTS}


def states_of(changes: Mapping[str, Change], names: Sequence[str]) -> dict[str, str]:
    """The evidence on some signals as a store keeps it."""
    return {KEPT + name: _Kept(**asdict(changes[name])).model_dump_json() for name in names}


def fed(change: Change, outcomes: Sequence[bool]) -> Change:
    """The evidence after a batch of events, in the order in which they came."""
    return follow(change, np.asarray(outcomes, dtype=bool))


def joined(totals: Mapping[tuple[str, str], Count], counts: Mapping[Key, Count]) -> dict[str, tuple[int, int]]:
    """Opinions and those against by category, from counts by signal and category, with those of a batch that is not written yet."""
    found = {category: (count.events, count.hits) for (signal, category), count in totals.items() if signal == DOWN}
    for key, count in counts.items():
        if key.signal == DOWN:
            events, hits = found.get(key.category, (0, 0))
            found[key.category] = (events + count.events, hits + count.hits)
    return found


def enriched(counts: Mapping[str, tuple[int, int]], *, where: str) -> tuple[Enriched, ...]:
    """Every category with enough opinions against the rest, those with the smallest chance first.

    Args:
        counts: Opinions and those against, by category; "" for all of them.
        where: The store that they are of.

    Raises:
        BadInput: A category has more of them than there are.
    """
    kept = {name: held for name, held in counts.items() if name and held[0] >= LEAST_OPINIONS}
    events, hits = counts.get("", (0, 0))
    try:
        chances = rises(
            [held[1] for held in kept.values()], [held[0] for held in kept.values()],
            [hits - held[1] for held in kept.values()], [events - held[0] for held in kept.values()],
        )  # fmt: skip
    except (ValueError, OverflowError) as error:
        raise damaged(where) from error
    found = [
        Enriched(category=name, events=held[0], hits=held[1], p_value=chance)
        for (name, held), chance in zip(kept.items(), chances, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (one.p_value, one.category)))
