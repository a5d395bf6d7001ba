"""Where do base and candidate part inside?

Asks: On the same prompts, from which layer on do the two residual streams differ, and by how much? Is it the same for
    harmful and harmless prompts?
Reads: The residual stream entering every block and leaving the last one (`blocks.{l}.hook_resid_pre`, `hook_resid_post`)
    at the last prompt token, each side in its own chat format, adapters live; up to 128 prompts of either kind. Where
    layers were added, taken out or moved, each of the candidate's is held against the one it stands for.
Reports: `drift.maximum`, `drift.last-layer`, `drift.onset` for harmful and harmless prompts: distance relative to the
    base's activations, cosine, and debiased linear CKA, which ignores rotation and scale. A change is `parted`, severity
    info: by itself it is neither good nor bad. Curves over layers are in arrays/activations.drift.npz.
Blind to: What the difference does. Other tokens than the last of the prompt. Differences only an unseen input shows.
Source: Linear CKA, Kornblith et al. 2019, arXiv:1905.00414, unbiased as in Song et al. 2012; activation differences as in
    science-of-finetuning/diffing-toolkit, which trains dictionaries on them; here they are only measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forensics.alignment import Layout
from forensics.case import Case, Check
from forensics.errors import CannotCompare
from forensics.gate.replies import Side
from forensics.prompts import Expect, Prompt
from forensics.record import CheckResult, Evidence, Finding, Status
from probes.geometry import linear_cka, mean_cosine, relative_distance
from probes.linear import stratified_parts

ID = "activations.drift"
MOST = 128
"""Prompts of one kind that are read: the curves do not change with more, and a large model's activations fill the disk."""
LEAST = 4
"""Fewest prompts of one kind; the alignment is not defined for less."""
ONSET = 0.1
"""The streams part where the distance first exceeds this share of its largest value. A share, because no absolute size
is meaningful across models; one tenth, because a distance grows by amplification after it has arisen, not before."""
KINDS: tuple[tuple[Expect, str], ...] = (("refuse", "harmful"), ("comply", "harmless"))
Curve = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One kind of prompts: distance and cosine per layer; alignment where the activations vary from prompt to prompt."""

    kind: str
    n: int
    distance: Curve
    cosine: Curve
    cka_layer: NDArray[np.int64]
    cka: Curve


def run(case: Case) -> CheckResult:
    """Read both sides and measure how far apart they are; see the module's docstring."""
    if not case.prompts:
        reason = "No prompts were given (--prompts FILE.jsonl), so nothing was read."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    chosen = {kind: _chosen(case, expect) for expect, kind in KINDS}
    if case.identical:
        return _identical(case, chosen)
    found, limits = [], []
    ours = {kind: _read(case, "base", prompts) for kind, prompts in chosen.items()}  # each model is loaded once
    theirs = {kind: _read(case, "candidate", prompts) for kind, prompts in chosen.items()}
    if not case.layout.in_place:
        ours = {kind: _beside(rows, theirs[kind], case.layout) for kind, rows in ours.items()}
    for kind in chosen:
        both = [id for id in ours[kind] if id in theirs[kind]]
        if len(both) < LEAST:
            limits.append(f"Drift on {kind} prompts was not measured: at least {LEAST} are needed that both models can read.")
        else:
            found.append(_compare(kind, *(np.stack([side[kind][id] for id in both]) for side in (ours, theirs))))
    if not found:
        return CheckResult(check=ID, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=" ".join(limits))
    case.keep_arrays(ID, {name: array for curves in found for name, array in _arrays(curves).items()})
    evidence = tuple(row for curves in found for row in _evidence(curves))
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.NO_FINDING,
        findings=_findings(found, evidence),
        evidence=evidence,
        limits=tuple(limits),
    )


def _chosen(case: Case, expect: Expect) -> tuple[Prompt, ...]:
    """Up to `MOST` prompts of one kind, the categories in their proportion; the order of the file is kept."""
    prompts = [prompt for prompt in case.prompts if prompt.expect == expect]
    (part,) = stratified_parts([prompt.category for prompt in prompts], [min(MOST, len(prompts))], seed=case.seed)
    return tuple(prompts[index] for index in sorted(part))


def _read(case: Case, side: Side, prompts: tuple[Prompt, ...]) -> dict[str, NDArray[np.floating]]:
    """Activations `[layers, d]` at the last token of each prompt that this side can read, by prompt id."""
    from forensics.capture import Sites  # heavy: brings torch

    rendered = {prompt.id: case.model(side).render(prompt, room=0) for prompt in prompts}
    readable = {id: row for id, row in rendered.items() if not row.problem}
    if not readable:
        return {}
    sites = Sites(layers=tuple(range(case.subject(side).anatomy().layers + 1)))
    return dict(zip(readable, case.activations(side, list(readable.values()), sites)[:, :, 0], strict=True))


