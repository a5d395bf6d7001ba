"""Verbs of a monitor that look at what is deployed besides its logs: canaries at the endpoint, files that are served, training data that holds the gate's prompts."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli_monitor import AsJson, Target, days, leave_with
from cli_options import console

SHOWN = 20
"""Prompts that are listed by id."""


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
        wanted = Wanted(endpoint=server, folder=beside, run=run, sample=sample, seed=seed, every=days(every))
        with bars(watched=sys.stderr.isatty()) as progress:
            told = replay_canary(opened, wanted, time.time, progress)
    if json:
        sys.stdout.write(told.model_dump_json(indent=1) + "\n")
    else:
        show_canary(told, console())
    leave_with(told.exit_code, json=json)


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


VERBS = (canary, weights, leaked)
