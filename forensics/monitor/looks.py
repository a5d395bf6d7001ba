"""Shapes of traffic and what users say, as an overview shows them. Nothing is measured here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from forensics.monitor.alarms import CHANGING, ENRICHED
from forensics.monitor.baseline import FEEDBACK, SHAPES, Baseline, Settings
from forensics.monitor.drift import LEAST_BLOCKS, Drift, read_drift
from forensics.monitor.feedback import PARTS, enriched, read_changes
from forensics.monitor.following import kind_of
from forensics.monitor.overview import Said, Shape, Shapes
from forensics.monitor.signals import DOWN

SHOWN = 5
"""Bins of a shape that are shown."""


def shapes_of(states: Mapping[str, str], baseline: Baseline, settings: Settings, *, where: str) -> Shapes:
    """How far traffic was looked at by the block.

    Raises:
        BadInput: The state of it is damaged.
    """
    drift = read_drift(states, settings.rhythm, where=where)
    names = {shape for block in (*drift.blocks, drift.block) for shape in block.counts} | {one.shape for one in drift.results}
    return Shapes(
        one_of=1 << drift.sampling.bits, learned=drift.reference is not None, blocks=len(drift.blocks), blocks_wanted=LEAST_BLOCKS, rhythm=settings.rhythm,
        looks=drift.looks, share=SHAPES, level=drift.level(baseline.alpha * SHAPES) if drift.looks else None,
        shapes=tuple(_shape(name, drift) for name in sorted(names, key=lambda name: (("requests", "replies", "opinions").index(kind_of(name)), name))),
    )  # fmt: skip


def said_of(states: Mapping[str, str], baseline: Baseline, opinions: Mapping[str, tuple[int, int]], *, where: str) -> tuple[Said, ...]:
    """What users say. `opinions` are events and those against, by category.

    Raises:
        BadInput: The state of it is damaged.
    """
    found = []
    for signal, change in read_changes(states, where=where).items():
        (events, hits), (later, more) = change.before, change.after
        most = enriched(opinions, where=where) if signal == DOWN else ()
        found.append(
            Said(
                signal=signal, meaning=CHANGING[signal], events=change.events, hits=change.hits, evidence=change.log_peak / math.log(10.0),
                alarms_at=-math.log10(baseline.alpha * FEEDBACK * PARTS[signal]), before=100.0 * hits / events if events else None,
                since=100.0 * more / later if later else None,
                most_in=tuple(f"{one.category}: {one.hits} of {one.events} (p {one.p_value:.2g})" for one in most if one.p_value <= ENRICHED),
            )
        )  # fmt: skip
    return tuple(found)


def _shape(name: str, drift: Drift) -> Shape:
    learned = sum((block.counts.get(name, Counter()) for block in drift.blocks), Counter[str]())
    now = drift.block.counts.get(name, Counter[str]())
    bins = [bin for bin, _ in (learned or now).most_common(SHOWN)]
    result = next((one for one in drift.results if one.shape == name), None)
    return Shape(
        shape=name, kind=kind_of(name), events=now.total(), shares=_percent(now, bins), usual=_percent(learned, bins),
        p_value=result.adjusted if result is not None else None, index=result.index if result is not None else None,
        index_p=result.index_p if result is not None else None,
    )  # fmt: skip


def _percent(counts: Mapping[str, int], bins: list[str]) -> dict[str, float]:
    total = sum(counts.values())
    return {bin: 100.0 * counts.get(bin, 0) / total for bin in bins} if total else {}
