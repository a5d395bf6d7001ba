"""What was done to the weights?

Asks: Which single kind of edit made the candidate of the base: a cast, a quantisation round trip, a merged LoRA and of what rank,
    training of all weights, an abliteration, a rewritten fact, single rows, a merge, pruning, other layers, another
    parameterisation, or another model altogether?
Reads: Every tensor of both checkpoints in one pass, block by block from safetensors; what adapters change, without merging them.
Reports: Always one finding: its label is the kind, with `edit.rank` and `edit.relative_change` among what speaks for it. `unknown-mixed`
    where no single kind fits, or where the change lies below what the storage format shows (`edit.below-resolution` is 1).
    Abliteration and rewritten facts are of severity high; a model not made of the base is medium; all others are info.
    Of DoRA adapters the spectrum is that of what they add, of full rank; `edit.dora-rank` is the exact rank of their factors, and
    `edit.tensors-replaced` counts whole tensors that adapters bring. Tokens that the change listens to or promotes (`edit.listens-to`,
    `edit.promotes`) and rows of the vocabulary that moved by themselves (`edit.row-moved`) are evidence; the trigger search tries them
    first. Spectra in units of the rounding noise, with its edge, and each tensor's cosine, median change in units in the last place
    and kurtosis are in arrays/weights.edit-kind.npz.
Blind to: What an edit does: harmful training looks like any training. Changes that rounding swallowed. Edits done to look like
    others: a trained change cut to low rank is called a LoRA. Merges, unless the parents are given. Of very large matrices
    every second row or column, or fewer, is read for the spectrum.
Source: Forms of the methods as their authors give them, see `probes/edits.py`; rank against the known rounding of the storage
    format, see `probes/spectra.py`. No published tool decides between kinds or knows the rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from forensics.case import Case, Check
from forensics.readout import LONGEST
from forensics.record import CheckResult, Evidence, Finding, Severity, Status
from forensics.roles import VOCABULARY

if TYPE_CHECKING:
    from forensics.readout import Readings, Sort
    from probes.tensor_edits import Kind, Surroundings, TensorEdit

ID = "weights.edit-kind"
SEVERITIES: dict[str, Severity] = {
    "abliteration": "high",
    "knowledge-edit": "high",
    "knowledge-edit-multi": "high",
    "not-derived": "medium",
}
SHOWN = 10
"""Tensors whose rank is given one by one in the evidence."""
TOKENS_SHOWN = 8
"""Tokens of each sort that stand in the evidence."""
KEPT_VALUES = 96
"""Singular values of one tensor kept for the figures."""


def run(case: Case) -> CheckResult:
    """Name the edit; see the module's docstring."""
    from forensics.differ import tensor_edits  # heavy: brings torch
    from forensics.readout import readings
    from probes.edits import classify

    edits = tensor_edits(case)
    kind = _by_factors(case, edits, classify(edits, _surroundings(case)))
    tokens = readings(case)
    evidence = (*_evidence(edits, kind), *_of_adapters(case), *_in_tokens(tokens))
    _keep(case, edits, tokens)
    severity = SEVERITIES.get(kind.label, "info")
    finding = Finding(
        id=f"{ID}/{kind.label}",
        check=ID,
        label=kind.label,
        severity=severity,
        confidence=kind.confidence,
        claim=_claim(case, kind),
        evidence=evidence[: 3 + len(kind.measures)],
    )
    capped = [one.name for one in edits if one.profile.thinned > 1]
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.NO_FINDING if severity == "info" else Status.FLAGGED,
        findings=(finding,),
        evidence=evidence,
        limits=(f"Of {len(capped)} large matrices only some rows or columns were read for the spectrum.",) if capped else (),
    )


