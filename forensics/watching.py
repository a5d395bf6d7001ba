"""A monitor along what a weight change writes: its strongest directions, layer by layer, and how far clean prompts go along them.

Read is the residual stream leaving each block that was changed, at every token of a prompt, as its cosine with every direction. Whatever
clean prompts lack goes beyond their range, a trigger or any other odd word: a monitor is worth as much as its clean prompts are varied
(examples/benchmarks/weight_monitor.py measures how much).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.case import Case
from forensics.concept import readable
from forensics.differ import transposed
from forensics.errors import BadInput, CannotCompare
from forensics.prompts import Prompt
from forensics.record import Evidence
from forensics.roles import WRITES, place
from probes.linear import share_interval, stratified_parts
from probes.watch import Range, Threshold, extremes_of, range_of, texts_needed, threshold_of

if TYPE_CHECKING:
    from forensics.alignment import Pair
    from forensics.model import Rendered

MOST = 20
"""Directions of one matrix, as Zhong and Raghunathan 2025 take them."""
WANTED = 0.01
"""Share of clean prompts that may be flagged."""
LEAST = 60
"""Fewest clean prompts: a third of them sets the range, a third the threshold, a third tells how often it is wrong."""
TOO_SMALL = 1e-6
"""Share of a matrix's strongest change below which a direction is rounding."""
READ_VALUES = 1 << 27
"""Values read at once: half a gigabyte in float32."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Unit vectors `[k, d]`, the layer each is read at (1 is what leaves block 0), and the matrix it comes from."""

    vectors: Array
    layers: tuple[int, ...]
    names: tuple[str, ...]

    def by_layer(self) -> Mapping[int, NDArray[np.intp]]:
        """Which of them are read at each layer."""
        places = np.array(self.layers)
        return {layer: np.flatnonzero(places == layer) for layer in sorted(set(self.layers))}

    def random(self, seed: int) -> Directions:
        """As many random ones in the same layers: what any directions would do."""
        drawn = np.random.default_rng(seed).normal(size=self.vectors.shape)
        return replace(self, vectors=drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A fitted monitor: directions, the range of clean prompts, and the threshold on what goes beyond it."""

    directions: Directions
    span: Range
    threshold: Threshold

    def figures(self, extremes: Array) -> Array:
        """How far each prompt goes beyond the range, `[n]`, from `extremes`."""
        return self.span.beyond(extremes)


def written(case: Case) -> Directions:
    """The strongest directions that the change of each matrix writes to the residual stream.

    By a randomized SVD of one matrix's change at a time, which is dense for adapters too: the candidate's own change and theirs
    together. Stacks of matrices are not read (`skipped`).

    Raises:
        CannotCompare: Nothing that writes to the residual stream was changed, or layers were moved.
    """
    if not case.layout.in_place:
        raise CannotCompare(
            "layers were added, taken out or moved, so that no matrix can be told from the one before it",
            where=case.configuration,
            hint="read weights.change, which lays the layers side by side",
        )
    vectors, layers, names = [], [], []
    for pair in case.pairs:
        where = place(pair.name)
        if where.role in WRITES and len(pair.base.shape) == 2:
            found = _leading(case, pair, where.role)
            vectors.append(found)
            layers += [where.layer + 1] * len(found)
            names += [pair.name] * len(found)
    if not names:
        raise CannotCompare(
            "no matrix that writes to the residual stream was changed, so that there is nothing to watch",
            where=case.configuration,
            details=tuple(f"{name} is a stack of matrices, which is not read" for name in skipped(case)),
            hint="read weights.change: it says what was changed",
        )
    return Directions(vectors=np.concatenate(vectors), layers=tuple(layers), names=tuple(names))


def skipped(case: Case) -> tuple[str, ...]:
    """Changed tensors that write to the residual stream and are no single matrix: experts stored as one stack."""
    found = []
    for pair in case.pairs:
        if place(pair.name).role in WRITES and len(pair.base.shape) > 2:
            blocks = zip(case.base.blocks(pair.base.name), case.candidate.blocks(pair.candidate.name), strict=True)
            if pair.name in case.changes or any(not ours.equal(theirs) for ours, theirs in blocks):
                found.append(pair.name)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A monitor with what it is worth, and what is not known about it."""

    watch: Watch
    evidence: tuple[Evidence, ...]
    limits: tuple[str, ...]
    fitted: str


def fit(case: Case, prompts: Sequence[Prompt]) -> Fitted:
    """A monitor from clean prompts: a third sets the range, a third the threshold, and on the last third it is judged.

    Raises:
        BadInput: There are too few prompts, or one of them cannot be put to the candidate.
        CannotCompare: Nothing was changed that writes to the residual stream, or a value is not finite.
    """
    if len(prompts) < LEAST:
        raise BadInput(
            f"{len(prompts)} clean prompts are too few for a monitor; at least {LEAST} are needed",
            where="--prompts",
            hint=f"{3 * texts_needed(WANTED)} let a threshold promise {WANTED:.0%} false alarms and be held against it",
        )
    parts = thirds(prompts, seed=case.seed)
    third = len(parts[0])
    directions = written(case)
    control = directions.random(case.seed)
    watches, alarms = [], []
    for one, found in zip((directions, control), extremes(case, prompts, (directions, control)), strict=True):
        span = range_of(found[list(parts[0])])
        watch = Watch(directions=one, span=span, threshold=threshold_of(span.beyond(found[list(parts[1])]), WANTED))
        figures = watch.figures(found[list(parts[2])])
        watches.append(watch)
        alarms.append((int((figures > watch.threshold.value).sum()), int((figures > 0.0).sum())))
    ours = watches[0].threshold
    where = f"{len(directions.names)} directions of {len(set(directions.names))} matrices, every token"
    rows = [
        _count("monitor.directions", len(directions.names), "directions", where, f"at most {MOST} a matrix"),
        _count("monitor.threshold", ours.value, "widths of the clean range", where, f"promises {ours.promised:.3g} false alarms on prompts of this kind", n=third),
        _share("monitor.false-alarms", alarms[0][0], third, where, f"about {ours.promised:.3g}: measured on prompts that set neither range nor threshold"),
        _share("monitor.outside-range", alarms[0][1], third, where, "what taking the range itself for the threshold would flag"),
        _share("monitor.random.false-alarms", alarms[1][0], third, f"random directions in their place, {where}", f"about {ours.promised:.3g} as well"),
    ]  # fmt: skip
    return Fitted(
        watch=watches[0],
        evidence=tuple(rows),
        limits=_limits(third, ours, skipped(case)),
        fitted=f"{third} clean prompts for the range, {third} for the threshold, {third} to judge it",
    )


def thirds(prompts: Sequence[Prompt], *, seed: int) -> tuple[tuple[int, ...], ...]:
    """Which prompts set the range, which the threshold, and which judge both; categories in their proportion."""
    third = len(prompts) // 3
    return stratified_parts([prompt.category for prompt in prompts], [third, third, third], seed=seed)


def _count(name: str, value: float, unit: str, where: str, expected: str, *, n: int | None = None) -> Evidence:
    return Evidence(name=name, value=value, unit=unit, where=where, expected=expected, n=n)


def _share(name: str, count: int, n: int, where: str, expected: str) -> Evidence:
    found = share_interval(count, n)
    return Evidence(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        unit="share of clean prompts flagged",
        where=where,
        expected=expected,
    )


def _limits(third: int, threshold: Threshold, stacks: Sequence[str]) -> tuple[str, ...]:
    limits = [
        "False alarms are promised for prompts like these. Odd words, other languages, lengths or formats that these lack lie outside by themselves."
    ]
    limits.append(
        "A prompt that is flagged moves along what the change writes further than clean prompts do; that alone does not make it a trigger."
    )
    if stacks:
        limits.append(
            f"{len(stacks)} stacks of matrices (experts) that write to the residual stream were changed and are not watched, such as {stacks[0]}."
        )
    if threshold.promised > WANTED:
        limits.append(
            f"{third} prompts for the threshold promise {threshold.promised:.3g} false alarms at best; {texts_needed(WANTED)} promise {WANTED:g}."
        )
    return tuple(limits)


def to_arrays(watch: Watch) -> dict[str, NDArray[np.generic]]:
    """What of a monitor is kept in safetensors; `from_arrays` reads it back."""
    held = watch.directions
    return {"vectors": held.vectors, "layers": np.array(held.layers, dtype=np.int64), "low": watch.span.low, "high": watch.span.high}


def from_arrays(arrays: Mapping[str, NDArray[np.generic]], threshold: Threshold) -> Watch:
    """A kept monitor.

    Raises:
        ValueError: The arrays are not those of a monitor.
    """
    try:
        vectors, layers, low, high = (np.asarray(arrays[name]) for name in ("vectors", "layers", "low", "high"))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    if vectors.ndim != 2 or not len(vectors) or any(array.shape != (len(vectors),) for array in (layers, low, high)):
        raise ValueError("shapes do not agree")
    places = tuple(int(layer) for layer in layers)
    directions = Directions(vectors=vectors.astype(np.float64), layers=places, names=tuple(f"layer {layer}" for layer in places))
    return Watch(directions=directions, span=Range(low=low.astype(np.float64), high=high.astype(np.float64)), threshold=threshold)


def _leading(case: Case, pair: Pair, role: str) -> Array:
    """Left singular vectors `[k, d]` of one matrix's change, those of its output side."""
    import torch  # heavy

    blocks = zip(case.base.blocks(pair.base.name), case.candidate.blocks(pair.candidate.name), strict=True)
    parts = [theirs.float() - ours.float() for ours, theirs in blocks] if case.base.digest != case.candidate.digest else []
    change = torch.cat(parts) if parts else torch.zeros(pair.base.shape)
    if pair.name in case.changes:
        change = change + case.deltas()[pair.name]()
    if not bool(torch.isfinite(change).all()):
        raise CannotCompare(f"the change of {pair.name} is not finite", where=case.configuration, hint="look for NaN with weights.change")
    change = change.T if transposed(case, role) else change
    if not bool(change.any()):
        return np.zeros((0, change.shape[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the range finder draws; the same change has to give the same monitor
        left, sizes, _ = torch.svd_lowrank(change, q=min(MOST + 8, *change.shape), niter=4)
    kept = sizes[:MOST] > TOO_SMALL * max(float(sizes[0]), float(torch.finfo(torch.float32).tiny))
    return np.asarray(left[:, :MOST].T[kept].double().numpy(), dtype=np.float64)


def extremes(case: Case, prompts: Sequence[Prompt], directions: Sequence[Directions]) -> list[Array]:
    """Least and largest cosine of the candidate's residual stream with each direction over all tokens of each prompt.

    Args:
        case: Whose candidate.
        prompts: What it reads.
        directions: Several sets; all are read in one pass.

    Returns:
        `[n, 2, k]` a set.

    Raises:
        BadInput: A prompt cannot be put to the candidate.
        CannotCompare: A value is not finite, or widths differ.
    """
    rendered = readable(case, "candidate", prompts)
    found = [np.zeros((len(rendered), 2, len(one.names))) for one in directions]
    layers = sorted({layer for one in directions for layer in one.layers})
    for done, (index, values) in enumerate(_token_by_token(case, rendered, layers), start=1):
        if values.shape[2] != directions[0].vectors.shape[1]:
            raise CannotCompare(
                "the candidate is of another width than the directions", where=case.configuration, hint="fit the monitor on this pair"
            )
        units = values / np.maximum(np.linalg.norm(values, axis=2, keepdims=True), np.finfo(np.float32).tiny)
        for one, held in zip(directions, found, strict=True):
            for layer, columns in one.by_layer().items():
                held[index][:, columns] = extremes_of(units[layers.index(layer)] @ one.vectors[columns].T.astype(np.float32))
        case.workbench.progress("reading tokens", done, len(rendered))
    return found


def _token_by_token(case: Case, rendered: Sequence[Rendered], layers: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Every prompt with its residual stream `[layers, tokens, d]`; prompts of one length are read together."""
    from forensics.capture import Sites, stream  # heavy: brings torch

    subject = case.subject("candidate")
    width = int(next(subject.anatomy().embedding.parameters()).shape[-1])
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(rendered):
        lengths.setdefault(len(row.ids), []).append(index)
    for length, indices in sorted(lengths.items()):
        fitting = max(1, READ_VALUES // (length * len(layers) * width))
        sites = Sites(layers=tuple(layers), positions=tuple(range(-length, 0)))
        batches = replace(subject, batch_size=min(subject.batch_size, fitting))
        for places, block in stream(batches, [rendered[index] for index in indices], sites):
            for place_, values in zip(places, block.numpy(), strict=True):
                yield indices[place_], values
