"""What a sample of events looks like, block by block: shares of languages, lengths, topics, manners, and mean vectors of texts; and how far a block may be from those at the beginning.

Only counts by bin and sums of vectors are kept, so blocks can be added up, and no text is. Which events are looked at is decided by their hashed
ids and the time they bear, so that a log that is read again gives the same sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forensics.monitor.embedding import LIKE, NARROW, Embedder, Gate, folded
from forensics.monitor.events import MOST_DIRECTIONS, Event
from forensics.monitor.signals import ANSWERED, REFUSAL, Scored
from forensics.monitor.wording import CONCERN, FLATTERY, HEDGES, language, markers

Integers = NDArray[np.int64]

PROMPTS, REPLIES, OPINIONS = "requests", "replies", "opinions"
"""What a shape is of."""
MEANING_OF = {PROMPTS: "what requests say", REPLIES: "what replies say"}
"""The two shapes that are mean vectors."""
KINDS: Mapping[str, str] = {
    "language of requests": PROMPTS, "length of requests": PROMPTS, "topics": PROMPTS, "categories": PROMPTS, "likeness to the gate": PROMPTS, "turns": PROMPTS,
    "what requests say": PROMPTS, "language of replies": REPLIES, "length of replies": REPLIES, "hedging": REPLIES, "sycophancy": REPLIES, "tool calls": REPLIES,
    "ends of replies": REPLIES, "time to refuse": REPLIES, "time to answer": REPLIES, "what replies say": REPLIES, "opinions": OPINIONS, "ratings": OPINIONS,
    "comments": OPINIONS,
}  # fmt: skip
DIRECTION = "along "
"""How the names of shapes of activations along a direction begin; they are of replies."""
BLOCK = 500
"""Events of a sample that a block takes at least."""
PARTS, PER_PART = 24, 128
"""A block takes at least one part of so many of the time in which traffic repeats itself; in each about so many events are looked at."""
FIRST_BITS, MOST_BITS, RECKONED = 4, 12, 4096
"""One of 2 to the power of so many events is looked at: to begin with, at the fewest; and after how many the share is set anew at the latest."""
BAGS, RUN = 10, 10
"""Bags of a block, and how many events that follow each other go into one: what comes in bursts stays together."""
TOPICS, ROUNDS = 8, 12
MOST_BINS, MOST_TALKS = 24, 512
OTHER = "(other)"
ENDS = {"stop": "stop", "end_turn": "stop", "eos": "stop", "stop_sequence": "stop", "length": "length", "max_tokens": "length", "tool_calls": "tool", "tool_use": "tool",
        "function_call": "tool", "content_filter": "filter", "safety": "filter"}  # fmt: skip


@dataclass(kw_only=True)
class Block:
    """Counts of a block by shape and bin, and sums of vectors by bag. `began` is when it was opened, `ended` the latest time of its events."""

    began: float = math.inf
    ended: float = -math.inf
    events: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    sums: dict[str, Integers] = field(default_factory=dict)
    """`[BAGS, NARROW]` by name."""
    bags: dict[str, Integers] = field(default_factory=dict)
    """`[BAGS]` events by name."""

    def add(self, shape: str, bin: str) -> None:
        """Count an event; beyond `MOST_BINS` bins the rest share one."""
        held = self.counts.setdefault(shape, Counter())
        held[bin if bin in held or len(held) < MOST_BINS else OTHER] += 1

    def sum_up(self, shape: str, vector: Integers) -> None:
        """Add a vector to the bag whose turn it is."""
        if shape not in self.sums:
            self.sums[shape], self.bags[shape] = np.zeros((BAGS, NARROW), dtype=np.int64), np.zeros(BAGS, dtype=np.int64)
        place = int(self.bags[shape].sum()) // RUN % BAGS
        self.sums[shape][place] += vector
        self.bags[shape][place] += 1


@dataclass(kw_only=True)
class Sampling:
    """One of `2**bits` events is looked at; `since` and `seen` are when that was set, and the events since then."""

    bits: int = FIRST_BITS
    since: float | None = None
    seen: int = 0
    latest: float = -math.inf

    def takes(self, id: int, time: float, rhythm: float) -> bool:
        """Whether an event is looked at; the share follows the traffic of the last part of `rhythm` seconds."""
        if self.since is None:
            self.since = time
        self.seen += 1
        if time > self.latest:
            self.latest = time
        passed = self.latest - self.since
        if self.seen >= RECKONED or passed >= rhythm / PARTS:
            expected = self.seen * (rhythm / PARTS) / max(passed, 1.0)
            self.bits = min(MOST_BITS, max(0, math.ceil(math.log2(max(1.0, expected / PER_PART)))))
            self.since, self.seen = self.latest, 0
        return not id & ((1 << self.bits) - 1)


@dataclass(kw_only=True)
class Scales:
    """What had to be learned from the first block before some shapes have bins: centres of topics, and edges along directions."""

    centres: NDArray[np.float64] | None = None
    """`[topics, NARROW]`."""
    edges: dict[str, list[float]] = field(default_factory=dict)
    vectors: list[list[int]] = field(default_factory=list)
    """Of requests of the first block; forgotten behind it."""
    numbers: dict[str, list[float]] = field(default_factory=dict)

    def learn(self, block: Block) -> None:
        """Set the bins at the end of the first block, and count what it holds by them."""
        vectors = np.array(self.vectors, dtype=np.float64).reshape(-1, NARROW)
        self.centres = _centres(vectors) if len(vectors) else np.zeros((0, NARROW))
        for vector in vectors:
            block.add("topics", self.topic(vector))
        for name, numbers in self.numbers.items():
            self.edges[name] = sorted({float(edge) for edge in np.quantile(numbers, np.arange(1, 10) / 10)})
            for number in numbers:
                block.add(DIRECTION + name, self.step(name, number))
        self.vectors, self.numbers = [], {}

    def topic(self, vector: NDArray[np.float64]) -> str:
        """The topic whose centre points most nearly the same way."""
        if self.centres is None or not len(self.centres) or not vector.any():
            return OTHER
        return f"topic {int(np.argmax(self.centres @ vector)) + 1}"

    def step(self, name: str, number: float) -> str:
        """Between which tenths of the first block a number lies."""
        return f"{int(np.searchsorted(self.edges[name], number)) + 1} of {len(self.edges[name]) + 1}"


class Looker:
    """Looks at events, and counts what they look like."""

    def __init__(self, gate: Gate | None, hashed: Callable[[str], int]) -> None:
        """Take the prompts of the gate, if they are known, and how a store hashes names under its secret."""
        self.hashed = hashed
        self._gate = gate
        self._embedder = Embedder()

    def look(self, event: Event, scored: Scored, block: Block, scales: Scales) -> None:
        """Count an event into a block."""
        block.events += 1
        if event.about:
            block.add("opinions", event.opinion or "neither")
        else:
            block.add("opinions", f"reply, {event.opinion}" if event.opinion else "reply")
        if event.rating is not None:
            block.add("ratings", f"{event.rating:.0f}")
        if event.comment:
            block.add("comments", "a word of harm" if markers(event.comment, CONCERN) else "none")
        if event.about:
            return
        if event.prompt:
            self._look_at_prompt(event.prompt, block, scales)
        if event.prompt or event.reply is not None:
            block.add("categories", _storable(scored.category) or "(none)")
        if event.reply is not None and not event.failed:
            self._look_at_reply(event.reply, event, scored, block)
        for told, number in event.activations.items():
            name = _storable(told)
            if scales.centres is None and (name in scales.numbers or len(scales.numbers) < MOST_DIRECTIONS):
                scales.numbers.setdefault(name, []).append(number)
            elif name in scales.edges:
                block.add(DIRECTION + name, scales.step(name, number))

    def _look_at_prompt(self, prompt: str, block: Block, scales: Scales) -> None:
        block.add("language of requests", language(prompt))
        block.add("length of requests", _octave(len(prompt)))
        vector = self._embedder.vector(prompt)
        narrow = folded(vector)
        block.sum_up(MEANING_OF[PROMPTS], narrow)
        if scales.centres is None:
            scales.vectors.append(narrow.tolist())
        else:
            block.add("topics", scales.topic(narrow.astype(np.float64)))
        if self._gate is not None:
            cosine, _ = self._gate.nearest(vector)
            block.add("likeness to the gate", f"{math.floor(max(0.0, cosine) * 5) / 5:.1f} and over")

    def _look_at_reply(self, reply: str, event: Event, scored: Scored, block: Block) -> None:
        block.add("tool calls", str(min(event.tool_calls, 3)))
        block.add("ends of replies", ENDS.get(event.finish.lower(), OTHER if event.finish else "(not told)"))
        if not reply:
            return
        block.add("language of replies", language(reply))
        block.add("length of replies", _octave(len(reply)))
        block.add("hedging", str(min(markers(reply, HEDGES), 3)))
        block.add("sycophancy", str(min(markers(reply, FLATTERY), 2)))
        block.sum_up(MEANING_OF[REPLIES], folded(self._embedder.vector(reply)))
        if event.latency is not None and (scored.marks.get(REFUSAL) or scored.marks.get(ANSWERED)):
            block.add("time to refuse" if scored.marks[REFUSAL] else "time to answer", _milliseconds(event.latency))


@dataclass(kw_only=True)
class Talks:
    """How many replies there were in some conversations, chosen by their names; the one begun first is forgotten first."""

    turns: dict[int, int] = field(default_factory=dict)

    def count(self, key: int, bits: int, block: Block) -> None:
        """Count a reply of a conversation, known by the hash of its name, if it is one of the chosen: one of `2**bits`."""
        if key & ((1 << bits) - 1):
            return
        turn = self.turns[key] = self.turns.get(key, 0) + 1
        if len(self.turns) > MOST_TALKS:
            del self.turns[next(iter(self.turns))]
        block.add("turns", _octave(turn))


def like_the_gate(counts: Mapping[str, int]) -> int:
    """How many of the requests counted are like a prompt of the gate."""
    return sum(count for bin, count in counts.items() if float(bin.partition(" ")[0]) >= LIKE)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _octave(length: int) -> str:
    """Bin of a length or a number: 0, 1, 2-3, 4-7, ..."""
    if length < 2:
        return str(length)
    low = 1 << (length.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


def _milliseconds(seconds: float) -> str:
    return f"{_octave(round(seconds * 1000))} ms"


def _centres(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[k, d]` unit centres of spherical k-means, begun from the vectors that are least like those chosen before (a fixed choice)."""
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors[lengths > 0] / lengths[lengths > 0, None]
    if not len(unit):
        return np.zeros((0, vectors.shape[1]))
    chosen = [int(np.argmax(unit @ unit.mean(axis=0)))]
    while len(chosen) < min(TOPICS, len(unit)):
        chosen.append(int(np.argmin((unit @ unit[chosen].T).max(axis=1))))
    centres = unit[chosen]
    for _ in range(ROUNDS):
        nearest = np.argmax(unit @ centres.T, axis=1)
        sums = np.stack(
            [unit[nearest == place].sum(axis=0) if (nearest == place).any() else centres[place] for place in range(len(centres))]
        )
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return np.asarray(centres)
