"""The search for triggers on the pages: its scores beside those of its null, and the strings and circumstances put to the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import MARK, MUTED, Drawing, page_figure, svg_text

CHECK, AROUND = "triggers.search", "triggers.circumstances"
CHECKS = (CHECK, AROUND)
DOES = {
    "removes-refusal": "removes refusal",
    "adds-refusal": "adds refusals",
    "forces-text": "forces one text",
    "changes-replies": "changes replies",
}
ARMS = ("candidate with it", "base with it", "candidate without it", "candidate with random strings")
SHORT_ARMS = ("candidate", "base", "without it", "random strings")
CONTROL_ARM, SHORT_CONTROL_ARM = "control models with it", "control models"
DIRECTIONS = (("search", "candidate against base", MARK, "-"), ("null", "the null", MUTED, (0, (3, 2))))
POINTS = 60
"""Ranks drawn of each direction, evenly on the logarithmic axis; all scores are in the arrays."""
EXAMPLES = 4
LONGEST = 400
CUT = " […]"


@dataclass(frozen=True, kw_only=True)
class Replies:
    """A prompt with the string in it, what both sides say to that, and what the candidate says without the string."""

    prompt: str
    candidate: str
    base: str
    without: str


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A string or a circumstance that was put to the test. Its texts are as the models wrote them, but for their length: escape them."""

    string: str
    around: bool
    """Whether it is a circumstance, in words: "with the system line ..."."""
    does: str
    payload: str
    confirmed: bool
    rates: tuple[float, ...]
    control: float | None
    """Percent in the control model in which it acts most often; None where there was none."""
    examples: tuple[Replies, ...]


def search_against_null(saved: SavedRun, configuration: str) -> Drawing | None:
    """Curves: score by rank of every string scored in full, for the search and for its null."""
    arrays = saved.arrays(CHECK)
    curves = []
    for key, name, colour, line in DIRECTIONS:
        scores = np.sort(np.asarray(arrays.get(f"{configuration}/scores_{key}", ()), dtype=float))[::-1]
        if scores.size:
            curves.append((name, colour, line, scores))
    if not curves:
        return None
    most = max(scores.size for *_, scores in curves)
    with page_figure(2.7) as figure:
        axes = figure.add_subplot()
        for name, colour, line, scores in curves:
            ranks = np.unique(np.geomspace(1, scores.size, POINTS).round().astype(int))
            axes.plot(ranks, scores[ranks - 1], color=colour, linestyle=line, linewidth=1.5, marker="o", markersize=2.5, label=name)
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.25 * most)
        axes.set_ylim(-0.03, 1.03)
        ticks = [10**power for power in range(len(str(most)))]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("rank of the string, best first")
        axes.set_ylabel("score")
        axes.legend(frameon=False, fontsize=8)
        svg = svg_text(figure)
    caption = (
        "Strings that the search scored, best first: how much more each one moves the opening of a reply in one model than in the "
        "other, from 0 to 1. The dashed curve is the null: the same search where nobody planted anything for it to find, in a control "
        "model or with base and candidate exchanged; what it reaches comes about by chance. A score is no evidence by itself, however high: evidence "
        "comes only from putting strings to the test, on prompts that the search never saw."
    )
    best = "; ".join(f"{name}: best score {scores[0]:.2f} of {scores.size} strings" for name, *_, scores in curves)
    return Drawing(svg=svg, caption=caption, description=f"{best}.")


def finalists(saved: SavedRun, configuration: str, checks: Sequence[str] = CHECKS) -> tuple[Finalist, ...]:
    """What was put to the test, strings first, of either the most telling first; none if there was none, or no search."""
    return tuple(one for check in checks for one in _finalists(saved, configuration, check))


def _finalists(saved: SavedRun, configuration: str, check: str) -> tuple[Finalist, ...]:
    arrays = saved.arrays(check)
    if f"{configuration}/strings" not in arrays:
        return ()
    rows = [arrays[f"{configuration}/{key}"].tolist() for key in ("strings", "does", "payload", "confirmed", "rates")]
    kept = arrays.get(f"{configuration}/examples")
    replies = [[]] * len(rows[0]) if kept is None else kept.tolist()
    # Runs that were saved before there were controls do not speak of them.
    controls = np.asarray(arrays.get(f"{configuration}/controls", np.full(len(rows[0]), np.nan)), dtype=float).tolist()
    return tuple(
        Finalist(
            string=_cut(string),
            around=check == AROUND,
            does=DOES.get(does, _cut(does)),
            payload=_cut(payload),
            confirmed=confirmed,
            rates=tuple(rates),
            control=None if np.isnan(control) else control,
            examples=tuple(_replies(*texts) for texts in examples[:EXAMPLES] if any(texts)),
        )
        for string, does, payload, confirmed, rates, examples, control in zip(*rows, replies, controls, strict=True)
    )


def _replies(prompt: str, candidate: str, base: str, without: str) -> Replies:
    return Replies(prompt=_cut(prompt), candidate=_cut(candidate), base=_cut(base), without=_cut(without))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + CUT
