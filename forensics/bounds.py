"""How much of a stranger's file is taken into memory: no more bytes, and no more values of JSON, than any honest file of its kind holds.

A small file can ask for much: three bytes of JSON (`[],`) become seventy in memory, and a pipe never ends. So both are counted before anything is made of them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forensics.errors import BadInput

MOST_BYTES = 256 << 20
"""Of a file that is read whole: lists of prompts, replies and results are smaller."""
PIECE = 1 << 20
MOST_VALUES = 4_000_000
"""Of one JSON document: a tokenizer with a vocabulary of 262 thousand has half of that. The worst ones then take half a gigabyte."""


def read_bytes(path: Path, *, most: int = MOST_BYTES, where: str = "") -> bytes:
    """A file whole; `where` names it in messages, if not its path.

    Raises:
        BadInput: It is larger than `most`, or no file at all but a pipe or a device, which might never end.
        OSError: It cannot be read.
    """
    # Without waiting: a pipe that nobody writes to would keep us for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(
                "this is a folder, a pipe or a device, not a file",
                where=where or str(path),
                hint="give a file; write what a pipe holds to one",
            )
        if about.st_size > most:
            raise _too_large(where or str(path), most)
        raw = stream.read(about.st_size)
        if len(raw) == about.st_size and about.st_size < most:  # it may have grown meanwhile; asking for `most` would take as much memory
            raw += stream.read(min(PIECE, most - about.st_size))
    return raw


def _too_large(where: str, most: int) -> BadInput:
    return BadInput(
        f"this file is larger than {most:,} bytes", where=where, hint="no honest file of this kind is; get it again, or split it"
    )


def parsed(text: str | bytes, *, most: int = MOST_VALUES, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: The text; bytes have to be UTF-8.
        most: How many values it may hold, at most; commas and brackets inside of texts count as well.
        pairs: Makes an object of its keys and values, where a dictionary will not do.

    Raises:
        ValueError: It is not JSON, or holds more values.
        RecursionError: It is nested too deep.
    """
    if crowded(text, most):
        raise ValueError(f"more than {most} values")
    return json.loads(text, object_pairs_hook=pairs)


def crowded(text: str | bytes, most: int = MOST_VALUES) -> bool:
    """Whether a JSON text may hold more than `most` values; a longer one than that is counted, which takes a thousandth of parsing it."""
    if len(text) <= most:
        return False
    if isinstance(text, bytes):
        return text.count(b",") + text.count(b"[") + text.count(b"{") > most
    return text.count(",") + text.count("[") + text.count("{") > most
