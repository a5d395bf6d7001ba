"""What an audit takes, on the terminal: its stages, what each is bound by, hours and money, and the rates that it was worked out from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from reports.words import line

HOUR, GB = 3600.0, 1e9
RATES = {
    "read": ("disk, read", 1e6, "MB/s"),
    "hash": ("sha256, a core", 1e6, "MB/s"),
    "differ": ("weight diff, a core", 1e6, "M weights/s"),
    "arithmetic": ("device, arithmetic", 1e12, "TFLOP/s"),
    "traffic": ("device, its memory", 1e9, "GB/s"),
}


class Rate(Protocol):
    """Something a second, between two bounds."""

    @property
    def value(self) -> float:
        """As measured or given."""

    @property
    def low(self) -> float:
        """The least it may be."""

    @property
    def high(self) -> float:
        """The most it may be."""


class Stage(Protocol):
    """One part of an audit."""

    @property
    def name(self) -> str:
        """What is done."""

    @property
    def seconds(self) -> float:
        """How long it takes."""

    @property
    def bound(self) -> str:
        """What it waits for."""

    @property
    def by(self) -> Mapping[str, float]:
        """Seconds that each resource alone would take."""


class Outlay(Protocol):
    """One audit on one machine."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Its parts."""

    @property
    def seconds(self) -> float:
        """In all."""

    @property
    def low(self) -> float:
        """At the machine's best."""

    @property
    def high(self) -> float:
        """At its worst."""

    @property
    def left_out(self) -> Sequence[str]:
        """What cannot be done there."""

    @property
    def diff_needs(self) -> float:
        """Bytes a second below which the diff waits for the disk."""

    @property
    def whole_needs(self) -> float:
        """The same for the audit."""


class Fleet(Protocol):
    """Several candidates on several machines."""

    @property
    def candidates(self) -> int:
        """How many are audited."""

    @property
    def machines(self) -> int:
        """How many machines do it."""

    @property
    def hours(self) -> float:
        """Until the last is done."""

    @property
    def machine_hours(self) -> float:
        """Of all machines together."""

    @property
    def dollars(self) -> float | None:
        """What they cost."""

    @property
    def low_dollars(self) -> float | None:
        """At their best."""

    @property
    def high_dollars(self) -> float | None:
        """At their worst."""


def show_outlay(one: Outlay, all_of_them: Fleet, rates: Mapping[str, Rate], console: Console) -> None:
    """Print stages, sums, and the rates."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("stage", "hours", "bound by", "disk", "processor", "arithmetic", "memory"):
        table.add_column(heading, justify="left" if heading in ("stage", "bound by") else "right")
    for stage in one.stages:
        parts = [_hours(stage.by[what]) if what in stage.by else "" for what in ("disk", "processor", "arithmetic", "memory")]
        table.add_row(stage.name, _hours(stage.seconds), stage.bound, *parts)
    table.add_row("one audit", _hours(one.seconds), "", *[""] * 4)
    console.print(table)
    for said in sentences(one, all_of_them):
        console.print(line((said, "")))
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("rate", "as measured or given", "least", "most"):
        table.add_column(heading, justify="left" if heading == "rate" else "right")
    for name, (words, unit, named) in RATES.items():
        rate = rates[name]
        table.add_row(f"{words} ({named})", *(f"{figure / unit:,.4g}" for figure in (rate.value, rate.low, rate.high)))
    console.print(table)


def sentences(one: Outlay, all_of_them: Fleet) -> list[str]:
    """What it comes to, a sentence each."""
    fleet = all_of_them
    said = [f"One audit: {_hours(one.seconds)} hours, between {_hours(one.low)} and {_hours(one.high)} by the bounds of the rates."]
    if fleet.candidates > 1 or fleet.machines > 1:
        said.append(
            f"{fleet.candidates} candidates on {fleet.machines} machine{'s' if fleet.machines > 1 else ''}: {_hours(HOUR * fleet.hours)} hours, {_hours(HOUR * fleet.machine_hours)} machine hours."
        )
    if fleet.dollars is not None:
        said.append(f"Money: {fleet.dollars:,.2f} dollars, between {fleet.low_dollars:,.2f} and {fleet.high_dollars:,.2f}.")
    said.append(
        f"The weight diff waits for a disk of less than {one.diff_needs / 1e6:,.0f} MB/s, the whole audit for one of less than {one.whole_needs / 1e6:,.0f} MB/s."
    )
    return [
        *said,
        *(f"Left out or slow: {why}" for why in one.left_out),
        "Small models take longer than this: attention, tokenizing, judging and Python are not in it.",
    ]


def _hours(seconds: float) -> str:
    hours = seconds / HOUR
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"
