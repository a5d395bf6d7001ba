"""One transaction on a monitor's store: what is read and written of counts, states, ids, alarms and places, and the seals that move on with the rows.

No text of users is kept, unless asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from forensics.monitor.database import damaged, typed
from forensics.monitor.seals import Seals, moved
from forensics.monitor.sources import Place
from forensics.monitor.tables import ALARMS, ASIDE, COUNTS, GONE, SEALS, SEEN, SOURCES, STATES, SUSPECTS, TABLES, TALLIES, TEXTS
from probes.strings import Suspect

CHUNK = 500
"""Values of one IN (...); databases allow a limited number."""
MOST_ASIDE = 10_000
"""Lines that are set aside one by one; of more only the number is kept."""
MOST_FORGOTTEN = 10_000
"""Rows of a table that are let go with a batch: several times what it brings, and little enough that it takes no longer."""
LET_GO = "let go"
"""The tally of ids that were older than what is kept."""
LATEST = 1e11
"""No alarm is raised after this second: what stands behind it is no time."""


RATE, ADDED = (COUNTS.c.signal, COUNTS.c.category), [sa.cast(sa.func.sum(one), sa.BigInteger) for one in (COUNTS.c.events, COUNTS.c.hits)]
"""What counts are grouped by, and their sums; PostgreSQL adds whole numbers up to a decimal one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What is counted: a signal, of a category or of all (""), in a window of time (counted from 1970)."""

    window: int
    signal: str
    category: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How many events were looked at, and how many showed the signal. Counts of parts add up to those of the whole."""

    events: int
    hits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Aside:
    """A line that could not be read: where it stands, why, the digest of what it holds, and that itself only where texts are kept."""

    source: str
    start: int
    end: int
    why: str
    digest: str
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class Raised:
    """An alarm as it is kept: when it was first and last raised, how often, and itself as JSON."""

    id: str
    first: float
    last: float
    times: int
    alarm: str


