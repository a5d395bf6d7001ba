"""Where events come from: a file, a folder of them, standard input, or a file that grows. Lines with their places, and never more of one than fits.

A place is a byte offset in a file that is known by its beginning, so that reading goes on where it stopped, and a file that was rotated is a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from forensics.errors import BadInput

SUFFIXES = (".jsonl", ".ndjson", ".json", ".log")
MOST_LINE = 8 << 20
"""Bytes of a line that are read; a longer one is passed over and set aside."""
MOST_DOCUMENT = 64 << 20
"""Bytes of a `.json` file that is one document."""
HEAD = 256
"""Bytes at the beginning of a file, and as many behind which it was left, by which it is known again."""
STANDARD_INPUT = "-"


class Line(NamedTuple):
    """A line and its place: `end` is the offset behind it. `content` is None where it is longer than what is read."""

    start: int
    end: int
    content: bytes | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a source was read: the offset, and the digest of its first `head_bytes` bytes and of as many before the offset.

    The digest tells whether it is still the same file. Many logs begin alike, with the words of one system prompt, so their beginning is not enough.
    """

    offset: int = 0
    head_bytes: int = 0
    head: str = ""


def files_of(path: Path) -> list[Path]:
    """The logs that a path names: itself, or the files of a folder that look like one, by name.

    Raises:
        BadInput: There is nothing there, no log in the folder, or a pipe.
    """
    if path.is_dir():
        found = sorted(
            file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        if not found:
            raise BadInput("this folder holds no log", where=str(path), hint=f"logs end in {', '.join(SUFFIXES)}")
        return found
    if not path.exists():
        raise BadInput("there is no such log", where=str(path), hint="give a file, a folder of logs, or - for standard input")
    if not path.is_file():  # it has no places to go on from, and might never end
        raise BadInput(
            "this is a pipe or a device, not a file", where=str(path), hint="read it as standard input: forensics monitor ingest - < PIPE"
        )
    return [path]


def known_place(file: Path, place: Place) -> Place:
    """Where to read on in a file: where it was left if what was read still stands there; its beginning if it is another file by now.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return place if place_in(stream, place.offset) == place else Place()
    except OSError as error:
        raise _unreadable(file, error) from error


def place_in(stream: BinaryIO, offset: int) -> Place:
    """The place at an offset of an open file, which is left where it stood."""
    back, size = stream.tell(), min(HEAD, offset)
    stream.seek(0)
    ends = stream.read(size)
    stream.seek(max(0, offset - size))
    ends += stream.read(size)
    stream.seek(back)
    return Place(offset=offset, head_bytes=size, head=hashlib.sha256(ends).hexdigest()) if size else Place()


@contextmanager
def opened_log(file: Path) -> Iterator[BinaryIO]:
    """A log, open to be read; whatever its name stands for later, this goes on being the file that was there.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        stream = file.open("rb")
    except OSError as error:
        raise _unreadable(file, error) from error
    with stream:
        yield stream


def lines_of_log(stream: BinaryIO, offset: int = 0, *, document: bool = False) -> Iterator[Line]:
    """The lines of an open log from an offset on. A last line without an end is given only if it is whole.

    Args:
        stream: The log.
        offset: Where to begin.
        document: Whether it may be one document, as a `.json` file is.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        if offset == 0 and document and (whole := _document(stream)) is not None:
            yield from whole
            return
        stream.seek(offset)
        yield from lines_of(stream, offset)
    except OSError as error:
        raise _unreadable(Path(stream.name), error) from error


def lines_of(stream: BinaryIO, offset: int = 0, *, open_end: bool = True, torn: bool = False) -> Iterator[Line]:
    """The lines of a stream, empty ones left out.

    Args:
        stream: Read from where it stands.
        offset: Where that is.
        open_end: Whether a last line that has no end is given if it is whole.
        torn: Whether it is given in any case, since nothing comes after it.
    """
    while True:
        content = stream.readline(MOST_LINE + 1)
        if not content:
            return
        start = offset
        offset += len(content)
        if content.endswith(b"\n"):
            if content.strip():
                yield Line(start=start, end=offset, content=content if len(content) <= MOST_LINE + 1 else None)
            continue
        if len(content) <= MOST_LINE:  # the end of what is there
            if torn or (open_end and _is_whole(content)):
                yield Line(start=start, end=offset, content=content)
            return
        ended = False
        while rest := stream.readline(MOST_LINE):
            offset += len(rest)
            if rest.endswith(b"\n"):
                ended = True
                break
        if not ended and not open_end:
            return
        yield Line(start=start, end=offset, content=None)


def follow(file: Path, place: Place, *, pause: float = 1.0) -> Iterator[tuple[Line | None, BinaryIO]]:
    """The lines of a file as it grows, for ever, each with the open file that it stands in; no line whenever there is nothing new.

    Where the file was replaced the old one is read to its end first; where it was cut it is read from its beginning.

    Raises:
        BadInput: It cannot be read.
    """
    new: BinaryIO | None = None
    try:
        offset = known_place(file, place).offset
        stream: BinaryIO = file.open("rb")
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        while True:
            new = _replacement(file, stream)
            if new is not None:
                time.sleep(pause)  # whoever writes may need a moment to turn to the new file
            stream.seek(offset)
            for line in lines_of(stream, offset, open_end=new is not None):
                yield line, stream
                offset = line.end
            left = place_in(stream, offset)
            yield None, stream
            if new is not None:
                stream.close()
                stream, offset = new, 0
                continue
            time.sleep(pause)
            if place_in(stream, offset) != left:
                offset = 0
    except OSError as error:
        raise _unreadable(file, error) from error
    finally:
        stream.close()
        if new is not None:
            new.close()


def _replacement(file: Path, stream: BinaryIO) -> BinaryIO | None:
    """The file that has taken the place of an open one; None while there is none."""
    try:
        new = file.open("rb")
    except FileNotFoundError:  # between two files of a rotation
        return None
    if os.path.sameopenfile(new.fileno(), stream.fileno()):
        new.close()
        return None
    return new


def _is_whole(content: bytes) -> bool:
    """Whether a line without an end is JSON: then nothing but space can come after it."""
    try:
        json.loads(content)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _document(stream: BinaryIO) -> list[Line] | None:
    """A `.json` file that is one document, as one line, and as none while it is being written; None if it is a file of lines after all."""
    first = stream.readline(MOST_LINE).strip()
    if first.startswith(b"{") and first.endswith(b"}"):
        return None
    stream.seek(0)
    content = stream.read(MOST_DOCUMENT + 1)
    if len(content) > MOST_DOCUMENT:
        return [Line(start=0, end=stream.seek(0, 2), content=None)]
    if not _is_whole(content):
        if any(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in content.split(b"\n")[1:]):
            return None  # lines, of which the first is damaged
        if not content.rstrip().endswith((b"}", b"]")):
            return []
    return [Line(start=0, end=len(content), content=content)]


def _unreadable(file: Path, error: OSError) -> BadInput:
    return BadInput(f"this log cannot be read: {error.strerror}", where=str(file), hint="check the path and its permissions")
