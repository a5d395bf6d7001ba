"""Seals of a store: sums and digests, kept beside the rows and moved on with each batch, by which rows that were changed by hand are noticed.

Keyed with the secret of the store, which stands in the store: they show accidents, and hands that do not know them, and prove nothing of anybody who does.
A whole store that was put back from an older copy agrees with its seals as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import repeat

SIZE = 64
"""Bits of a sum."""
MASK = (1 << SIZE) - 1


class Seals:
    """Makes the seals of a store. Sums are linear in what is counted, so that a batch adds its part without reading what was there."""

    def __init__(self, salt: bytes) -> None:
        """Take the secret of the store."""
        self._salt = salt

    def digest(self, *parts: object) -> int:
        """64 bits of a keyed hash of some values, told apart from each other and from values of other kinds."""
        written = "\0".join(f"{type(part).__name__}:{len(str(part))}:{part}" for part in parts)
        return int.from_bytes(hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=8, key=self._salt).digest(), "big")

    def weight(self, *parts: object) -> int:
        """The weight that a number has in a sum: odd, so that no change of the number goes without one of the sum."""
        return self.digest("weight", *parts) | 1

    def of_numbers(self, table: str, rows: Mapping[tuple[object, ...], tuple[int, ...]]) -> int:
        """The part that numbers of some rows have in the sum of a table."""
        return sum(
            number * self.weight(table, *key, place) for key, numbers in rows.items() for place, number in enumerate(numbers) if number
        ) & MASK  # fmt: skip

    def of_seen(self, rows: Iterable[tuple[int, int, str]]) -> int:
        """The part that ids have, each with its window and category. Ids are hashes already: they are multiplied by what window and category come to."""
        by_place: dict[tuple[int, str], int] = {}
        for id, window, category in rows:
            place = window, category
            by_place[place] = by_place.get(place, 0) + id
        counted = sum(total * self.weight("seen", *place) for place, total in by_place.items())
        return counted & MASK

    def of_rows(self, table: str, rows: Iterable[tuple[object, ...]]) -> int:
        """The part that whole rows have."""
        return sum(self.digest(name, *row) for name, row in zip(repeat(table), rows, strict=False)) & MASK


def moved(sealed: str | None, part: int) -> str:
    """A sum, as it is kept, with a part added to it."""
    return f"{(int(sealed, 16) if sealed else 0) + part & MASK:016x}"
