"""How far have the weights moved?

Asks: Which tensors differ from the base, by how much, and is that more than rounding to the storage dtype would do?
    Which tensors, layers and rows of the vocabulary has only one side?
Reads: Every tensor of both checkpoints that has a counterpart, block by block from safetensors, quantised ones as the
    numbers they stand for; what adapters change, without merging them.
Reports: `edit.relative_change`, how many tensors and entries changed, the rounding floor of the dtype, the tensors that
    moved most; `tensors-added`, `tensors-removed`, `layers-moved`, `vocabulary-resized` where the sides do not hold the
    same. A change is reported as `info`: by itself it is neither good nor bad. Weights that are not finite are
    `not-finite`, severity high.
Blind to: What kind of edit it was and what it does. A change that rounding swallowed, or that is no larger than what
    quantising one side did. What only one side has. Re-parameterisations that leave the function alone look like large
    changes.
Source: Relative Frobenius change as in mergekit and abliterlitics; rounding model: errors uniform within half a unit
    in the last place (see `probes/rounding.py`), which neither of them has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from forensics.alignment import Layout
from forensics.case import Case, Check
from forensics.differ import measured
from forensics.headers import TensorInfo
from forensics.record import CheckResult, Evidence, Finding, Status

if TYPE_CHECKING:
    from probes.blocks import TensorChange

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
    evidence = (*_evidence(case, changes), *_about_layout(case.layout), *_moved_most(changes))
    findings = (*_findings(changes, evidence), *_layout_findings(case.layout, evidence))
    flagged = any(finding.severity != "info" for finding in findings)
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.FLAGGED if flagged else Status.NO_FINDING,
        findings=findings,
        evidence=evidence,
        limits=_limits(case),
    )


def _total(changes: dict[str, TensorChange], part: Callable[[TensorChange], float]) -> float:
    return sum(part(change) for change in changes.values())


def _evidence(case: Case, changes: dict[str, TensorChange]) -> tuple[Evidence, ...]:
    elements = int(_total(changes, lambda change: change.elements))
    whole = max(_total(changes, lambda change: change.base_square), 1e-300)
    moved = _moved(changes)
    above = [name for name in moved if changes[name].relative > changes[name].floor]
    casts = [pair for pair in case.pairs if pair.base.dtype != pair.candidate.dtype]
    everywhere = "all tensors"
    return (
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
    )  # fmt: skip


def _moved(changes: dict[str, TensorChange]) -> list[str]:
    """Names of the tensors that changed, those that changed most first."""
    return sorted((name for name in changes if changes[name].changed), key=lambda name: (-changes[name].relative, name))


def _moved_most(changes: dict[str, TensorChange]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            name="weights.relative-change",
            value=changes[name].relative,
            unit="||dW||_F / ||W||_F",
            where=name,
            expected=f"rounding alone: {changes[name].floor:.2g}",
            n=changes[name].elements,
        )
        for name in _moved(changes)[:SHOWN]
    )


def _about_layout(layout: Layout) -> tuple[Evidence, ...]:
    """What has no counterpart, or one in another place; all 0 where both sides hold the same."""
    resized = _resized(layout)
    both = len(layout.pairs)
    rows = (
        ("tensors-added", len(layout.added), "tensors", "candidate", "0: the base has a counterpart of each", both + len(layout.added)),
        (
            "tensors-removed",
            len(layout.removed),
            "tensors",
            "base",
            "0: the candidate has a counterpart of each",
            both + len(layout.removed),
        ),
        ("tensors-renamed", layout.renamed, "tensors", "candidate", "0: both sides call them alike, prefixes included", both),
        ("layers-moved", len(layout.moved), "layers", "candidate", "0: each stands for the base's layer at its place", len(layout.layers)),
        (
            "vocabulary-resized",
            max((abs(new - old) for old, new in resized), default=0),
            "rows",
            "vocabulary",
            "0: both know as many tokens",
            None,
        ),
    )
    return tuple(
        Evidence(name=f"weights.{name}", value=value, unit=unit, where=where, expected=expected, n=n)
        for name, value, unit, where, expected, n in rows
    )


def _resized(layout: Layout) -> list[tuple[int, int]]:
    """Rows in the base and in the candidate of each matrix in which they differ."""
    return [(pair.base.shape[0], pair.candidate.shape[0]) for pair in layout.pairs if pair.rows is not None]


def _limits(case: Case) -> tuple[str, ...]:
    layout, limits = case.layout, []
    if layout.added or layout.removed or _resized(layout):
        limits.append("What only one of base and candidate has (tensors, rows of the vocabulary) was counted, not measured.")
    recipes = case.base.recipes, case.candidate.recipes
    quantised = sum(pair.base.name in recipes[0] or pair.candidate.name in recipes[1] for pair in layout.pairs)
    if quantised and not case.identical:
        limits.append(f"{quantised} tensors are quantised on a side: what that did to them cannot be told from an edit of the same size.")
    return tuple(limits)


def _layout_findings(layout: Layout, evidence: tuple[Evidence, ...]) -> tuple[Finding, ...]:
    """What is to be said where base and candidate do not hold the same tensors; by itself neither good nor bad."""
    places = [f"{place} stands for {layout.layers[place]}" for place in layout.moved]
    sizes = sorted({f"{old} to {new}" for old, new in _resized(layout)})
    claims = {
        "tensors-added": f"{len(layout.added)} tensors of the candidate have no counterpart in the base: {_some(layout.added)}.",
        "tensors-removed": f"{len(layout.removed)} tensors of the base have no counterpart in the candidate: {_some(layout.removed)}.",
        "layers-moved": f"{len(places)} of the candidate's {len(layout.layers)} layers stand for a layer at another place of the base's "
        f"{layout.base_layers}: {_listed(places)}.",
        "vocabulary-resized": f"The vocabulary went from {', '.join(sizes)} rows; only those that both have were compared.",
    }
    by_name = {row.name.removeprefix("weights."): row for row in evidence}
    return tuple(
        Finding(
            id=f"{ID}/{name}", check=ID, label=name, severity="info", confidence="high",
            claim=claim, evidence=(by_name[name],),
        )
        for name, claim in claims.items()
        if by_name[name].value
    )  # fmt: skip


def _some(infos: tuple[TensorInfo, ...]) -> str:
    return _listed([info.name for info in infos])


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
