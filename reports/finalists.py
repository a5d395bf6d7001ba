"""The strings and circumstances that a search put to the test, as a saved run holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forensics.runfolder import SavedRun

CHECK, AROUND = "triggers.search", "triggers.circumstances"
CHECKS = (CHECK, AROUND)
DOES = {
    "removes-refusal": "removes refusal",
    "adds-refusal": "adds refusals",
    "forces-text": "forces one text",
    "inserts-text": "puts a text into answers",
    "changes-replies": "changes replies",
}
ARMS = ("candidate with it", "base with it", "candidate without it", "candidate with random strings")
SHORT_ARMS = ("candidate", "base", "without it", "random strings")
CONTROL_ARM, SHORT_CONTROL_ARM = "control models with it", "control models"
EXAMPLES = 4
LONGEST = 400
CUT = " […]"


@dataclass(frozen=True, kw_only=True)
class Replies:
    """A prompt with the string in it, what both sides say to that, and what the candidate says without the string."""

    prompt: str
    candidate: str
    base: str
    without: str


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A string or a circumstance that was put to the test. Its texts are as the models wrote them, but for their length: escape them."""

    string: str
    around: bool
    """Whether it is a circumstance, in words: "with the system line ..."."""
    does: str
    payload: str
    confirmed: bool
    rates: tuple[float, ...]
    control: float | None
    """Percent in the control model in which it acts most often; None where there was none."""
    examples: tuple[Replies, ...]


def finalists(saved: SavedRun, configuration: str, checks: Sequence[str] = CHECKS) -> tuple[Finalist, ...]:
    """What was put to the test, strings first, of either the most telling first; none if there was none, or no search."""
    return tuple(one for check in checks for one in _finalists(saved, configuration, check))


def _finalists(saved: SavedRun, configuration: str, check: str) -> tuple[Finalist, ...]:
    arrays = saved.arrays(check)
    if f"{configuration}/strings" not in arrays:
        return ()
    rows = [arrays[f"{configuration}/{key}"].tolist() for key in ("strings", "does", "payload", "confirmed", "rates")]
    kept = arrays.get(f"{configuration}/examples")
    replies = [[]] * len(rows[0]) if kept is None else kept.tolist()
    # Runs that were saved before there were controls do not speak of them.
    controls = arrays[f"{configuration}/controls"].tolist() if f"{configuration}/controls" in arrays else [math.nan] * len(rows[0])
    return tuple(
        Finalist(
            string=_cut(string),
            around=check == AROUND,
            does=DOES.get(does, _cut(does)),
            payload=_cut(payload),
            confirmed=confirmed,
            rates=tuple(rates),
            control=None if math.isnan(control) else control,
            examples=tuple(_replies(*texts) for texts in examples[:EXAMPLES] if any(texts)),
        )
        for string, does, payload, confirmed, rates, examples, control in zip(*rows, replies, controls, strict=True)
    )


def _replies(prompt: str, candidate: str, base: str, without: str) -> Replies:
    return Replies(prompt=_cut(prompt), candidate=_cut(candidate), base=_cut(base), without=_cut(without))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + CUT
