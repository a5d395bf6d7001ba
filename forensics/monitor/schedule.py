"""What a store keeps of canaries: those that were made, the first one's replies as a reference, when the next is due, and why the last attempt failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.errors import BadInput

STATE = "canaries"
"""The name of the state."""
REMEMBERED = 100
"""Canaries that are kept one by one; of earlier ones the number stays."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Canary(_Kept):
    """A canary that was made: its number, when (seconds since 1970), whom it asked, and what came of it."""

    number: Annotated[int, Field(ge=1)]
    began: FiniteFloat
    finished: FiniteFloat
    endpoint: str
    model: str
    prompts: int
    compared: int
    other_words: int
    level: FiniteFloat
    tests: int
    alarms: tuple[str, ...]


class Canaries(_Kept):
    """All canaries of a store. `first` are the prompts of the first one, `first_other` those whose reply was in other words than the record's."""

    count: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] | None = None
    last: tuple[Canary, ...] = ()
    first: tuple[str, ...] = ()
    first_other: tuple[str, ...] = ()
    failed_at: FiniteFloat | None = None
    failed: str = ""

    def with_canary(self, canary: Canary, asked: tuple[str, ...], other: tuple[str, ...]) -> Canaries:
        """With one more, which takes away that an attempt before it failed."""
        changed = {"count": canary.number, "last": (*self.last, canary)[-REMEMBERED:], "failed_at": None, "failed": ""}
        return self.model_copy(update=changed | ({} if self.count else {"first": asked, "first_other": other}))


def read_canaries(states: Mapping[str, str], *, where: str) -> Canaries:
    """What a store keeps of canaries.

    Raises:
        BadInput: It is damaged.
    """
    try:
        kept = Canaries.model_validate_json(states.get(STATE, "{}"))
    except ValidationError as error:
        raise BadInput("the state of the canaries in this store is damaged", where=where, hint="restore the store from a copy") from error
    if bool(kept.count) != bool(kept.last) or (kept.last and kept.last[-1].number != kept.count):
        raise BadInput("the state of the canaries in this store is damaged", where=where, hint="restore the store from a copy")
    return kept