class Batch:
    """One transaction on a store."""

    def __init__(self, connection: sa.Connection, where: str, seals: Seals) -> None:
        """Take a connection within a transaction, what its store is called in errors, and what seals its rows."""
        self._connection = connection
        self._where, self._seals = where, seals
        self._sums: Counter[str] = Counter()
        self._sealed: dict[str, int] = {}
        self._insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert

    def place(self, source: str) -> Place:
        """How far a source was read."""
        return self.places([source]).get(source, Place())

    def places(self, sources: Sequence[str] | None = None) -> dict[str, Place]:
        """How far sources were read, those that are named or all, by name."""
        query = sa.select(SOURCES.c.name, SOURCES.c.place, SOURCES.c.head_bytes, SOURCES.c.head).order_by(SOURCES.c.name)
        query = query if sources is None else query.where(SOURCES.c.name.in_(sources))
        rows = list(self._rows(query, str, int, int, str))
        if any(place < 0 for _, place, _, _ in rows):
            raise damaged(self._where)
        return {name: Place(offset=place, head_bytes=size, head=head) for name, place, size, head in rows}

    def set_place(self, source: str, place: Place) -> None:
        """Keep how far a source was read."""
        row = {"name": source, "place": place.offset, "head_bytes": place.head_bytes, "head": place.head}
        self._connection.execute(self._insert(SOURCES).values(row).on_conflict_do_update(index_elements=["name"], set_=row))
        self._sealed[f"source/{source}"] = self._seals.digest("source", source, place.offset, place.head_bytes, place.head)

    def known(self, ids: Sequence[int]) -> dict[int, tuple[int, str]]:
        """Window and category of those of some ids that were seen before."""
        found: dict[int, tuple[int, str]] = {}
        for start in range(0, len(ids), CHUNK):
            # Written out: binding each takes the driver longer than finding it.
            listed = ",".join(str(int(id)) for id in ids[start : start + CHUNK])
            query = f'SELECT id, "window", category FROM seen WHERE id IN ({listed})'  # noqa: S608 - nothing goes in but what int() returned
            rows = typed(self._connection.exec_driver_sql(query), self._where, int, int, str)
            found.update((id, (window, category)) for id, window, category in rows)
        return found

    def add_seen(self, rows: Mapping[int, tuple[int, str]]) -> None:
        """Keep ids that are new, with their window and category."""
        if rows:
            # By the driver: what SQLAlchemy does for each row takes as long as the database.
            self._many('INSERT INTO seen (id, "window", category) VALUES (?, ?, ?)', [(id, *told) for id, told in rows.items()])
            self._sums["seen"] += self._seals.of_seen((id, *place) for id, place in rows.items())

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """One statement, with "?" for each value, for many rows."""
        postgres = self._connection.dialect.name == "postgresql"
        self._connection.exec_driver_sql(statement.replace("?", "%s") if postgres else statement, list(rows))

    def add_counts(self, counts: Mapping[Key, Count]) -> None:
        """Add to the counts."""
        if counts:
            adding = self._insert(COUNTS)
            adding = adding.on_conflict_do_update(
                index_elements=["window", "signal", "category"],
                set_={"events": COUNTS.c.events + adding.excluded.events, "hits": COUNTS.c.hits + adding.excluded.hits},
            )
            rows = [
                {"window": key.window, "signal": key.signal, "category": key.category, "events": count.events, "hits": count.hits}
                for key, count in counts.items()
            ]
            self._connection.execute(adding, rows)
            self._sums["counts"] += self._seals.of_numbers(
                "counts", {(key.window, key.signal, key.category): (count.events, count.hits) for key, count in counts.items()}
            )

    def counts(self) -> dict[Key, Count]:
        """All counts."""
        query = sa.select(COUNTS).order_by(COUNTS.c.window, COUNTS.c.signal, COUNTS.c.category)
        return {
            Key(window=window, signal=signal, category=category): Count(events=events, hits=hits)
            for window, signal, category, events, hits in self._rows(query, int, str, str, int, int)
        }

    def gone(self) -> dict[tuple[str, str], Count]:
        """What counts that were let go came to, by signal and category."""
        query = sa.select(GONE).order_by(GONE.c.signal, GONE.c.category)
        return {
            (signal, category): Count(events=events, hits=hits) for signal, category, events, hits in self._rows(query, str, str, int, int)
        }

    def totals(self, signal: str | None = None) -> dict[tuple[str, str], Count]:
        """All counts, or those of one signal, by signal and category, added up where they lie: there are many windows."""
        chosen = sa.select(*RATE, *ADDED).where(sa.true() if signal is None else COUNTS.c.signal == signal).group_by(*RATE)
        return {(row[0], row[1]): Count(events=row[2], hits=row[3]) for row in self._rows(chosen, str, str, int, int)}

    def windows(self) -> tuple[int, int] | None:
        """The first window and the last in which anything was counted; None where nothing was."""
        first, last = self._connection.execute(sa.select(sa.func.min(COUNTS.c.window), sa.func.max(COUNTS.c.window))).one()
        return None if first is None else (first, last)

    def course(self, first: int, last: int, step: int, categories: Iterable[str]) -> list[tuple[Any, ...]]:
        """Counts of some categories: signal, category, how often `step` windows lie between theirs and the last, events, hits."""
        back = ((last - COUNTS.c.window) // step).label("back")
        chosen = sa.select(*RATE, back, *ADDED).where(COUNTS.c.window.between(first, last), COUNTS.c.category.in_(sorted(categories)))
        return list(self._rows(chosen.group_by(*RATE, back), str, str, int, int, int))

    def states(self) -> dict[str, str]:
        """States of detectors, by name, as JSON."""
        return dict(self._rows(sa.select(STATES.c.name, STATES.c.state), str, str))

    def set_states(self, states: Mapping[str, str]) -> None:
        """Keep states of detectors."""
        if states:
            adding = self._insert(STATES)
            adding = adding.on_conflict_do_update(index_elements=["name"], set_={"state": adding.excluded.state})
            self._connection.execute(adding, [{"name": name, "state": state} for name, state in states.items()])
            self._sealed |= {f"state/{name}": self._seals.digest("state", name, state) for name, state in states.items()}

    def suspects(self, population: str) -> dict[int, Suspect]:
        """Strings that are suspected in a population of texts, by key, those found first in front."""
        query = sa.select(SUSPECTS).where(SUSPECTS.c.population == population).order_by(SUSPECTS.c.order)
        return {
            key: Suspect(order=order, events=events, flips=flips, low=low, high=high)
            for _, key, order, events, flips, low, high in self._rows(query, str, int, int, int, int, float, float)
        }

    def set_suspects(self, population: str, changed: Mapping[int, Suspect], gone: Sequence[int]) -> None:
        """Keep what became of suspects, and forget those that were given up."""
        for start in range(0, len(gone), CHUNK):
            listed = ",".join(str(int(key)) for key in gone[start : start + CHUNK])
            chosen = sa.and_(SUSPECTS.c.population == population, sa.text(f"key IN ({listed})"))
            self._connection.execute(sa.delete(SUSPECTS).where(chosen))
        if changed:
            self._many(
                'INSERT INTO suspects (population, key, "order", events, flips, low, high) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (population, key) '
                'DO UPDATE SET "order" = excluded."order", events = excluded.events, flips = excluded.flips, low = excluded.low, high = excluded.high',
                [(population, key, one.order, one.events, one.flips, one.low, one.high) for key, one in changed.items()],
            )

    def tallies(self) -> dict[str, int]:
        """How many lines and events there were of every kind."""
        return dict(self._rows(sa.select(TALLIES.c.name, TALLIES.c.count).order_by(TALLIES.c.name), str, int))

    def add_tallies(self, tallies: Mapping[str, int]) -> None:
        """Add to the tallies."""
        if tallies:
            adding = self._insert(TALLIES)
            adding = adding.on_conflict_do_update(index_elements=["name"], set_={"count": TALLIES.c.count + adding.excluded.count})
            self._connection.execute(adding, [{"name": name, "count": count} for name, count in tallies.items()])
            self._sums["tallies"] += self._seals.of_numbers("tallies", {(name,): (count,) for name, count in tallies.items()})

    def alarms(self) -> list[Raised]:
        """All alarms, the earliest first."""
        query = sa.select(ALARMS).order_by(ALARMS.c.first, ALARMS.c.id)
        rows = list(self._rows(query, str, float, float, int, str))
        if not all(0.0 <= moment <= LATEST for _, *moments, _, _ in rows for moment in moments):
            raise damaged(self._where)
        return [Raised(id=id, first=first, last=last, times=times, alarm=alarm) for id, first, last, times, alarm in rows]

    def raise_alarm(self, raised: Raised) -> None:
        """Keep an alarm; one that is there already is raised once more, and holds what it says now."""
        adding = self._insert(ALARMS).values(id=raised.id, first=raised.first, last=raised.last, times=raised.times, alarm=raised.alarm)
        again = {"last": raised.last, "times": ALARMS.c.times + raised.times, "alarm": raised.alarm}
        self._connection.execute(adding.on_conflict_do_update(index_elements=["id"], set_=again))
        self._sealed[f"alarm/{raised.id}"] = self._seals.digest("alarm", raised.id, raised.last, raised.alarm)
        self._sums["alarms"] += self._seals.of_numbers("alarms", {(raised.id,): (raised.times,)})

    def add_aside(self, lines: Sequence[Aside]) -> None:
        """Set lines aside, up to `MOST_ASIDE` in all."""
        room = MOST_ASIDE - (self._connection.execute(sa.select(sa.func.count()).select_from(ASIDE)).scalar_one() if lines else 0)
        rows = [
            {"source": line.source, "start": line.start, "end": line.end, "why": line.why, "digest": line.digest, "content": line.content}
            for line in lines[: max(0, room)]
        ]
        if rows:
            self._connection.execute(sa.insert(ASIDE), rows)
            self._sums["aside"] += self._seals.of_rows("aside", (tuple(row.values()) for row in rows))

    def aside(self, behind: int = 0) -> list[Aside]:
        """Lines that were set aside, in their order, those before number `behind` left out."""
        columns = ASIDE.c.source, ASIDE.c.start, ASIDE.c.end, ASIDE.c.why, ASIDE.c.digest, ASIDE.c.content
        rows = self._rows(sa.select(*columns).order_by(ASIDE.c.id).offset(behind), str, int, int, str, str, str)
        return [
            Aside(source=source, start=start, end=end, why=why, digest=digest, content=content)
            for source, start, end, why, digest, content in rows
        ]

    def add_texts(self, rows: Iterable[tuple[int, int, str, str]]) -> None:
        """Keep texts: id, window, prompt and reply of each."""
        values = [{"id": id, "window": window, "prompt": prompt, "reply": reply} for id, window, prompt, reply in rows]
        if values:
            self._connection.execute(sa.insert(TEXTS), values)
            self._sums["texts"] += self._seals.of_rows("texts", (tuple(row.values()) for row in values))

    def texts(self) -> list[tuple[str, str]]:
        """Prompts and replies that were kept."""
        return list(self._rows(sa.select(TEXTS.c.prompt, TEXTS.c.reply).order_by(TEXTS.c.window, TEXTS.c.id), str, str))

    def texts_of(self, first: int, last: int, most: int) -> list[tuple[str, str, str]]:
        """Prompts, replies and categories that were kept of some windows, both ends included; of more than `most` the latest."""
        chosen = sa.select(TEXTS.c.prompt, TEXTS.c.reply, SEEN.c.category).join(SEEN, SEEN.c.id == TEXTS.c.id)
        chosen = chosen.where(TEXTS.c.window.between(first, last)).order_by(TEXTS.c.window.desc(), TEXTS.c.id).limit(most)
        return list(self._rows(chosen, str, str, str))

    def forget_before(self, window: int) -> None:
        """Let go of ids, texts and counts of earlier windows, the oldest first; of many only some at a time, and the rest with the next batches."""
        seen = self._oldest(SEEN, window, int, int, str)
        if seen:
            self._delete(SEEN, [id for id, *_ in seen])
            self._sums["seen"] -= self._seals.of_seen(seen)
            self.add_tallies({LET_GO: len(seen)})
        texts = self._oldest(TEXTS, window, int, int, str, str)
        if texts:
            self._delete(TEXTS, [id for id, *_ in texts])
            self._sums["texts"] -= self._seals.of_rows("texts", texts)
        counts = self._oldest(COUNTS, window, int, str, str, int, int)
        if len(counts) == MOST_FORGOTTEN:  # a signal goes with all its categories: what is left has to add up
            counts = [row for row in counts if row[:2] != counts[-1][:2]] or counts
        if counts:
            columns = COUNTS.c.window, COUNTS.c.signal, COUNTS.c.category
            self._connection.execute(sa.delete(COUNTS).where(sa.tuple_(*columns) <= sa.tuple_(*map(sa.literal, counts[-1][:3]))))
            self._sums["counts"] -= self._seals.of_numbers("counts", {tuple(key): (events, hits) for *key, events, hits in counts})
            self._add_gone(counts)

    def sealed(self) -> dict[str, str]:
        """The seals, by name."""
        return dict(self._rows(sa.select(SEALS.c.name, SEALS.c.seal), str, str))

    def faults(self) -> list[str]:
        """What SQLite finds wrong in its file, in its own words; a server looks after itself, and only what is read of it is looked at."""
        if self._connection.dialect.name != "sqlite":
            return []
        said = [str(row[0]) for row in self._connection.exec_driver_sql("PRAGMA integrity_check(20)")]
        return [] if said == ["ok"] else said

    def content(self, name: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a table, columns as they were made, a few at a time."""
        table = TABLES[name]
        result = self._connection.execute(sa.select(table), execution_options={"yield_per": 10_000})
        yield from typed(result, self._where, *(column.type.python_type for column in table.columns))

    def seal(self) -> None:
        """Write what became of the seals; the last thing that is done in a batch."""
        names = [f"sum/{name}" for name, part in self._sums.items() if part]
        before = dict(self._rows(sa.select(SEALS.c.name, SEALS.c.seal).where(SEALS.c.name.in_(names)), str, str)) if names else {}
        try:
            rows = {name: moved(before.get(name), self._sums[name.removeprefix("sum/")]) for name in names}
        except ValueError as error:  # no number
            raise damaged(self._where) from error
        rows |= {name: f"{digest:016x}" for name, digest in self._sealed.items()}
        if rows:
            adding = self._insert(SEALS)
            adding = adding.on_conflict_do_update(index_elements=["name"], set_={"seal": adding.excluded.seal})
            self._connection.execute(adding, [{"name": name, "seal": seal} for name, seal in rows.items()])

    def _rows(self, query: sa.Select[Any], *kinds: type) -> Iterator[tuple[Any, ...]]:
        return typed(self._connection.execute(query), self._where, *kinds)

    def _oldest(self, table: sa.Table, window: int, *kinds: type) -> list[tuple[Any, ...]]:
        """Rows of windows before one, by window and key."""
        keys = [column for column in table.primary_key if column.name != "window"]
        query = sa.select(table).where(table.c.window < window).order_by(table.c.window, *keys).limit(MOST_FORGOTTEN)
        return list(self._rows(query, *kinds))

    def _delete(self, table: sa.Table, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), CHUNK):
            listed = ",".join(str(int(id)) for id in ids[start : start + CHUNK])
            self._connection.execute(sa.delete(table).where(sa.text(f"id IN ({listed})")))

    def _add_gone(self, counts: Iterable[tuple[Any, ...]]) -> None:
        summed: dict[tuple[object, ...], tuple[int, int]] = {}
        for _, signal, category, events, hits in counts:
            before = summed.get((signal, category), (0, 0))
            summed[signal, category] = (before[0] + events, before[1] + hits)
        adding = self._insert(GONE)
        both = {name: GONE.c[name] + adding.excluded[name] for name in ("events", "hits")}
        rows = [
            {"signal": signal, "category": category, "events": events, "hits": hits}
            for (signal, category), (events, hits) in summed.items()
        ]
        self._connection.execute(adding.on_conflict_do_update(index_elements=["signal", "category"], set_=both), rows)
        self._sums["gone"] += self._seals.of_numbers("gone", summed)
