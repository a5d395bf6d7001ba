"""How far have the weights moved?

Asks: Which tensors differ from the base, by how much, and is that more than rounding to the storage dtype would do?
Reads: Every tensor of both checkpoints, block by block from safetensors; adapter factors, without merging them.
Reports: `edit.relative_change`, how many tensors and entries changed, the rounding floor of the dtype, the tensors that
    moved most. A change is reported as `info`: by itself it is neither good nor bad. Weights that are not finite are
    `not-finite`, severity high.
Blind to: What kind of edit it was and what it does. A change that rounding swallowed. Re-parameterisations that leave
    the function alone look like large changes.
Source: Relative Frobenius change as in mergekit and abliterlitics; rounding model: errors uniform within half a unit
    in the last place (see `probes/rounding.py`), which neither of them has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from forensics.case import Case, Check
from forensics.differ import measured
from forensics.record import CheckResult, Evidence, Finding, Status

if TYPE_CHECKING:
    from probes.rounding import TensorChange

ID = "weights.change"
SHOWN = 10
"""Tensors named one by one in the evidence; all of them are in arrays/weights.change.npz."""


def run(case: Case) -> CheckResult:
    """Measure the change of every tensor; see the module's docstring."""
    changes = {name: profile.change for name, profile in measured(case).items()}
    names = [pair.name for pair in case.pairs]
    case.keep_arrays(
        ID,
        {
            "tensor": np.array(names),
            "relative_change": np.array([changes[name].relative for name in names]),
            "rounding_floor": np.array([changes[name].floor for name in names]),
            "share_changed": np.array([changes[name].changed / max(1, changes[name].elements) for name in names]),
        },
    )
    evidence = _evidence(case, changes)
    findings = _findings(changes, evidence)
    flagged = any(finding.severity != "info" for finding in findings)
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.FLAGGED if flagged else Status.NO_FINDING,
        findings=findings,
        evidence=evidence,
    )


def _total(changes: dict[str, TensorChange], part: Callable[[TensorChange], float]) -> float:
    return sum(part(change) for change in changes.values())


def _evidence(case: Case, changes: dict[str, TensorChange]) -> tuple[Evidence, ...]:
    elements = int(_total(changes, lambda change: change.elements))
    whole = max(_total(changes, lambda change: change.base_square), 1e-300)
    moved = sorted((name for name in changes if changes[name].changed), key=lambda name: (-changes[name].relative, name))
    above = [name for name in moved if changes[name].relative > changes[name].floor]
    casts = [pair for pair in case.pairs if pair.base.dtype != pair.candidate.dtype]
    everywhere = "all tensors"
    rows = [
        Evidence(
            name="edit.relative_change",
            value=(_total(changes, lambda change: change.change_square) / whole) ** 0.5,
            unit="||dW||_F / ||W||_F",
            where=everywhere,
            expected="0 if nothing was changed; compare with weights.rounding-floor",
            n=elements,
        ),
        Evidence(
            name="weights.rounding-floor",
            value=(_total(changes, lambda change: change.rounding_square) / whole) ** 0.5,
            unit="||dW||_F / ||W||_F",
            where=everywhere,
            expected="what rounding every entry once more to the candidate's storage dtype would change",
            n=elements,
        ),
        Evidence(
            name="weights.tensors-changed", value=len(moved), unit="tensors", where=everywhere,
            expected="0 if nothing was changed", n=len(changes),
        ),
        Evidence(
            name="weights.tensors-above-floor", value=len(above), unit="tensors", where=everywhere,
            expected="0 if the change is within rounding", n=len(changes),
        ),
        Evidence(
            name="weights.entries-changed", value=100.0 * _total(changes, lambda change: change.changed) / max(1, elements),
            unit="% of entries", where=everywhere, expected="0 if nothing was changed", n=elements,
        ),
        Evidence(
            name="weights.dtype-changed", value=len(casts), unit="tensors", where=everywhere,
            expected="0; where the storage dtype differs, the base is cast to the candidate's before comparing", n=len(changes),
        ),
        Evidence(
            name="weights.not-finite", value=_total(changes, lambda change: change.not_finite), unit="entries", where=everywhere,
            expected="0: no NaN or infinity that the base does not have", n=elements,
        ),
    ]  # fmt: skip
    rows += [
        Evidence(
            name="weights.relative-change",
            value=changes[name].relative,
            unit="||dW||_F / ||W||_F",
            where=name,
            expected=f"rounding alone: {changes[name].floor:.2g}",
            n=changes[name].elements,
        )
        for name in moved[:SHOWN]
    ]
    return tuple(rows)


def _findings(changes: dict[str, TensorChange], evidence: tuple[Evidence, ...]) -> tuple[Finding, ...]:
    by_name = {item.name: item for item in reversed(evidence)}
    findings = []
    broken = sorted(name for name in changes if changes[name].not_finite)
    if broken:
        findings.append(
            Finding(
                id=f"{ID}/not-finite",
                check=ID,
                label="not-finite",
                severity="high",
                confidence="high",
                claim=f"{len(broken)} tensors hold NaN or infinite weights that the base does not have, first {broken[0]}.",
                evidence=(by_name["weights.not-finite"],),
            )
        )
    tensors = by_name["weights.tensors-changed"]
    if tensors.value:
        above = int(by_name["weights.tensors-above-floor"].value)
        size = by_name["edit.relative_change"]
        how = f"{above} of them by more than rounding would" if above else "none of them by more than rounding would"
        findings.append(
            Finding(
                id=f"{ID}/{'changed' if above else 'within-rounding'}",
                check=ID,
                label="changed" if above else "within-rounding",
                severity="info",
                confidence="high",
                claim=f"{int(tensors.value)} of {tensors.n} tensors differ from the base, {how} (relative change {size.value:.3g}).",
                evidence=(size, by_name["weights.rounding-floor"], tensors),
            )
        )
    casts = by_name["weights.dtype-changed"]
    if casts.value:
        findings.append(
            Finding(
                id=f"{ID}/dtype-changed",
                check=ID,
                label="dtype-changed",
                severity="info",
                confidence="high",
                claim=f"{int(casts.value)} tensors are stored in another dtype than in the base.",
                evidence=(casts,),
            )
        )
    return tuple(findings)


CHECK = Check(id=ID, question="How far have the weights moved, measured against rounding?", cost="weights", run=run)
