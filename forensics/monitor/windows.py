"""How rates went over time, and replies that stand behind an alarm, as a page shows them beside the overview."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, FiniteFloat


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Shown):
    """A rate within a stretch of time, in percent, with one-sided 95 % bounds: what was counted in windows from `began` up to `ended` (seconds since 1970)."""

    began: int
    ended: int
    events: int
    hits: int
    rate: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Course(_Shown):
    """A rate over time; stretches in which nothing was counted are left out."""

    signal: str
    category: str
    bins: tuple[Bin, ...]


class Example(_Shown):
    """A request and its reply that were kept, and what the rules call the reply."""

    prompt: str
    reply: str
    label: str


class Behind(_Shown):
    """What stands behind an alarm: some of the latest replies of its time and kind that are kept."""

    alarm: str
    told_apart: bool
    """Whether the examples are known to be of its kind; otherwise they may be."""
    examples: tuple[Example, ...]


class History(_Shown):
    """How a deployment came to stand where it does. Times are seconds since 1970; `last` is that of the latest event, None while there is none."""

    began: int
    ended: int
    stretch: int
    """Seconds of one bin."""
    last: FiniteFloat | None
    texts_kept: bool
    courses: tuple[Course, ...]
    behind: tuple[Behind, ...]
