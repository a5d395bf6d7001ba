"""Which candidates a sweep is about: models and adapters, folders of them, and files that list them; each once, by a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forensics.adapters import CONFIG_NAME
from forensics.checkpoint import PICKLE_SUFFIXES
from forensics.errors import BadInput
from forensics.record import sha256_text

MAX_LIST_BYTES = 10_000_000
"""Largest file of candidates that is read: a hundred thousand paths."""
MODEL_FILES = ("config.json", CONFIG_NAME)


@dataclass(frozen=True, kw_only=True)
class Named:
    """One candidate: the folder (absolute) or hub id, and the name by which a sweep calls it and its run."""

    name: str
    source: str


def candidates_of(sources: Sequence[str]) -> tuple[Named, ...]:
    """Every candidate that `sources` name, in their order; of a folder of candidates its children, sorted.

    Whether a candidate can be read is not asked here: one that cannot be is a row of the sweep, not the end of it.

    Raises:
        BadInput: There is none, one is named twice, does not exist, or a list cannot be read.
    """
    found = [one for source in sources for one in _of(source, "CANDIDATE")]
    if not found:
        raise BadInput(
            "there is no candidate to examine", where="CANDIDATE", hint="give models, adapters, a folder of them, or a file that lists them"
        )
    places = Counter(str(Path(one).resolve()) if Path(one).is_dir() else one for one in found)
    twice = sorted(place for place, count in places.items() if count > 1)
    if twice:
        raise BadInput(
            f"{len(twice)} candidates are named more than once", where="CANDIDATE", details=tuple(twice), hint="name each candidate once"
        )
    return tuple(Named(name=name, source=source) for name, source in zip(_names(found), found, strict=True))


def _of(source: str, where: str) -> Iterator[str]:
    path = Path(source).expanduser()
    if path.is_file():
        yield from _listed(path)
    elif path.is_dir():
        children = [] if _looks_like_one(path) else sorted(child for child in path.iterdir() if child.is_dir() and _looks_like_one(child))
        yield from (os.path.abspath(one) for one in children or [path])  # noqa: PTH100 - `resolve` would follow links, whose names are those that are known
    elif source.startswith((".", "/", "~")) or source.partition("@")[0].count("/") != 1:
        raise BadInput("this candidate does not exist", where=f"{where}: {source}", hint="check the path; a hub id looks like org/model")
    else:
        yield source


def _looks_like_one(folder: Path) -> bool:
    """Whether somebody means this folder as a model or adapter, be it one that cannot be read."""
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError:
        return True
    return any(name in MODEL_FILES or name.endswith((".safetensors", *PICKLE_SUFFIXES)) for name in names)


def _listed(file: Path) -> Iterator[str]:
    """The candidates that a text file lists, one a line; `#` begins a remark, and paths start at the file's own folder."""
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise BadInput(
                f"this list is larger than {MAX_LIST_BYTES} bytes", where=str(file), hint="one path a line, and no more than that"
            )
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"this list of candidates cannot be read: {error}", where=str(file), hint="a text file in UTF-8 with one path or hub id a line"
        ) from error
    if "\0" in text:
        raise BadInput("this file is no text", where=str(file), hint="a text file in UTF-8 with one path or hub id a line")
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            where = f"{file}, line {number}"
            beside = file.parent / Path(entry).expanduser()
            if beside.is_file():
                raise BadInput("a list of candidates names a file", where=where, hint="name folders and hub ids in it")
            yield from _of(str(beside) if beside.exists() or entry.startswith(".") else entry, where)


def _names(sources: Sequence[str]) -> list[str]:
    """A name each, fit for a folder: the last part of the source, with a digest of all of it where that is not its alone."""
    plain = ["".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in Path(source).name) for source in sources]
    plain = [name.strip(".")[:100] or "candidate" for name in plain]
    taken = Counter(name.casefold() for name in plain)  # some file systems know no difference
    return [
        name if taken[name.casefold()] == 1 else f"{name}-{sha256_text(source)[:8]}" for name, source in zip(plain, sources, strict=True)
    ]
