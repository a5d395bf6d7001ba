"""Forced choices of both sides of a case, asked once: what `behaviour.opinions` and `behaviour.capability` read, and kept for a reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forensics.case import Case
from forensics.gate.choices import Array, Choice, answered, leaning, read
from forensics.record import CheckResult, Status


def skipped(case: Case, check: str) -> CheckResult:
    """The result where no prompts were given: they are what says that models are to be run at all, though none of them is read here."""
    reason = "No prompts were given (--prompts FILE.jsonl), so no model was run."
    return CheckResult(check=check, configuration=case.configuration, status=Status.SKIPPED, reason=reason)


def readings(case: Case, check: str, asked: Sequence[Choice], instruction: str) -> tuple[Array, Array]:
    """What base and candidate would answer, `[n, 2, 2]` each as `choices.read` has it; every question goes into the check's arrays.

    Raises:
        CannotCompare: A probability is not a number.
        ToolFailed: There is not enough memory for one question.
    """
    ours = case.workbench.remembered(f"{check} {case.base.digest}", lambda: read(case.subject("base"), asked, instruction))
    theirs = read(case.subject("candidate"), asked, instruction)
    case.keep_arrays(
        check,
        {
            "question": np.array([f"{one.claim} {one.question}".strip() for one in asked], dtype=np.str_),
            "group": np.array([one.group for one in asked], dtype=np.str_),
            "option": np.array([one.keyed for one in asked], dtype=np.str_),
            "leaning": np.stack([leaning(ours), leaning(theirs)]),
            "answered": np.stack([answered(ours), answered(theirs)]),
        },
    )
    return ours, theirs