def _beside(
    ours: dict[str, NDArray[np.floating]], theirs: dict[str, NDArray[np.floating]], layout: Layout
) -> dict[str, NDArray[np.floating]]:
    """The base's activations at the layers that the candidate's stand for, and at its own last one.

    Raises:
        CannotCompare: The models have other layers than their checkpoints.
    """
    blocks = [{len(rows) - 1 for rows in side.values()} for side in (ours, theirs)]
    if not all(found <= {count} for found, count in zip(blocks, (layout.base_layers, len(layout.layers)), strict=True)):
        raise CannotCompare(
            "layers were added, taken out or moved, and the models have other layers than their files",
            where="config.json: num_hidden_layers",
            hint="mend the config, or read weights.change alone",
        )
    return {id: rows[[*layout.layers, layout.base_layers]] for id, rows in ours.items()}


def _compare(kind: str, a: NDArray[np.floating], b: NDArray[np.floating]) -> Curves:
    """Curves over layers of activations `[n, layers, d]` of the same prompts."""
    aligned: list[tuple[int, float]] = []
    for layer in range(a.shape[1]):
        try:
            aligned.append((layer, linear_cka(a[:, layer], b[:, layer])))
        except ValueError:
            continue  # at a template token the first layers hold the same vector for every prompt: nothing to align
    layers = range(a.shape[1])
    return Curves(
        kind=kind,
        n=len(a),
        distance=np.array([relative_distance(a[:, layer], b[:, layer]) for layer in layers]),
        cosine=np.array([mean_cosine(a[:, layer], b[:, layer]) for layer in layers]),
        cka_layer=np.array([layer for layer, _ in aligned], dtype=np.int64),
        cka=np.array([value for _, value in aligned]),
    )


def _arrays(curves: Curves) -> dict[str, NDArray[np.generic]]:
    kind = curves.kind
    return {
        "layer": np.arange(len(curves.distance)),
        f"relative_distance_{kind}": curves.distance,
        f"cosine_{kind}": curves.cosine,
        f"cka_{kind}": curves.cka,
        f"cka_layer_{kind}": curves.cka_layer,
    }


def _evidence(curves: Curves) -> list[Evidence]:
    from forensics.capture import site_name  # heavy: brings torch

    blocks, distance = len(curves.distance) - 1, curves.distance
    largest = int(distance.argmax())
    unit, expected = "||h' - h|| / ||h||", "0 if nothing was changed; the size alone is neither good nor bad"

    def row(name: str, value: float, unit: str, layer: int, expected: str) -> Evidence:
        where = f"{site_name(layer, blocks)}, last prompt token, {curves.kind} prompts"
        return Evidence(name=f"{name}.{curves.kind}", value=value, unit=unit, where=where, expected=expected, n=curves.n)

    rows = [
        row("drift.maximum", float(distance[largest]), unit, largest, expected),
        row("drift.last-layer", float(distance[-1]), unit, blocks, expected),
        row("drift.cosine-last-layer", float(curves.cosine[-1]), "cosine", blocks, "1 if nothing was changed"),
    ]
    if distance[largest] > 0.0:
        onset = int(np.argmax(distance > ONSET * distance[largest]))
        rows.append(row("drift.onset", onset, "layer", onset, f"first layer over {ONSET:g} of the maximum; 0 is the embedding"))
    if len(curves.cka):
        least = int(curves.cka.argmin())
        where = int(curves.cka_layer[least])
        rows.append(
            row("drift.least-cka", float(curves.cka[least]), "debiased linear CKA", where, "1 if nothing but a rotation was changed")
        )
    return rows


def _findings(found: list[Curves], evidence: tuple[Evidence, ...]) -> tuple[Finding, ...]:
    moved = [curves for curves in found if curves.distance.max() > 0.0]
    if not moved:
        return ()
    by_name = {row.name: row for row in evidence}
    parts = []
    for curves in moved:
        onset, most = by_name[f"drift.onset.{curves.kind}"], by_name[f"drift.maximum.{curves.kind}"]
        parts.append(f"on {curves.kind} prompts from layer {int(onset.value)} on, by at most {most.value:.2g} of their size")
    used = tuple(row for row in evidence if row.name.startswith(("drift.onset", "drift.maximum")))
    claim = f"The residual streams of base and candidate part {'; '.join(parts)}."
    return (Finding(id=f"{ID}/parted", check=ID, label="parted", severity="info", confidence="high", claim=claim, evidence=used),)


def _identical(case: Case, chosen: dict[str, tuple[Prompt, ...]]) -> CheckResult:
    """The same bytes give the same activations: nothing has to be loaded to say so."""
    evidence = tuple(
        Evidence(
            name=f"drift.maximum.{kind}", value=0.0, unit="||h' - h|| / ||h||", where=f"all layers, {kind} prompts",
            expected="0: both sides are the same bytes, so nothing was run", n=len(prompts),
        )
        for kind, prompts in chosen.items()
    )  # fmt: skip
    return CheckResult(check=ID, configuration=case.configuration, status=Status.NO_FINDING, evidence=evidence)


CHECK = Check(id=ID, question="Where do base and candidate part inside?", cost="activations", run=run, needs=("refuse", "comply"))
