"""A sweep in the terminal: candidates by concern, who is unlike the rest, and which could not be audited."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from forensics.runfolder import load_record
from forensics.swept import Population, SweepRecord, SweepRow
from reports.several import Beside, beside
from reports.words import ACTION_STYLES, EXIT_WORDS, line, number

SHOWN = 40
"""Candidates in the terminal; all of them are in sweep.json."""
NOTHING = "–"


def show_sweep(record: SweepRecord, console: Console) -> None:
    """Print the table, the most concerning candidates first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("candidate", "action", "found", "trigger score", "unlike its siblings in"):
        table.add_column(head, overflow="fold")
    for row in record.rows[:SHOWN]:
        table.add_row(*(line(cell) for cell in _cells(row)))
    console.print(table)
    if len(record.rows) > SHOWN:
        console.print(line((f"and {len(record.rows) - SHOWN} less concerning ones; all are in sweep.json", "dim")))
    for row in record.rows:
        if row.failed is not None:
            console.print(line((f"could not be audited: {row.name}: {row.failed.what} ({row.failed.where})", "bold yellow")))
    for population in record.populations:
        console.print(line((said_of(population), "dim")))
    counts = ", ".join(f"{count} {name}" for name, count in record.counts.items() if count)
    console.print(
        line((f"{len(record.rows)} candidates: {counts}   exit {record.exit_code} ({EXIT_WORDS[record.exit_code]}, by the worst)", "bold"))
    )


def beside_of(record: SweepRecord, folder: Path) -> Beside:
    """The runs of a sweep beside each other, with what it says of them.

    Raises:
        BadInput: A run is gone or damaged.
    """
    runs = [(row.name, load_record(str(folder / row.run))) for row in record.rows if row.run]
    return beside(runs, notes=notes_of(record))


def notes_of(record: SweepRecord) -> tuple[str, ...]:
    """What a page of all runs has to say besides its table: who could not be audited, who is unlike the rest, and how that was told."""
    failed = [f"{row.name} could not be audited: {row.failed.what}" for row in record.rows if row.failed is not None]
    unlike = [
        f"{row.name} is unlike its siblings in {one.figure}: {number(one.value)}, {one.distance.value:+.1f} {one.distance.unit} (p = {number(one.p_value.value)})"
        for row in record.rows
        for one in row.unlike
    ]
    return (*failed, *unlike, *map(said_of, record.populations))


def said_of(population: Population) -> str:
    """How candidates of one kind were held against each other, in a sentence or two."""
    kind = f"{population.siblings} {population.kind}s"
    if population.status == "INCONCLUSIVE":
        return f"{kind} were not held against each other: {population.reason}"
    told = f"{kind} were held against each other in {len(population.figures)} figures ({', '.join(population.figures)})"
    called = f"called from {number(population.called_from or 0.0)} robust standard deviations, so that at most {population.level:.0%} of such sweeps call any by chance"
    left = f" Not tested: {'; '.join(f'{name} ({why})' for name, why in population.not_tested.items())}." if population.not_tested else ""
    return f"{told}, {called}. A lead: it decides nothing.{left}"


def _cells(row: SweepRow) -> tuple[tuple[str, str], ...]:
    action = (str(row.action), ACTION_STYLES[row.action]) if row.action is not None else ("could not be audited", "bold yellow")
    found = ", ".join(dict.fromkeys(finding.label for finding in row.findings)) or NOTHING
    unlike = ", ".join(f"{one.figure} ({one.distance.value:+.0f})" for one in row.unlike) or NOTHING
    return (row.name, ""), action, (found, ""), (NOTHING if row.score is None else f"{row.score:.2f}", ""), (unlike, "")
