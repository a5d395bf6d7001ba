"""How `fuzz.py` changes what it feeds: places of JSON are given what they cannot hold, so that more than a parser is reached; bytes otherwise."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from fuzz_targets import Kind

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**40, 10**400, 0.0, -0.5, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", "0", "a", "../../x", "/etc/hostname", "\x00", "\n", "\ud800", "\u202e", "{{ x }}", "<script>", "=1+1", "x" * 5000,
    [], {}, [[]], [None], [{}], {"": None}, {"x": {}},
)  # fmt: skip
Bytes = Callable[[bytes, int], bytes]
"""The fuzzer's own way of changing bytes: those that are there, and how many there may be."""
PLACES = 40
"""Places of a document that are looked at; more would take longer than what is fed."""


def mutated(data: bytes, most: int, seed: int, kind: Kind, plainly: Bytes) -> bytes:
    """`data` changed in one place or a few; by its bytes alone one time in three, and wherever it cannot be understood."""
    chance = random.Random(seed)
    if kind in ("bytes", "text") or chance.random() < 0.34:
        return plainly(data, most)
    try:
        return (
            _in_a_line(data, chance) if kind == "lines" else _in_a_header(data, chance) if kind == "header" else _in_json(data, chance)
        )[:most]
    except (ValueError, RecursionError, IndexError):
        return plainly(data, most)


def _in_json(data: bytes, chance: random.Random) -> bytes:
    whole = json.loads(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        whole = _changed(whole, chance)
    return json.dumps(whole).encode("ascii")


def _in_a_header(data: bytes, chance: random.Random) -> bytes:
    header, newline, rest = data.partition(b"\n")
    return _in_json(header, chance) + newline + rest


def _in_a_line(data: bytes, chance: random.Random) -> bytes:
    """One line; a byte that stands before all of them is left alone."""
    start = data.find(b"{") if 0 <= data.find(b"{") <= 1 else 0
    lines = data[start:].split(b"\n")
    place = chance.randrange(len(lines))
    lines[place] = _in_json(lines[place], chance)
    if chance.random() < 0.1:
        lines.insert(place, lines[place])
    return data[:start] + b"\n".join(lines)


def _changed(whole: Any, chance: random.Random) -> Any:
    places = list(_places(whole))
    if not places:
        return copy.deepcopy(chance.choice(HOSTILE))
    held, key = chance.choice(places)
    how = chance.randrange(8)
    if how == 0:
        del held[key]
    elif how == 1:  # another value of the same document, itself changed
        other, name = chance.choice(places)
        held[key] = copy.deepcopy(other[name])
    elif how == 2:
        held[key] = [held[key]]
    elif how == 3 and isinstance(held, dict):
        held[str(chance.choice(HOSTILE))] = held.pop(key)
    elif how == 4 and isinstance(held[key], int | float):
        held[key] = held[key] + chance.choice((1, -1, 7, 1 << 20)) if chance.random() < 0.5 else held[key] * chance.choice((2, -1, 1 << 16))
    elif how == 5 and isinstance(held, list):
        held.insert(key, copy.deepcopy(held[key]))
    else:
        held[key] = copy.deepcopy(chance.choice(HOSTILE))
    return whole


def _places(whole: Any) -> Iterator[tuple[Any, Any]]:
    """Tables and lists of a document with a key or place in each, thinned where there are many."""
    found: list[tuple[Any, Any]] = []
    stack = [whole]
    while stack and len(found) < 4000:
        held = stack.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
        found += [(held, key) for key in keys]
        stack += [held[key] for key in keys]
    step = max(1, len(found) // PLACES)
    yield from found[:: step if step > 1 and len(found) % step else 1]
