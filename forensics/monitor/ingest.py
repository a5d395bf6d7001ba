"""Lines of a log become counts, detectors move on, alarms are raised: a batch at a time, each in one transaction with the place behind it."""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forensics.errors import BadInput
from forensics.monitor import alarms
from forensics.monitor.baseline import RATES, STRINGS, Baseline, baseline_of, settings_of
from forensics.monitor.batch import Aside, Batch, Count, Key
from forensics.monitor.events import Event, Malformed
from forensics.monitor.feedback import enriched, joined
from forensics.monitor.following import Beside, Follower, spoken
from forensics.monitor.formats import read_line
from forensics.monitor.raising import keep_alarms
from forensics.monitor.signals import COMPLIANCE, DOWN, LEARNED, LONG, SHORT, Marks, Scored, score
from forensics.monitor.sources import (
    Line,
    Place,
)
from forensics.monitor.store import Store
from forensics.monitor.streams import GENERAL, KEPT, General, Stream, begin, feed, read_general, read_streams
from forensics.monitor.strings import Strings
from probes.drift import spent
from probes.strings import Hunt

AHEAD = 3600.0
"""Seconds that a clock may be ahead of ours before its time is not believed."""
MOST_CATEGORIES = 200
OTHER = "(other)"
ALONE = "about an unknown reply"
"""The tally of opinions on replies that are not known, or not any more: they count in no category."""
POPULATIONS = ("flagged", "others")
LENGTHS_WANTED, TAIL = 1000, 0.05
"""Replies at the beginning from which it is learned what is long and short, and the share beyond either end."""
UNSAID = -1
NONE_YET = Count(events=0, hits=0)
KEPT_CHARACTERS = 4000
"""Of texts and malformed lines, where they are kept."""


@dataclass(kw_only=True)
class Memory:
    """What detectors know, as it stands before a batch; read from the store, moved on, and written back."""

    streams: dict[str, Stream]
    hunts: dict[str, Hunt]
    lengths: Counter[int]
    edges: tuple[int, int] | None
    high_water: float
    categories: set[str]
    version: int
    beside: Beside


@dataclass(kw_only=True)
class _Work:
    """What a batch comes to before it is written."""

    now: float
    tallies: Counter[str] = field(default_factory=Counter)
    kinds: dict[tuple[int, str, Marks], int] = field(default_factory=dict)
    """Numbers of what events come to: window, category, and what the signals say. There are few that differ."""
    order: list[int] = field(default_factory=list)
    """The number of each event, in the order in which they came."""
    asked: list[tuple[str, bool, bool, float]] = field(default_factory=list)
    """Requests in which strings are looked for: the text, whether it should be refused, whether the reply flipped, and when it was."""
    seen: dict[int, tuple[int, str]] = field(default_factory=dict)
    texts: list[tuple[int, int, str, str]] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    """Of events that were seen before and that opinions of this batch are about."""
    found: dict[str, alarms.Alarm] = field(default_factory=dict)
    fed: list[str] = field(default_factory=list)
    """Names of streams that moved on."""
    times: list[float] = field(default_factory=list)


