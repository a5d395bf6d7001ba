"""The search for triggers drawn: its scores beside those of its null."""

from __future__ import annotations

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import MARK, MUTED, Drawing, page_figure, svg_text
from reports.finalists import CHECK

DIRECTIONS = (("search", "candidate against base", MARK, "-"), ("null", "the null", MUTED, (0, (3, 2))))
POINTS = 60
"""Ranks drawn of each direction, evenly on the logarithmic axis; all scores are in the arrays."""


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
