"""Several monitors of one record, each on a part of the same deployment, shown as one: for reading only, with what can and what cannot be put together said.

Counts add up. Wealths of e-processes do not: their mean is taken. Every wealth has an expectation of at most 1 while its rate is not above the bound, so the mean of any of them has,
whether or not the parts share events or depend on each other; at one look the chance that it reaches 1/alpha is at most alpha (Markov). Where no event is in two parts all of them bet on
one stream of events in turn, the mean is an e-process itself, and it may be looked at for ever (Ville). Their product would be, too, and be quicker, but means nothing once parts overlap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice

from forensics.errors import BadInput
from forensics.monitor.alarms import interval
from forensics.monitor.baseline import RATES, Baseline, baseline_of
from forensics.monitor.overview import PEOPLE, UNTOLD, Overview, Rate
from forensics.monitor.state import overview
from forensics.monitor.store import Store
from forensics.monitor.streams import Stream, read_streams

CHUNK = 10_000
"""Ids that are looked up in another store at once."""


def merged(stores: Sequence[Store], now: datetime) -> Overview:
    """How a deployment stands that several monitors watch, a part each.

    Args:
        stores: Open, of one baseline.
        now: The time, with its zone.

    Raises:
        BadInput: They are of different baselines, one is named twice, or one is damaged.
    """
    baseline = baseline_of(stores[0])
    _refuse_strangers(stores, baseline)
    pages = [overview(store, now) for store in stores]
    streams = [_streams(store) for store in stores]
    rates = tuple(
        _rate([rate for page in pages for rate in page.rates if _name(rate) == _name(first)], streams) for first in pages[0].rates
    )
    risen = [rate for rate in rates if rate.bound is not None and rate.evidence >= rate.alarms_at]
    codes = [page.exit_code for page in pages if page.exit_code != UNTOLD] + ([PEOPLE] if risen else [])
    said = [
        f"Store {number} ({store.where}): {' '.join(page.sentences)}"
        for number, (store, page) in enumerate(zip(stores, pages, strict=True), start=1)
    ]
    said += [
        f"Together: {rate.meaning} ({rate.category or 'all categories'}) have risen over the bound of {rate.whence}; have people look."
        for rate in risen
    ]
    alarms = [
        told.model_copy(update={"detector": f"{told.detector} (store {number})"})
        for number, page in enumerate(pages, start=1)
        for told in page.alarms
    ]
    tallies: Counter[str] = Counter()
    for page in pages:
        tallies.update(page.tallies)
    return pages[0].model_copy(
        update={
            "exit_code": max(codes, default=UNTOLD),
            "sentences": (*said, _shared(stores)),
            "rates": rates,
            "alarms": tuple(sorted(alarms, key=lambda one: one.raised)),
            "tallies": dict(sorted(tallies.items())),
            "silent": any(page.silent for page in pages),
            "last_event": max(page.last_event for page in pages),
            "valid_until": min(page.valid_until for page in pages),
            "expired": any(page.expired for page in pages),
            # What each may claim wrongly, and what the means may: bounds of the record are shared, and their error is among the former.
            "alpha": min(1.0, baseline.alpha * (len(stores) + RATES / 2.0)),
            "limits": (*pages[0].limits, *LIMITS),
        }
    )


LIMITS = (
    "Counts of several stores add up; their detectors do not. Evidence against bounds of the record is the mean of the stores' e-values now: looked at again and again "
    "it holds its level only where no event is in two stores.",
    "Rates that are held against the beginning of the traffic, and strings, are judged by each store alone.",
    "Shapes of traffic, opinions and canaries are shown of the first store alone; what alarmed in any stands among the alarms.",
)


def _refuse_strangers(stores: Sequence[Store], baseline: Baseline) -> None:
    """Refuse stores that are held against other rates, or that are one and the same."""
    apart = {"run": "", "standing": (), "people": {}, "valid_until": ""}  # where the record lay, and what people had said of it by then
    for store in stores[1:]:
        if baseline_of(store).model_copy(update=apart) != baseline.model_copy(update=apart):
            raise BadInput(
                "these monitors were started from different records, or at different levels", where=store.where, hint="merge stores of one record only"
            )  # fmt: skip
    seals = []
    for store in stores:
        with store.reading() as view:
            seals.append(view.sealed())
    if any(seal in seals[:place] for place, seal in enumerate(seals)):
        raise BadInput("one store is named twice, or is a copy of another", where=stores[0].where, hint="name each store once")


def _streams(store: Store) -> dict[str, Stream]:
    with store.reading() as view:
        return read_streams(view.states(), where=store.where)


def _name(rate: Rate) -> str:
    return f"{rate.signal}/{rate.category}"


def _rate(rates: Sequence[Rate], streams: Sequence[dict[str, Stream]]) -> Rate:
    """A rate over all stores. Its bound is that of the record; where each store learned one of its own there is none."""
    first = rates[0]
    events, hits = sum(rate.events for rate in rates), sum(rate.hits for rate in rates)
    low, high = interval(hits, events) if events else (0.0, 1.0)
    held = [one[_name(first)] for one in streams if _name(first) in one]
    recent = "".join(stream.recent for stream in held)
    pinned = bool(held) and all(stream.pinned for stream in held)
    wealth = [stream.watched.log_wealth if stream.watched is not None else 0.0 for stream in held]
    wealth += [0.0] * (len(streams) - len(held))  # a store that has counted nothing yet
    return first.model_copy(
        update={
            "events": events,
            "hits": hits,
            "rate": 100 * hits / events if events else 0.0,
            "low": 100 * low,
            "high": 100 * high,
            "reference": first.reference if pinned else None,
            "bound": first.bound if pinned else None,
            "standing": next((rate.standing for rate in rates if rate.standing == "watched"), first.standing),
            "recent": 100 * recent.count("1") / len(recent) if recent else None,
            "recent_events": len(recent),
            "evidence": log_mean(wealth) / math.log(10.0) if pinned else 0.0,
            "cusum_alarms": sum(rate.cusum_alarms for rate in rates),
            "cusum_run_length": None,
        }
    )


def log_mean(logarithms: Sequence[float]) -> float:
    """Logarithm of the mean of what some are logarithms of.

    >>> round(log_mean([math.log(1.0), math.log(3.0)]), 6) == round(math.log(2.0), 6)
    True
    """
    top = max(logarithms)
    return top + math.log(sum(math.exp(one - top) for one in logarithms) / len(logarithms))


def _shared(stores: Sequence[Store]) -> str:
    """What is known of events that are in more than one store; ids can be compared only under one secret."""
    if len({store.meta("salt") for store in stores}) > 1:
        return "Whether an event is in more than one store cannot be known: their ids are hashed with different secrets (start further ones with --shard-of)."
    found = 0
    for place, store in enumerate(stores):
        with store.reading() as view:
            rows = (id for id, *_ in view.content("seen"))
            while ids := list(islice(rows, CHUNK)):
                found += len(set().union(*_known(stores[:place], ids)))
    if not found:
        return "No event that is still known is in more than one store."
    return f"{found} events are in more than one store, and count in each: what they showed is not kept, so they cannot be taken out."


def _known(stores: Sequence[Store], ids: list[int]) -> Iterator[set[int]]:
    for store in stores:
        with store.reading() as view:
            yield set(view.known(ids))
