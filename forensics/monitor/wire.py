"""How many messages a post in protobuf holds, counted before any is made: two bytes of it can become hundreds in memory.

Only the lengths are walked through, by the message types that OTLP declares; what is not of them costs nothing, as the parser keeps it as bytes.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

SMALL = 1 << 20
"""Posts up to so many bytes are not walked through: the worst of them takes a third of a gigabyte."""
VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5
"""Wire types: a number of any length, eight bytes, bytes behind their length, four bytes."""


def holds_more(body: bytes, kind: Descriptor, most: int) -> bool:
    """Whether a body of message type `kind` holds more than `most` messages; False for one that is too damaged to be parsed anyway.

    Source: the encoding of protobuf (protobuf.dev, "Encoding").
    """
    if len(body) <= SMALL:
        return False
    inside = {}
    count, stack = 0, [(0, len(body), kind)]
    try:
        while stack:
            place, end, held = stack.pop()
            if held not in inside:
                inside[held] = {field.number: field.message_type for field in held.fields if field.message_type is not None}
            messages = inside[held]
            while place < end:
                tag, place = _number(body, place)
                wire = tag & 7
                if wire == LENGTH:
                    length, place = _number(body, place)
                    if length > end - place:
                        return False
                    child = messages.get(tag >> 3)
                    if child is not None:
                        count += 1
                        if count > most:
                            return True
                        stack.append((place, place + length, child))
                    place += length
                elif wire == VARINT:
                    _, place = _number(body, place)
                elif wire in (EIGHT, FOUR):
                    place += 8 if wire == EIGHT else 4
    except IndexError:
        return False
    return False


def _number(body: bytes, place: int) -> tuple[int, int]:
    """A number of any length, and the place behind it."""
    first = body[place]
    if first < 0x80:
        return first, place + 1
    value, shift = first & 0x7F, 7
    while True:
        place += 1
        byte = body[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return value, place + 1
        shift += 7