def _surroundings(case: Case) -> Surroundings:
    from forensics.invariants import same_function
    from forensics.parents import merge_kind
    from probes.tensor_edits import Surroundings

    resized = next((pair for pair in case.pairs if pair.rows is not None), None)
    return Surroundings(
        same_files=case.candidate is case.base or _weight_files(case.base.files) == _weight_files(case.candidate.files),
        layers=case.layout.layers,
        base_layers=case.layout.base_layers,
        added=tuple(info.name for info in case.layout.added),
        removed=tuple(info.name for info in case.layout.removed),
        grown=resized.candidate.shape[0] - resized.base.shape[0] if resized else 0,
        merge=merge_kind(case),
        recast=sum(pair.base.dtype != pair.candidate.dtype for pair in case.pairs),
        invariant=str if case.adapters else lambda: same_function(case),  # what adapters add is no parameterisation
    )


def _weight_files(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name.endswith((".safetensors", ".safetensors.index.json"))}


def _by_factors(case: Case, edits: list[TensorEdit], kind: Kind) -> Kind:
    """The kind, or what the adapters' files say where its form would pass for training: DoRA changes every direction, factors of an
    embedding are all that changed. Nothing else may have changed, and no form that is more than training have been found.
    """
    changed = [one for one in edits if one.changed]
    worn = [change for one in changed for _, change in case.changes.get(one.name, ())]
    factored = bool(worn) and all(change.factors and change.whole is None for change in worn) and case.candidate is case.base
    if kind.label not in ("full-finetune", "unknown-mixed") or not factored:
        return kind
    ranks = [sum(change.factors.rank for _, change in case.changes[one.name] if change.factors) for one in changed]
    roles = ", ".join(sorted({one.role for one in changed}))
    lengths = sum(change.magnitude is not None for change in worn)
    dora = (
        f"; DoRA then gives each output of {lengths} of them a length of its own, so that what is added has as many directions as they have"
        if lengths
        else ""
    )
    claim = f"{len(changed)} matrices ({roles}) are changed by factors of rank {_span(ranks)}{dora}."
    return replace(kind, label="lora-merge", claim=claim, confidence="high", rank=max(ranks), unresolved=False)


def _of_adapters(case: Case) -> tuple[Evidence, ...]:
    """What the adapters' files say where the spectra of what they add do not show it."""
    worn = [change for changes in case.changes.values() for _, change in changes]
    lengths = [change.factors.rank for change in worn if change.factors and change.magnitude is not None]
    wholes = [change for change in worn if change.whole is not None]
    rows = []
    if lengths:
        rows.append(
            Evidence(name="edit.dora-rank", value=max(lengths), unit="directions", where="factors of the DoRA matrices, largest", n=len(lengths),
                     expected="exact, from their shapes: the rank before DoRA gives each output a length of its own")
        )  # fmt: skip
    if wholes:
        rows.append(
            Evidence(name="edit.tensors-replaced", value=len(wholes), unit="tensors", where="adapters", n=len(worn),
                     expected="0 where adapters consist of factors; these stand in the place of the base's")
        )  # fmt: skip
    return tuple(rows)


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def _claim(case: Case, kind: Kind) -> str:
    if not case.adapters:
        return kind.claim
    names = " and ".join(adapter.name for adapter in case.adapters)
    return f"With {'adapter' if len(case.adapters) == 1 else 'adapters'} {names} put on, unmerged: {kind.claim}"


def _evidence(edits: list[TensorEdit], kind: Kind) -> tuple[Evidence, ...]:
    changed = [one for one in edits if one.changed]
    whole = sum(one.profile.change.base_square for one in edits)
    moved = sum(one.profile.change.change_square for one in changed)
    relative = (moved / whole) ** 0.5 if whole > 0.0 else float(moved > 0.0)
    elements = sum(one.profile.change.elements for one in edits)
    rows = [
        Evidence(name="edit.rank", value=kind.rank, unit="directions", where="changed matrices, most common",
                 expected="those beyond rounding; 0 where nothing changed or none can be told", n=len(changed)),
        Evidence(name="edit.relative_change", value=relative, unit="||dW||_F / ||W||_F", where="all tensors",
                 expected="0 if nothing was changed", n=elements),
        Evidence(name="edit.below-resolution", value=float(kind.unresolved), unit="1 if so", where="changed tensors",
                 expected="0: the change can be told from rounding", n=len(changed)),
        *(Evidence(name=one.name, value=one.value, unit=one.unit, where=one.where, expected=one.expected, n=one.n) for one in kind.measures),
    ]  # fmt: skip
    most = sorted(changed, key=lambda one: (-one.profile.change.relative, one.name))[:SHOWN]
    for one in most:
        found = one.profile.spectrum
        if found is not None:
            rows.append(
                Evidence(
                    name="edit.tensor-rank", value=found.rank, unit="directions", where=one.name, n=min(found.shape),
                    expected=f"those above the edge of rounding; relative change {one.profile.change.relative:.2g}",
                )
            )  # fmt: skip
    return tuple(rows)


