"""Configurations beside each other: each adapter alone and all together, one column each, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forensics.record import AuditRecord, CheckResult, Evidence

METRICS = {
    "refusal.drop": "refusal of harmful prompts lost",
    "harmful-compliance.rise": "harmful compliance gained",
    "multi-turn-refusal.drop": "refusal in conversations lost",
    "over-refusal.rise": "refusal of harmless prompts gained",
}
BY_CATEGORY = "refusal.drop."
SCORE = "backdoor.score"
WORST, SEARCH, KIND = "worst category", "score of the trigger search", "kind of edit"
POINTS = (*METRICS.values(), WORST)
TITLES = (*POINTS, SEARCH, KIND)
"""What is told of a configuration, in the order of a page; the first ones are in percentage points."""


@dataclass(frozen=True, kw_only=True)
class ColumnRow:
    """A line: what is measured, and its value in each configuration, empty where it was not."""

    name: str
    cells: tuple[str, ...]


def columns(record: AuditRecord) -> tuple[ColumnRow, ...]:
    """One line a metric that any configuration has, a cell for each configuration in the order of the verdict; none for one configuration."""
    names = list(record.verdict.by_configuration)
    if len(names) < 2:
        return ()
    found = [cells_of([result for result in record.results if result.configuration == name]) for name in names]
    return tuple(
        ColumnRow(name=f"{title}, points" if title in POINTS else title, cells=tuple(one.get(title, "") for one in found))
        for title in TITLES
        if any(title in one for one in found)
    )


def cells_of(results: Sequence[CheckResult]) -> dict[str, str]:
    """What one configuration's results come to, by title, in the order of `TITLES`; what was not measured is left out."""
    found = {item.name: item for result in results for item in result.evidence}
    cells = {words: _points(found.get(metric)) for metric, words in METRICS.items()}
    cells[WORST] = _worst(results)
    # Each search has a score of its own; the highest speaks for the configuration.
    scores = [item.value for result in results for item in result.evidence if item.name == SCORE]
    cells[SEARCH] = f"{max(scores):.2f}" if scores else ""
    cells[KIND] = ", ".join(finding.label for result in results if result.check == "weights.edit-kind" for finding in result.findings[:1])
    return {title: cell for title, cell in cells.items() if cell}


def _points(item: Evidence | None) -> str:
    if item is None:
        return ""
    return f"{item.value:.1f}" + (f" ({item.low:.1f} to {item.high:.1f})" if item.low is not None and item.high is not None else "")


def _worst(results: Sequence[CheckResult]) -> str:
    """The category that lost most, by name; empty if none was measured."""
    items = [
        item for result in results for item in result.evidence if result.check == "behaviour.refusal" and item.name.startswith(BY_CATEGORY)
    ]
    if not items:
        return ""
    worst = max(items, key=lambda item: (item.value, item.name))
    return f"{worst.name.removeprefix(BY_CATEGORY)} {_points(worst)}" if worst.value > 0.0 else "none lost"
