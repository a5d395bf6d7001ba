"""Where do base and candidate part inside?

Asks: On the same prompts, from which layer on and at which tokens do the two residual streams differ, and by how much? Is it the same
    for harmful and harmless prompts? How far apart is what they say, and does the change of the weights explain the difference?
Reads: The residual stream entering every block and leaving the last one (`blocks.{l}.hook_resid_pre`, `hook_resid_post`), each side
    in its own chat format, adapters live: at the last prompt token, up to 128 prompts of either kind; at the template's tokens, the
    last three of the question and the first four of the base's own reply, up to 24. Next tokens after those 24 and along 12 of the
    base's replies. Where layers were added, taken out or moved, each of the candidate's is held against the one it stands for.
Reports: For harmful and harmless prompts `drift.maximum`, `drift.last-layer`, `drift.onset` (distance relative to the base's
    activations), cosine, and debiased linear CKA, which ignores rotation and scale; `drift.category.<kind>.<name>`; `drift.place.maximum`;
    `drift.kl.first` and `drift.kl.reply`, KL both ways in nats, the direction in the name; `drift.explained`, the share of the mean
    difference that 8 directions of the change of the writing matrices hold. A change is `parted`, severity info: by itself it is
    neither good nor bad. Curves and maps are in arrays/activations.drift.npz.
Blind to: What the difference does (`activations.meaning` reads it). Tokens that the two sides do not read alike, and places where a side
    holds nothing but zeros, which are left out and counted. Differences only an unseen input shows.
Source: Linear CKA, Kornblith et al. 2019, arXiv:1905.00414, unbiased as in Song et al. 2012; activation differences and KL by token as
    in science-of-finetuning/diffing-toolkit, which trains dictionaries on them; here they are only measured. Holding the mean
    difference against directions of the weight change is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.beside import Reading, both, comparable, layers_beside, shared_tokens
from forensics.case import Case, Check
from forensics.explained import SPAN, Explained, explained
from forensics.prompts import Expect, Prompt
from forensics.record import CheckResult, Evidence, Finding, Status
from probes.divergence import among, divergences
from probes.geometry import linear_cka, mean_cosine, relative_distance
from probes.linear import stratified_parts

if TYPE_CHECKING:
    from forensics.parting import Part

ID = "activations.drift"
MOST = 128
"""Prompts of one kind that are read: the curves do not change with more, and a large model's activations fill the disk."""
LEAST = 4
"""Fewest prompts of one kind; the alignment is not defined for less."""
ONSET = 0.1
"""The streams part where the distance first exceeds this share of its largest value. A share, because no absolute size
is meaningful across models; one tenth, because a distance grows by amplification after it has arisen, not before."""
SLIGHT = 1e-6
"""Share of probability outside of the shared vocabulary that is only rounding."""
KINDS: tuple[tuple[Expect, str], ...] = (("refuse", "harmful"), ("comply", "harmless"))
Curve = NDArray[np.float64]
Cells = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """One kind of prompts: distance and cosine per layer; alignment where the activations vary from prompt to prompt.

    `asked` prompts of the kind were to be read, `n` were. `held` says where distance and cosine are defined; elsewhere they are 0.
    `difference` is the mean difference `[layers + 1, d]`; `categories` the distance at every layer by category, where it is defined,
    with its prompts.
    """

    kind: str
    asked: int
    n: int
    distance: Curve
    cosine: Curve
    held: Cells
    cka_layer: NDArray[np.int64]
    cka: Curve
    difference: Curve
    categories: dict[str, tuple[Curve, Cells, int]]

    @property
    def largest(self) -> int:
        """The layer of the largest distance, of those where it is defined."""
        return int(np.where(self.held, self.distance, -1.0).argmax())


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """One kind of prompts at many places: tables `[layers + 1, places]`, and the token at each place where all prompts share it.

    Places count from the last prompt token, which is -1; from 1 on they are tokens of the base's reply. `held` says where distance and
    cosine are defined, `aligned` where `cka` is; elsewhere they are 0.
    """

    kind: str
    n: int
    places: tuple[int, ...]
    tokens: tuple[str, ...]
    distance: Curve
    cosine: Curve
    held: Cells
    cka: Curve
    aligned: Cells


