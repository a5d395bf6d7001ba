"""What is posted to a monitor: each post is counted as a whole before it is answered, so that whoever is not answered may send it again."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import orjson

from forensics.monitor.alarms import Alarm
from forensics.monitor.batch import Aside
from forensics.monitor.events import Malformed
from forensics.monitor.formats import read_line
from forensics.monitor.ingest import KEPT_CHARACTERS, Monitor
from forensics.monitor.intake import batches, write_aside
from forensics.monitor.otlp import Row, Signal, TooLarge, rows_of
from forensics.monitor.sources import Line, lines_of

Form = Literal["protobuf", "json", "lines"]
EVENTS: Final = "events"
OTHER_THINGS = "a thing in a post that is neither span nor log record"
TOO_LARGE = "a post larger than what is read"


@dataclass(frozen=True, kw_only=True)
class Post:
    """A body that was posted, inflated, to a path: `traces` or `logs` of OpenTelemetry, or `events` of any format."""

    path: Signal | Literal["events"]
    form: Form
    body: bytes
    key: str = ""
    """What the sender says that this post is known by (Idempotency-Key)."""

    @property
    def source(self) -> str:
        """The post as a log's name. Rows of one's own without an id are known by the post that they came in; OpenTelemetry's by themselves."""
        name = f"POST /v1/{self.path}"
        return f"{name} {hashlib.sha256(self.key.encode() or self.body).hexdigest()[:32]}" if self.path == EVENTS else name


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of a post: how many lines, spans or records it held, how many of them were none, and alarms that are new."""

    lines: int
    rejected: int
    alarms: tuple[Alarm, ...]


class Desk:
    """Where posts are handed in: one at a time, each counted before the next."""

    def __init__(self, monitor: Monitor, beside: Path | None) -> None:
        """Take a monitor, and the file in which what is set aside is listed, if any."""
        self._monitor = monitor
        self._beside = beside
        self._untold: list[Alarm] = []
        """Alarms of batches that were kept of a post which then broke off: they are told with the next."""

    def take(self, post: Post) -> Taken:
        """Count a post. It is kept when this returns; if it does not, the same post may be handed in again, and what was kept counts once.

        Raises:
            Malformed: It is no post of its kind; it was set aside.
            TooLarge: It holds too much.
            ForensicsError: The store broke off.
        """
        seen = _Seen()
        try:
            for lines in batches(_lines(post, seen)):
                self._untold += self._monitor.take(post.source, lines, None, None)
        except (Malformed, TooLarge) as why:
            self.set_aside(post.source, str(why) if isinstance(why, Malformed) else TOO_LARGE, post.body)
            raise
        if seen.rejected:
            self.set_aside(post.source, OTHER_THINGS, post.body, count=seen.rejected)
        told, self._untold = self._untold, []
        return Taken(lines=seen.lines, rejected=seen.rejected, alarms=tuple(told))

    def set_aside(self, source: str, why: str, content: bytes | None, *, count: int = 1) -> None:
        """Count what could not be taken, and note it once. `content` is None where it was not read to its end.

        Raises:
            ForensicsError: The store broke off.
        """
        kept = (content or b"")[:KEPT_CHARACTERS].decode("ascii", "backslashreplace").replace("\0", "\\x00")
        aside = Aside(
            source=source,
            start=0,
            end=len(content or b""),
            why=why,
            digest=hashlib.sha256(content).hexdigest() if content is not None else "",
            content=kept if self._monitor.settings.keep_text else "",
        )
        with self._monitor.store.batch() as batch:
            batch.add_tallies({"set aside": count, f"set aside: {why}": count})
            batch.add_aside([aside])

    def list_aside(self) -> None:
        """Bring the file in which what was set aside is listed up to date.

        Raises:
            BadInput: It cannot be written.
            ToolFailed: The disk is full.
        """
        if self._beside is not None:
            write_aside(self._monitor.store, self._beside)


@dataclass(kw_only=True)
class _Seen:
    """What a post was found to hold, while it is read."""

    lines: int = 0
    rejected: int = 0
    alike: Counter[bytes] = field(default_factory=Counter)
    """How often the very same row came up."""


def _lines(post: Post, seen: _Seen) -> Iterator[Line]:
    """The lines that a post comes to. Those of OpenTelemetry hold one span or record each, and start at how often the very same stood in the post before."""
    if post.path == EVENTS:
        if post.form == "json":
            _refuse_other_than_json(post.body)
        whole = [Line(start=0, end=len(post.body), content=post.body)]
        for line in whole if post.form == "json" else lines_of(io.BytesIO(post.body), torn=True):
            seen.lines += 1
            yield line
        return
    for row in rows_of(post.body, post.path, protobuf=post.form == "protobuf"):
        seen.lines += 1
        content = _written(row) if row is not None else None
        if content is None:
            seen.rejected += 1
            continue
        same = hashlib.blake2b(content, digest_size=16).digest()
        before = seen.alike[same]
        seen.alike[same] += 1
        yield Line(start=before, end=before + len(content), content=content)


def _written(row: Row) -> bytes | None:
    """A row as a line; None where it is nested too deep to be one."""
    try:
        return orjson.dumps(row)
    except orjson.JSONEncodeError:  # halves of characters, long numbers, or many levels
        try:
            return json.dumps(row).encode("ascii")
        except RecursionError:
            return None


def _refuse_other_than_json(body: bytes) -> None:
    """Refuse a body that is no JSON, however loosely it is read."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        for one in read_line(body):
            if isinstance(one, Malformed):
                raise one from None
