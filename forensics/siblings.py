"""Who among the candidates of a sweep is unlike the rest, by numbers that their checks gave already.

A lead that decides nothing: honest candidates differ in data, rank and length of training, and one that hides something may look like its siblings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forensics.record import AuditRecord, Evidence
from forensics.swept import Population, Unlike
from probes.siblings import LEAST, LEVEL, apart, smallest_called

PROFILE = "weights.profile"
FIGURES: tuple[tuple[str, str, bool], ...] = (
    ("weights.change", "edit.relative_change", True),
    ("weights.change", "weights.entries-changed", False),
    ("weights.change", PROFILE, True),
    ("weights.edit-kind", "edit.rank", True),
    ("activations.drift", "drift.maximum.harmful", True),
    ("activations.drift", "drift.maximum.harmless", True),
    ("activations.meaning", "meaning.distance", True),
    ("behaviour.leanings", "leaning.most", False),
    ("behaviour.refusal", "refusal.drop", False),
    ("behaviour.refusal", "harmful-compliance.rise", False),
    ("behaviour.refusal", "over-refusal.rise", False),
    ("triggers.search", "backdoor.score", False),
)
"""Check, name, and whether its logarithm is taken: sizes differ by factors, losses by points."""
FLOOR = 1e-9
"""Least value of which a logarithm is taken."""
NAMED = 3
"""Candidates named where most have one value."""
Kind = Literal["adapter", "model"]


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """One audited candidate: its name and kind, its record, and the relative change of every tensor."""

    name: str
    kind: Kind
    record: AuditRecord
    changes: Mapping[str, float]


def held_together(siblings: Sequence[Sibling]) -> tuple[tuple[Population, ...], dict[str, tuple[Unlike, ...]]]:
    """Hold the siblings of each kind against each other.

    Returns:
        How that was done, a `Population` for each kind there is; and what each candidate is unlike the rest in, by its name.
    """
    populations: list[Population] = []
    found: dict[str, tuple[Unlike, ...]] = {}
    kinds: tuple[Kind, ...] = ("adapter", "model")
    for kind in kinds:
        alike = [one for one in siblings if one.kind == kind]
        if alike:
            population, unlike = _held(kind, alike)
            populations.append(population)
            found |= unlike
    return tuple(populations), found


def _held(kind: Kind, siblings: Sequence[Sibling]) -> tuple[Population, dict[str, tuple[Unlike, ...]]]:
    table = _table(siblings)
    tests = {name: apart(_scaled(name, values)) for name, values in table.items()}
    tested = [name for name, one in tests.items() if one is not None]
    about = {"kind": kind, "siblings": len(siblings), "least": LEAST, "level": LEVEL}
    not_tested = {name: _why_not(table[name], siblings) for name in table if name not in tested}
    if len(siblings) < LEAST or not tested:
        few = len(siblings) < LEAST
        reason = (
            f"{len(siblings)} siblings are fewer than the {LEAST} without which an outlier cannot be told from the spread of the others."
            if few
            else "No figure has a spread in which one could stand out."
        )
        return Population(**about, status="INCONCLUSIVE", reason=reason, not_tested={} if few else not_tested), {}
    unlike: dict[str, list[Unlike]] = {}
    for name in tested:
        one = apart(_scaled(name, table[name]), figures=len(tested))
        assert one is not None
        for place in map(int, np.flatnonzero(one.p_values <= LEVEL)):
            limit = smallest_called(one.count, figures=len(tested))
            numbers = (float(one.distances[place]), float(one.p_values[place]))
            unlike.setdefault(siblings[place].name, []).append(_unlike(name, float(table[name][place]), numbers, (limit, one.count)))
    return (
        Population(
            **about,
            status="LOOKED",
            called_from=round(smallest_called(len(siblings), figures=len(tested)), 2),
            figures=tuple(tested),
            not_tested=not_tested,
        ),
        {name: tuple(sorted(rows, key=lambda row: (row.p_value.value, -abs(row.distance.value)))) for name, rows in unlike.items()},
    )


def _table(siblings: Sequence[Sibling]) -> dict[str, NDArray[np.float64]]:
    """Each figure that any sibling has, with the values of all of them; NaN where a check did not look."""
    table = {}
    for check, name, _ in FIGURES:
        values = _profiles(siblings) if name == PROFILE else np.array([_value(one.record, check, name) for one in siblings])
        if not np.isnan(values).all():
            table[name] = values
    return table


def _value(record: AuditRecord, check: str, name: str) -> float:
    found = [item.value for result in record.results if result.check == check for item in result.evidence if item.name == name]
    return found[0] if found else math.nan


def _profiles(siblings: Sequence[Sibling]) -> NDArray[np.float64]:
    """How far each one's change is spread otherwise over the tensors than the median sibling's: the sine between them."""
    names = sorted({name for one in siblings for name in one.changes})
    rows = np.array([[one.changes.get(name, 0.0) for name in names] for one in siblings]).reshape(len(siblings), len(names))
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    usual = np.median(rows / np.maximum(sizes, 1e-300), axis=0) if names else np.zeros(0)
    length = float(np.linalg.norm(usual))
    if length == 0.0:
        return np.full(len(siblings), math.nan)
    cosines = np.clip((rows / np.maximum(sizes, 1e-300)) @ usual / length, -1.0, 1.0)
    return np.where(sizes[:, 0] > 0.0, np.sqrt(1.0 - cosines**2), math.nan)


def _scaled(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithm = next(wanted for _, known, wanted in FIGURES if known == name)
    scaled: NDArray[np.float64] = np.log(np.maximum(values, FLOOR)) if logarithm else values
    return scaled


def _why_not(values: NDArray[np.float64], siblings: Sequence[Sibling]) -> str:
    held = {one.name: float(value) for one, value in zip(siblings, values, strict=True) if not math.isnan(value)}
    if len(held) < LEAST:
        return f"{len(held)} siblings have it"
    usual, count = Counter(held.values()).most_common(1)[0]
    if count == len(held):
        return f"all {count} have the same value, {usual:.6g}"
    others = [f"{sibling} {value:.6g}" for sibling, value in held.items() if value != usual]
    more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"{count} of {len(held)} have the same value, {usual:.6g}, so there is no spread; others: {', '.join(others[:NAMED])}{more}"


def _unlike(name: str, value: float, numbers: tuple[float, float], about: tuple[float, int]) -> Unlike:
    distance, p_value = numbers
    limit, count = about
    return Unlike(
        figure=name,
        value=value,
        distance=Evidence(
            name="sibling.distance", value=distance, unit="robust standard deviations", where=name, n=count,
            expected=f"within {limit:.1f} of the median for {count} siblings that are alike",
        ),
        p_value=Evidence(
            name="sibling.p_value", value=p_value, unit="probability", where=name, n=count,
            expected=f"over {LEVEL}; adjusted for all siblings and figures",
        ),
    )  # fmt: skip
