"""What became of a log that is another file by now: its old file among its neighbours, known by what was read of it, packed or not, and those written since."""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from forensics.monitor.sources import Place, place_in

PACKED = ".gz"
MOST_NEIGHBOURS = 1000
"""Files beside a log that are looked at, the newest of them."""
MOST_PACKED = 5
"""Of packed ones: each has to be unpacked to be known."""
MOST_UNPACKED = 2 << 30
"""Bytes that a packed log may come to; a larger one is not read."""
PART = 1 << 20
STAMP = r"[.\-_]\d[\d.\-_T:Z]*"
"""What a rotation puts into a name: a number, or a date."""


def old_file(log: Path, place: Place, others: Mapping[str, Place]) -> Path | None:
    """The file beside a log in which what was read of it stands now; None where there is none.

    Args:
        log: Its name. A file may be there, another one, or none.
        place: How far it was read.
        others: Places of all logs that are known, by name: a neighbour that is a log of its own, and still the same, is none.
    """
    if not place.offset:
        return None
    plain = [file for file in _neighbours(log) if file.suffix != PACKED]
    packed = [file for file in _neighbours(log) if file.suffix == PACKED and (is_rotation(file, log) or file.name == log.name + PACKED)]
    for file in (*plain[:MOST_NEIGHBOURS], *packed[:MOST_PACKED]):
        own = others.get(str(file.resolve()), Place())
        with opened(file) as stream:
            if stream is not None and place_in(stream, place.offset) == place and (not own.offset or place_in(stream, own.offset) != own):
                return file
    return None


def written_since(log: Path, old: Path) -> list[Path]:
    """Rotated files of a log that were written after its old one, the oldest first: of a log that was rotated more than once."""
    since = old.stat().st_mtime_ns
    return [file for file in reversed(_neighbours(log)) if is_rotation(file, log) and file != old and file.stat().st_mtime_ns > since]


def is_rotation(file: Path, log: Path) -> bool:
    """Whether a file is named like a log that was rotated: a number or a date behind its name or before its ending, perhaps packed.

    >>> [is_rotation(Path(name), Path("x.log")) for name in ("x.log.1", "x.log-20261122.gz", "x-2026-11-22.log", "x.log.2.gz", "x.log.db", "y.log.1")]
    [True, True, True, True, False, False]
    """
    stem, suffix = re.escape(log.stem), re.escape(log.suffix)
    return re.fullmatch(rf"{stem}({suffix}{STAMP}|{STAMP}{suffix})({re.escape(PACKED)})?", file.name) is not None


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO | None]:
    """A file to read from, a packed one unpacked to a file without a name; None where it cannot be read, or comes to too much."""
    try:
        stream: BinaryIO | None = file.open("rb")
    except OSError:
        stream = None
    if stream is not None and file.suffix == PACKED:
        with stream:
            stream = _unpacked(stream)
    try:
        yield stream
    finally:
        if stream is not None:
            stream.close()


def _unpacked(stream: BinaryIO) -> BinaryIO | None:
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - whoever asked for it closes it
    left = MOST_UNPACKED
    try:
        with gzip.open(stream, "rb") as parts:
            while part := parts.read(PART):
                left -= len(part)
                if left < 0:
                    break
                whole.write(part)
    except (OSError, EOFError, zlib.error):
        left = -1
    if left < 0:
        whole.close()
        return None
    whole.seek(0)
    return whole


def _neighbours(log: Path) -> list[Path]:
    """Files beside a log, the newest first."""
    found = []
    for file in log.parent.iterdir() if log.parent.is_dir() else ():
        try:
            if file.name != log.name and not file.is_symlink() and file.is_file():
                found.append((file.stat().st_mtime_ns, file.name, file))
        except OSError:  # gone meanwhile
            continue
    return [file for *_, file in sorted(found, reverse=True)]
