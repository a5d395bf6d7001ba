"""The terminal page of a probe or a monitor: what it is, what it is worth, layer by layer, and what it says of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from forensics.kept import ConceptCard, Followed, Kept, Scores
from forensics.record import Evidence
from reports.words import line, measured, number

SHOWN = 20
"""Prompts shown on the terminal, the highest scores first; all of them are in --json."""


def show(outcome: Kept | Scores, console: Console) -> None:
    """Print what `forensics probe` fitted, or what a kept probe says of prompts."""
    if isinstance(outcome, Kept):
        _card(outcome, console)
    else:
        _scores(outcome, console)


def _card(kept: Kept, console: Console) -> None:
    card = kept.card
    what = f"probe, read at {card.site}" if isinstance(card, ConceptCard) else f"monitor of {card.candidate.name}"
    console.print()
    console.print(line((card.name, "bold"), (f"   {what}", ""), (f"   base {card.base.name} ({card.base.digest[:12]})", "dim")))
    console.print(line((f"  {card.fitted}", "dim")))
    _evidence(card.evidence, console)
    if isinstance(card, ConceptCard):
        console.print()
        console.print(_layers(card))
        for followed in card.followed:
            console.print()
            console.print(line((followed.configuration, "bold"), (f"   digest {followed.digest[:12]}", "dim")))
            _evidence(followed.evidence, console)
            console.print(_followed(followed))
    console.print()
    for limit in card.limits:
        console.print(line((f"  - {limit}", "")))
    console.print(line((f"kept    {kept.folder}", "dim")), soft_wrap=True)


def _evidence(rows: Sequence[Evidence], console: Console) -> None:
    for item in rows:
        console.print(line((f"    {item.name}  ", "dim"), (measured(item), ""), (f"  {item.expected}", "dim")))


def _scores(scores: Scores, console: Console) -> None:
    flagged = sum(row.flagged for row in scores.rows)
    console.print()
    console.print(
        line(
            (scores.probe, "bold"),
            (f"   {scores.configuration}", ""),
            (f"   {flagged} of {len(scores.rows)} prompts above {number(scores.threshold)}", ""),
        )
    )
    table = _table("prompt", "score", "")
    for row in sorted(scores.rows, key=lambda row: (-row.score, row.id))[:SHOWN]:
        table.add_row(line((row.id, "")), number(row.score), line(("flagged", "red") if row.flagged else ("", "")))
    console.print(table)
    if len(scores.rows) > SHOWN:
        console.print(f"  ... and {len(scores.rows) - SHOWN} more with --json", style="dim")
    for limit in scores.limits:
        console.print(line((f"  - {limit}", "")))


def _layers(card: ConceptCard) -> Table:
    table = _table("layer", "site", "held-out AUROC", "discriminant")
    for row in card.layers:
        mark = " *" if row.layer == card.layer else ""
        table.add_row(f"{row.layer}{mark}", line((row.site, "")), f"{row.auroc:.3f}", f"{row.discriminant:.3f}")
    return table


def _followed(followed: Followed) -> Table:
    table = _table("layer", "base's probe here", "own probe", "own probe in the base", "cosine", "cosine of means")
    for row in followed.layers:
        values = (row.base_probe, row.own_probe, row.own_in_base, row.cosine, row.mean_cosine)
        table.add_row(str(row.layer), *(f"{value:.3f}" for value in values))
    return table


def _table(*heads: str) -> Table:
    return Table(*heads, box=None, padding=(0, 2, 0, 2), header_style="bold")