@dataclass(frozen=True, kw_only=True, eq=False)
class Speech:
    """One kind of prompts: KL in nats, base||candidate and candidate||base, of the first reply token and along the base's replies.

    `first` is `[2, n]`, `reply` `[2, tokens]` with the number of each token in its reply in `number`. `outside` is the largest share
    of either side's probability on tokens that the other does not know.
    """

    kind: str
    first: Curve
    reply: Curve
    number: NDArray[np.int64]
    outside: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that was measured on one kind of prompts; a part of it is None where it could not be."""

    curves: Curves
    map: Map | None
    speech: Speech | None
    explained: Explained


def run(case: Case) -> CheckResult:
    """Read both sides and measure how far apart they are; see the module's docstring."""
    if not case.prompts:
        reason = "No prompts were given (--prompts FILE.jsonl), so nothing was read."
        return CheckResult(check=ID, configuration=case.configuration, status=Status.SKIPPED, reason=reason)
    chosen = {kind: _chosen(case, expect) for expect, kind in KINDS}
    if case.identical:
        return _identical(case, chosen)
    from forensics.parting import hear, part  # heavy: brings torch

    said = case.workbench.remembered(f"{ID} replies", lambda: hear(case, chosen))
    ours, theirs = part(case, "base", chosen, said), part(case, "candidate", chosen, said)  # each model is loaded once
    layers = layers_beside(case, (ours.blocks, theirs.blocks))
    found, limits = [], []
    for kind, prompts in chosen.items():
        ids = both(ours.looks[kind].last, theirs.looks[kind].last)
        if len(ids) < LEAST:
            limits.append(f"Drift on {kind} prompts was not measured: at least {LEAST} are needed that both models can read.")
            continue
        curves = _compare(kind, prompts, ours.looks[kind].last, theirs.looks[kind].last, layers)
        if not curves.held.any():
            limits.append(f"Drift on {kind} prompts was not measured: at every layer one side holds nothing but zeros at the last token.")
            continue
        found.append(
            Seen(
                curves=curves,
                map=_map(kind, ours, theirs, layers),
                speech=_speech(kind, ours, theirs),
                explained=explained(case, curves.difference),
            )
        )
        limits += _limits(found[-1])
    if not found:
        return CheckResult(check=ID, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=" ".join(limits))
    case.keep_arrays(ID, {name: array for seen in found for name, array in _arrays(seen).items()})
    evidence = tuple(row for seen in found for row in (*_evidence(seen.curves), *_further(seen)))
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.NO_FINDING,
        findings=_findings([seen.curves for seen in found], evidence),
        evidence=evidence,
        limits=tuple(limits),
    )


def _chosen(case: Case, expect: Expect) -> tuple[Prompt, ...]:
    """Up to `MOST` prompts of one kind, the categories in their proportion; the order of the file is kept."""
    prompts = [prompt for prompt in case.prompts if prompt.expect == expect]
    (part,) = stratified_parts([prompt.category for prompt in prompts], [min(MOST, len(prompts))], seed=case.seed)
    return tuple(prompts[index] for index in sorted(part))


