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
    "**Exit codes of `status`, `alarms` and `canary`:** 0 nothing has to be done · 1 the tool failed · 2 the command or an input is wrong · "
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
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Keep prompts and replies; otherwise they are dropped once they are scored.")] = False,
    silent_after: Annotated[
        float | None, typer.Option("--silent-after", metavar="HOURS", min=0.01, max=87600, help="Hours without an event after which `status` exits 10 (default: never).")
    ] = None,
    every: Annotated[float | None, typer.Option("--every", metavar="DAYS", min=0.01, max=3650, help="Days between canaries, after which one is overdue (default: none is expected).")] = None,
) -> None:  # fmt: skip
    """Pin an accepted run, and make a store that watches what becomes of it."""
    from forensics.monitor.baseline import Settings
    from forensics.monitor.baseline import start as begin
    from reports.words import printable

    settings = Settings(
        window=window,
        retention=retention * 86400,
        keep_text=keep_text,
        roll_back=roll_back,
        silent_after=round(silent_after * 3600) if silent_after is not None else None,
        canary_every=_days(every),
    )
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


def canary(
    store: Target,
    endpoint: Annotated[list[str], typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible server of what is deployed; may be repeated.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Its name there.")],
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="So many prompts, spread over categories (default: all).")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample; the same one draws the same prompts.")] = 0,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Requests in flight.")] = 16,
    every: Annotated[float | None, typer.Option("--every", metavar="DAYS", min=0.01, max=3650, help="From now on, days after which a canary is overdue.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest reply, in tokens (default: as in the record).")] = None,
    patience: Annotated[float, typer.Option("--patience", min=1, help="Seconds for which one prompt is tried.")] = 600.0,
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="Where the accepted run lies, if it was moved.")] = None,
    replies: Annotated[Path | None, typer.Option("--replies", metavar="DIR", help="Where replies are kept (default: STORE.canary).")] = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Put the gate's own prompts to the live endpoint, and hold the replies against the record's. One that was killed goes on; all share one chance of a false alarm."""
    from forensics.errors import BadInput
    from forensics.gate.served import Endpoint, key_from_environment
    from forensics.monitor.baseline import baseline_of
    from forensics.monitor.canary import Wanted, replay_canary
    from forensics.monitor.store import open_store
    from reports.monitoring import show_canary
    from reports.progress import bars

    with open_store(store) as opened:
        baseline = baseline_of(opened)
        longest = max_new_tokens or baseline.longest
        if longest is None:
            raise BadInput(
                "the record does not say how long replies were",
                where="--max-new-tokens",
                hint="give as many tokens as when they were recorded",
            )
        server = Endpoint(
            urls=tuple(endpoint),
            models=(model, model),
            max_new_tokens=longest,
            at_once=at_once,
            patience=patience,
            key=key_from_environment(),
        )
        beside = replies or (
            Path("forensics-runs") / f"canary-{baseline.results_digest[:8]}" if "://" in store else Path(f"{store}.canary")
        )
        wanted = Wanted(endpoint=server, folder=beside, run=run, sample=sample, seed=seed, every=_days(every))
        with bars(watched=sys.stderr.isatty()) as progress:
            told = replay_canary(opened, wanted, time.time, progress)
    if json:
        sys.stdout.write(told.model_dump_json(indent=1) + "\n")
    else:
        show_canary(told, Console())
    _leave_with(told.exit_code, json=json)


def weights(
    store: Target,
    folder: Annotated[str, typer.Argument(help="Folder of the weights that are served; of the base, where an adapter was accepted.", metavar="FOLDER")],
    adapter: Annotated[list[str] | None, typer.Option("--adapter", metavar="FOLDER", help="An adapter on them, in the record's order; may be repeated.")] = None,
) -> None:  # fmt: skip
    """Hold the files that are served against the digests of the accepted candidate. Exits 0, or 20 where they differ."""
    from forensics.monitor.overview import FINE, ROLL_BACK
    from forensics.monitor.store import open_store
    from forensics.monitor.weights import compare_weights
    from reports.words import printable

    with open_store(store) as opened:
        found = compare_weights(opened, folder, tuple(adapter or ()), datetime.now(UTC))
    for note in found.notes:
        typer.echo(printable(note))
    if found.alarm is not None:
        typer.echo(printable(f"{found.alarm.escalation.upper()}: {found.alarm.finding.claim} {found.alarm.advice}"))
        raise typer.Exit(ROLL_BACK)
    typer.echo("What is served is what was accepted, by its digests.")
    raise typer.Exit(FINE)


def leaked(
    store: Target,
    data: Annotated[list[Path], typer.Argument(help="Training data: JSONL or text, also gzipped.", metavar="FILE...")],
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="Where the accepted run lies, if it was moved.")] = None,
) -> None:
    """Look whether prompts of the gate stand in training data. Exits 0, or 10 where some do."""
    from forensics.monitor.baseline import baseline_of
    from forensics.monitor.canary import pinned_run
    from forensics.monitor.leaks import find_leaks
    from forensics.monitor.overview import FINE, PEOPLE
    from forensics.monitor.store import open_store
    from reports.words import printable

    with open_store(store) as opened:
        saved = pinned_run(baseline_of(opened), run)
        found = find_leaks(opened, tuple(saved.prompts.values()), data, datetime.now(UTC))
    typer.echo(
        f"{found.looked_for} of {found.prompts} prompts were looked for in {found.words} words: {len(found.whole)} stand there whole, "
        f"{len(found.overlapping)} more in part."
    )
    for id in (*found.whole, *found.overlapping)[:SHOWN]:
        typer.echo(printable(f"  {id}"))
    if found.alarm is not None:
        typer.echo(printable(f"{found.alarm.escalation.upper()}: {found.alarm.finding.claim} {found.alarm.advice}"))
    raise typer.Exit(PEOPLE if found.alarm is not None else FINE)


VERBS = (start, ingest, status, alarms, canary, weights, leaked)
SHOWN = 20
"""Prompts that are listed by id."""


def _days(days: float | None) -> int | None:
    """Days, in seconds."""
    return round(days * 86400) if days is not None else None


def _overview(store: str) -> Overview:
    from forensics.monitor.state import overview
    from forensics.monitor.store import open_store

    with open_store(store) as opened:
        return overview(opened, datetime.now(UTC))


def _leave(found: Overview, *, json: bool) -> None:
    _leave_with(found.exit_code, json=json)


def _leave_with(code: int, *, json: bool) -> None:
    from reports.monitoring import STATUS_WORDS

    if not json:
        typer.echo(f"exit {code} ({STATUS_WORDS[code]})")
    raise typer.Exit(code)
