"""What a monitor knows, in a database: counts by window, signal and category, states of detectors, ids that were seen, alarms, and how far logs were read.

All of a batch is written in one transaction, the place in the log among it, so a monitor that is killed counts nothing twice and loses nothing.
Ids are kept as keyed hashes, and no text of users is, unless asked for. Seals move on with the rows, so that a change by hand is noticed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from forensics.errors import BadInput, ForensicsError
from forensics.monitor.batch import Batch
from forensics.monitor.database import RESTORE, engine_of, shown, told, typed
from forensics.monitor.seals import Seals, moved
from forensics.monitor.tables import META, METADATA, SCHEMA, SEALS, TABLES

ONE_STARTS = 0x666F72656E736963
"""The lock of PostgreSQL that `create_store` takes."""


class Store:
    """An open store. Use it as a context manager; write through `batch` only."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        """Take an engine whose database holds a store; see `open_store` and `create_store`."""
        self._engine = engine
        self.where = where
        with told(self.where), engine.execution_options(reading=True).connect() as connection:
            rows = list(typed(connection.execute(sa.select(META.c.key, META.c.value)), where, str, str))
            kept = dict(typed(connection.execute(sa.select(SEALS.c.name, SEALS.c.seal)), where, str, str))
        self._meta: dict[str, str] = dict(rows)
        if not re.fullmatch("[0-9a-f]{32}", self._meta.get("salt", "")):
            raise BadInput("the secret of this store is missing", where=where, hint="restore the store from a copy")
        salt = self._meta["salt"].encode("ascii")
        self._hash = hashlib.blake2b(digest_size=8, key=salt)
        self.seals = Seals(salt)
        if kept.get("meta") != moved(None, self.seals.of_rows("meta", rows)):
            raise BadInput("what this store was started with is damaged", where=where, hint=RESTORE)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def meta(self, key: str) -> str:
        """What was written down when the monitor was started."""
        return self._meta[key]

    def hashed(self, id: str) -> int:
        """An id as it is kept: 64 bits of a hash keyed with a secret of this store."""
        keyed = self._hash.copy()  # with the key already in it, which takes as long as the rest
        keyed.update(id.encode("utf-8", "surrogatepass"))
        return int.from_bytes(keyed.digest(), "big", signed=True)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """A transaction: everything that is written in it is kept together, or nothing of it. Waits for another writer.

        Raises:
            ToolFailed: The disk is full, or the database broke off.
            BadInput: It cannot be written.
        """
        with told(self.where), self._engine.begin() as connection:
            if self._engine.dialect.name != "sqlite":  # SQLite has one writer by itself
                connection.execute(sa.select(META.c.value).where(META.c.key == "schema").with_for_update())
            batch = Batch(connection, self.where, self.seals)
            yield batch
            batch.seal()

    @contextmanager
    def reading(self) -> Iterator[Batch]:
        """A view of what is there at one moment; nothing may be written through it."""
        moment = {} if self._engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with told(self.where), self._engine.execution_options(reading=True, **moment).connect() as connection:
            yield Batch(connection, self.where, self.seals)


def create_store(target: str, meta: Mapping[str, str], *, salt: str | None = None) -> Store:
    """Make a store in a new file, or in an empty database. What a kill left of another that was being made is no store, and no hindrance.

    Args:
        target: Path of a file, or a URL of SQLAlchemy's.
        meta: What is written down once; `schema` and `salt` are added.
        salt: The secret that ids are hashed with, where it is to be that of another store; a new one otherwise.

    Raises:
        BadInput: There is a store already, or something else, or the database cannot be reached or written.
        ToolFailed: The disk is full.
    """
    engine, where = engine_of(target), shown(target)
    taken = BadInput("there is a file already", where=where, hint="go on with `forensics monitor ingest`, or name another file")
    if "://" in target:
        taken = BadInput("this database is not empty", where=where, hint="a monitor needs a database, or a schema, of its own")
    try:
        with told(where), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_STARTS)))  # two that start at once take turns
            if sa.inspect(connection).get_table_names():
                raise taken
            METADATA.create_all(connection)
            rows = {**meta, "schema": SCHEMA, "salt": salt or secrets.token_hex(16)}
            connection.execute(sa.insert(META), [{"key": key, "value": value} for key, value in rows.items()])
            seal = moved(None, Seals(rows["salt"].encode("ascii")).of_rows("meta", rows.items()))
            connection.execute(sa.insert(SEALS), {"name": "meta", "seal": seal})
        return Store(engine, where)
    except ForensicsError as error:
        engine.dispose()
        raise (taken if "damaged" in error.what else error) from error.__cause__


def open_store(target: str) -> Store:
    """Open a store that `forensics monitor start` made.

    Raises:
        BadInput: There is none, or one of another schema, or it is damaged.
    """
    none = "make one: forensics monitor start RUN --store FILE"
    if "://" not in target and not Path(target).is_file():
        raise BadInput("there is no such store", where=target, hint=none)
    engine, where = engine_of(target), shown(target)
    try:
        with told(where), engine.execution_options(reading=True).connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            found = connection.execute(sa.select(META.c.value).where(META.c.key == "schema")).scalar() if "meta" in there else None
        if found is None and not there & (set(TABLES) - {"meta"}):
            raise BadInput("this is no store of a monitor", where=where, hint=none)
        if isinstance(found, str) and found != SCHEMA:
            raise BadInput(
                f"this store has another schema ({found[:60]!r}; this version reads {SCHEMA})", where=where, hint="start the monitor anew"
            )
        if found is None or not set(TABLES) <= there:
            missing = tuple(f"there is no table {name}" for name in sorted(set(TABLES) - there))
            raise BadInput("this store is damaged", where=where, details=missing, hint=RESTORE)
        return Store(engine, where)
    except ForensicsError:
        engine.dispose()
        raise
