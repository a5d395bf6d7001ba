"""How a deployment stands, as a page or a cron job reads it: rates with bands, alarms, what was counted and set aside, and whether the record still holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from forensics.record import Finding

SCHEMA = "forensics.monitor-status/1"
ROLL_BACK, PEOPLE, UNTOLD, FINE = 20, 10, 3, 0
"""Exit codes: put the last version back; somebody has to act; nothing was counted; nothing to do."""
Standing = Literal["watched", "learning", "cannot rise"]


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Rate(_Shown):
    """A rate: over all that was counted with one-sided 95 % bounds, over the last events, and what it is held against. All rates are in percent.

    `evidence` is in powers of ten and never falls; it alarms at `alarms_at`. `standing` says whether the reference is still being learned.
    """

    signal: str
    meaning: str
    category: str
    events: int
    hits: int
    rate: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    reference: FiniteFloat | None
    bound: FiniteFloat | None
    whence: str
    standing: Standing
    recent: FiniteFloat | None
    recent_events: int
    evidence: FiniteFloat
    alarms_at: FiniteFloat
    cusum_alarms: int
    cusum_run_length: FiniteFloat | None


class Told(_Shown):
    """An alarm: what is claimed, who raised it, when, how often, and what to do."""

    finding: Finding
    detector: str
    escalation: str
    began: str
    ended: str
    advice: str
    raised: str
    last: str
    times: int


class Canaried(_Shown):
    """The canaries of a deployment: how many succeeded, when the last did and what it came to, when the next is due, and why the last attempt failed.

    Times are in UTC; "" where there was none. `other_words` of `compared` replies of the last one were in other words than the record's.
    """

    count: int
    last: str
    compared: int
    other_words: int
    first_other_words: int
    first_compared: int
    due: str
    overdue: bool
    failed: str
    failed_at: str


class Overview(_Shown):
    """How a deployment stands now. `last_event` is the time of the latest event, or ""; `silent` says that it is longer ago than it should be."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    exit_code: int
    sentences: tuple[str, ...]
    run: str
    results_digest: str
    candidate: str
    valid_until: str
    expired: bool
    alpha: FiniteFloat
    last_event: str
    silent: bool
    canaries: Canaried
    rates: tuple[Rate, ...]
    alarms: tuple[Told, ...]
    tallies: dict[str, int]
    left_out: tuple[str, ...]
    limits: tuple[str, ...]


class Compared(_Shown):
    """One paired test of a canary: rates in percent, then and now, the rise with one-sided 95 % bounds in percentage points, and its p-value over all tests."""

    signal: str
    meaning: str
    category: str
    prompts: int
    was: FiniteFloat
    now: FiniteFloat
    rise: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    p_value: FiniteFloat


class Replayed(_Shown):
    """What came of a canary. `level` is what its tests together may spend of the chance of a false alarm; `unscored` replies were not compared."""

    exit_code: int
    number: int
    endpoint: str
    model: str
    prompts: int
    compared: int
    unscored: int
    other_words: int
    first_other_words: int
    first_compared: int
    level: FiniteFloat
    tests: tuple[Compared, ...]
    alarms: tuple[Told, ...]
    folder: str
