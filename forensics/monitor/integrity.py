"""Whether a store is whole: what the database says of itself, whether every row fits its seal, can be read, and agrees with what it follows from.

Noticed are bytes and rows that changed without the seals, whatever wrote them. Not noticed is what somebody wrote who knows the seals and the secret in the
store, a store put back whole from an older copy (which shows an earlier batch), and a changed row of `suspects` that could still be one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forensics.errors import BadInput
from forensics.monitor.alarms import read_alarm
from forensics.monitor.baseline import baseline_of, settings_of
from forensics.monitor.batch import LET_GO, MOST_ASIDE, Batch
from forensics.monitor.embedding import gate_of
from forensics.monitor.following import read_beside
from forensics.monitor.ingest import POPULATIONS, streams_of
from forensics.monitor.schedule import read_canaries
from forensics.monitor.seals import Seals, moved
from forensics.monitor.store import Store
from forensics.monitor.streams import read_general
from forensics.record import canonical_json, sha256_text

NO_SUM = moved(None, 0)
ASIDE, BECAUSE = "set aside", "set aside: "
"""Tallies of lines that were set aside: all, and those of each reason."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found: sentences about what is wrong and what holds, how many batches the store took, and a digest of its seals."""

    wrong: tuple[str, ...]
    held: tuple[str, ...]
    batches: int
    seal: str


def check(store: Store) -> Checked:
    """Look at all of a store, as it stands at one moment.

    Raises:
        BadInput: It is so damaged that it cannot be read at all.
    """
    wrong: list[str] = []
    held: list[str] = []
    with store.reading() as view:
        questions: tuple[tuple[str, Callable[[Batch, Store], Iterator[str]]], ...] = (
            ("the database finds no fault in itself", lambda view, store: iter(view.faults())),
            ("every row fits its seal", _unsealed),
            ("baseline, settings, detectors and alarms can be read", _unreadable),
            ("ids, tallies, counts and detectors agree with each other", _disagreeing),
        )
        for holds, ask in questions:
            try:
                found = list(ask(view, store))
            except BadInput as error:
                found = [error.what]
            wrong += found
            held += [] if found else [holds]
        seals = view.sealed()
        batches = _batches(view, store)
    return Checked(
        wrong=tuple(dict.fromkeys(wrong)), held=tuple(held), batches=batches, seal=sha256_text(canonical_json(sorted(seals.items())))
    )


def _unsealed(view: Batch, store: Store) -> Iterator[str]:
    seals, kept = store.seals, view.sealed()
    for table, made in _sums(view, seals).items():
        if kept.pop(f"sum/{table}", NO_SUM) != made:
            yield f"rows of {table} were changed, added or deleted"
    for name, made in _rows(view, seals).items():
        if kept.pop(name, None) != made:
            yield f"{name.partition('/')[0]} {name.partition('/')[2]!r} was changed or added"
    del kept["meta"]  # a store that does not fit it is not opened
    yield from (f"{name.partition('/')[0]} {name.partition('/')[2]!r} is gone" for name in sorted(kept))


def _sums(view: Batch, seals: Seals) -> dict[str, str]:
    """The sums of tables as their rows make them."""

    def numbers(table: str, keys: int, least: int) -> int:
        return sum(seals.of_numbers(table, {row[:keys]: row[least:]}) for row in view.content(table))

    found = {
        "counts": numbers("counts", 3, 3),
        "gone": numbers("gone", 2, 2),
        "tallies": numbers("tallies", 1, 1),
        "alarms": sum(seals.of_numbers("alarms", {row[:1]: row[3:4]}) for row in view.content("alarms")),
        "seen": seals.of_seen(view.content("seen")),
        "texts": seals.of_rows("texts", view.content("texts")),
        "aside": seals.of_rows("aside", (row[1:] for row in view.content("aside"))),
    }
    return {table: moved(None, part) for table, part in found.items()}


