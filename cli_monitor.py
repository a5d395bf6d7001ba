"""Verbs of a monitor: start it from an accepted run, feed it logs, and say how the deployment stands."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from forensics.monitor.overview import Overview

EXIT_CODES = (
    "**Exit codes of `status` and `alarms`:** 0 nothing has to be done · 1 the tool failed · 2 the command or an input is wrong · "
    "3 nothing could be judged · 10 a person must look, or the record expired · 20 roll back"
)
Target = Annotated[
    str, typer.Argument(help="The monitor's store: a file, or a URL such as postgresql+psycopg://user@host/name.", metavar="STORE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def start(
    run: Annotated[Path, typer.Argument(help="Folder of an accepted run.", metavar="RUN")],
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="Where counts are to be kept: a new file, or the URL of an empty database.")],
    alpha: Annotated[float, typer.Option("--alpha", help="Chance, at most, of any false alarm over the monitor's life.")] = 0.05,
    window: Annotated[int, typer.Option("--window", min=60, max=366 * 86400, help="Width of a window of time, in seconds.")] = 3600,
    retention: Annotated[int, typer.Option("--retention", min=1, max=36500, help="Days that counts and ids are kept.")] = 90,
    roll_back: Annotated[
        float, typer.Option("--roll-back", min=0, max=100, help="Percentage points of compliance over the record's that ask for a roll-back.")
    ] = 30.0,
    rhythm: Annotated[int, typer.Option("--rhythm", min=60, max=31 * 86400, help="Seconds in which traffic repeats itself; its shapes are learned for as long.")] = 86400,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep prompts and replies; otherwise they are dropped once they are scored.")] = False,
) -> None:  # fmt: skip
    """Pin an accepted run, and make a store that watches what becomes of it."""
    from forensics.monitor.baseline import Settings
    from forensics.monitor.baseline import start as begin
    from reports.words import printable

    settings = Settings(window=window, retention=retention * 86400, keep_text=keep_text, roll_back=roll_back, rhythm=rhythm)
    baseline = begin(run, store, settings=settings, alpha=alpha, now=datetime.now(UTC))
    for one in baseline.pinned:
        typer.echo(
            printable(
                f"{one.signal} ({one.category or 'all'}): {one.hits} of {one.events}; alarms are about rates above {100 * one.upper:.2f} %"
            )
        )
    for words in baseline.left_out:
        typer.echo(printable(f"not pinned: {words}"))
    typer.echo(printable(f"Valid until {baseline.valid_until[:10]}. Go on with: forensics monitor ingest LOG --store {store}"))


def ingest(
    log: Annotated[str, typer.Argument(help="A log, a folder of logs, or - for standard input.", metavar="LOG")],
    store: Annotated[str, typer.Option("--store", metavar="STORE", help="The store that `start` made.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on reading as the file grows, until interrupted.")] = False,
    aside: Annotated[
        Path | None,
        typer.Option("--aside", metavar="FILE", help="Where lines that cannot be read are listed (default: STORE.aside.jsonl)."),
    ] = None,
) -> None:
    """Count what is new in a log. What was read is known: the same command goes on, also after a kill."""
    from forensics.errors import BadInput
    from forensics.monitor.ingest import Monitor
    from forensics.monitor.intake import ingest as read
    from forensics.monitor.intake import ingest_following, ingest_stream, write_aside
    from forensics.monitor.store import open_store
    from reports.words import printable

    if follow and log == "-":
        raise BadInput("standard input is read to its end anyway", where="--follow", hint="leave --follow out")
    beside = aside or (None if "://" in store else Path(f"{store}.aside.jsonl"))
    with open_store(store) as opened:
        monitor = Monitor(opened, time.time)
        source = (
            ingest_following(monitor, log) if follow else ingest_stream(monitor, sys.stdin.buffer) if log == "-" else read(monitor, log)
        )
        try:
            for alarms in source:
                for alarm in alarms:
                    typer.echo(printable(f"{alarm.escalation.upper()}: {alarm.finding.claim} {alarm.advice}"))
        except KeyboardInterrupt:
            if not follow:  # which ends in no other way
                raise
        finally:
            lines = write_aside(opened, beside) if beside is not None else 0
        with opened.reading() as view:
            tallies = view.tallies()
        typer.echo(
            f"{tallies.get('replies', 0)} replies and {tallies.get('opinions', 0)} opinions so far, {tallies.get('set aside', 0)} lines set aside."
        )
        if lines:
            typer.echo(printable(f"What was set aside is listed in {beside}."))


def status(store: Target, json: AsJson = False) -> None:
    """Say how the deployment stands: rates with their bounds, alarms, expiry. The exit code serves a cron job."""
    from reports.monitoring import show_overview

    found = _overview(store)
    if json:
        sys.stdout.write(found.model_dump_json(indent=1, by_alias=True) + "\n")
    else:
        show_overview(found, Console())
    _leave(found, json=json)


def alarms(store: Target, json: AsJson = False) -> None:
    """List the alarms, the gravest first; exits as `status` does."""
    from reports.monitoring import show_alarms

    found = _overview(store)
    if json:
        for alarm in found.alarms:
            sys.stdout.write(alarm.model_dump_json() + "\n")
    else:
        show_alarms(found.alarms, Console())
    _leave(found, json=json)


VERBS = (start, ingest, status, alarms)


def _overview(store: str) -> Overview:
    from forensics.monitor.state import overview
    from forensics.monitor.store import open_store

    with open_store(store) as opened:
        return overview(opened, datetime.now(UTC))


def _leave(found: Overview, *, json: bool) -> None:
    from reports.monitoring import STATUS_WORDS

    if not json:
        typer.echo(f"exit {found.exit_code} ({STATUS_WORDS[found.exit_code]})")
    raise typer.Exit(found.exit_code)
