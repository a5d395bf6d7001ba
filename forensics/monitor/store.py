"""What a monitor knows, in a database: counts by window, signal and category, states of detectors, ids that were seen, alarms, and how far logs were read.

All of a batch is written in one transaction, the place in the log among it, so a monitor that is killed counts nothing twice and loses nothing.
Ids are kept as keyed hashes, and no text of users is, unless asked for. SQLite by a file's path, PostgreSQL by URL.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from forensics.errors import BadInput, ForensicsError, ToolFailed
from forensics.monitor.sources import Place
from forensics.record import sha256_text
from probes.strings import Suspect

SCHEMA = "forensics.monitor/1"
CHUNK = 500
"""Values of one IN (...); databases allow a limited number."""
WAIT = 60_000
"""Milliseconds that a writer waits for another; a batch of long lines takes seconds."""
MOST_ASIDE = 10_000
"""Lines that are set aside one by one; of more only the number is kept."""

_tables = sa.MetaData()
_meta = sa.Table("meta", _tables, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))
_sources = sa.Table(
    "sources", _tables, sa.Column("name", sa.Text, primary_key=True), sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column("head_bytes", sa.Integer, nullable=False), sa.Column("head", sa.Text, nullable=False),
)  # fmt: skip
_seen = sa.Table(
    "seen", _tables, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("window", sa.BigInteger, nullable=False, index=True),
    sa.Column("category", sa.Text, nullable=False),
)  # fmt: skip
_counts = sa.Table(
    "counts", _tables, sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("signal", sa.Text, primary_key=True),
    sa.Column("category", sa.Text, primary_key=True), sa.Column("events", sa.BigInteger, nullable=False), sa.Column("hits", sa.BigInteger, nullable=False),
)  # fmt: skip
_states = sa.Table("states", _tables, sa.Column("name", sa.Text, primary_key=True), sa.Column("state", sa.Text, nullable=False))
_tallies = sa.Table("tallies", _tables, sa.Column("name", sa.Text, primary_key=True), sa.Column("count", sa.BigInteger, nullable=False))
_alarms = sa.Table(
    "alarms", _tables, sa.Column("id", sa.Text, primary_key=True), sa.Column("first", sa.Float, nullable=False), sa.Column("last", sa.Float, nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False), sa.Column("alarm", sa.Text, nullable=False),
)  # fmt: skip
_aside = sa.Table(
    "aside", _tables, sa.Column("id", sa.Integer, primary_key=True), sa.Column("source", sa.Text, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False), sa.Column("end", sa.BigInteger, nullable=False), sa.Column("why", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False), sa.Column("content", sa.Text, nullable=False),
)  # fmt: skip
_suspects = sa.Table(
    "suspects", _tables, sa.Column("population", sa.Text, primary_key=True), sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("order", sa.BigInteger, nullable=False), sa.Column("events", sa.BigInteger, nullable=False), sa.Column("flips", sa.BigInteger, nullable=False),
    sa.Column("low", sa.Float, nullable=False), sa.Column("high", sa.Float, nullable=False),
)  # fmt: skip
_texts = sa.Table(
    "texts", _tables, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("window", sa.BigInteger, nullable=False, index=True),
    sa.Column("prompt", sa.Text, nullable=False), sa.Column("reply", sa.Text, nullable=False),
)  # fmt: skip


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


class Store:
    """An open store. Use it as a context manager; write through `batch` only."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        """Take an engine whose database holds a store; see `open_store` and `create_store`."""
        self._engine = engine
        self.where = where
        with self._told(), engine.execution_options(reading=True).connect() as connection:
            rows = connection.execute(sa.select(_meta)).all()
        self._meta: dict[str, str] = {row.key: row.value for row in rows}
        if "salt" not in self._meta:
            raise BadInput("the secret of this store is missing", where=where, hint="restore the store from a copy")
        self._salt = self._meta["salt"].encode("utf-8", "surrogatepass")[:64]

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def meta(self, key: str) -> str:
        """What was written down when the monitor was started."""
        return self._meta[key]

    def hashed(self, id: str) -> int:
        """An id as it is kept: 64 bits of a hash keyed with a secret of this store."""
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big", signed=True)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """A transaction: everything that is written in it is kept together, or nothing of it. Waits for another writer.

        Raises:
            ToolFailed: The disk is full, or the database broke off.
            BadInput: It cannot be written.
        """
        with self._told(), self._engine.begin() as connection:
            if self._engine.dialect.name != "sqlite":  # SQLite has one writer by itself
                connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "schema").with_for_update())
            yield Batch(connection)

    @contextmanager
    def reading(self) -> Iterator[Batch]:
        """A view of what is there; nothing may be written through it."""
        with self._told(), self._engine.execution_options(reading=True).connect() as connection:
            yield Batch(connection)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise store_error(error, self.where) from error


class Batch:
    """One transaction on a store."""

    def __init__(self, connection: sa.Connection) -> None:
        """Take a connection within a transaction."""
        self._connection = connection
        self._insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert

    def place(self, source: str) -> Place:
        """How far a source was read."""
        row = self._connection.execute(sa.select(_sources).where(_sources.c.name == source)).first()
        return Place(offset=row.place, head_bytes=row.head_bytes, head=row.head) if row is not None else Place()

    def set_place(self, source: str, place: Place) -> None:
        """Keep how far a source was read."""
        row = {"name": source, "place": place.offset, "head_bytes": place.head_bytes, "head": place.head}
        self._connection.execute(self._insert(_sources).values(row).on_conflict_do_update(index_elements=["name"], set_=row))

    def known(self, ids: Sequence[int]) -> dict[int, tuple[int, str]]:
        """Window and category of those of some ids that were seen before."""
        found: dict[int, tuple[int, str]] = {}
        for start in range(0, len(ids), CHUNK):
            # Written out: binding each takes the driver longer than finding it.
            listed = ",".join(str(int(id)) for id in ids[start : start + CHUNK])
            query = f'SELECT id, "window", category FROM seen WHERE id IN ({listed})'  # noqa: S608 - nothing goes in but what int() returned
            rows = self._connection.exec_driver_sql(query)
            found.update((id, (window, category)) for id, window, category in rows)
        return found

    def add_seen(self, rows: Mapping[int, tuple[int, str]]) -> None:
        """Keep ids that are new, with their window and category."""
        if rows:
            values = [{"id": id, "window": window, "category": category} for id, (window, category) in rows.items()]
            self._connection.execute(sa.insert(_seen), values)

    def add_counts(self, counts: Mapping[Key, Count]) -> None:
        """Add to the counts."""
        if counts:
            adding = self._insert(_counts)
            adding = adding.on_conflict_do_update(
                index_elements=["window", "signal", "category"],
                set_={"events": _counts.c.events + adding.excluded.events, "hits": _counts.c.hits + adding.excluded.hits},
            )
            rows = [
                {"window": key.window, "signal": key.signal, "category": key.category, "events": count.events, "hits": count.hits}
                for key, count in counts.items()
            ]
            self._connection.execute(adding, rows)

    def counts(self) -> dict[Key, Count]:
        """All counts."""
        rows = self._connection.execute(sa.select(_counts).order_by(_counts.c.window, _counts.c.signal, _counts.c.category))
        return {Key(window=row.window, signal=row.signal, category=row.category): Count(events=row.events, hits=row.hits) for row in rows}

    def totals(self, signal: str) -> dict[str, tuple[int, int]]:
        """Events and hits of a signal over all windows, by category."""
        sums = (_counts.c.category, sa.func.sum(_counts.c.events).label("events"), sa.func.sum(_counts.c.hits).label("hits"))
        rows = self._connection.execute(sa.select(*sums).where(_counts.c.signal == signal).group_by(_counts.c.category))
        return {row.category: (int(row.events), int(row.hits)) for row in rows}

    def states(self) -> dict[str, str]:
        """States of detectors, by name, as JSON."""
        return {row.name: row.state for row in self._connection.execute(sa.select(_states))}

    def set_states(self, states: Mapping[str, str]) -> None:
        """Keep states of detectors."""
        if states:
            adding = self._insert(_states)
            adding = adding.on_conflict_do_update(index_elements=["name"], set_={"state": adding.excluded.state})
            self._connection.execute(adding, [{"name": name, "state": state} for name, state in states.items()])

    def suspects(self, population: str) -> dict[int, Suspect]:
        """Strings that are suspected in a population of texts, by key, those found first in front."""
        rows = self._connection.execute(sa.select(_suspects).where(_suspects.c.population == population).order_by(_suspects.c.order))
        return {
            key: Suspect(order=order, events=events, flips=flips, low=low, high=high) for _, key, order, events, flips, low, high in rows
        }

    def set_suspects(self, population: str, changed: Mapping[int, Suspect], gone: Sequence[int]) -> None:
        """Keep what became of suspects, and forget those that were given up."""
        for start in range(0, len(gone), CHUNK):
            listed = ",".join(str(int(key)) for key in gone[start : start + CHUNK])
            chosen = sa.and_(_suspects.c.population == population, sa.text(f"key IN ({listed})"))
            self._connection.execute(sa.delete(_suspects).where(chosen))
        if changed:
            adding = self._insert(_suspects)
            names = ("order", "events", "flips", "low", "high")
            adding = adding.on_conflict_do_update(
                index_elements=["population", "key"], set_={name: adding.excluded[name] for name in names}
            )
            self._connection.execute(adding, [{"population": population, "key": key, **asdict(one)} for key, one in changed.items()])

    def tallies(self) -> dict[str, int]:
        """How many lines and events there were of every kind."""
        rows = self._connection.execute(sa.select(_tallies.c.name, _tallies.c.count).order_by(_tallies.c.name))
        return {str(name): int(count) for name, count in rows}

    def add_tallies(self, tallies: Mapping[str, int]) -> None:
        """Add to the tallies."""
        if tallies:
            adding = self._insert(_tallies)
            adding = adding.on_conflict_do_update(index_elements=["name"], set_={"count": _tallies.c.count + adding.excluded.count})
            self._connection.execute(adding, [{"name": name, "count": count} for name, count in tallies.items()])

    def alarms(self) -> list[Raised]:
        """All alarms, the earliest first."""
        rows = self._connection.execute(sa.select(_alarms).order_by(_alarms.c.first, _alarms.c.id))
        return [Raised(id=row.id, first=row.first, last=row.last, times=row.times, alarm=row.alarm) for row in rows]

    def raise_alarm(self, raised: Raised) -> None:
        """Keep an alarm; one that is there already is raised once more, and holds what it says now."""
        adding = self._insert(_alarms).values(id=raised.id, first=raised.first, last=raised.last, times=raised.times, alarm=raised.alarm)
        again = {"last": raised.last, "times": _alarms.c.times + raised.times, "alarm": raised.alarm}
        self._connection.execute(adding.on_conflict_do_update(index_elements=["id"], set_=again))

    def add_aside(self, lines: Sequence[Aside]) -> None:
        """Set lines aside, up to `MOST_ASIDE` in all."""
        room = MOST_ASIDE - (self._connection.execute(sa.select(sa.func.count()).select_from(_aside)).scalar_one() if lines else 0)
        rows = [
            {"source": line.source, "start": line.start, "end": line.end, "why": line.why, "digest": line.digest, "content": line.content}
            for line in lines[: max(0, room)]
        ]
        if rows:
            self._connection.execute(sa.insert(_aside), rows)

    def aside(self, behind: int = 0) -> list[Aside]:
        """Lines that were set aside, in their order, those before number `behind` left out."""
        rows = self._connection.execute(sa.select(_aside).order_by(_aside.c.id).offset(behind))
        return [Aside(source=row.source, start=row.start, end=row.end, why=row.why, digest=row.digest, content=row.content) for row in rows]

    def add_texts(self, rows: Iterable[tuple[int, int, str, str]]) -> None:
        """Keep texts: id, window, prompt and reply of each."""
        values = [{"id": id, "window": window, "prompt": prompt, "reply": reply} for id, window, prompt, reply in rows]
        if values:
            self._connection.execute(sa.insert(_texts), values)

    def texts(self) -> list[tuple[str, str]]:
        """Prompts and replies that were kept."""
        return [(row.prompt, row.reply) for row in self._connection.execute(sa.select(_texts).order_by(_texts.c.window, _texts.c.id))]

    def forget_before(self, window: int) -> None:
        """Let go of ids, texts and counts of earlier windows."""
        for table in (_seen, _texts, _counts):
            self._connection.execute(sa.delete(table).where(table.c.window < window))


def create_store(target: str, meta: Mapping[str, str]) -> Store:
    """Make a store in a new file, or in an empty database.

    Args:
        target: Path of a file, or a URL of SQLAlchemy's.
        meta: What is written down once; `schema` and `salt` are added.

    Raises:
        BadInput: There is a store already, or the database cannot be reached or written.
        ToolFailed: The disk is full.
    """
    if "://" not in target and Path(target).exists():
        raise BadInput("there is a file already", where=target, hint="go on with `forensics monitor ingest`, or name another file")
    engine = _engine(target)
    shown = _shown(target)
    try:
        if sa.inspect(engine).get_table_names():
            raise BadInput("this database is not empty", where=shown, hint="a monitor needs a database, or a schema, of its own")
        with engine.begin() as connection:
            _tables.create_all(connection)
            rows = {**meta, "schema": SCHEMA, "salt": secrets.token_hex(16)}
            connection.execute(sa.insert(_meta), [{"key": key, "value": value} for key, value in rows.items()])
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise store_error(error, shown) from error
    except BadInput:
        engine.dispose()
        raise
    return Store(engine, shown)


def open_store(target: str) -> Store:
    """Open a store that `forensics monitor start` made.

    Raises:
        BadInput: There is none, or one of another schema.
    """
    if "://" not in target and not Path(target).is_file():
        raise BadInput("there is no such store", where=target, hint="make one: forensics monitor start RUN --store FILE")
    engine = _engine(target)
    shown = _shown(target)
    try:
        with engine.connect() as connection:
            found = connection.execute(sa.select(_meta.c.value).where(_meta.c.key == "schema")).scalar()
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise BadInput("this is no store of a monitor", where=shown, hint="make one: forensics monitor start RUN --store FILE") from error
    if found != SCHEMA:
        engine.dispose()
        raise BadInput(
            f"this store has another schema ({found!r}; this version reads {SCHEMA})", where=shown, hint="start the monitor anew"
        )
    return Store(engine, shown)


def store_error(error: sa.exc.SQLAlchemyError, where: str) -> ForensicsError:
    """What to tell a user whose database refused; its own words may hold values, and are left out."""
    cause = str(getattr(error, "orig", "")).lower()
    if "full" in cause or "no space" in cause:
        return ToolFailed(
            "there is no space left for the store", where=where, hint="free some space; the same command goes on where it stopped"
        )
    if any(
        word in cause
        for word in ("readonly", "read-only", "unable to open", "permission", "does not exist", "refused", "password", "resolve")
    ):
        return BadInput("the store cannot be reached or written", where=where, hint="check the path, or the URL and who may write there")
    return ToolFailed(
        f"the database broke off ({type(error).__name__}, {sha256_text(cause)[:8]})", where=where, hint="run the same command again; it goes on where it stopped"
    )  # fmt: skip


def _engine(target: str) -> sa.Engine:
    try:
        # A file's name is taken as it is, whatever would be a part of a URL in it.
        engine = sa.create_engine(target if "://" in target else sa.URL.create("sqlite", database=target))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise BadInput(
            "this store cannot be opened", where=_shown(target), hint="a file, or a URL such as postgresql+psycopg://user@host/name with its driver installed"
        ) from error  # fmt: skip
    if engine.dialect.name not in ("sqlite", "postgresql"):
        engine.dispose()
        raise BadInput(
            f"stores are kept in SQLite or PostgreSQL, not {engine.dialect.name}", where=_shown(target), hint="give a file's path"
        )
    if engine.dialect.name == "sqlite":
        # The driver begins transactions late and to read; two writers would then fail instead of waiting for each other.
        sa.event.listen(engine, "connect", _wait)
        sa.event.listen(engine, "begin", _begin)
    return engine


def _wait(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {WAIT}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def _shown(target: str) -> str:
    """The target without a password."""
    if "://" not in target:
        return target
    try:
        return sa.make_url(target).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "--store"
