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


class Shape(_Shown):
    """What a sample of the traffic looks like in one respect: shares in percent, now and at the beginning, of the bins that hold most.

    `p_value` is that of the last full block against the most similar one at the beginning, adjusted over all shapes of the block; None where none was
    compared yet. `index` is a stability index of shares or a discrepancy of means, `index_p` its chance by permutation.
    """

    shape: str
    kind: str
    events: int
    shares: dict[str, FiniteFloat]
    usual: dict[str, FiniteFloat]
    p_value: FiniteFloat | None
    index: FiniteFloat | None
    index_p: FiniteFloat | None


class Shapes(_Shown):
    """How far traffic was looked at by the block. One of `one_of` events is looked at now."""

    one_of: int
    learned: bool
    blocks: int
    blocks_wanted: int
    rhythm: int
    looks: int
    share: FiniteFloat
    """Part of `alpha` that it may spend, of all looks together; `level` is what the last look was held to."""
    level: FiniteFloat | None
    shapes: tuple[Shape, ...]


class Said(_Shown):
    """What users say: opinions against, or comments with words of harm. Rates are in percent; `evidence` is in powers of ten and alarms at `alarms_at`."""

    signal: str
    meaning: str
    events: int
    hits: int
    evidence: FiniteFloat
    alarms_at: FiniteFloat
    before: FiniteFloat | None
    since: FiniteFloat | None
    """Before and since the rise that explains best what was said."""
    most_in: tuple[str, ...] = ()
    """Categories in which there are more than in the others, and the chance of as many."""


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
    shapes: Shapes
    said: tuple[Said, ...]
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
