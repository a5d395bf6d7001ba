"""Verbs that show what is saved: one run in any format, several runs beside each other, and the schema of a record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli_walk import show_run, write_page
from reports.formats import FORMATS, OF_A_SWEEP, OF_SEVERAL, OF_THE_RECORD, Format

EXAMPLES = (
    "**Examples:**  `forensics report case-17` · `forensics report case-17 --format sarif --output case-17.sarif` · "
    "`forensics report tune-a tune-b tune-c --format markdown`"
)


def report(
    runs: Annotated[list[str], typer.Argument(help="Folders that `forensics audit` wrote; several are shown beside each other, and so is a sweep.", metavar="RUN...")],
    form: Annotated[Format | None, typer.Option("--format", help="Without it the page is written anew and the verdict shown.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where it is written (default: standard output).")] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:  # fmt: skip
    """Show saved runs again. Needs neither models nor torch. Exits 0 whatever the verdict was."""
    from forensics.errors import BadInput

    if json and form not in (None, "json"):
        raise BadInput("two formats at once", where="--json, --format", hint="give one of them")
    wanted: Format | None = "json" if json else form
    if wanted is None and output is not None:
        raise BadInput("a file, but no format to write it in", where="--output", hint=f"add --format: {', '.join(FORMATS)}")
    if len(runs) == 1 and (Path(runs[0]).expanduser() / "sweep.json").is_file():
        _put(_swept(Path(runs[0]).expanduser(), wanted or "text"), output)
    elif len(runs) > 1:
        _put(_beside(runs, wanted or "text"), output)
    elif wanted is None:
        show_run(write_page(Path(runs[0])), json=False, quiet=False)
    else:
        _put(_one(runs[0], wanted), output)


def schema(
    of: Annotated[
        Literal["audit", "sweep"], typer.Argument(help="Of which file: audit.json, or sweep.json.", metavar="[audit|sweep]")
    ] = "audit",
) -> None:
    """Print the JSON Schema of audit.json, or of sweep.json: what a reader of records may rely on."""
    from forensics import record, swept

    sys.stdout.write(record.schema_text() if of == "audit" else swept.schema_text())


def doctor() -> None:
    """Say what this machine has for an audit, and what will be skipped or refused for want of something. Exits 2 if something needed is missing."""
    from rich.console import Console

    from forensics.equipment import equipment
    from reports.doctor import show_equipment

    found = equipment(Path("forensics-runs"))
    show_equipment(found, Console())
    if any(one.state == "missing" for one in found):
        raise typer.Exit(2)


VERBS = ((report, EXAMPLES), (schema, ""), (doctor, ""))


def _one(run: str, wanted: Format) -> str:
    from forensics.runfolder import load_record, load_run
    from reports.formats import of_record, of_run

    return of_record(load_record(run), wanted) if wanted in OF_THE_RECORD else of_run(load_run(run), wanted)


def _swept(folder: Path, wanted: Format) -> str:
    from forensics.errors import BadInput
    from forensics.swept import load_sweep
    from reports.formats import of_several, printed
    from reports.sweeping import beside_of, show_sweep

    record = load_sweep(folder)
    if wanted not in OF_A_SWEEP:
        raise BadInput(f"{wanted} speaks of runs one by one", where="--format", hint=f"of a sweep there are: {', '.join(OF_A_SWEEP)}")
    if wanted == "json":
        return record.to_json()
    if wanted == "text":
        return printed(lambda console: show_sweep(record, console))
    return of_several(beside_of(record, folder), wanted)


def _beside(runs: list[str], wanted: Format) -> str:
    from forensics.errors import BadInput
    from forensics.runfolder import load_record
    from reports.formats import of_several
    from reports.several import beside, names_of

    if wanted not in OF_SEVERAL:
        raise BadInput(f"{wanted} speaks of one run", where="--format", hint=f"of several there are: {', '.join(OF_SEVERAL)}")
    if len({_folder(run) for run in runs}) < len(runs):
        raise BadInput("the same run twice", where="RUN", hint="give each run once")
    return of_several(beside(list(zip(names_of([str(_folder(run)) for run in runs]), map(load_record, runs), strict=True))), wanted)


def _folder(run: str) -> Path:
    path = Path(run).expanduser().resolve()
    return path.parent if path.name == "audit.json" else path


def _put(text: str, output: Path | None) -> None:
    from forensics.runfolder import disk_error, write_text

    if output is None:
        sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
        return
    try:
        write_text(output, text)
    except OSError as error:
        raise disk_error(error, output) from error