def _compare(kind: str, prompts: Sequence[Prompt], ours: Reading, theirs: Reading, layers: tuple[int, ...]) -> Curves:
    """Curves over layers at the last prompt token."""
    ids = both(ours, theirs)
    a, b = (np.stack([side.states[id][:, -1] for id in ids]) for side in (ours, theirs))
    a = a[:, list(layers)]
    groups: dict[str, list[int]] = {}
    of = {prompt.id: prompt.category for prompt in prompts}
    for row, id in enumerate(ids):
        groups.setdefault(of[id], []).append(row)
    aligned = [(layer, value) for layer in range(a.shape[1]) if (value := _cka(a[:, layer], b[:, layer])) is not None]
    distance, cosine, held = _curve(a, b)
    return Curves(
        kind=kind,
        asked=len(prompts),
        n=len(a),
        distance=distance,
        cosine=cosine,
        held=held,
        cka_layer=np.array([layer for layer, _ in aligned], dtype=np.int64),
        cka=np.array([value for _, value in aligned]),
        difference=(b.astype(np.float64) - a).mean(axis=0),
        categories={name: (*_curve(a[rows], b[rows])[::2], len(rows)) for name, rows in groups.items() if len(rows) >= LEAST},
    )


def _curve(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Curve, Curve, Cells]:
    """Distance and cosine at each layer of activations `[n, layers, d]`, and where they are defined."""
    found = [_apart(a[:, layer], b[:, layer]) for layer in range(a.shape[1])]
    distance, cosine = np.array([(0.0, 0.0) if pair is None else pair for pair in found]).T
    return distance, cosine, np.array([pair is not None for pair in found])


def _apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[float, float] | None:
    """Distance and cosine of rows `[n, d]`; None where no row differs from zero on both sides.

    At a template token the first layer holds one row of the embedding for all prompts, and whoever made the candidate chose that row.
    """
    if not (a.any(axis=1) & b.any(axis=1)).any():
        return None
    return relative_distance(a, b), mean_cosine(a, b)


