"""Texts as vectors without a model: hashed words with signs, so that texts that share words lie near each other. And how near a text lies to the gate's prompts."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forensics.errors import BadInput
from forensics.monitor.store import Store
from forensics.monitor.wording import COMMON

Vector = NDArray[np.int8]
Floats = NDArray[np.float32]

WIDE, NARROW = 256, 32
"""Numbers of a vector to compare single texts by, and of one to average; the second is the first, folded."""
SCALE = 100
"""Length of a vector of whole numbers: sums of them are exact, in whatever order they are made."""
MOST_WORDS = 150
MOST_REMEMBERED = 100_000
MOST_PROMPTS = 1000
"""Prompts of the gate that are kept, evenly spaced where there are more."""
META = "gate prompts"
LIKE = 0.4
"""Cosine from which on a text counts as like a prompt; two of eight words in common give less."""
WORD = re.compile(r"\w{3,}")
PASSED_OVER = frozenset().union(*COMMON.values())


class Embedder:
    """Makes vectors, and remembers where words go."""

    def __init__(self) -> None:
        """Begin without any words."""
        self._places: dict[str, tuple[int, int]] = {}

    def vector(self, text: str) -> Vector:
        """`[WIDE]` whole numbers of length `SCALE` or near it; zeros where there is no word.

        Source: feature hashing with signs (Weinberger et al. 2009, ICML), of words but the commonest, each counted once.
        """
        known = self._places
        total = [0] * WIDE
        for word in set(WORD.findall(text[:4000].lower())[:MOST_WORDS]):
            found = known.get(word)
            if found is None:
                found = self._learn(word)
            total[found[0]] += found[1]
        vector = np.array(total, dtype=np.float64)
        length = float(np.sqrt(vector @ vector))
        return np.rint(vector * (SCALE / length)).astype(np.int8) if length else vector.astype(np.int8)

    def _learn(self, word: str) -> tuple[int, int]:
        if len(self._places) >= MOST_REMEMBERED:
            self._places.clear()
        hashed = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        sign = 0 if word in PASSED_OVER else 1 if hashed & WIDE else -1
        found = self._places[word] = (hashed % WIDE, sign)
        return found


def folded(vector: Vector) -> NDArray[np.int64]:
    """`[NARROW]` of a vector."""
    return np.asarray(vector.astype(np.int64).reshape(-1, NARROW).sum(axis=0))


class Gate:
    """The prompts of the gate as vectors, with their categories."""

    def __init__(self, vectors: NDArray[np.int8], categories: Sequence[str]) -> None:
        """Take `[n, WIDE]` vectors and the category of each."""
        self._unit = vectors.astype(np.float32) / SCALE
        self._categories = list(categories)

    def nearest(self, vector: Vector) -> tuple[float, str]:
        """Cosine of the prompt that is most like a text, and its category."""
        cosines = self._unit @ (vector.astype(np.float32) / SCALE)
        place = int(cosines.argmax())
        return float(cosines[place]), self._categories[place]


def pack_prompts(prompts: Sequence[tuple[str, str]]) -> str:
    """Texts and categories of a gate as they are kept beside a baseline: lines of category and vector, no text."""
    step = max(1, -(-len(prompts) // MOST_PROMPTS))
    embedder = Embedder()
    lines = [f"{base64.b64encode(embedder.vector(text).tobytes()).decode('ascii')} {category}" for text, category in prompts[::step]]
    return "\n".join(lines)


def gate_of(store: Store) -> Gate | None:
    """The prompts of the gate that a store was started with; None if it knows none.

    Raises:
        BadInput: They are damaged.
    """
    try:
        kept = store.meta(META)
    except KeyError:  # started before they were kept
        return None
    rows = [line.partition(" ") for line in kept.split("\n") if line]
    try:
        vectors = np.array([np.frombuffer(base64.b64decode(packed, validate=True), dtype=np.int8) for packed, _, _ in rows])
        if rows and vectors.shape != (len(rows), WIDE):
            raise ValueError("vectors of another width")
    except ValueError as error:
        raise BadInput("the gate's prompts in this store are damaged", where=store.where, hint="restore the store from a copy") from error
    return Gate(vectors, [category for _, _, category in rows]) if rows else None
