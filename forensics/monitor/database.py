"""The database that a store lies in: SQLite by a file's path, PostgreSQL by URL; how it is opened, what its refusals mean, and how it is named without its password."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from forensics.errors import BadInput, ForensicsError, ToolFailed
from forensics.record import sha256_text

WAIT = 60_000
"""Milliseconds that a writer waits for another; a batch of long lines takes seconds."""
RESTORE = "restore the store from a copy, or start the monitor anew; `forensics monitor check STORE` says what is wrong"
DAMAGED = ("malformed", "corrupt", "no such table", "no such column", "has no column", "decode", "invalid page")
"""What databases say of a file that was changed under them."""
DAMAGED_STATES = ("42P01", "42703", "XX001", "XX002")
"""The same, as PostgreSQL numbers it: no such table, no such column, a page or an index that is corrupt."""
UNREACHED = (
    "readonly", "read-only", "unable to open", "permission", "does not exist", "refused", "password", "resolve", "no schema has been selected",
)  # fmt: skip


def store_error(error: sa.exc.SQLAlchemyError, where: str) -> ForensicsError:
    """What to tell a user whose database refused; its own words may hold values, and are left out."""
    source = getattr(error, "orig", None)
    cause = str(source or "").lower()
    if "full" in cause or "no space" in cause:
        return ToolFailed(
            "there is no space left for the store", where=where, hint="free some space; the same command goes on where it stopped"
        )
    if "not a database" in cause:
        return BadInput(
            "this is no store of a monitor, or it is damaged", where=where, hint="make one: forensics monitor start RUN --store FILE"
        )
    if (
        isinstance(error, sa.exc.IntegrityError)
        or getattr(source, "sqlstate", None) in DAMAGED_STATES
        or any(word in cause for word in DAMAGED)
    ):
        return BadInput("this store is damaged", where=where, hint=RESTORE)
    if any(word in cause for word in UNREACHED):
        return BadInput("the store cannot be reached or written", where=where, hint="check the path, or the URL and who may write there")
    return ToolFailed(
        f"the database broke off ({type(error).__name__}, {sha256_text(cause)[:8]})", where=where, hint="run the same command again; it goes on where it stopped"
    )  # fmt: skip


def typed(rows: Iterable[Any], where: str, *kinds: type) -> Iterator[tuple[Any, ...]]:
    """Rows whose values are of the kinds that were written; a damaged file of SQLite's may hold any.

    Raises:
        BadInput: One is of another kind, or a number that is not finite.
    """
    for row in rows:
        for value, kind in zip(row, kinds, strict=True):
            if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
                raise damaged(where)
        yield tuple(row)


def damaged(where: str) -> BadInput:
    """The error about a store whose rows cannot be what was written."""
    return BadInput("a row of this store is damaged", where=where, hint=RESTORE)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Say in our words what a database refuses. A damaged file's own words may be no text, which the driver trips over."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error, where) from error
    except UnicodeDecodeError as error:
        raise damaged(where) from error


def engine_of(target: str) -> sa.Engine:
    """An engine on a file, or on the database that a URL names.

    Raises:
        BadInput: It is neither, or its driver is missing.
    """
    try:
        # A file's name is taken as it is, whatever would be a part of a URL in it.
        address = sa.make_url(target) if "://" in target else sa.URL.create("sqlite", database=target)
        # A server may have been started anew since the last batch.
        engine = sa.create_engine(address, pool_pre_ping=not address.drivername.startswith("sqlite"))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise BadInput(
            "this store cannot be opened", where=shown(target), hint="a file, or a URL such as postgresql+psycopg://user@host/name with its driver installed"
        ) from error  # fmt: skip
    if engine.dialect.name not in ("sqlite", "postgresql"):
        engine.dispose()
        raise BadInput(
            f"stores are kept in SQLite or PostgreSQL, not {engine.dialect.name}", where=shown(target), hint="give a file's path"
        )
    if engine.dialect.name == "sqlite":
        # The driver begins transactions late and to read; two writers would then fail instead of waiting for each other.
        sa.event.listen(engine, "connect", _wait)
        sa.event.listen(engine, "begin", _begin)
    return engine


def shown(target: str) -> str:
    """The target without what may be a password: of a URL the user, the host and the database, and nothing of its query.

    >>> shown("postgresql://ada:secret@db.example/watch?password=secret"), shown("postgresql://ada:sec@ret@db.example/watch"), shown("a?b=c.db")
    ('postgresql://ada:***@db.example/watch', 'postgresql://ada:***@db.example/watch', 'a?b=c.db')
    """
    scheme, found, rest = target.partition("://")
    if not found:
        return target
    address, asked, query = rest.partition("?")
    user, at, host = address.rpartition("@")
    if (asked and "@" in query) or not re.fullmatch(r"\w+(\+\w+)?", scheme):  # a password may hold a question mark: nothing is sure then
        return "--store"
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{':***' if colon else ''}{at}{host}"


def _wait(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {WAIT}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")
