"""How rates went over time, and what stands behind alarms, from what a store holds. Nothing is measured here, and nothing written."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Literal

from forensics.gate.judges import REFUSED, judge_refusal
from forensics.monitor.alarms import interval
from forensics.monitor.baseline import Settings, baseline_of, settings_of
from forensics.monitor.batch import Batch, Count
from forensics.monitor.overview import Overview, Told
from forensics.monitor.signals import ANSWERED, BROKEN, COMPLIANCE, OVER_REFUSAL, REFUSAL
from forensics.monitor.store import Store
from forensics.monitor.streams import read_general
from forensics.monitor.windows import Behind, Bin, Course, Example, History

MOST_BINS = 60
EXAMPLES = 12
"""Kept replies that are shown behind an alarm."""
MOST_LOOKED_AT = 2000
"""Kept replies of an alarm's time, the latest, among which they are looked for."""
BROKEN_LABELS = ("empty", "incoherent")


def history(store: Store, overview: Overview, *, span: int | None) -> History:
    """How the rates of an overview went over time.

    Args:
        store: Of the monitor.
        overview: How it stands; courses are of its rates, examples of its alarms.
        span: Seconds before the latest event that are looked at; None for all that is kept.

    Raises:
        BadInput: The store is damaged.
    """
    settings, expected = settings_of(store), baseline_of(store).categories
    wanted = {(rate.signal, rate.category) for rate in overview.rates}
    with store.reading() as view:
        general = read_general(view.states(), where=store.where)
        first, newest = view.windows() or (0, -1)
        oldest = max(first, newest + 1 - max(1, (span or settings.retention) // settings.window))
        step = max(1, -(-(newest + 1 - oldest) // MOST_BINS))
        found: dict[tuple[str, str], dict[int, Count]] = {}
        for signal, category, back, events, hits in view.course(oldest, newest, step, {category for _, category in wanted}):
            found.setdefault((signal, category), {})[back] = Count(events=events, hits=hits)
        behind = tuple(_behind(alarm, settings, expected, view) for alarm in overview.alarms) if settings.keep_text else ()
    return History(
        began=oldest * settings.window,
        ended=(newest + 1) * settings.window,
        stretch=step * settings.window,
        last=general.high_water or None,
        texts_kept=settings.keep_text,
        courses=tuple(
            Course(signal=signal, category=category, bins=tuple(_bins(found[signal, category], newest, step, settings.window)))
            for signal, category in sorted(wanted & found.keys())
        ),
        behind=behind,
    )


def latest(store: Store) -> float | None:
    """When the latest event was, in seconds since 1970; None while there is none.

    Raises:
        BadInput: The store is damaged.
    """
    with store.reading() as view:
        return read_general(view.states(), where=store.where).high_water or None


def _bins(held: Mapping[int, Count], newest: int, step: int, width: int) -> Iterator[Bin]:
    for back in sorted(held, reverse=True):
        events, hits = held[back].events, held[back].hits
        if events:
            low, high = interval(hits, events)
            ended = (newest + 1 - back * step) * width
            yield Bin(
                began=ended - step * width,
                ended=ended,
                events=events,
                hits=hits,
                rate=100 * hits / events,
                low=100 * low,
                high=100 * high,
            )


def _behind(alarm: Told, settings: Settings, expected: Mapping[str, str], view: Batch) -> Behind:
    """Kept replies of the time of an alarm that are of its kind; where none is known to be, those that may be."""
    first, last = (int(datetime.fromisoformat(end).timestamp() // settings.window) for end in (alarm.began, alarm.ended))
    known: list[Example] = []
    possible: list[Example] = []
    for prompt, reply, category in view.texts_of(first, last, MOST_LOOKED_AT):
        label = judge_refusal(reply)
        of_its_kind = _of_its_kind(alarm, prompt, label, category, expected)
        if of_its_kind != "no":
            (known if of_its_kind == "yes" else possible).append(Example(prompt=prompt, reply=reply, label=label))
    chosen = known or possible
    return Behind(alarm=alarm.finding.id, told_apart=bool(known), examples=tuple(chosen[:EXAMPLES]))


def _of_its_kind(alarm: Told, prompt: str, label: str, category: str, expected: Mapping[str, str]) -> Literal["yes", "no", "perhaps"]:
    """Whether an alarm is about such a reply. What a request was to get is kept nowhere but in the category; what people or judges thought, not at all."""
    signal, _, rest = alarm.finding.id.partition("/")
    about = rest.rpartition("/")[0]
    if signal in ("canary", "weights", "leak"):  # no reply to a user stands behind them
        return "no"
    if signal == "shape":
        return "no" if rest.startswith("opinions/") else "perhaps"
    if signal == "string":
        return "yes" if _words(_named(alarm)) in _words(prompt) else "no"
    if about and about != category:
        return "no"
    if signal in (COMPLIANCE, OVER_REFUSAL):
        wanted = label == "compliance" if signal == COMPLIANCE else label in REFUSED
        should = "refuse" if signal == COMPLIANCE else "comply"
        if not wanted or expected.get(category, should) != should:
            return "no"
        return "yes" if category in expected else "perhaps"
    if signal in (REFUSAL, ANSWERED):
        return "yes" if (label in REFUSED) == (signal == REFUSAL) and label not in BROKEN_LABELS else "no"
    if signal == BROKEN:
        return "yes" if label in BROKEN_LABELS else "no"
    return "perhaps"


def _named(alarm: Told) -> str:
    """The string that an alarm is about, which its evidence writes as Python does."""
    try:
        named = ast.literal_eval(alarm.finding.evidence[0].where)
    except (ValueError, SyntaxError):
        return alarm.finding.evidence[0].where
    return named if isinstance(named, str) else alarm.finding.evidence[0].where


def _words(text: str) -> str:
    return f" {' '.join(text.lower().split())} "
