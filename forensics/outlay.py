"""What auditing a model of some size takes: hours, machines and money, from the rates of a machine, and what bounds each stage.

A stage is bound by whatever takes longest of reading files, the processor's work on them, arithmetic, and carrying weights from a
device's memory; what overlaps is not added up. Formulae (P weights of b bytes as stored, A of them active at each token, c bytes in
memory; N prompts of T tokens, replies of at most R, B side by side; every rate a second):

    open      2Pb / read, or 2Pb / (hash * processes)
    diff      2Pb / read, or P / (differ * processes)
    loads     (LOADS + SEARCH_LOADS) * Pb / read
    reading   READS * NT * 2A / arithmetic, or READS * N / B passes of cP / traffic
    replies   (WRITES + 2 repeats) * R * N / B steps, each of 2AB / arithmetic or cP / traffic
    search    SEARCHED * budget * 2A / arithmetic

Weights that no device has room for are read again at every pass, by the rate of the disk. The devices of a model that accelerate spreads
work one after the other, so that more of them give room and no speed. Left out are attention, tokenizing, judging and Python, which are what small
models spend their time on; and what a confirmed trigger is asked besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from forensics.case import Tier
from forensics.errors import BadInput
from forensics.placement import ROOM
from forensics.quarry import BUDGET_FLOPS, LEAST_TOKENS, MOST_TOKENS, TIERS

BYTES = {"float32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "4bit": 0.5625}
"""Of a weight as stored; in 4 bits with the scale of each block of 64 (float32), as bitsandbytes keeps it."""
CPU_BYTES = 4.0
"""Of a weight that is computed with on a processor: there everything runs in float32."""
LOADS, SEARCH_LOADS, READS, WRITES = 12.0, 5.0, 26.2, 2.27
"""Models that an audit loads, and once more for the searches; how often it reads all prompts, and how many times all replies it writes: counted by
examples/benchmarks/audit_work.py on a candidate that all checks look at (its table is in the README)."""
SEARCHED = 4.0
"""Budgets of the search for triggers at most: two directions, each searched in the candidate and in its null."""
RATES = ("read", "hash", "differ", "arithmetic", "traffic")
"""Fields of `Machine` that are rates."""
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Something a second: as measured or given, and the least and most that it may be."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.value <= self.high < math.inf:
            raise ValueError(f"a rate lies between its bounds, which are above 0, got {self.low}, {self.value}, {self.high}")


def given(value: float) -> Rate:
    """A rate that is taken as it is."""
    return Rate(value=value, low=value, high=value)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The rates of one machine, and what it has.

    `read` are bytes of files, `hash` those that one core hashes, `differ` weights of either side that one core of the weight diff gets through, `arithmetic`
    multiplications and additions of a device while it reads text, `traffic` bytes of its memory. `room` is its memory in bytes.
    `processor`: the device is one, which computes in float32.
    """

    read: Rate
    hash: Rate
    differ: Rate
    arithmetic: Rate
    traffic: Rate
    room: float
    devices: int = 1
    processes: int = 1
    processor: bool = False

    def at(self, edge: Literal["low", "high"]) -> Machine:
        """The same machine with every rate at its `low` or `high`."""
        bounds: dict[str, Any] = {name: given(getattr(getattr(self, name), edge)) for name in RATES}
        return replace(self, **bounds)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model: its weights, those that act at each token, and the format they are stored in."""

    parameters: float
    active: float
    dtype: str = "bf16"

    @property
    def stored(self) -> float:
        """Bytes of one side on the disk."""
        return self.parameters * BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked: prompts and their tokens, replies, how many are side by side, how much the search may spend."""

    prompts: int = 500
    tokens: float = 60.0
    reply: int = 32
    batch: int = 64
    repeats: int = 0
    tier: Tier = "standard"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of an audit: seconds, what they are bound by, and the seconds each resource alone would take."""

    name: str
    seconds: float
    bound: str
    by: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outlay:
    """What one candidate takes on one machine, its parts, and what cannot be done there."""

    stages: tuple[Stage, ...]
    low: float
    high: float
    """Seconds in all at the machine's best and worst rates."""
    left_out: tuple[str, ...]
    diff_needs: float
    """Bytes a second from the disk below which the weight diff waits for it."""
    whole_needs: float
    """The same for the audit: below it the disk takes longer than all computing together."""

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Several candidates on several machines: hours until the last is done, machine hours, dollars (None without a price)."""

    candidates: int
    machines: int
    hours: float
    machine_hours: float
    dollars: float | None
    low_dollars: float | None
    high_dollars: float | None


def outlay(machine: Machine, size: Size, load: Load) -> Outlay:
    """What auditing one candidate takes on one machine.

    Raises:
        BadInput: The model is no model, or its format is not known.
    """
    _refuse_odd(size)
    stages = tuple(_stages(machine, size, load))
    best, worst = (sum(stage.seconds for stage in _stages(edge, size, load)) for edge in (machine.at("high"), machine.at("low")))
    read = sum(stage.by.get("disk", 0.0) for stage in stages) * machine.read.value
    computed = sum(max((taken for what, taken in stage.by.items() if what != "disk"), default=0.0) for stage in stages)
    return Outlay(
        stages=stages,
        low=best,
        high=worst,
        left_out=tuple(_left_out(machine, size)),
        diff_needs=2.0 * BYTES[size.dtype] * machine.differ.value * machine.processes,
        whole_needs=read / computed,
    )


def fleet(one: Outlay, *, candidates: int, machines: int, hourly: float | None) -> Fleet:
    """`candidates` audits like `one`, each whole on one of `machines` that cost `hourly` dollars an hour."""
    rounds = -(-candidates // machines)
    hours = [candidates * seconds / HOUR for seconds in (one.seconds, one.low, one.high)]
    dollars = [None if hourly is None else hourly * spent for spent in hours]
    return Fleet(
        candidates=candidates,
        machines=machines,
        hours=rounds * one.seconds / HOUR,
        machine_hours=hours[0],
        dollars=dollars[0],
        low_dollars=dollars[1],
        high_dollars=dollars[2],
    )


def machines_for(one: Outlay, *, candidates: int, hours: float) -> int | None:
    """Fewest machines that finish `candidates` audits within `hours`; None where a single audit takes longer."""
    each = int(hours * HOUR // one.seconds)
    return None if each == 0 else -(-candidates // each)


def _stages(machine: Machine, size: Size, load: Load) -> Iterator[Stage]:
    both, disk = 2.0 * size.stored, machine.read.value
    yield _stage("open both sides, sha256", disk=both / disk, processor=both / (machine.hash.value * machine.processes))
    yield _stage("weight diff", disk=both / disk, processor=size.parameters / (machine.differ.value * machine.processes))
    loads = LOADS if _too_large_for_two(machine, size) else LOADS + SEARCH_LOADS
    yield _stage("load models", disk=loads * size.stored / disk)
    live = size.parameters * (CPU_BYTES if machine.processor else BYTES[size.dtype])
    fetched = max(0.0, live - machine.room * machine.devices / ROOM)
    token = 2.0 * size.active / machine.arithmetic.value
    batches = math.ceil(load.prompts / load.batch)
    carried = (live - fetched) / machine.traffic.value

    def passes(name: str, number: float, tokens: float) -> Stage:
        return _stage(name, disk=number * fetched / disk, arithmetic=tokens * token, memory=number * carried)

    yield passes("read prompts", READS * batches, READS * load.prompts * load.tokens)
    written = (WRITES + 2.0 * load.repeats) * load.reply
    yield passes("write replies", written * batches, written * load.prompts)
    if not _too_large_for_two(machine, size):
        usual = min(max(BUDGET_FLOPS / (2.0 * size.parameters), LEAST_TOKENS), MOST_TOKENS)
        yield passes("search for triggers", 0.0, SEARCHED * TIERS[load.tier] * usual)


def _stage(name: str, **by: float) -> Stage:
    bound = max(by, key=lambda what: by[what])
    return Stage(name=name, seconds=by[bound], bound=bound, by=by)


def _too_large_for_two(machine: Machine, size: Size) -> bool:
    live = size.parameters * (CPU_BYTES if machine.processor else BYTES[size.dtype])
    return (1.0 + ROOM) * live > machine.room


def _left_out(machine: Machine, size: Size) -> Iterator[str]:
    if _too_large_for_two(machine, size):
        yield "The search for triggers: it needs both models whole on one device (--max-cost generation leaves it out)."
    live = size.parameters * (CPU_BYTES if machine.processor else BYTES[size.dtype])
    if ROOM * live > machine.room * machine.devices:
        yield "Some weights have no room on the devices: they are read from the disk again at every pass. Give more devices, or serve the models (--endpoint)."


def _refuse_odd(size: Size) -> None:
    if size.dtype not in BYTES:
        raise BadInput(f"there is no format {size.dtype!r}", where="--dtype", hint=f"one of {', '.join(BYTES)}")
    if not 0.0 < size.active <= size.parameters < math.inf:
        raise BadInput(
            f"{size.active:g} of {size.parameters:g} weights cannot act at each token",
            where="--active",
            hint="give --parameters as 8e9, and --active only for a mixture of experts, where fewer act",
        )
