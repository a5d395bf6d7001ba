"""What this machine has, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from forensics.equipment import Equipped
from reports.words import line

STYLES = {"missing": "bold red", "there": "green", "optional": "yellow"}
WORDS = {"missing": "MISSING", "there": "there", "optional": "not there"}


def show_equipment(found: Sequence[Equipped], console: Console) -> None:
    """Print the table: what is missing first, then what is there, then what could be."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("", "", "which", "what follows"):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(line((WORDS[one.state], STYLES[one.state])), line((one.name, "")), line((one.found, "")), line((one.follows, "")))
    console.print(table)
    missing = [one.name for one in found if one.state == "missing"]
    console.print(line((f"An audit cannot run: {', '.join(missing)}." if missing else "Everything that an audit needs is there.", "bold")))
