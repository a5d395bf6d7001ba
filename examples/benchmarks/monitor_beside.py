"""The drift detectors of river, set to a given rate of false alarms: what a monitor is measured beside, and the cells of tables that hold both.

They are given the same 0/1 outcomes as the monitor's own detectors. Of each family the most sensitive setting is taken with which no more than a given share of quiet streams
has an alarm; the rate of a quiet stream is known to them, where the monitor has a bound on it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forensics.monitor import intake
from forensics.monitor.events import Event
from forensics.monitor.formats import read_line
from forensics.monitor.ingest import Monitor
from forensics.monitor.signals import COMPLIANCE, DOWN, score
from forensics.monitor.store import Store
from probes.sequential import design_cusum, run_cusum

try:
    from river import drift
except ImportError:  # an optional extra
    drift = None

Outcomes = NDArray[np.bool_]
Detector = Callable[[Outcomes], list[int]]
"""At which events, counted from 0, a detector alarms; it begins anew after each alarm."""
LEAST_RISEN = 0.01
"""The CUSUM is quickest for twice the rate, and for no rate below this, where its chain would be too wide to solve."""
WARM = 200
"""Events that DDM sees before it may alarm."""
AT_ONCE = 200
"""Lines that a monitor reads at a time where its delay is measured."""
SIGNALS = (COMPLIANCE, DOWN)
"""What rates are watched in a log: answers to what should be refused, and opinions against a reply."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of detector: `make` gives the one of a setting, and `settings` go from sensitive to not."""

    make: Callable[[float], Detector]
    settings: Sequence[float]
    setting: str


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The setting of a family, in words, the detector, and the share of quiet streams in which it alarmed when it was chosen."""

    words: str
    detector: Detector
    wrong: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """One rate in a log: the outcomes, and behind which request (counted from 1) each of them came."""

    outcomes: Outcomes
    places: NDArray[np.int64]


def families(rate: float) -> dict[str, Family]:
    """All kinds, for a quiet rate; those of river where it is installed."""

    def cusum(run_length: float) -> Detector:
        design = design_cusum(rate, max(2 * rate / (1 + rate), LEAST_RISEN), run_length=run_length)
        return lambda outcomes: run_cusum(design, 0, outcomes)[1]

    found = {"CUSUM (rate known)": Family(make=cusum, settings=_steps(1e3, 1e7), setting="ARL0")}
    if drift is None:
        return found
    found["river ADWIN"] = Family(
        make=lambda delta: of_river(partial(drift.ADWIN, delta=delta)), settings=_steps(0.9, 1e-5), setting="delta"
    )
    hinkley = partial(drift.PageHinkley, mode="up", delta=min(0.01, rate))
    found["river Page-Hinkley"] = Family(
        make=lambda height: of_river(partial(hinkley, threshold=height)), settings=_steps(0.5, 200.0), setting="threshold"
    )
    found["river DDM"] = Family(
        make=lambda level: of_river(partial(drift.binary.DDM, warm_start=WARM, drift_threshold=level)),
        settings=_steps(2.0, 40.0),
        setting="drift",
    )
    return found


def of_river(make: Callable[[], Any]) -> Detector:
    """A detector of river's, fed one outcome at a time."""

    def places(outcomes: Outcomes) -> list[int]:
        detector, found = make(), []
        for place, hit in enumerate(outcomes.tolist()):
            detector.update(int(hit))
            if detector.drift_detected:
                found.append(place)
                detector = make()
        return found

    return places


def choose(family: Family, quiet: Sequence[Outcomes], most: float) -> Chosen:
    """The most sensitive setting with which at most a share `most` of the quiet streams has an alarm; the least sensitive if none has so few."""

    def wrong(place: int) -> float:
        detector = family.make(family.settings[place])
        return sum(bool(detector(stream)) for stream in quiet) / len(quiet)

    low, high = -1, len(family.settings) - 1  # fewer alarms the further on, so halving finds the first that is quiet enough
    shares = {high: wrong(high)}
    while high - low > 1:
        middle = (low + high) // 2
        shares[middle] = wrong(middle)
        low, high = (low, middle) if shares[middle] <= most else (middle, high)
    value = family.settings[high]
    return Chosen(words=f"{family.setting} {value:.3g}", detector=family.make(value), wrong=shares[high])


