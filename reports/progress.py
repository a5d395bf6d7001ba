"""Bars in the terminal while something runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from reports.words import printable


@contextmanager
def bars(*, watched: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told title, how much is done, and of how much; it draws on standard error while somebody watches."""
    if not watched:
        yield lambda title, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(printable(title).replace("\n", "\\n"), total=total)  # names in it come from checkpoints
            shown.update(tasks[title], completed=done, total=total)

        yield tell