class Monitor:
    """Takes batches of lines into a store, and says which alarms they raised."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        """Take an open store, and a clock that gives seconds since 1970."""
        self.store = store
        self.baseline = baseline_of(store)
        self.settings = settings_of(store)
        self._clock = clock
        self._follower = Follower(store, self.baseline, self.settings)
        self._memory: Memory | None = None
        self._strings = Strings(store.meta("salt").encode("ascii"))

    def take(self, source: str, lines: Sequence[Line], before: Place | None, after: Place | None) -> list[alarms.Alarm]:
        """Count a batch, once and for all, and give the alarms that are new, or graver than before.

        Args:
            source: The log's name.
            lines: Of it, in their order.
            before: Where it was read from; None for a source without places.
            after: The place behind the lines.

        Raises:
            BadInput: Another process has read on in the log meanwhile.
            ToolFailed: The store broke off; nothing of the batch is kept.
        """
        work = _Work(now=self._clock())
        collects = gc.isenabled()
        gc.disable()  # what a batch makes holds no cycles; to look for them in it takes a tenth of the time
        try:
            with self.store.batch() as batch:
                if before is not None and batch.place(source) != before:
                    raise BadInput(
                        "another process is reading this log into the store", where=source, hint="let it finish; one reads a log at a time"
                    )
                memory = self._memory = self._recalled(batch)
                events = self._read(source, lines, work, batch)
                self._count(events, memory, work)
                self._hunt(memory, work)
                self._decide(memory, work, batch)
                self._write(source, after, memory, work, batch)
        except BaseException:
            self._memory = None  # what it knows is ahead of what is kept
            raise
        finally:
            if collects:
                gc.enable()
        return list(work.found.values())

    def _recalled(self, batch: Batch) -> Memory:
        """What the detectors know; read anew only where another process has written since."""
        kept = batch.states()
        general = read_general(kept, where=self.store.where)
        if self._memory is not None and self._memory.version == general.version:
            return self._memory
        streams = streams_of(kept, self.baseline, where=self.store.where)
        hunts = {}
        for population in POPULATIONS:
            hunt = hunts[population] = Hunt(
                bound=_usual_flips(self.baseline, population), alpha=self.baseline.alpha * STRINGS / len(POPULATIONS)
            )
            hunt.events, hunt.flips, hunt.found, hunt.recent = general.hunts.get(population, (0, 0, 0, 0.0))
            hunt.suspects = batch.suspects(population)
        return Memory(
            streams=streams,
            hunts=hunts,
            lengths=Counter(general.lengths),
            edges=general.edges,
            high_water=general.high_water,
            categories=set(general.categories),
            version=general.version,
            beside=self._follower.read(kept, where=self.store.where),
        )

    def _read(self, source: str, lines: Sequence[Line], work: _Work, batch: Batch) -> list[tuple[int, Event]]:
        """The events that were not seen before, with their hashed ids; what cannot be read is set aside."""
        told: list[tuple[int, Event]] = []
        for line in lines:
            work.tallies["lines"] += 1
            if line.content is None:
                self._set_aside(source, line, "longer than what is read", work)
                continue
            for place, one in enumerate(read_line(line.content)):
                if isinstance(one, Malformed):
                    self._set_aside(source, line, str(one), work)
                elif one is None:
                    work.tallies["other"] += 1
                else:
                    # Without an id of its own an event is known by its place, which a replay repeats.
                    told.append(
                        (self.store.hashed(one.id or f"{source}:{line.start}:{place}:{hashlib.sha256(line.content).hexdigest()}"), one)
                    )
        known = batch.known([id for id, _ in told] + [self.store.hashed(one.about) for _, one in told if one.about])
        fresh: dict[int, Event] = {}
        for id, one in told:
            if id in known or id in fresh:
                work.tallies["duplicate"] += 1
            else:
                fresh[id] = one
        work.categories = {id: category for id, (_, category) in known.items()}
        return list(fresh.items())

    def _count(self, events: Iterable[tuple[int, Event]], memory: Memory, work: _Work) -> None:
        width, expectations = self.settings.window, self.baseline.categories
        # If our own clock was ahead for a while, all that is true would be too old from then on.
        memory.high_water = min(memory.high_water, work.now + AHEAD)
        for id, event in events:
            time = event.time
            if time is None or time > work.now + AHEAD:
                work.tallies["no time" if time is None else "clock ahead"] += 1
                time = work.now
            if time < memory.high_water - self.settings.retention:
                work.tallies["too old"] += 1
                continue
            if time < memory.high_water - width:
                work.tallies["late"] += 1
            memory.high_water = max(memory.high_water, time)
            work.times.append(time)
            scored = score(event, expectations)
            category = self._category(scored, event, memory, work)
            window = int(time // width)
            work.seen[id] = (window, category)
            work.tallies["opinions" if event.about else "replies"] += 1
            if not scored.said and not event.about:
                work.tallies["without text"] += 1
            said = scored.said if scored.length is None else scored.said + self._lengths(scored.length, memory)
            if said:
                work.order.append(work.kinds.setdefault((window, category, said), len(work.kinds)))
            self._follower.take(memory.beside, id, event, scored, time)
            if scored.flip is not None and event.prompt:
                work.asked.append((event.prompt, scored.flagged, scored.flip, time))
            # Whatever else needs an event with its texts takes it here: they are dropped behind it.
            if self.settings.keep_text and event.reply is not None:
                work.texts.append((id, window, _storable(event.prompt or ""), _storable(event.reply)))

    def _category(self, scored: Scored, event: Event, memory: Memory, work: _Work) -> str:
        """The category that an event counts in: its own, for an opinion that of the reply; of very many only the first have a name."""
        category = scored.category
        if event.about and not category:
            about = self.store.hashed(event.about)
            if about not in work.seen and about not in work.categories:  # let go, or never logged
                work.tallies[ALONE] += 1
            category = work.seen[about][1] if about in work.seen else work.categories.get(about, "")
        if not category or category in memory.categories:  # which are storable as they stand
            return category
        if category in self.baseline.categories:
            return _storable(category)
        if len(memory.categories) >= MOST_CATEGORIES:
            return OTHER
        memory.categories.add(_storable(category))
        return _storable(category)

    def _lengths(self, length: int, memory: Memory) -> Marks:
        """Whether a reply is long or short, once it is known what that is."""
        if memory.edges is not None:
            return (SHORT, length < memory.edges[0]), (LONG, length > memory.edges[1])
        memory.lengths[length] += 1
        if memory.lengths.total() >= LENGTHS_WANTED:
            memory.edges = (_quantile(memory.lengths, TAIL), _quantile(memory.lengths, 1.0 - TAIL))
        return ()

    def _hunt(self, memory: Memory, work: _Work) -> None:
        """Bet on the strings of a batch's requests, one after the other; of most of them no string is under suspicion."""
        none = not any(hunt.suspects for hunt in memory.hunts.values()) and not any(flip for _, _, flip, _ in work.asked)
        found = [[]] * len(work.asked) if none else self._strings.keys_of([prompt for prompt, *_ in work.asked])
        for (prompt, flagged, flip, time), keys in zip(work.asked, found, strict=True):
            population = POPULATIONS[0] if flagged else POPULATIONS[1]
            hunt = memory.hunts[population]
            for key in hunt.look(keys, flip):
                text, parts = self._strings.named(prompt, key)
                if any(hunt.alarms(part) for part in parts):
                    continue  # a pair says nothing that one of its words does not say
                alarm = alarms.of_string(_storable(text), hunt.suspects[key], population, hunt.usual(), (time, time))
                work.found[alarm.finding.id] = alarm

    def _decide(self, memory: Memory, work: _Work, batch: Batch) -> None:
        span = (min(work.times), max(work.times)) if work.times else (work.now, work.now)
        order = np.array(work.order, dtype=np.intp)
        for name, old in memory.streams.items():
            said = np.array([_said_in(kind, old.signal, old.category) for kind in work.kinds], dtype=np.int8)
            outcomes = said[order] if order.size else said
            outcomes = outcomes[outcomes != UNSAID].astype(bool)
            if not outcomes.size:
                continue
            work.fed.append(name)
            stream = memory.streams[name] = feed(old, outcomes)
            risen = self._follower.slide(memory.beside, name, outcomes)
            alarm = alarms.of_rate(stream, span, roll_back=self.settings.roll_back)
            if alarm is not None:
                work.found[alarm.finding.id] = spoken(alarm, stream, memory.beside)
            elif stream.cusum_alarms > old.cusum_alarms:
                watched = alarms.of_cusum(stream, span)
                work.found[watched.finding.id] = watched
            if alarm is None and risen:
                watched = alarms.of_adwin(stream, memory.beside.windows[name], span)
                work.found[watched.finding.id] = watched
        for told in self._follower.decide(
            memory.beside, span, lambda: enriched(joined(batch.totals(DOWN), _counts_of(work)), where=self.store.where)
        ):
            work.found[told.finding.id] = told

    def _write(self, source: str, after: Place | None, memory: Memory, work: _Work, batch: Batch) -> None:
        batch.add_seen(work.seen)
        batch.add_counts(_counts_of(work))
        batch.add_tallies(work.tallies)
        batch.add_aside(work.aside)
        batch.add_texts(work.texts)
        work.found = keep_alarms(batch, self.store, work.found, work.now)
        for population, hunt in memory.hunts.items():
            batch.set_suspects(population, *hunt.changes())
        memory.version += 1
        general = General(
            lengths=memory.lengths, edges=memory.edges, high_water=memory.high_water, categories=tuple(sorted(memory.categories)), version=memory.version,
            hunts={population: (hunt.events, hunt.flips, hunt.found, hunt.recent) for population, hunt in memory.hunts.items()},
        )  # fmt: skip
        names = work.fed if memory.version > 1 else list(memory.streams)
        states = {KEPT + name: memory.streams[name].model_dump_json() for name in names}
        batch.set_states(states | {GENERAL: general.model_dump_json()} | memory.beside.states())
        batch.forget_before(int((memory.high_water - self.settings.retention) // self.settings.window))
        if after is not None:
            batch.set_place(source, after)

    def _set_aside(self, source: str, line: Line, why: str, work: _Work) -> None:
        work.tallies["set aside"] += 1
        work.tallies[f"set aside: {why}"] += 1
        content = line.content or b""
        shown = content[:KEPT_CHARACTERS].decode("ascii", "backslashreplace") if self.settings.keep_text else ""
        digest = hashlib.sha256(content).hexdigest() if line.content is not None else ""
        work.aside.append(Aside(source=source, start=line.start, end=line.end, why=why, digest=digest, content=_storable(shown)))


def streams_of(states: Mapping[str, str], baseline: Baseline, *, where: str) -> dict[str, Stream]:
    """The rates that are watched, as a store holds them.

    Raises:
        BadInput: One is damaged or missing.
    """
    first, kept = first_streams(baseline), read_streams(states, where=where)
    if kept and {name: stream.name for name, stream in kept.items()} != {name: name for name in first}:
        raise BadInput("the state of a detector in this store is missing", where=where, hint="restore the store from a copy")
    return kept or first


def first_streams(baseline: Baseline) -> dict[str, Stream]:
    """The rates that are watched from the first event on."""
    streams = [
        Stream(
            signal=one.signal, category=one.category, share=one.share, pinned=True, reference_events=one.events, reference_hits=one.hits, bound=one.upper
        )
        for one in baseline.pinned
    ]  # fmt: skip
    first = 1 + len(streams)
    streams += [begin(signal, "", spent(baseline.alpha * RATES, first + place)) for place, signal in enumerate(LEARNED)]
    return {stream.name: stream for stream in streams}


def _usual_flips(baseline: Baseline, population: str) -> float:
    """A bound on the share of flips in control: the record's where it has one."""
    pinned = [one.upper for one in baseline.pinned if one.signal == COMPLIANCE and not one.category]
    return pinned[0] if pinned and population == POPULATIONS[0] else 0.0


def _said_in(kind: tuple[int, str, Marks], signal: str, category: str) -> int:
    """What a signal says of events of a kind, 0 or 1, as far as they belong to a category, or to all ("")."""
    return next((int(hit) for name, hit in kind[2] if name == signal), UNSAID) if category in ("", kind[1]) else UNSAID


def _counts_of(work: _Work) -> dict[Key, Count]:
    """What a batch adds to the counts."""
    found: dict[Key, Count] = {}
    for (window, category, said), number in zip(
        work.kinds, np.bincount(np.array(work.order, dtype=np.intp), minlength=len(work.kinds)).tolist(), strict=True
    ):
        for part in {"", category}:
            for signal, hit in said:
                key = Key(window=window, signal=signal, category=part)
                before = found.get(key, NONE_YET)
                found[key] = Count(events=before.events + number, hits=before.hits + number * hit)
    return found


def _quantile(lengths: Counter[int], share: float) -> int:
    total, passed = lengths.total(), 0
    for step in sorted(lengths):
        passed += lengths[step]
        if passed >= share * total:
            return step
    return max(lengths)


def _storable(text: str) -> str:
    """Text that every database takes: no half characters, no zero bytes."""
    return text[:KEPT_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