def _rows(view: Batch, seals: Seals) -> dict[str, str]:
    """The seals of single rows as they make them."""
    found = {f"state/{name}": seals.digest("state", name, state) for name, state in view.states().items()}
    found |= {
        f"source/{name}": seals.digest("source", name, place.offset, place.head_bytes, place.head) for name, place in view.places().items()
    }
    found |= {f"alarm/{one.id}": seals.digest("alarm", one.id, one.last, one.alarm) for one in view.alarms()}
    return {name: f"{digest:016x}" for name, digest in found.items()}


def _unreadable(view: Batch, store: Store) -> Iterator[str]:
    read_beside(view.states(), settings_of(store), where=store.where)
    read_canaries(view.states(), where=store.where)
    gate_of(store)
    streams_of(view.states(), baseline_of(store), where=store.where)
    read_general(view.states(), where=store.where)
    for raised in view.alarms():
        read_alarm(raised, store)
    for population in POPULATIONS:
        if any(not 0 <= one.flips <= one.events or one.order < 1 for one in view.suspects(population).values()):
            yield f"a string that is suspected ({population}) shows more flips than events"


def _disagreeing(view: Batch, store: Store) -> Iterator[str]:
    tallies = view.tallies()
    told = tallies.get("replies", 0) + tallies.get("opinions", 0)
    windows: defaultdict[int, int] = defaultdict(int)
    for _, window, _ in view.content("seen"):
        windows[window] += 1
    if sum(windows.values()) + tallies.get(LET_GO, 0) != told:
        yield f"{sum(windows.values())} ids are kept and {tallies.get(LET_GO, 0)} were let go, of {told} replies and opinions"
    if min(tallies.values(), default=0) < 0:
        yield "a tally is below zero"
    reasons = sum(count for name, count in tallies.items() if name.startswith(BECAUSE))
    lines = sum(1 for _ in view.content("aside"))
    if reasons != tallies.get(ASIDE, 0) or lines != min(MOST_ASIDE, reasons):
        yield f"{lines} lines are listed as set aside and {reasons} have a reason, of {tallies.get(ASIDE, 0)}"
    yield from _counts(view, store, windows)


def _counts(view: Batch, store: Store, windows: dict[int, int]) -> Iterator[str]:
    """Counts against ids and against detectors. No signal looks at an event twice, and of all categories there are as many events as of each together, or more."""
    total: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    parts: defaultdict[tuple[int, str], int] = defaultdict(int)
    whole: dict[tuple[int, str], int] = {}
    general = read_general(view.states(), where=store.where)
    settings = settings_of(store)
    oldest = int((general.high_water - settings.retention) // settings.window)
    for key, count in view.counts().items():
        if not 0 <= count.hits <= count.events or (key.window >= oldest and count.events > windows.get(key.window, 0)):
            yield f"{key.signal} in window {key.window} counts {count.hits} of {count.events}, of {windows.get(key.window, 0)} ids there"
        total[key.signal, key.category][0] += count.events
        total[key.signal, key.category][1] += count.hits
        if key.category:
            parts[key.window, key.signal] += count.events
        else:
            whole[key.window, key.signal] = count.events
    for (window, signal), events in parts.items():
        if window >= oldest and events > whole.get((window, signal), 0):
            yield f"{signal} in window {window} counts {events} events in categories, and {whole.get((window, signal), 0)} over all"
    for (signal, category), count in view.gone().items():
        total[signal, category][0] += count.events
        total[signal, category][1] += count.hits
    for stream in streams_of(view.states(), baseline_of(store), where=store.where).values():
        process = stream.watched
        own = (0, 0) if stream.pinned else (stream.reference_events, stream.reference_hits)
        known = (own[0] + (process.events if process else 0), own[1] + (process.hits if process else 0))
        counted = tuple(total[stream.signal, stream.category])
        # A rate that cannot rise is not watched: its detector stays where its reference was full.
        if counted != known and not (process is None and stream.full and all(a >= b for a, b in zip(counted, known, strict=True))):
            yield f"the detector of {stream.name} has seen {known[1]} of {known[0]}, and the counts say {counted[1]} of {counted[0]}"


def _batches(view: Batch, store: Store) -> int:
    try:
        return read_general(view.states(), where=store.where).version
    except BadInput:
        return 0
