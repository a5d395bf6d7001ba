"""The checks of some families alone, as `forensics diff` and `probe` run them: nothing is decided, but it is said whether all looked."""

from __future__ import annotations

from dataclasses import replace

from forensics.audit import Outcome, Request, run
from forensics.checks import all_checks
from forensics.gate.replies import Progress
from forensics.record import Status


def run_part(families: tuple[str, ...], request: Request, progress: Progress) -> tuple[Outcome, bool]:
    """Run the checks whose ids begin as one of `families`.

    One that reads the results of a check that this version does not have, or holds single adapters against controls where several are
    put on together, is shown, and is not held against the candidate.

    Returns:
        The outcome, and whether every check looked that could have.
    """
    known = all_checks()
    waiting = {check.id for check in known if check.by_controls or not set(check.after) <= {one.id for one in known}}
    only = tuple(check.id for check in known if check.id.startswith(families) and (request.controls or not check.by_controls))
    outcome = run(replace(request, only=only), progress)
    asked = [result for result in outcome.record.results if result.status is not Status.SKIPPED or result.check not in waiting]
    return outcome, all(result.status in (Status.NO_FINDING, Status.FLAGGED) for result in asked)
