"""Verbs of a monitor: start it from an accepted run, feed it logs, and say how the deployment stands."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli_options import console

if TYPE_CHECKING:
    from forensics.monitor.overview import Overview

EXIT_CODES = (
    "**Exit codes of `status`, `alarms`, `canary` and `merge`:** 0 nothing has to be done · 1 the tool failed · 2 the command or an input is wrong · "
    "3 nothing could be judged · 10 a person must look, or something expired or is overdue · 20 roll back"
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
    shard_of: Annotated[
        str | None, typer.Option("--shard-of", metavar="STORE", help="Another store of this deployment, so that `merge` can tell events that are in both.")
    ] = None,
    silent_after: Annotated[
        float | None, typer.Option("--silent-after", metavar="HOURS", min=0.01, max=87600, help="Hours without an event after which `status` exits 10 (default: never).")
    ] = None,
    every: Annotated[float | None, typer.Option("--every", metavar="DAYS", min=0.01, max=3650, help="Days between canaries, after which one is overdue (default: none is expected).")] = None,
) -> None:  # fmt: skip
    """Pin an accepted run, and make a store that watches what becomes of it."""
    from forensics.monitor.baseline import Settings
    from forensics.monitor.baseline import start as begin
    from forensics.monitor.database import shown
    from reports.words import printable

    settings = Settings(
        window=window,
        retention=retention * 86400,
        keep_text=keep_text,
        roll_back=roll_back,
        rhythm=rhythm,
        silent_after=round(silent_after * 3600) if silent_after is not None else None,
        canary_every=days(every),
    )
    baseline = begin(run, store, settings=settings, alpha=alpha, now=datetime.now(UTC), shard_of=shard_of)
    for one in baseline.pinned:
        typer.echo(
            printable(
                f"{one.signal} ({one.category or 'all'}): {one.hits} of {one.events}; alarms are about rates above {100 * one.upper:.2f} %"
            )
        )
    for words in baseline.left_out:
        typer.echo(printable(f"not pinned: {words}"))
    typer.echo(printable(f"Valid until {baseline.valid_until[:10]}. Go on with: forensics monitor ingest LOG --store {shown(store)}"))


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
        show_overview(found, console())
    _leave(found, json=json)


def alarms(store: Target, json: AsJson = False) -> None:
    """List the alarms, the gravest first; exits as `status` does."""
    from reports.monitoring import show_alarms

    found = _overview(store)
    if json:
        for alarm in found.alarms:
            sys.stdout.write(alarm.model_dump_json() + "\n")
    else:
        show_alarms(found.alarms, console())
    _leave(found, json=json)


def check(store: Target) -> None:
    """Look whether a store is whole: the database's own check, seals of rows, and whether counts agree. Exits 2 if anything is wrong."""
    from forensics.errors import BadInput
    from forensics.monitor.integrity import check as examine
    from forensics.monitor.store import open_store
    from reports.words import printable

    with open_store(store) as opened:
        found = examine(opened)
        for words in found.held:
            typer.echo(printable(f"{words[0].upper()}{words[1:]}."))
        typer.echo(
            f"Batch {found.batches}, seal {found.seal[:16]}. A store put back from an older copy agrees with itself: it shows an earlier batch than you noted."
        )
        if found.wrong:
            from forensics.monitor.database import RESTORE

            raise BadInput("this store is damaged", where=opened.where, details=found.wrong, hint=RESTORE)


def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores of monitors that were started from one record, each on a part of the traffic.", metavar="STORE...")],
    json: AsJson = False,
) -> None:  # fmt: skip
    """Show several monitors of one record as one: counts add up, the mean of their e-values is taken; nothing is written. Exits as `status` does."""
    from contextlib import ExitStack

    from forensics.monitor.merging import merged
    from forensics.monitor.store import open_store
    from reports.monitoring import show_overview

    with ExitStack() as stack:
        found = merged([stack.enter_context(open_store(store)) for store in stores], datetime.now(UTC))
    if json:
        sys.stdout.write(found.model_dump_json(indent=1, by_alias=True) + "\n")
    else:
        show_overview(found, console())
    _leave(found, json=json)


VERBS = (start, ingest, status, alarms, check, merge)


def _overview(store: str) -> Overview:
    from forensics.monitor.state import overview
    from forensics.monitor.store import open_store

    with open_store(store) as opened:
        return overview(opened, datetime.now(UTC))


def _leave(found: Overview, *, json: bool) -> None:
    leave_with(found.exit_code, json=json)


def leave_with(code: int, *, json: bool) -> None:
    """Say the exit code in words, unless JSON was asked for, and leave with it."""
    from reports.monitoring import STATUS_WORDS

    if not json:
        typer.echo(f"exit {code} ({STATUS_WORDS[code]})")
    raise typer.Exit(code)


def days(wanted: float | None) -> int | None:
    """Days, in seconds."""
    return round(wanted * 86400) if wanted is not None else None
