"""The tables of `edit_kinds.py`, from its lines."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edit_catalogue import CONTROL, KINDS
from trigger_search import interval

Row = dict[str, Any]
WAYS = ("plain", "whitened")


def outcome(row: Row) -> str:
    """Whether a cell is right, wrong, or unresolved."""
    if row["status"] in ("INCONCLUSIVE", "SKIPPED") or row["below"]:
        return "unresolved"
    return "right" if row["label"] in row["accepted"] else "wrong"


def called(row: Row) -> str:
    """What a cell was called; in brackets where that is no label."""
    return "(unresolved)" if outcome(row) == "unresolved" else row["label"] or f"({row['status'].lower()})"


def strength_name(row: Row) -> str:
    """A strength as tables show it."""
    return f"{row['strength']:g}" if row["strength"] else "-"


def show(rows: list[Row]) -> None:
    """Print every table."""
    order = {kind: place for place, kind in enumerate((*KINDS, CONTROL))}
    rows = sorted(rows, key=lambda row: (order[row["kind"]], -row["strength"], row["variant"], row["seed"]))
    _accuracy(("cells of",), rows, lambda row: ("seed 0, looked at in development" if row["seed"] == 0 else "other seeds, held out",))
    _accuracy(("kind",), rows, lambda row: (row["kind"],))
    _accuracy(("kind", "strength"), rows, lambda row: (row["kind"], strength_name(row)))
    _accuracy(("base",), rows, lambda row: (row["base"],))
    _accuracy(("control", "strength"), [row for row in rows if row["kind"] == CONTROL], lambda row: (row["variant"], strength_name(row)))
    counts = {kind: Counter(called(row) for row in rows if row["kind"] == kind) for kind in order}
    confused = [(kind, ", ".join(f"{name} {count}" for name, count in names.most_common())) for kind, names in counts.items() if names]
    table(("kind", "called"), confused)
    wrong = [
        (row["kind"], row["variant"], strength_name(row), row["seed"], row["base"], f"{row['moved']:.2g}", called(row),
         ", ".join(row["accepted"]), row["claim"])
        for row in rows if outcome(row) == "wrong"
    ]  # fmt: skip
    table(("wrong cell", "variant", "strength", "seed", "base", "moved", "called", "right would be", "claim"), wrong)
    adapters = [row for row in rows if row.get("planted")]
    _ranks(adapters)
    _rank_agreement([row for row in adapters if outcome(row) != "unresolved"])


def show_generated(rows: list[Row]) -> None:
    """Print how far every variant moved, and how long making it took."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["kind"], row["variant"], strength_name(row)].append(row)
    lines = []
    for names, group in groups.items():
        part, whole, seconds = (statistics.fmean(row[name] for row in group) for name in ("moved_where_edited", "moved", "made_seconds"))
        moved = "/".join(sorted({str(row["tensors_moved"]) for row in group}))
        lines.append((*names, len(group), f"{part:.4f}", f"{whole:.4f}", moved, f"{seconds:.2f}"))
    table(("kind", "variant", "strength", "cells", "moved where edited", "moved", "tensors", "seconds"), lines)
    every = [row["made_seconds"] for row in rows]
    print(f"\n{len(rows)} pairs, {statistics.fmean(every):.2f} s each, {max(every):.2f} s the slowest")


def table(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown, if there is a line for it."""
    shown = [" | ".join(str(value).replace("|", r"\|") for value in line) for line in lines]
    if shown:
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(f"| {line} |" for line in shown))


def _accuracy(columns: tuple[str, ...], rows: Iterable[Row], name: Callable[[Row], tuple[str, ...]]) -> None:
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        groups[name(row)].append(outcome(row))
    every = [one for outcomes in groups.values() for one in outcomes]
    lines = []
    for names, outcomes in [*groups.items(), *([(("all", "-")[: len(columns)], every)] if every else [])]:
        n, resolved = len(outcomes), [one for one in outcomes if one != "unresolved"]
        below = n - len(resolved)
        lines.append((*names, n, f"{below} ({100 * below / n:.0f} %)" if below else "-", share(resolved.count("right"), len(resolved))))
    table((*columns, "cells", "below resolution", "right of resolved (95 % interval)"), lines)


def share(hits: int, n: int) -> str:
    """Hits of so many, with the 95 % interval."""
    if not n:
        return "-"
    low, high = interval(hits, n)
    return f"{hits} of {n} ({low:.1f} % to {high:.1f} %)"


def _ranks(rows: list[Row]) -> None:
    """The rank that was said, beside how many singular values stand above the noise, cell by cell."""
    groups: dict[tuple[int, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["planted"]["rank"], -row["strength"], row["base"]].append(row)
    lines = []
    for (rank, strength, base), group in sorted(groups.items()):
        seen = [", ".join(_span(row["planted"][way]) for row in group) for way in WAYS]
        said = ", ".join("-" if (value := rank_said(row)) is None else f"{value:g}" for row in group)
        lines.append((rank, f"{-strength:g}", base, len(group), *seen, said))
    table(("rank planted", "strength", "base", "cells", "above the noise (plain)", "above the noise (whitened)", "said"), lines)


def _rank_agreement(rows: list[Row]) -> None:
    """How often the rank that was said of a matrix is what can be seen of it."""
    lines = []
    for way in WAYS if rows else ():
        total = {
            name: sum(row["planted"][name] if name == "tensors" else row["planted"][way][name] for row in rows)
            for name in ("tensors", "near", "clear", "exact")
        }
        lines.append((way, total["tensors"], share(total["near"], total["tensors"]), share(total["exact"], total["clear"])))
    table(
        ("edge", "matrices", "rank within 1 of the values above the edge", "exactly r where the smallest value is over twice the edge"),
        lines,
    )


def rank_said(row: Row) -> float | None:
    """The one rank the check gives for the edit; the largest, if it gives one a tensor."""
    return max((float(value) for _, value in row["ranks"]), default=None)


def _span(found: Row) -> str:
    return f"{found['most']}" if found["least"] == found["most"] else f"{found['least']} to {found['most']}"
