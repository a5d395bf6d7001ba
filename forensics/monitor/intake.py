"""Logs go into a monitor by the batch: a file, a folder, standard input or a file that grows; and what could not be read is listed in a file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from forensics.errors import BadInput
from forensics.monitor import alarms
from forensics.monitor.ingest import Monitor
from forensics.monitor.sources import (
    STANDARD_INPUT,
    Line,
    Place,
    files_of,
    follow,
    known_place,
    lines_of,
    lines_of_file,
    place_after,
    place_in,
)
from forensics.monitor.store import Store
from forensics.runfolder import disk_error

LINES = 2000
"""Lines of a batch; and no more bytes than `BYTES`, so that memory stays flat."""
BYTES = 32 << 20
ASIDE_BEGINS = b'{"source": '


def ingest(monitor: Monitor, path: str) -> Iterator[list[alarms.Alarm]]:
    """Read what is new in a file or a folder of logs, and give the alarms of every batch.

    Raises:
        BadInput: There is no log, it cannot be read, or another process reads it.
    """
    for file in files_of(Path(path)):
        source = _name_of(file)
        with monitor.store.reading() as view:
            kept = view.place(source)
        place = known_place(file, kept)
        if place != kept:
            kept = _begun_again(monitor, source)
        for lines in batches(lines_of_file(file, place.offset)):
            after = place_after(file, lines[-1].end)
            yield monitor.take(source, lines, kept, after)
            kept = after


def ingest_stream(monitor: Monitor, stream: BinaryIO) -> Iterator[list[alarms.Alarm]]:
    """Read standard input to its end. It has no places: events are known again by their ids, and those without one count each time they come."""
    source = f"{STANDARD_INPUT} {secrets.token_hex(8)}"
    for lines in batches(lines_of(stream, torn=True)):
        yield monitor.take(source, lines, None, None)


def ingest_following(monitor: Monitor, path: str, *, pause: float = 1.0) -> Iterator[list[alarms.Alarm]]:
    """Read a file as it grows, for ever; a batch ends where there is nothing new.

    Raises:
        BadInput: There is no such file, or another process reads it.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput("only a file can be followed", where=path, hint="give one file, which a server writes to")
    source = _name_of(file)
    with monitor.store.reading() as view:
        kept = view.place(source)
    if known_place(file, kept) != kept:
        kept = _begun_again(monitor, source)
    held: list[Line] = []
    for line, stream in follow(file, kept, pause=pause):
        if line is not None:
            held.append(line)
            if len(held) < LINES and sum(len(one.content or b"") for one in held) < BYTES:
                continue
        if held:
            after = place_in(stream, held[-1].end)
            yield monitor.take(source, held, kept, after)
            kept, held = after, []
        else:
            yield []


def _name_of(file: Path) -> str:
    """A log as the store knows it; a name that is no text is one there."""
    return str(file.resolve()).encode("utf-8", "backslashreplace").decode("utf-8")


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines by the batch."""
    held: list[Line] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line.content or b"")
        if len(held) >= LINES or size >= BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def write_aside(store: Store, target: Path) -> int:
    """Add the lines that were set aside since to a file, each a JSON object in ASCII, and say how many lines it holds.

    The store is what counts: a file that was cut, or lacks lines after a kill, is filled up.

    Raises:
        BadInput: The file cannot be written, or is not one of ours.
        ToolFailed: The disk is full.
    """
    try:
        there = target.read_bytes() if target.exists() else b""
        if not there.startswith(ASIDE_BEGINS[: len(there)]):
            raise BadInput(
                "this file holds something else", where=str(target), hint="name a new file with --aside, or the one that was written before"
            )
        whole = there[: there.rfind(b"\n") + 1]
        written = whole.count(b"\n")
        with store.reading() as view:
            rows = view.aside(written)
        if rows or whole != there:
            with target.open("ab") as stream:
                stream.truncate(len(whole))
                for row in rows:
                    entry = {"source": row.source, "start": row.start, "end": row.end, "why": row.why, "sha256": row.digest}
                    stream.write((json.dumps(entry | ({"content": row.content} if row.content else {})) + "\n").encode("ascii"))
    except OSError as error:
        raise disk_error(error, target) from error
    return written + len(rows)


def _begun_again(monitor: Monitor, source: str) -> Place:
    """Note that a log is another file by now, and is read from its beginning."""
    with monitor.store.batch() as batch:
        batch.set_place(source, Place())
    return Place()
