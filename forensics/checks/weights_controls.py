"""Does an adapter look like adapters that are known to be clean?

Asks: Are the spectra of what it changes (size, concentration, entropy, kurtosis) those of the bank given with --controls?
Reads: The factors of the adapter and of every control, without merging any.
Reports: `controls.p_value`: how often one of so many alike lies as far out; `controls.furthest` for the figure that is furthest;
    `spectral-outlier` (medium) at a p-value of at most 0.05. Inconclusive with fewer than 19 controls, which cannot
    give so small a p-value.
Blind to: What the adapter does. A planted adapter whose spectra are those of the bank; a bank of another rank, recipe or task makes
    any adapter an outlier. Full checkpoints, and adapters that change other roles than the controls do.
Source: The figures are those of arXiv:2602.15195 (2026); an exact permutation test against clean adapters alone instead of a
    classifier trained on planted ones is ours.
"""

from __future__ import annotations

from functools import partial

from forensics.bank import described, weights
from forensics.case import Case, Check
from forensics.record import CheckResult, Evidence, Finding, Status

ID = "weights.controls"
LEVEL = 0.05
LEAST = 19
"""Controls with which a p-value of `LEVEL` can be reached."""


def run(case: Case) -> CheckResult:
    """Hold one adapter against the bank; see the module's docstring."""
    if not case.controls or not case.adapters:
        reason = (
            "No bank of clean adapters was given (--controls DIR)."
            if not case.controls
            else "Without an adapter nothing is held against a bank."
        )
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    if len(case.adapters) > 1:
        reason = "Several adapters together are no member of a bank of single ones; each is held against it alone."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    return _held_against(case)


def _held_against(case: Case) -> CheckResult:
    import numpy as np

    from probes.outliers import FIGURES, outlying  # heavy: brings torch

    (adapter,) = case.adapters
    own, *bank = (
        case.workbench.remembered(f"figures {one.digest}", partial(described, one))
        for one in (adapter, *(control for control in case.controls if weights(control) != weights(adapter)))
    )
    if not own:
        reason = "It changes nothing by factors alone, so it has no spectra of theirs."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    alike = [one for one in bank if own.keys() <= one.keys()]
    counts = Evidence(
        name="controls.alike", value=len(alike), unit="adapters", where=adapter.name, n=len(bank),
        expected=f"at least {LEAST}: clean adapters that change the roles it changes",
    )  # fmt: skip
    if len(alike) < LEAST:
        reason = (
            f"Of {len(bank)} other adapters in the bank {len(alike)} change what this one changes ({', '.join(own)}); at least {LEAST} are "
            f"needed for a p-value of {LEVEL}."
        )
        return CheckResult(check=ID, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=reason, evidence=(counts,))
    names = [f"{role}: {figure}" for role in own for figure in FIGURES]
    found = outlying(np.concatenate(list(own.values())), np.stack([np.concatenate([one[role] for role in own]) for one in alike]))
    far = int(np.argmax(found.spreads))
    evidence = (
        Evidence(
            name="controls.p_value", value=found.p_value, unit="probability", where=adapter.name, n=len(alike),
            expected=f"over {LEVEL} for an adapter like the others; never under {1.0 / (len(alike) + 1):.2g}",
        ),
        Evidence(
            name="controls.furthest", value=float(found.spreads[far]), unit="robust standard deviations", where=names[far], n=len(alike),
            expected="a few: the furthest of all figures from the bank's median",
        ),
        counts,
    )  # fmt: skip
    outlier = found.p_value <= LEVEL
    finding = Finding(
        id=f"{ID}/spectral-outlier", check=ID, label="spectral-outlier", severity="medium", confidence="medium", evidence=evidence,
        claim=f"Its spectra lie outside of those of {len(alike)} clean adapters, furthest in the {names[far].split(': ')[1]} of its changes to {names[far].split(':')[0]}.",
    )  # fmt: skip
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.FLAGGED if outlier else Status.NO_FINDING,
        findings=(finding,) if outlier else (),
        evidence=evidence,
    )


CHECK = Check(id=ID, question="Does an adapter look like adapters that are known to be clean?", cost="weights", run=run, by_controls=True)