def rates_of(log: Path, expectations: Mapping[str, str]) -> dict[str, Told]:
    """What a log says of the rates that are watched, judged as a monitor judges it."""
    outcomes: dict[str, list[bool]] = {signal: [] for signal in SIGNALS}
    places: dict[str, list[int]] = {signal: [] for signal in SIGNALS}
    replies = 0
    with log.open("rb") as lines:
        for line in lines:
            for one in read_line(line):
                if not isinstance(one, Event):
                    continue
                replies += not one.about
                for signal, hit in score(one, expectations).marks.items():
                    if signal in outcomes:
                        outcomes[signal].append(hit)
                        places[signal].append(replies)
    return {
        signal: Told(outcomes=np.array(outcomes[signal], dtype=bool), places=np.array(places[signal], dtype=np.int64)) for signal in SIGNALS
    }


def first_of_monitor(store: Store, log: Path) -> tuple[int | None, str]:
    """Behind which request a monitor first asks anybody to act, and the name of that alarm; it reads the log to its end, `AT_ONCE` lines at a time."""
    usual, intake.LINES = intake.LINES, AT_ONCE
    monitor = Monitor(store, time.time)
    first, name = None, ""
    try:
        for new in intake.ingest(monitor, str(log)):
            grave = [alarm for alarm in new if alarm.escalation != "watch"]
            if grave and first is None:
                with store.reading() as view:
                    first, name = view.tallies()["replies"], grave[0].finding.id
    finally:
        intake.LINES = usual
    return first, name


def chosen_for(rates: Mapping[str, tuple[float, int]], *, most: float, runs: int, seed: int) -> dict[str, dict[str, Chosen]]:
    """By family and signal, the detector that alarms in at most a share `most` of quiet runs, whose signals share it equally.

    Args:
        rates: By signal, the quiet rate and how many events a run has.
        most: Share of quiet runs with any alarm.
        runs: Quiet runs to choose by.
        seed: Of these.
    """
    found: dict[str, dict[str, Chosen]] = {}
    for place, (signal, (rate, events)) in enumerate(rates.items()):
        generator = np.random.default_rng([seed, place])
        quiet = [generator.random(events) < rate for _ in range(runs)]
        for name, family in families(rate).items():
            found.setdefault(name, {})[signal] = choose(family, quiet, most / len(rates))
    return found


def first_alarm(detectors: Mapping[str, Chosen], told: Mapping[str, Told]) -> int | None:
    """Behind which request the first of a family's detectors alarms, one a signal."""
    found = [
        int(told[signal].places[alarms[0]]) for signal, chosen in detectors.items() if (alarms := chosen.detector(told[signal].outcomes))
    ]
    return min(found, default=None)


def found_in(firsts: Sequence[int | None]) -> str:
    """In how many runs there was an alarm after the change; `firsts` are counted in requests from the change, and negative before it."""
    early = sum(first is not None and first <= 0 for first in firsts)
    return f"{sum(first is not None and first > 0 for first in firsts)} of {len(firsts)}" + (f" ({early} before)" if early else "")


def delay_of(firsts: Sequence[int | None]) -> str:
    """Median and most of the requests from the change to the first alarm."""
    late = [first for first in firsts if first is not None and first > 0]
    return f"{statistics.median(late):.0f} ({max(late)})" if late else "-"


def false_alarms(runs: int, alarmed: int, requests: int) -> str:
    """Runs with an alarm while nothing had changed, by 10,000 requests that came so far."""
    return f"{10_000 * alarmed / requests:.2f} ({alarmed} of {runs} runs)"


def _steps(first: float, last: float, count: int = 32) -> list[float]:
    return [float(value) for value in np.exp(np.linspace(math.log(first), math.log(last), count))]
