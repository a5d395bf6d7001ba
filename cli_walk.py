"""What every verb does around its walk: the request, errors as one message and an exit code, progress, the page, the verdict shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from cli_options import console

if TYPE_CHECKING:
    from forensics.audit import Outcome, Request
    from forensics.gate.costing import Allowance
    from forensics.gate.replies import Progress
    from forensics.runfolder import SavedRun

EXIT_CODES = (
    "**Exit codes:** 0 may deploy (or: done) · 1 the tool failed · 2 the command or an input is wrong · "
    "3 inconclusive, or not comparable · 10 a person must review or sign · 20 blocked"
)
PART_EXIT_CODES = (
    "**Exit codes:** 0 done · 1 the tool failed · 2 the command or an input is wrong · 3 a check could not look, or not comparable"
)


def request_of(base: str, candidate: str, lists: Mapping[str, Sequence[str | Path] | None], **more: Any) -> Request:
    """What is asked for, with the default policy unless there is another in `more`; an option that may be repeated can be missing."""
    from forensics.audit import Request
    from forensics.policy import load_policy

    repeated = {name: tuple(values or ()) for name, values in lists.items()}
    return Request(base=base, candidate=candidate, **({"policy": load_policy()} | more | repeated))


def allowance_of(hours: float, dollars: float, price: float | None, hourly: float | None, *, quiet: bool) -> Allowance:
    """What a run may take, with its plan told on standard error unless `quiet`."""
    from forensics.gate.costing import Allowance

    def tell(said: str) -> None:
        if not quiet:
            sys.stderr.write(said + "\n")

    return Allowance(hours=hours, dollars=dollars, per_million=price, per_hour=hourly, tell=tell)


def conclude(outcome: Outcome, *, json: bool, quiet: bool) -> NoReturn:
    """Write the page, show the run, and leave with the verdict's exit code."""
    with told():
        show_run(write_page(outcome.folder), json=json, quiet=quiet)
    raise typer.Exit(outcome.record.verdict.exit_code)


def telling(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, with errors told as everywhere."""

    @wraps(verb)
    def with_errors(*given: Any, **named: Any) -> None:
        with told():
            verb(*given, **named)

    return with_errors


def write_page(folder: Path) -> SavedRun:
    """Write report.html of a finished run, and causes.html if it was investigated, and return the run."""
    from forensics.runfolder import load_run
    from reports.causes import write_causes
    from reports.html import write_page as write

    saved = load_run(str(folder))
    write_causes(saved)
    write(saved)
    return saved


def show_run(saved: SavedRun, *, json: bool, quiet: bool) -> None:
    """The record on standard output, or the verdict for a reader, or nothing."""
    if json:
        sys.stdout.write(saved.record.to_json())
    elif not quiet:
        from reports.text import show

        show(saved, console())


@contextmanager
def told() -> Iterator[None]:
    """Turn errors into one clear message and the documented exit code."""
    from forensics.errors import ForensicsError
    from reports.words import EXIT_WORDS, printable

    try:
        yield
    except ForensicsError as error:
        _leave(printable(str(error)), error.exit_code, EXIT_WORDS[error.exit_code])
    except KeyboardInterrupt:
        _leave("interrupted; what was finished is kept, and the same command resumes", 1, EXIT_WORDS[1])
    except BrokenPipeError:
        raise typer.Exit(1) from None


def _leave(message: str, code: int, words: str) -> NoReturn:
    sys.stderr.write(f"forensics: {message}\nexit {code} ({words})\n")
    raise typer.Exit(code)


def progress_of(*, quiet: bool) -> AbstractContextManager[Progress]:
    """Bars on standard error while somebody watches; silence otherwise."""
    from reports.progress import bars

    return bars(watched=not quiet and sys.stderr.isatty())
