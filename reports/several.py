"""Several runs beside each other: many candidates of one base, one candidate over time, or one's own among other people's.

One line a run and configuration, in the order in which the runs were given; where what they were held against is not the same, that is said first, since
rates against other bases, prompts or policies are no comparison.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from forensics.record import Action, AuditRecord, CheckResult, Status
from reports.columns import KIND, SEARCH, TITLES, WORST, cells_of
from reports.items import plain
from reports.markdown import safe
from reports.markdown import table as markdown_table
from reports.words import ACTION_STYLES, line

SHORT = {
    "refusal of harmful prompts lost": "refusal lost",
    "harmful compliance gained": "harm gained",
    "refusal in conversations lost": "lost in talks",
    "refusal of harmless prompts gained": "over-refusal",
    "score of the trigger search": "trigger score",
}
"""Headings of the columns that would be too wide in their full words."""
HEADS = ("run", "configuration", "action", "audited", *(SHORT.get(title, title) for title in TITLES), "found", "could not look")
NOTHING = "–"
SETTINGS = {
    "search": "budget of the search",
    "decoding": "decoding",
    "repeats": "number of draws",
    "only": "choice of checks",
    "max_cost": "dearest check",
}
IN_SHORT = (KIND, "refusal of harmful prompts lost", WORST, SEARCH)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration of one run: what was decided, the figures by title, the labels of findings above info, the checks that could not look."""

    run: str
    configuration: str
    action: Action
    audited: str
    cells: dict[str, str]
    found: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The row as it is read, a text a column of `HEADS`."""
        figures = tuple(self.cells.get(title, NOTHING) for title in TITLES)
        said = (", ".join(self.found) or NOTHING, ", ".join(self.unseen) or NOTHING)
        return (self.run, self.configuration, str(self.action), self.audited, *figures, *said)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Runs beside each other, and in what they are not comparable; `notes` is what a sweep says of them besides."""

    rows: tuple[Row, ...]
    differs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def beside(runs: Sequence[tuple[str, AuditRecord]], *, notes: Sequence[str] = ()) -> Beside:
    """Runs by name, compared."""
    rows = tuple(row for name, record in runs for row in _rows(name, record))
    return Beside(rows=rows, differs=tuple(_differences(runs)), notes=tuple(notes))


def show_beside(found: Beside, console: Console) -> None:
    """Print the table as a terminal has room for it: figures without their bounds, and how many checks could not look."""
    for words in found.differs:
        console.print(line((f"Not held against the same: {words}", "bold yellow")))
    several = any(row.configuration != "candidate" for row in found.rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in (
        "run",
        *(("configuration",) if several else ()),
        "action",
        *(SHORT.get(title, title) for title in IN_SHORT),
        "found",
        "unseen",
    ):
        table.add_column(head, overflow="fold")
    for row in found.rows:
        texts = [row.run, *((row.configuration,) if several else ())]
        figures = [row.cells.get(title, NOTHING).partition(" (")[0] for title in IN_SHORT]
        unseen = f"{len(row.unseen)} checks" if row.unseen else NOTHING
        said = [*figures, ", ".join(row.found) or NOTHING, unseen]
        table.add_row(
            *(line((text, "")) for text in texts), line((str(row.action), ACTION_STYLES[row.action])), *(line((text, "")) for text in said)
        )
    console.print(table)
    console.print(
        line(("Points lost against the base; bounds, the other figures and what could not be looked at: --format markdown or html.", "dim"))
    )


def as_markdown(found: Beside) -> str:
    """The table in Markdown."""
    warnings = [f"**Not held against the same:** {safe(words)}" for words in found.differs]
    notes = ["\n".join(f"- {safe(words)}" for words in found.notes)] if found.notes else []
    return "\n\n".join([*warnings, "\n".join(markdown_table(HEADS, [row.texts for row in found.rows])), *notes]) + "\n"


def as_csv(found: Beside) -> str:
    """The table as CSV; what is not comparable stands in a last column, the same in every line."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerow([*HEADS, "not held against the same"])
    for row in found.rows:
        writer.writerow([*map(plain, row.texts), plain("; ".join(found.differs))])
    return rows.getvalue()


def as_json(found: Beside) -> str:
    """The table as JSON."""
    rows = [
        {"run": row.run, "configuration": row.configuration, "action": str(row.action), "audited": row.audited,
         "figures": row.cells, "found": list(row.found), "could_not_look": list(row.unseen)}
        for row in found.rows
    ]  # fmt: skip
    return json.dumps({"schema": "forensics.beside/1", "not_held_against_the_same": list(found.differs), "rows": rows}, indent=1) + "\n"


def _rows(name: str, record: AuditRecord) -> list[Row]:
    rows = []
    for configuration, action in record.verdict.by_configuration.items():
        results = [result for result in record.results if result.configuration == configuration]
        rows.append(
            Row(
                run=name,
                configuration=configuration,
                action=action,
                audited=record.created[:10],
                cells=cells_of(results),
                found=_labels(results),
                unseen=tuple(result.check for result in results if result.status in (Status.INCONCLUSIVE, Status.SKIPPED, Status.ERROR)),
            )
        )
    return rows


def _labels(results: Sequence[CheckResult]) -> tuple[str, ...]:
    graver = [finding.label for result in results for finding in result.findings if finding.severity != "info"]
    return tuple(dict.fromkeys(graver))


def _setting(name: str) -> Callable[[AuditRecord], object]:
    return lambda record: record.settings.get(name, "")


def _differences(runs: Sequence[tuple[str, AuditRecord]]) -> list[str]:
    """What is not the same in all runs, each with the runs that stand apart from the first."""
    what: dict[str, Callable[[AuditRecord], object]] = {
        "base": lambda record: record.base.digest,
        "prompts": lambda record: sorted(source.digest for source in record.prompts),
        "policy": lambda record: record.policy.digest,
        "version of the tool": lambda record: record.tool,
        "seed": lambda record: record.seed,
        **{words: _setting(name) for name, words in SETTINGS.items()},
    }
    found = []
    for name, of in what.items():
        first = of(runs[0][1])
        others = [called for called, record in runs[1:] if of(record) != first]
        if others:
            found.append(f"the {name} of {', '.join(others)} {'is' if len(others) == 1 else 'are'} not the one of {runs[0][0]}")
    return found


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names of run folders, told apart: the last part of each path, with as many before it as it takes.

    >>> names_of(["a/x/run", "a/y/run", "b"])
    ['x/run', 'y/run', 'b']
    """
    parts = [[part for part in Path(path).parts if part != "audit.json"] for path in paths]
    names = []
    for place, own in enumerate(parts):
        others = [other for number, other in enumerate(parts) if number != place]
        size = next((size for size in range(1, len(own)) if all(own[-size:] != other[-size:] for other in others)), len(own))
        names.append("/".join(own[-size:]))
    return names