def _cka(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Alignment of rows `[n, d]`; None where there is nothing to align: at a template token the first layers hold one vector."""
    try:
        return linear_cka(a, b)
    except ValueError:
        return None


def _map(kind: str, ours: Part, theirs: Part, layers: tuple[int, ...]) -> Map | None:
    """Tables over layers and places; None where too few prompts are left, or the two sides read no place alike."""
    mine, other = ours.looks[kind].placed, theirs.looks[kind].placed
    ids = both(mine, other)
    backs = sorted(comparable(mine, other)) if len(ids) >= LEAST else []
    if not backs:
        return None
    shape = (len(layers), len(backs))
    distance, cosine, cka = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    held, aligned = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for column, back in enumerate(backs):
        a, b = (np.stack([side.states[id][:, back] for id in ids]) for side in (mine, other))
        for layer, source in enumerate(layers):
            first, second = a[:, source], b[:, layer]
            if (pair := _apart(first, second)) is not None:
                (distance[layer, column], cosine[layer, column]), held[layer, column] = pair, True
            value = _cka(first, second)
            cka[layer, column], aligned[layer, column] = (0.0, False) if value is None else (value, True)
    behind = ours.looks[kind].behind
    shared = [{other.tokens[id][back] for id in ids} for back in backs]
    return Map(
        kind=kind,
        n=len(ids),
        places=tuple(back + behind + (1 if back + behind >= 0 else 0) for back in backs),
        tokens=tuple(tokens.pop() if len(tokens) == 1 else "" for tokens in shared),
        distance=distance,
        cosine=cosine,
        held=held,
        cka=cka,
        aligned=aligned,
    )


def _speech(kind: str, ours: Part, theirs: Part) -> Speech | None:
    """KL of next tokens both ways, over the tokens that both vocabularies hold."""
    mine, other = ours.looks[kind], theirs.looks[kind]
    ids = [id for id in mine.first.logs if id in other.first.logs]
    if not ids:
        return None
    columns = shared_tokens(ours.vocabulary, theirs.vocabulary, (ours.width, theirs.width))
    outside: list[float] = []

    def apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> Curve:
        (p, left), (q, right) = among(a, columns[0]), among(b, columns[1])
        outside.append(float(max(left.max(), right.max())))
        return np.stack([divergences(p, q), divergences(q, p)])

    first = apart(*(np.concatenate([side.first.logs[id] for id in ids]) for side in (mine, other)))
    followed = [id for id, tokens in mine.told.tokens.items() if other.told.tokens.get(id) == tokens]
    reply = [apart(mine.told.logs[id], other.told.logs[id]) for id in followed]
    number = [np.arange(1, part.shape[1] + 1) for part in reply]
    return Speech(
        kind=kind,
        first=first,
        reply=np.concatenate(reply, axis=1) if reply else np.zeros((2, 0)),
        number=np.concatenate(number) if number else np.zeros(0, dtype=np.int64),
        outside=max(outside),
    )


def _limits(seen: Seen) -> list[str]:
    kind, found = seen.curves.kind, []
    tables = {"layers at the last token": seen.curves.held, "layers and tokens around it": None if seen.map is None else seen.map.held}
    gaps = [f"{(~held).sum()} of {held.size} {where}" for where, held in tables.items() if held is not None and not held.all()]
    if gaps:
        found.append(
            f"On {kind} prompts {' and '.join(gaps)} were left out: no prompt's activation there differs from zero on both sides, and to "
            "zeros there is no relative distance and no cosine."
        )
    left = seen.curves.asked - seen.curves.n
    if left:
        found.append(
            f"{left} of {seen.curves.asked} {kind} prompts were left out: they do not fit the context of both models, or one of them cannot be "
            "given them at all."
        )
    if seen.map is None:
        found.append(f"Drift on {kind} prompts was read at the last token only: the two sides do not end prompts in the same tokens.")
    if seen.speech is None or not seen.speech.number.size:
        found.append(f"What is said on {kind} prompts was not followed along replies: the two sides do not read them as the same tokens.")
    return found


def _arrays(seen: Seen) -> dict[str, NDArray[np.generic]]:
    curves, kind = seen.curves, seen.curves.kind
    found: dict[str, NDArray[np.generic]] = {
        "layer": np.arange(len(curves.distance)),
        f"relative_distance_{kind}": curves.distance,
        f"cosine_{kind}": curves.cosine,
        f"held_{kind}": curves.held,
        f"cka_{kind}": curves.cka,
        f"cka_layer_{kind}": curves.cka_layer,
        f"explained_{kind}": seen.explained.shares,
        f"explained_chance_{kind}": seen.explained.chance,
        f"explained_rare_{kind}": seen.explained.rare,
        f"explained_layer_{kind}": np.array(seen.explained.layers, dtype=np.int64),
    }
    if seen.map is not None:
        tables: dict[str, NDArray[np.generic]] = {"distance": seen.map.distance, "cosine": seen.map.cosine, "held": seen.map.held}
        tables |= {"cka": seen.map.cka, "aligned": seen.map.aligned}
        found |= {f"map_{name}_{kind}": table for name, table in tables.items()}
        found |= {f"map_place_{kind}": np.array(seen.map.places), f"map_token_{kind}": np.array(seen.map.tokens, dtype=np.str_)}
    if seen.speech is not None:
        found |= {f"kl_first_{kind}": seen.speech.first, f"kl_reply_{kind}": seen.speech.reply, f"kl_number_{kind}": seen.speech.number}
    return found


def _evidence(curves: Curves) -> list[Evidence]:
    from forensics.capture import site_name  # heavy: brings torch

    blocks, distance = len(curves.distance) - 1, curves.distance
    largest = curves.largest
    unit, expected = "||h' - h|| / ||h||", "0 if nothing was changed; the size alone is neither good nor bad"

    def row(name: str, value: float, unit: str, layer: int, expected: str) -> Evidence:
        where = f"{site_name(layer, blocks)}, last prompt token, {curves.kind} prompts"
        return Evidence(name=f"{name}.{curves.kind}", value=value, unit=unit, where=where, expected=expected, n=curves.n)

    rows = [
        row("drift.maximum", float(distance[largest]), unit, largest, expected),
    ]
    if curves.held[-1]:
        rows.append(row("drift.last-layer", float(distance[-1]), unit, blocks, expected))
        rows.append(row("drift.cosine-last-layer", float(curves.cosine[-1]), "cosine", blocks, "1 if nothing was changed"))
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


def _further(seen: Seen) -> list[Evidence]:
    """Categories, places, next tokens, and what the weights explain."""
    from forensics.capture import site_name  # heavy: brings torch

    curves, kind, blocks = seen.curves, seen.curves.kind, len(seen.curves.distance) - 1
    unit, plain = "||h' - h|| / ||h||", "0 if nothing was changed; the size alone is neither good nor bad"
    largest = curves.largest
    rows = [
        Evidence(
            name=f"drift.category.{kind}.{name}", value=float(distance[largest]), unit=unit, n=n,
            where=f"{site_name(largest, blocks)}, last prompt token, {kind} prompts of {name}", expected=f"{curves.distance[largest]:.3g} over all",
        )
        for name, (distance, held, n) in sorted(curves.categories.items())
        if held[largest]
    ]  # fmt: skip
    if seen.map is not None and seen.map.held.any():
        layer, column = np.unravel_index(int(np.where(seen.map.held, seen.map.distance, -1.0).argmax()), seen.map.held.shape)
        rows.append(
            Evidence(
                name=f"drift.place.maximum.{kind}", value=float(seen.map.distance[layer, column]), unit=unit, expected=plain, n=seen.map.n,
                where=f"{site_name(int(layer), blocks)}, {place_name(seen.map.places[column])}, {kind} prompts",
            )
        )  # fmt: skip
    return [*rows, *_spoken(seen.speech), *_explaining(seen, site_name(blocks, blocks))]


def place_name(place: int) -> str:
    """A place in words.

    >>> place_name(-1), place_name(2)
    ('prompt token -1', 'reply token 2')
    """
    return f"prompt token {place}" if place < 0 else f"reply token {place}"


def _spoken(speech: Speech | None) -> list[Evidence]:
    if speech is None:
        return []
    rows = []
    for part, table, where in (
        ("first", speech.first, f"first reply token, {speech.kind} prompts"),
        ("reply", speech.reply, f"each token of the base's own replies, {speech.kind} prompts"),
    ):
        for direction, values in zip(("base-candidate", "candidate-base"), table, strict=True):
            if values.size:
                first, second = direction.split("-")
                rows.append(
                    Evidence(
                        name=f"drift.kl.{part}.{direction}.{speech.kind}", value=float(values.mean()), unit=f"nats, KL({first} || {second})",
                        where=where, expected="0 if nothing was changed; mean over tokens", n=int(values.size),
                    )
                )  # fmt: skip
    if speech.outside > SLIGHT:
        rows.append(
            Evidence(
                name=f"drift.kl.outside.{speech.kind}", value=speech.outside, unit="share of probability", n=None,
                where=f"tokens that one side alone has, {speech.kind} prompts", expected="0 if the vocabularies are the same; left out of KL",
            )
        )  # fmt: skip
    return rows


def _explaining(seen: Seen, site: str) -> list[Evidence]:
    found = seen.explained
    if not found.layers or found.layers[-1] != len(seen.curves.distance) - 1:
        return []
    expected = f"{found.chance[-1]:.3g} of a random span of {found.sizes[-1]} directions, 99th percentile {found.rare[-1]:.3g}"
    where = f"{site}, last prompt token, {seen.curves.kind} prompts; the {SPAN} strongest directions of all changed matrices that write"
    unit = "share of the squared mean difference"
    name = f"drift.explained.{seen.curves.kind}"
    return [Evidence(name=name, value=float(found.shares[-1]), unit=unit, where=where, expected=expected, n=seen.curves.n)]


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
