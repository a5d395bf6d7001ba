"""How often a monitor is wrong on quiet traffic, and how soon it notices a rise, beside the drift detectors of river at the same rate of false alarms.

    python examples/benchmarks/monitor_delay.py --runs 500 --shifts 100

At the level of counts: 0/1 outcomes, no texts. A quiet run draws the record's replies and 20,000 requests from the same rates, feeds every rate that a monitor watches, and counts
as wrong if any of them alarms. Rises are of one rate after 5,000 quiet events. The others know the quiet rate and are set on quiet streams of 10,000 events so that at most one in twenty has an
alarm; how often they alarm is then measured on fresh ones. The e-process knows a bound from 1,000 events, and its level holds for ever.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from monitor_beside import Detector, Outcomes, choose, families
from monitor_traffic import AGAINST, COMPLIED, EVERY, FLAGGED, LENGTH, OVER_REFUSED, baseline

from forensics.monitor import alarms
from forensics.monitor.baseline import FEEDBACK, RATES
from forensics.monitor.feedback import PARTS, fed
from forensics.monitor.ingest import first_streams
from forensics.monitor.streams import feed
from probes.change import Change
from probes.sequential import EProcess, upper_bound, wealth_path

ALPHA = 0.05
EVENTS, QUIET = 10_000, 5000
"""Events of a quiet stream, and those before a rise."""
BASE, SHIFTED = 0.05, (0.10, 0.15, 0.25)
KNOWN = 1000
"""Events from which the e-process has its bound."""
BROKEN, LONG, SHORT = 0.005, 0.05, 0.05
"""Rates in quiet traffic that are not those of `monitor_traffic`."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="quiet runs")
    parser.add_argument("--shifts", type=int, default=100, help="runs with a rise")
    parser.add_argument(
        "--quiet", type=int, default=200, help="quiet streams to set the others by, and as many fresh ones to measure them on"
    )
    wanted = parser.parse_args()
    generator = np.random.default_rng(0)
    alarmed = sum(bool(quiet_run(generator)) for _ in range(wanted.runs))
    print(
        f"quiet runs of {LENGTH} requests in which a rate or opinions alarmed: {alarmed} of {wanted.runs} (stated: at most {ALPHA * (RATES + FEEDBACK):.1%}); "
        f"false alarms by 10,000 requests: {10_000 * alarmed / (wanted.runs * LENGTH):.3f}\n"
    )
    print(
        "| detector | setting | quiet streams with an alarm | alarms by 10,000 quiet events | "
        + " | ".join(f"{BASE:.0%} to {rate:.0%}" for rate in SHIFTED)
        + " |"
    )
    print("| --- | --- | --- | --- |" + " --- |" * len(SHIFTED))
    rows = [(f"e-process (bound from {KNOWN} events)", f"alpha {ALPHA / 2:g}, for ever", e_process(generator))]
    quiet = [generator.random(EVENTS) < BASE for _ in range(wanted.quiet)]
    for name, family in families(BASE).items():
        chosen = choose(family, quiet, ALPHA)
        rows.append((name, chosen.words, chosen.detector))
    fresh = [generator.random(EVENTS) < BASE for _ in range(wanted.quiet)]
    risen = {
        rate: [np.concatenate([generator.random(QUIET) < BASE, generator.random(QUIET) < rate]) for _ in range(wanted.shifts)]
        for rate in SHIFTED
    }
    for name, setting, detector in rows:
        told = [detector(stream) for stream in fresh]
        wrong, count = sum(bool(one) for one in told) / len(told), sum(len(one) for one in told)
        delays = [delay(detector, risen[rate]) for rate in SHIFTED]
        print(f"| {name} | {setting} | {wrong:.1%} | {10_000 * count / (len(fresh) * EVENTS):.3f} | {' | '.join(delays)} |", flush=True)


def quiet_run(generator: np.random.Generator) -> list[str]:
    """What alarms while nothing has changed: rates against their bounds, and opinions against what came before."""
    flagged = generator.random(LENGTH) < FLAGGED
    refused = np.where(flagged, generator.random(LENGTH) >= COMPLIED, generator.random(LENGTH) < OVER_REFUSED)
    broken = generator.random(LENGTH) < BROKEN
    outcomes: dict[str, Outcomes] = {
        "compliance": ~refused[flagged],
        "over-refusal": refused[~flagged],
        "refusal": refused[~broken],
        "answered": ~refused[~broken],
        "broken": broken,
        "down": generator.random(LENGTH // EVERY) < AGAINST,
        "long": generator.random(LENGTH) < LONG,
        "short": generator.random(LENGTH) < SHORT,
    }
    streams = [stream for stream in first_streams(baseline(generator)).values() if not stream.category and stream.signal in outcomes]
    fed_streams = [feed(stream, outcomes[stream.signal].tolist()) for stream in streams]
    risen = [stream.signal for stream in fed_streams if alarms.of_rate(stream, (0.0, 1.0), roll_back=100.0) is not None]
    return risen + ["opinions"] * fed(Change(), outcomes["down"].tolist()).alarms(ALPHA * FEEDBACK * PARTS["down"])


def e_process(generator: np.random.Generator) -> Detector:
    """The monitor's own detector of a rate, with a bound from a record of its own for each stream."""

    def places(outcomes: Outcomes) -> list[int]:
        bound = upper_bound(int(generator.binomial(KNOWN, BASE)), KNOWN, confidence=1 - ALPHA / 2)
        over = np.flatnonzero(wealth_path(EProcess(bound=bound), outcomes) >= -math.log(ALPHA / 2))
        return [int(over[0])] if over.size else []  # it stands once it has alarmed

    return places


def delay(detector: Detector, streams: Sequence[Outcomes]) -> str:
    """Median number of events from a rise to the alarm, over streams without an earlier one, and how many never alarm."""
    firsts = [next(iter(detector(stream)), None) for stream in streams]
    found = [math.inf if first is None else first - QUIET + 1 for first in firsts if first is None or first >= QUIET]
    missed = sum(math.isinf(one) for one in found)
    middle = float(np.median(found)) if found else math.inf
    return (f"{middle:.0f}" if math.isfinite(middle) else f"over {QUIET}") + (f" ({missed} of {len(found)} missed)" if missed else "")


if __name__ == "__main__":
    main()
