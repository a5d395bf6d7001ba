"""Logs go into a monitor by the batch: a file, a folder, standard input or a file that grows; and what could not be read is listed in a file."""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from forensics.errors import BadInput
from forensics.monitor import alarms
from forensics.monitor.ingest import Monitor
from forensics.monitor.rotation import old_file, opened, written_since
from forensics.monitor.sources import (
    STANDARD_INPUT,
    Line,
    Place,
    files_of,
    follow,
    known_place,
    lines_of,
    lines_of_log,
    opened_log,
    place_in,
)
from forensics.monitor.store import Store
from forensics.runfolder import disk_error

LINES = 2000
"""Lines of a batch; and no more bytes than `BYTES`, so that memory stays flat."""
BYTES = 32 << 20
ASIDE_BEGINS = b'{"source": '
BEGUN_AGAIN, RESTS = "begun again", "rests read"
"""Tallies of logs that became another file: those whose old file was not found, and old files that were read to their ends."""


def ingest(monitor: Monitor, path: str) -> Iterator[list[alarms.Alarm]]:
    """Read what is new in a file or a folder of logs, and give the alarms of every batch.

    Raises:
        BadInput: There is no log, it cannot be read, or another process reads it.
    """
    given = Path(path)
    files = files_of(given)
    if given.is_dir():  # a folder may hold old files under names that come before that of their log
        with monitor.store.reading() as view:
            places = view.places()
        folder = given.resolve()
        for log in (log for log in map(Path, sorted(places)) if log.parent == folder):
            kept = places[str(log)]
            if known_place(log, kept) != kept if log.is_file() else old_file(log, kept, places) is not None:
                yield from _caught_up(monitor, str(log), log)
    for file in files:
        source = _name_of(file)
        with monitor.store.reading() as view:
            kept = view.place(source)
        if known_place(file, kept) != kept:
            yield from _caught_up(monitor, source, file.resolve())
            kept = Place()
        with opened_log(file) as stream:
            for lines in batches(lines_of_log(stream, kept.offset, document=file.suffix.lower() == ".json")):
                after = place_in(stream, lines[-1].end)  # of the file that was read: it may have another name by now
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
        yield from _caught_up(monitor, source, file.resolve())
        kept = Place()
    held: list[Line] = []
    last: BinaryIO | None = None
    for line, stream in follow(file, kept, pause=pause):
        if line is not None:
            if stream is last and not held and line.start < kept.offset:  # it was cut: a copy may hold what was unread
                yield from _caught_up(monitor, source, file.resolve())
                kept = Place()
            last = stream
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
        with store.reading() as view:
            if not target.exists() and not view.aside():
                return 0
        with target.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # two processes on one store may write it
            stream.seek(0)
            there = stream.read()
            if not there.startswith(ASIDE_BEGINS[: len(there)]):
                raise BadInput(
                    "this file holds something else",
                    where=str(target),
                    hint="name a new file with --aside, or the one that was written before",
                )
            whole = there[: there.rfind(b"\n") + 1]
            written = whole.count(b"\n")
            with store.reading() as view:
                rows = view.aside(written)
            if whole != there:
                stream.truncate(len(whole))
            for row in rows:
                entry = {"source": row.source, "start": row.start, "end": row.end, "why": row.why, "sha256": row.digest}
                stream.write((json.dumps(entry | ({"content": row.content} if row.content else {})) + "\n").encode("ascii"))
    except OSError as error:
        raise disk_error(error, target) from error
    return written + len(rows)


def _caught_up(monitor: Monitor, source: str, log: Path) -> Iterator[list[alarms.Alarm]]:
    """Read what was left unread in the old file of a log that is another by now, and in those written since; then note that it begins again.

    Until that is noted the store goes on pointing into the old file, so that a kill in between loses nothing.
    """
    with monitor.store.reading() as view:
        places = view.places()
    kept = places.get(source, Place())
    old = old_file(log, kept, places)
    if old is None:
        if kept.offset:
            with monitor.store.batch() as batch:
                batch.set_place(source, Place())
                batch.add_tallies({BEGUN_AGAIN: 1})
        return
    end = yield from _rest(monitor, source, old, kept)
    missed = int(end is None)
    for file in written_since(log, old):
        missed += (yield from _rest(monitor, _name_of(file), file, places.get(_name_of(file), Place()))) is None
    end = kept if end is None else end
    with monitor.store.batch() as batch:
        if batch.place(source) != end:
            raise BadInput(
                "another process is reading this log into the store", where=source, hint="let it finish; one reads a log at a time"
            )
        batch.set_place(source, Place())
        batch.set_place(_name_of(old), end)
        batch.add_tallies({RESTS: 1} | ({BEGUN_AGAIN: missed} if missed else {}))


def _rest(monitor: Monitor, source: str, file: Path, kept: Place) -> Generator[list[alarms.Alarm], None, Place | None]:
    """Read a file that nobody writes any more from a place to its end, under the name that it had; gives the place at its end, None if it cannot be read."""
    with opened(file) as stream:
        if stream is None:
            return None
        offset = kept.offset if place_in(stream, kept.offset) == kept else 0
        stream.seek(offset)
        for lines in batches(lines_of(stream, offset)):
            after = place_in(stream, lines[-1].end)
            yield monitor.take(source, lines, kept, after)
            kept = after
    return kept