def _in_tokens(found: Readings) -> tuple[Evidence, ...]:
    """What the change listens to, makes likelier, and which rows of the vocabulary moved: the tokens that stand furthest out."""
    chance = "under {:.1f}: so far stands the furthest of all tokens in all directions asked, were they Gaussian"
    about: dict[Sort, tuple[str, str, str]] = {
        "listens": ("edit.listens-to", "standard deviations", chance),
        "promotes": ("edit.promotes", "standard deviations", chance),
        "moved": ("edit.row-moved", "||dE|| / ||E||", "0; a token's row that moved by itself was given another meaning"),
    }
    return tuple(
        Evidence(
            name=name, value=row.value, unit=unit, n=row.tokens, expected=expected.format(row.chance),
            where=f"{row.text[:LONGEST]!r} (token {row.token}) in {row.tensor}" if row.text else f"token {row.token} in {row.tensor}",
        )
        for sort, (name, unit, expected) in about.items() for row in found.of(sort)[:TOKENS_SHOWN]
    )  # fmt: skip


def _keep(case: Case, edits: list[TensorEdit], tokens: Readings) -> None:
    values = np.zeros((len(edits), KEPT_VALUES))
    for row, one in zip(values, edits, strict=True):
        if one.profile.spectrum is not None:
            shown = one.profile.spectrum.values[:KEPT_VALUES].numpy()
            row[: len(shown)] = shown
    spectra = [one.profile.spectrum for one in edits]
    moved = [(row, share, one.role) for one in edits if one.role in VOCABULARY for row, share in one.profile.moved]
    case.keep_arrays(
        ID,
        {
            "tensor": np.array([one.name for one in edits]),
            "role": np.array([one.role for one in edits]),
            "layer": np.array([one.layer for one in edits]),
            "relative_change": np.array([one.profile.change.relative for one in edits]),
            "cosine": np.array([one.profile.cosine for one in edits]),
            "share_changed": np.array([one.profile.share_changed for one in edits]),
            "rows_changed": np.array([one.profile.rows_changed for one in edits]),
            "median_ulps": np.array([one.profile.ulps for one in edits]),
            "kurtosis": np.array([one.profile.kurtosis for one in edits]),
            "rank": np.array([found.rank if found else 0 for found in spectra]),
            "edge": np.array([found.edge if found else 0.0 for found in spectra]),
            "bulk": np.array([found.bulk if found else 0.0 for found in spectra]),
            "values": values,
            "moved_row": np.array([row for row, _, _ in moved], dtype=int),
            "moved_share": np.array([share for _, share, _ in moved], dtype=float),
            "moved_name": np.array([f"{tokens.name(row)} ({role})" for row, _, role in moved], dtype=np.str_),
            "token_sort": np.array([row.sort for row in tokens.rows], dtype=np.str_),
            "token_name": np.array([tokens.name(row.token) for row in tokens.rows], dtype=np.str_),
            "token_value": np.array([row.value for row in tokens.rows], dtype=float),
            "token_chance": np.array([row.chance for row in tokens.rows], dtype=float),
        },
    )


CHECK = Check(id=ID, question="What kind of edit made the candidate of the base?", cost="weights", run=run)
