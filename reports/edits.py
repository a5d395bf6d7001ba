"""What was done to the weights, as a figure: how far the directions of each change stand above rounding."""

from __future__ import annotations

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import INK, MARK, MUTED, OTHER, Drawing, page_figure, svg_text
from reports.words import printable

CHECK = "weights.edit-kind"
SHOWN = 6
"""Tensors drawn: those that changed most."""
LOWEST = 0.05
"""Share of the edge below which a value is not drawn."""


def spectra(saved: SavedRun, configuration: str) -> Drawing | None:
    """Curves: singular values of the changes that are largest, in units of the largest that rounding alone would show."""
    arrays = saved.arrays(CHECK)
    if f"{configuration}/values" not in arrays:
        return None
    values, edges = (np.asarray(arrays[f"{configuration}/{name}"], dtype=float) for name in ("values", "edge"))
    names = [str(name) for name in arrays[f"{configuration}/tensor"]]
    ranks = np.asarray(arrays[f"{configuration}/rank"])
    held = [row for row in np.argsort(-np.asarray(arrays[f"{configuration}/relative_change"])) if edges[row] > 0.0 and values[row, 1] > 0.0]
    if not held:
        return None
    with page_figure(2.9) as figure:
        axes = figure.add_subplot()
        for number, row in enumerate(held[:SHOWN]):
            shares = values[row][values[row] > LOWEST * edges[row]] / edges[row]
            colour, line = (MARK, OTHER)[number % 2], ("-", "--", ":")[number // 2]
            name = printable(names[row]).replace("$", r"\$")
            axes.plot(
                range(1, len(shares) + 1), shares, color=colour, linestyle=line, linewidth=1.4, marker="o", markersize=2.5, label=name
            )
        axes.axhline(1.0, color=MUTED, linewidth=1.0)
        axes.set_yscale("log")
        axes.set_xlabel("singular value, largest first")
        axes.set_ylabel("size, in edges of rounding", color=INK)
        axes.legend(frameon=False, fontsize=7)
        svg = svg_text(figure)
    caption = (
        "Singular values of the changes that are largest. The line at 1 is the largest value that rounding to the storage format shows by "
        "itself: what stands above it was done to the weights. A merged adapter falls off a cliff at its rank; a curve that slopes into the "
        "line went on below it. For adapters that are not merged nothing is rounded, and all of their directions are drawn."
    )
    told = "; ".join(f"{printable(names[row])}: {int(ranks[row])} directions" for row in held[:SHOWN])
    return Drawing(svg=svg, caption=caption, description=f"Directions above rounding. {told}.")
