"""What an investigation says: `causes.json` beside a record, which it cites and does not change.

Numbers are `Evidence`, as in the record; types are closed, and refuse numbers that are not finite.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from forensics.bounds import read_bytes
from forensics.errors import BadInput
from forensics.record import Action, Evidence

SCHEMA = "forensics.causes/1"
CAUSES_NAME = "causes.json"
MOST_BYTES = 16 << 20
"""Of the file: one of a hundred groups and twenty examples takes a tenth of it."""
CONTROLS, SET_CONTROLS = 4, 2
"""Numbers of a control: of a group what it undoes and causes, and what the group does beyond either; of a set the same of what it undoes."""
ROUNDING = 1e-6
"""Percent by which a bound may miss 0 or 100."""
FlipKind = Literal["lost-refusal", "over-refusal", "trigger"]
Outcome = Literal["one-group", "several-groups", "spread", "not-in-weights"]


class _Closed(BaseModel):
    """Base of everything in the file: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Cause(_Closed):
    """One group of tensors (or one adapter whole), and what its change does.

    `layers` are its first and last layer, None where its tensors are in no layer or it is an adapter. `change` is the Frobenius norm
    of its change over that of the base's tensors in it. `control` is empty where the group was not among the first.
    """

    name: str
    sources: tuple[str, ...]
    kind: str
    layers: tuple[int, int] | None
    tensors: int
    change: FiniteFloat
    effect: Evidence
    undone: Evidence
    caused: Evidence
    spoiled: Evidence | None
    control: tuple[Evidence, ...] = ()
    explains: bool = False

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        if len(self.control) not in (0, CONTROLS):
            raise ValueError(f"a control is {CONTROLS} numbers, or none, and not {len(self.control)}")
        if any(item.low is None or item.high is None for item in (self.undone, self.caused)):
            raise ValueError("what a group undoes and causes has an interval")
        shares = [self.effect, self.undone, self.caused, *([self.spoiled] if self.spoiled else []), *self.control[:2]]
        bounds = [bound for item in shares for bound in (item.low, item.value, item.high) if bound is not None]
        if not all(-ROUNDING <= bound <= 100.0 + ROUNDING for bound in bounds):
            raise ValueError("a percentage lies between 0 and 100")
        return self


class Flip(_Closed):
    """One prompt that the candidate answers in another way: what both said, and what was said with the first cause put back."""

    prompt: str
    category: str
    base: str
    candidate: str
    restored: str


class Investigation(_Closed):
    """The answer for one configuration and one kind of flip: `claim` says what it comes to.

    `causes` are ranked, best first; there is none only where no weight differs from the base. `held_out` is what the set `smallest`
    undoes of flips that had no part in choosing it; `set_control`, of all flips, what a change of its size there undoes, and how much
    more the set does.
    """

    configuration: str
    action: Action
    kind: FlipKind
    trigger: str = ""
    flipped: int
    asked: int
    outcome: Outcome
    claim: str
    whole: Evidence
    adapters: tuple[Cause, ...] = ()
    causes: tuple[Cause, ...] = ()
    narrowed: str = ""
    smallest: tuple[str, ...] = ()
    held_out: tuple[Evidence, ...] = ()
    set_control: tuple[Evidence, ...] = ()
    examples: tuple[Flip, ...] = ()
    limits: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.examples and not self.causes:
            raise ValueError("examples show replies with the first cause put back, and there is none")
        if len(self.set_control) not in (0, SET_CONTROLS):
            raise ValueError(f"the control of a set is {SET_CONTROLS} numbers, or none, and not {len(self.set_control)}")
        return self


class Causes(_Closed):
    """All that an investigation of one run found; `results_digest` is that of the record it belongs to, `limits` say what was not looked into."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    tool: str
    created: str
    results_digest: str
    settings: dict[str, str]
    investigations: tuple[Investigation, ...] = Field(min_length=1)
    limits: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As indented JSON, ending in a newline."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


def load_causes(folder: Path, *, results_digest: str) -> Causes | None:
    """What was found about the run in `folder`; None if it was not investigated.

    Raises:
        BadInput: The file is damaged, of another schema, or belongs to another record.
    """
    file = folder / CAUSES_NAME
    if not file.exists():
        return None
    try:
        found = Causes.model_validate_json(read_bytes(file, most=MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            "the saved investigation cannot be read", where=str(file), hint="remove this file and run `forensics investigate` again"
        ) from error
    if found.schema_ != SCHEMA or found.results_digest != results_digest:
        raise BadInput(
            f"the saved investigation is of another schema than {SCHEMA}, or belongs to another audit",
            where=str(file),
            hint="remove this file and run `forensics investigate` again",
        )
    return found
