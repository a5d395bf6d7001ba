"""The formats in which a saved run can be had, by name. None needs torch, and only the page needs more than a record and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from rich.console import Console

    from forensics.record import AuditRecord
    from forensics.runfolder import SavedRun
    from reports.several import Beside

Format = Literal["text", "html", "json", "markdown", "sarif", "junit", "model-card", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
OF_SEVERAL: tuple[Format, ...] = ("text", "html", "json", "markdown", "csv")
"""What several runs beside each other can be had in; the others speak of one candidate."""
OF_A_SWEEP: tuple[Format, ...] = ("text", "html", "json", "markdown")
"""What a sweep can be had in: where those that could not be audited are told as well."""
OF_THE_RECORD: tuple[Format, ...] = ("json", "markdown", "sarif", "junit", "model-card")
"""What is made of the record alone, without replies and arrays."""


def of_record(record: AuditRecord, wanted: Format) -> str:
    """A record in one of `OF_THE_RECORD`. What another format would need is not imported."""
    if wanted == "sarif":
        from reports.sarif import render_sarif as render
    elif wanted == "junit":
        from reports.junit import render_junit as render
    elif wanted == "markdown":
        from reports.markdown import render_markdown as render
    elif wanted == "model-card":
        from reports.modelcard import render_modelcard as render
    else:
        return record.to_json()
    return render(record)


def of_run(saved: SavedRun, wanted: Format) -> str:
    """A run in one of the formats that replies or arrays are needed for: html, csv or text."""
    if wanted == "html":
        from reports.html import render

        return render(saved)
    if wanted == "csv":
        from reports.items import render_items

        return render_items(saved)
    from reports.text import show

    return printed(lambda console: show(saved, console))


def of_several(found: Beside, wanted: Format) -> str:
    """Runs beside each other, in one of `OF_SEVERAL`."""
    from reports import several

    if wanted == "html":
        from reports.html import render_beside

        return render_beside(found)
    made: Mapping[Format, Callable[[Beside], str]] = {"json": several.as_json, "markdown": several.as_markdown, "csv": several.as_csv}
    if wanted in made:
        return made[wanted](found)
    return printed(lambda console: several.show_beside(found, console))


def printed(show: Callable[[Console], None]) -> str:
    """What a terminal would show, as text: in colours only where the text goes to one."""
    import io
    import shutil
    import sys

    from rich.console import Console

    colours = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=colours, width=shutil.get_terminal_size((120, 40)).columns)
    with console.capture() as held:
        show(console)
    return held.get()
