"""One watched rate: its reference, the e-process that may alarm, the CUSUM beside it, and what it showed last. Kept as JSON between batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from forensics.errors import BadInput
from probes.sequential import ODDS_RATIOS, Cusum, EProcess, design_cusum, run_cusum, update, upper_bound

KEPT = "stream:"
"""How the names of states of streams begin."""
RUN_LENGTH = 100_000.0
"""Events between two false alarms of a CUSUM, on average, at the bound itself; it only ever says to watch."""
RISE = 2.0
"""Odds ratio that the CUSUM is quickest for."""
RECENT = 200
"""Last events whose rate an alarm shows."""
REFERENCE = {"down": 200}
USUAL_REFERENCE = 1000
"""Events at the beginning of the traffic from which a rate that the gate did not measure is learned."""


GENERAL = "general"
"""The name of the state that holds what is kept beside streams."""
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Number = Annotated[int, Field(ge=0)]


class _Process(BaseModel):
    """What is kept of an e-process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: Number
    hits: Number
    log_stakes: Annotated[tuple[FiniteFloat, ...], Field(min_length=2 * len(ODDS_RATIOS), max_length=2 * len(ODDS_RATIOS))]
    log_wealth: FiniteFloat
    log_peak: FiniteFloat


CUSUM = TypeAdapter(Cusum)


class General(BaseModel):
    """What a monitor keeps beside its streams, as it stands behind a batch: `hunts` are events, flips, strings found and the recent share of flips."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lengths: dict[Number, Number] = {}
    edges: tuple[Number, Number] | None = None
    high_water: FiniteFloat = 0.0
    categories: tuple[str, ...] = ()
    hunts: dict[str, tuple[Number, Number, Number, FiniteFloat]] = {}
    version: Number = 0


class Stream(BaseModel):
    """A rate that is watched.

    Until `bound` is there the events go to the reference; those of a pinned rate are the gate's. `share` is what it may spend of the chance of a
    false alarm: half on the bound, half on the e-process. `recent` are the last outcomes as "0" and "1".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    signal: str
    category: str
    share: Share
    pinned: bool
    reference_events: Number = 0
    reference_hits: Number = 0
    bound: Share | None = None
    process: dict[str, Any] = {}
    cusum: dict[str, Any] = {}
    cusum_state: Number = 0
    cusum_alarms: Number = 0
    cusum_last: Number = 0
    recent: Annotated[str, Field(pattern="^[01]*$")] = ""

    @model_validator(mode="after")
    def _can_go_on(self) -> Self:
        """Refuse what no batch leaves: it would break off later, or watch nothing."""
        if self.process:
            _Process.model_validate(self.process)
        if self.cusum:
            CUSUM.validate_python(self.cusum)
        if (self.bound is not None and not self.reference_events) or bool(self.process) != bool(self.recent):
            raise ValueError("parts of a stream that do not belong together")
        return self

    @property
    def name(self) -> str:
        """Signal and category, as states and alarms are named."""
        return f"{self.signal}/{self.category}"

    @property
    def watched(self) -> EProcess | None:
        """The e-process; None while the reference is being learned, or where the rate cannot rise."""
        return None if self.bound is None else EProcess(**{"bound": self.bound, **self._kept_process()})

    @property
    def full(self) -> bool:
        """Whether as many events were seen as a reference takes."""
        return self.pinned or self.reference_events >= REFERENCE.get(self.signal, USUAL_REFERENCE)

    @property
    def alpha(self) -> float:
        """Level of the e-process."""
        return self.share / 2.0

    def _kept_process(self) -> dict[str, Any]:
        return {**self.process, "log_stakes": tuple(self.process["log_stakes"])} if self.process else {}


def read_general(states: Mapping[str, str], *, where: str) -> General:
    """What a store keeps beside its streams.

    Raises:
        BadInput: It is damaged.
    """
    try:
        return General.model_validate_json(states.get(GENERAL, "{}"))
    except ValidationError as error:
        raise BadInput("the state of a monitor in this store is damaged", where=where, hint="restore the store from a copy") from error


def read_streams(states: Mapping[str, str], *, where: str) -> dict[str, Stream]:
    """The streams among the states of a store, by name.

    Raises:
        BadInput: A state is damaged.
    """
    try:
        return {name.removeprefix(KEPT): Stream.model_validate_json(state) for name, state in states.items() if name.startswith(KEPT)}
    except ValidationError as error:
        raise BadInput("the state of a detector in this store is damaged", where=where, hint="restore the store from a copy") from error


def begin(signal: str, category: str, share: float) -> Stream:
    """A rate whose reference is learned from the beginning of the traffic."""
    return Stream(signal=signal, category=category, share=share, pinned=False)


def feed(stream: Stream, outcomes: Sequence[bool] | NDArray[np.bool_]) -> Stream:
    """The stream after a batch of events, in the order in which they came."""
    left = np.asarray(outcomes, dtype=bool)
    changed: dict[str, Any] = {}
    bound, events, hits = stream.bound, stream.reference_events, stream.reference_hits
    if bound is None:
        wanted = REFERENCE.get(stream.signal, USUAL_REFERENCE)
        taken = left[: max(0, wanted - events)]
        left = left[len(taken) :]
        events, hits = events + len(taken), hits + int(taken.sum())
        changed |= {"reference_events": events, "reference_hits": hits}
        # A rate that every event of the reference showed cannot rise: there is nothing to watch, and no bound.
        bound = upper_bound(hits, events, confidence=1.0 - stream.share / 2.0) if events >= wanted and hits < events else None
        changed["bound"] = bound
    if bound is None or not left.size:
        return stream.model_copy(update=changed)
    process = update(EProcess(bound=bound, **stream._kept_process()), left)
    cusum = Cusum(**stream.cusum) if stream.cusum else _designed(bound)
    state, alarms = run_cusum(cusum, stream.cusum_state, left) if cusum is not None else (0, [])
    kept = asdict(process)
    del kept["bound"]
    changed |= {
        "process": kept,
        "cusum": asdict(cusum) if cusum is not None else {},
        "cusum_state": state,
        "cusum_alarms": stream.cusum_alarms + len(alarms),
        "cusum_last": process.events - len(left) + alarms[-1] + 1 if alarms else stream.cusum_last,
        "recent": (stream.recent + "".join("1" if hit else "0" for hit in left[-RECENT:]))[-RECENT:],
    }
    return stream.model_copy(update=changed)


@lru_cache(maxsize=64)
def _designed(bound: float) -> Cusum | None:
    """The CUSUM of a rate; None where the bound leaves so little room above it that its chain would be too wide to solve."""
    try:
        return design_cusum(bound, _risen(bound), run_length=RUN_LENGTH)
    except ValueError:
        return None


def _risen(bound: float) -> float:
    odds = RISE * bound / (1.0 - bound)
    return odds / (1.0 + odds)
