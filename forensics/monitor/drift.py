"""Blocks of a sample against those at the beginning: when a block is full, every shape of it is held against the most similar one that was learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.errors import BadInput
from forensics.monitor.embedding import NARROW
from forensics.monitor.events import Event
from forensics.monitor.shapes import BAGS, BLOCK, FIRST_BITS, MEANING_OF, MOST_BITS, PARTS, Block, Integers, Looker, Sampling, Scales, Talks
from forensics.monitor.signals import Scored
from probes.drift import discrepancy, spent
from probes.shapes import (
    Bags,
    Nearest,
    inflation_of_means,
    inflation_of_shares,
    nearest_mean,
    nearest_shares,
    population_stability,
    spread_within,
)
from probes.statistics import holm

NOW, LEARNED = "shapes:now", "shapes:reference"
"""Names of the states that hold the block that fills, and what was learned."""
LEAST_BLOCKS = 12
"""Blocks of a reference at least; it also spans the time in which traffic repeats itself."""
LEAST_EVENTS = 50
"""Events of a shape, in a block, from which on it is compared."""
Number = Annotated[int, Field(ge=0)]
Bits = Annotated[int, Field(ge=0, le=MOST_BITS)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(_Kept):
    """What the test of a shape said. Shares are fractions: of the bin that moved most, in the block and in that which is most like it."""

    shape: str
    events: Number
    p_value: FiniteFloat
    adjusted: FiniteFloat
    bin: str = ""
    share: FiniteFloat = 0.0
    usual: FiniteFloat = 0.0
    index: FiniteFloat
    """Population stability index of the two, or the squared discrepancy of the means of their bags."""
    index_p: FiniteFloat
    """Of that, by permutation."""


class _Block(_Kept):
    began: FiniteFloat | None
    ended: FiniteFloat | None
    events: Number
    counts: dict[str, dict[str, Number]]
    sums: dict[str, tuple[Annotated[tuple[int, ...], Field(min_length=NARROW, max_length=NARROW)], ...]]
    bags: dict[str, Annotated[tuple[Number, ...], Field(min_length=BAGS, max_length=BAGS)]]


class _Now(_Kept):
    bits: Bits = FIRST_BITS
    since: FiniteFloat | None = None
    seen: Number = 0
    latest: FiniteFloat | None = None
    block: _Block = _Block(began=None, ended=None, events=0, counts={}, sums={}, bags={})
    turns: dict[int, Number] = {}
    vectors: tuple[tuple[int, ...], ...] = ()
    numbers: dict[str, tuple[FiniteFloat, ...]] = {}
    looks: Number = 0
    results: tuple[Result, ...] = ()


class _Reference(_Kept):
    blocks: tuple[_Block, ...] = ()
    centres: tuple[tuple[FiniteFloat, ...], ...] | None = None
    edges: dict[str, tuple[FiniteFloat, ...]] = {}


@dataclass(kw_only=True)
class Reference:
    """What a reference comes to once it is complete: the bins of each shape and the blocks that hold enough of it, and how far even these are apart."""

    blocks: list[Block]
    bins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shares: dict[str, Integers] = field(default_factory=dict)
    means: dict[str, list[Bags]] = field(default_factory=dict)
    spreads: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    inflation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for shape in sorted({shape for block in self.blocks for shape in block.counts}):
            held = [block.counts[shape] for block in self.blocks if block.counts.get(shape, Counter()).total() >= LEAST_EVENTS]
            if 2 * len(held) < len(self.blocks):
                continue
            self.bins[shape] = tuple(sorted({bin for counts in held for bin in counts}))
            self.shares[shape] = np.array([[counts[bin] for bin in self.bins[shape]] for counts in held], dtype=np.int64)
            self.inflation[shape] = inflation_of_shares(self.shares[shape])
        for shape in MEANING_OF.values():
            found = [_bags(block, shape) for block in self.blocks]
            enough = [bags for bags in found if bags is not None]
            if 2 * len(enough) < len(self.blocks):
                continue
            self.means[shape], self.spreads[shape] = enough, spread_within(enough)
            self.inflation[shape] = inflation_of_means(enough, self.spreads[shape])

    def test(self, block: Block) -> list[Result]:
        """Every shape of a block that can be compared, with p-values adjusted over them (Holm)."""
        found = [one for shape in self.shares if (one := self._shares(shape, block)) is not None]
        found += [one for shape in self.means if (one := self._mean(shape, block)) is not None]
        adjusted = holm([one.p_value for one in found])
        return [one.model_copy(update={"adjusted": value}) for one, value in zip(found, adjusted, strict=True)]

    def _shares(self, shape: str, block: Block) -> Result | None:
        counts = block.counts.get(shape, Counter())
        if counts.total() < LEAST_EVENTS:
            return None
        new = tuple(sorted(counts.keys() - set(self.bins[shape])))
        bins, reference = self.bins[shape] + new, np.pad(self.shares[shape], ((0, 0), (0, len(new))))
        mine = np.array([counts[bin] for bin in bins], dtype=np.int64)
        nearest = nearest_shares(mine, reference, inflation=self.inflation[shape])
        like = reference[nearest.place]
        shares, usual = mine / mine.sum(), like / like.sum()
        most = int(np.argmax(np.abs(shares - usual)))
        index, index_p = population_stability(mine, like)
        return Result(
            shape=shape, events=int(mine.sum()), p_value=nearest.p_value, adjusted=1.0, bin=bins[most], share=float(shares[most]), usual=float(usual[most]),
            index=index, index_p=index_p,
        )  # fmt: skip

    def _mean(self, shape: str, block: Block) -> Result | None:
        bags = _bags(block, shape)
        if bags is None:
            return None
        nearest: Nearest = nearest_mean(bags, self.means[shape], self.spreads[shape], inflation=self.inflation[shape])
        apart = discrepancy(bags.means, self.means[shape][nearest.place].means, permutations=199)
        return Result(
            shape=shape, events=int(bags.events.sum()), p_value=nearest.p_value, adjusted=1.0, index=apart.squared, index_p=apart.p_value
        )


@dataclass(kw_only=True)
class Drift:
    """The block that fills, and the reference. Mutable: every event touches it."""

    rhythm: float
    sampling: Sampling = field(default_factory=Sampling)
    block: Block = field(default_factory=Block)
    scales: Scales = field(default_factory=Scales)
    talks: Talks = field(default_factory=Talks)
    blocks: list[Block] = field(default_factory=list)
    reference: Reference | None = None
    looks: int = 0
    results: tuple[Result, ...] = ()
    changed: bool = False
    """Whether the reference has grown since it was kept."""

    def take(self, id: int, event: Event, scored: Scored, time: float, looker: Looker) -> list[Result]:
        """Look at an event, if it is in the sample; the results of a block that it fills, once the reference is complete."""
        block = self.block
        if time > block.ended:  # not max(): this runs for every event
            block.ended = time
        if block.began == math.inf:  # a late event makes no block older than the one before it
            block.began = max(time, self.sampling.latest)
        if event.conversation and not event.about:
            self.talks.count(looker.hashed(event.conversation), self.sampling.bits, block)
        if not self.sampling.takes(id, time, self.rhythm):
            return []
        looker.look(event, scored, block, self.scales)
        if block.events < BLOCK or block.ended - block.began < self.rhythm / PARTS:
            return []
        return self._close()

    def _close(self) -> list[Result]:
        block, self.block = self.block, Block()
        if self.scales.centres is None:
            self.scales.learn(block)
        if self.reference is not None:
            self.looks += 1
            self.results = tuple(self.reference.test(block))
            return list(self.results)
        self.blocks.append(block)
        self.changed = True
        if complete(self.blocks, self.rhythm):
            self.reference = Reference(blocks=self.blocks)
        return []

    def level(self, alpha: float) -> float:
        """What the last look may spend of a chance that lasts for ever."""
        return spent(alpha, max(1, self.looks))

    def states(self) -> dict[str, str]:
        """All of it, as a store keeps it; what was learned only where that has changed."""
        sampling, scales = self.sampling, self.scales
        now = _Now(
            bits=sampling.bits, since=sampling.since, seen=sampling.seen, latest=sampling.latest if sampling.seen or sampling.since is not None else None,
            block=_kept(self.block), turns=self.talks.turns, vectors=tuple(map(tuple, scales.vectors)),
            numbers={name: tuple(numbers) for name, numbers in scales.numbers.items()}, looks=self.looks, results=self.results,
        )  # fmt: skip
        states = {NOW: now.model_dump_json()}
        if self.changed:
            centres = None if scales.centres is None else tuple(map(tuple, scales.centres.tolist()))
            edges = {name: tuple(found) for name, found in scales.edges.items()}
            states[LEARNED] = _Reference(blocks=tuple(map(_kept, self.blocks)), centres=centres, edges=edges).model_dump_json()
            self.changed = False
        return states


def complete(blocks: list[Block], rhythm: float) -> bool:
    """Whether so many blocks are a reference: enough of them, over all of the time in which traffic repeats itself."""
    return len(blocks) >= LEAST_BLOCKS and blocks[-1].ended - blocks[0].began >= rhythm


def read_drift(states: Mapping[str, str], rhythm: float, *, where: str) -> Drift:
    """What a store keeps of shapes.

    Raises:
        BadInput: It is damaged.
    """
    try:
        now, learned = _Now.model_validate_json(states.get(NOW, "{}")), _Reference.model_validate_json(states.get(LEARNED, "{}"))
        blocks = [_read(block) for block in learned.blocks]
        return Drift(
            rhythm=rhythm,
            sampling=Sampling(bits=now.bits, since=now.since, seen=now.seen, **({} if now.latest is None else {"latest": now.latest})),
            block=_read(now.block),
            scales=Scales(
                centres=None if learned.centres is None else np.array(learned.centres, dtype=np.float64).reshape(-1, NARROW),
                edges={name: list(edges) for name, edges in learned.edges.items()}, vectors=[list(vector) for vector in now.vectors],
                numbers={name: list(numbers) for name, numbers in now.numbers.items()},
            ),
            talks=Talks(turns=dict(now.turns)), blocks=blocks, reference=Reference(blocks=blocks) if complete(blocks, rhythm) else None, looks=now.looks,
            results=now.results,
        )  # fmt: skip
    except (ValidationError, ValueError, IndexError) as error:
        raise BadInput("the state of a detector in this store is damaged", where=where, hint="restore the store from a copy") from error


def _bags(block: Block, shape: str) -> Bags | None:
    if shape not in block.sums or block.bags[shape].sum() < LEAST_EVENTS or (block.bags[shape] > 0).sum() < 2:
        return None
    return Bags(sums=block.sums[shape].astype(np.float64), events=block.bags[shape])


def _kept(block: Block) -> _Block:
    seen = np.isfinite(block.began)
    return _Block(
        began=block.began if seen else None, ended=block.ended if seen else None, events=block.events, counts={shape: dict(held) for shape, held in block.counts.items()},
        sums={shape: tuple(map(tuple, sums.tolist())) for shape, sums in block.sums.items()}, bags={shape: tuple(bags.tolist()) for shape, bags in block.bags.items()},
    )  # fmt: skip


def _read(kept: _Block) -> Block:
    times = {} if kept.began is None or kept.ended is None else {"began": kept.began, "ended": kept.ended}
    return Block(
        **times, events=kept.events, counts={shape: Counter(held) for shape, held in kept.counts.items()},
        sums={shape: np.array(sums, dtype=np.int64).reshape(BAGS, NARROW) for shape, sums in kept.sums.items()},
        bags={shape: np.array(kept.bags[shape], dtype=np.int64) for shape in kept.sums},
    )  # fmt: skip
