"""The tables of a monitor's store. A change of theirs is a table more, never another column, and a new name of the schema."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA = "forensics.monitor/2"
METADATA = sa.MetaData()
META = sa.Table("meta", METADATA, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))
SOURCES = sa.Table(
    "sources", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column("head_bytes", sa.Integer, nullable=False), sa.Column("head", sa.Text, nullable=False),
)  # fmt: skip
SEEN = sa.Table(
    "seen", METADATA, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("window", sa.BigInteger, nullable=False, index=True),
    sa.Column("category", sa.Text, nullable=False),
)  # fmt: skip
COUNTS = sa.Table(
    "counts", METADATA, sa.Column("window", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("signal", sa.Text, primary_key=True),
    sa.Column("category", sa.Text, primary_key=True), sa.Column("events", sa.BigInteger, nullable=False), sa.Column("hits", sa.BigInteger, nullable=False),
)  # fmt: skip
STATES = sa.Table("states", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("state", sa.Text, nullable=False))
TALLIES = sa.Table("tallies", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("count", sa.BigInteger, nullable=False))
ALARMS = sa.Table(
    "alarms", METADATA, sa.Column("id", sa.Text, primary_key=True), sa.Column("first", sa.Float, nullable=False), sa.Column("last", sa.Float, nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False), sa.Column("alarm", sa.Text, nullable=False),
)  # fmt: skip
ASIDE = sa.Table(
    "aside", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("source", sa.Text, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False), sa.Column("end", sa.BigInteger, nullable=False), sa.Column("why", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False), sa.Column("content", sa.Text, nullable=False),
)  # fmt: skip
SUSPECTS = sa.Table(
    "suspects", METADATA, sa.Column("population", sa.Text, primary_key=True), sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("order", sa.BigInteger, nullable=False), sa.Column("events", sa.BigInteger, nullable=False), sa.Column("flips", sa.BigInteger, nullable=False),
    sa.Column("low", sa.Float, nullable=False), sa.Column("high", sa.Float, nullable=False),
)  # fmt: skip
TEXTS = sa.Table(
    "texts", METADATA, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False), sa.Column("window", sa.BigInteger, nullable=False, index=True),
    sa.Column("prompt", sa.Text, nullable=False), sa.Column("reply", sa.Text, nullable=False),
)  # fmt: skip
GONE = sa.Table(
    "gone", METADATA, sa.Column("signal", sa.Text, primary_key=True), sa.Column("category", sa.Text, primary_key=True),
    sa.Column("events", sa.BigInteger, nullable=False), sa.Column("hits", sa.BigInteger, nullable=False),
)  # fmt: skip
SEALS = sa.Table("seals", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("seal", sa.Text, nullable=False))
TABLES = METADATA.tables
"""By name."""
