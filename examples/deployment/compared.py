"""What came of the scenarios, beside the drift detectors of river: the table that `run.py` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from traffic import SCENARIOS, begins

from forensics.monitor.baseline import baseline_of
from forensics.monitor.store import open_store

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from monitor_beside import SIGNALS, chosen_for, delay_of, false_alarms, first_alarm, first_of_monitor, found_in, rates_of

ALPHA = 0.05
"""Chance of a false alarm over the life of a monitor, as `forensics monitor start` has it by itself; share of quiet runs in which the others may alarm."""
QUIET_RUNS = 200
"""Simulated quiet streams by which the others are set."""
OURS = "this monitor"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    scenarios: Sequence[str]
    requests: int
    seeds: int
    again: bool
    side_by_side: int
    at_once: int
    prompts: Path
    out: Path


@dataclass(kw_only=True)
class Told:
    """What came of one scenario: when the first alarm was there, what alarmed, how `status` exits, and what others make of the same log.

    `first` counts requests from the change; None without an alarm. `beside` holds, by detector, its first alarm in the same way.
    """

    first: int | None = None
    alarms: list[str] = field(default_factory=list)
    exit_code: int = 0
    beside: Mapping[str, int | None] = field(default_factory=dict)


def read_log(log: Path, store: Path) -> int | None:
    """Behind which request of a log a monitor first asks anybody to act."""
    with open_store(str(store)) as opened:
        return first_of_monitor(opened, log)[0]


def set_beside(told: Mapping[str, Sequence[Told]], wanted: Wanted) -> None:
    """Note what other detectors make of the same logs, set to the same share of runs with a false alarm at the rates of what came before any change."""
    logs = {(name, seed): wanted.out / f"{name}-{seed}" for name in told for seed in range(wanted.seeds)}
    read = {}
    for key, folder in logs.items():
        with open_store(str(folder / "watch.db")) as store:
            read[key] = rates_of(folder / "served.jsonl", baseline_of(store).categories)
    rates = {}
    calm = {name: wanted.requests if name == "quiet" else begins(SCENARIOS[name], wanted.requests) for name in told}
    if not any(calm.values()):  # only what is there from the beginning: then all of it has to do
        calm = dict.fromkeys(told, wanted.requests)
    for signal in SIGNALS:
        silent = [one[signal].outcomes[one[signal].places <= calm[name]] for (name, _), one in read.items()]
        before = np.concatenate(silent)
        rates[signal] = ((int(before.sum()) + 1) / (len(before) + 2), max(len(one[signal].outcomes) for one in read.values()))
    detectors = chosen_for(rates, most=ALPHA, runs=QUIET_RUNS, seed=0)
    for name, families in detectors.items():
        print(
            f"{name}: "
            + ", ".join(
                f"{chosen.words} for {signal} (alarms in {chosen.wrong:.1%} of quiet streams)" for signal, chosen in families.items()
            )
        )
    for (name, seed), one in read.items():
        begin = begins(SCENARIOS[name], wanted.requests)
        firsts = {family: first_alarm(chosen, one) for family, chosen in detectors.items()}
        told[name][seed].beside = {family: None if first is None else first - begin for family, first in firsts.items()}


def show(told: Mapping[str, Sequence[Told]], wanted: Wanted) -> None:
    """Print the table, and how often there was an alarm without a change."""
    others = list(next(iter(told.values()))[0].beside)
    head = ["scenario", "runs with an alarm", "requests until the first, median (most)", "what it was", "`status` exits", *others]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name, runs in told.items():
        what, codes = sorted({alarm for run in runs for alarm in run.alarms}), sorted({run.exit_code for run in runs})
        firsts = [run.first for run in runs]
        beside = [[run.beside[other] for run in runs] for other in others]
        cells = [found_in(firsts), delay_of(firsts), ", ".join(what) or "-", ", ".join(map(str, codes))]
        print(f"| {name} | {' | '.join([*cells, *(f'{found_in(one)}: {delay_of(one)}' for one in beside)])} |")
    calm = {name: wanted.requests if name == "quiet" else begins(SCENARIOS[name], wanted.requests) for name in told}
    requests = wanted.seeds * sum(calm.values())
    if not requests:
        return
    early = dict.fromkeys((OURS, *others), 0)
    for name, runs in told.items():
        for run in runs:
            for who, first in {OURS: run.first, **run.beside}.items():
                early[who] += first is not None and (name == "quiet" or first <= 0)
    count = wanted.seeds * sum(bool(part) for part in calm.values())
    print(f"\nfalse alarms by 10,000 of the {requests} requests before any change:")
    print("; ".join(f"{who} {false_alarms(count, alarmed, requests)}" for who, alarmed in early.items()))
