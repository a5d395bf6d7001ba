"""What was done to the weights, as a figure: how far the directions of each change stand above rounding."""

from __future__ import annotations

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import INK, MARK, MUTED, OTHER, Drawing, page_figure, svg_text
from reports.words import printable

CHECK = "weights.edit-kind"
SHOWN = 6
"""Tensors drawn: those that changed most."""
TOKEN_ARRAYS = ("moved_name", "moved_share", "token_sort", "token_name", "token_value", "token_chance")
LONGEST_LABEL = 18
BARS = 10
"""Tokens drawn of each sort: those that stand furthest out."""
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


def tokens(saved: SavedRun, configuration: str) -> Drawing | None:
    """Bars: rows of the vocabulary that moved most, and tokens that the change listens to or makes likelier."""
    arrays = saved.arrays(CHECK)
    if f"{configuration}/token_sort" not in arrays:
        return None
    held = {name: np.asarray(arrays[f"{configuration}/{name}"]) for name in TOKEN_ARRAYS}
    order = np.argsort(-held["moved_share"], kind="stable")[:BARS]
    panels = [("rows that moved, ||dE|| / ||E||", held["moved_name"][order], held["moved_share"][order], 0.0)]
    for sort, title in (("listens", "listened to (std. deviations)"), ("promotes", "made likelier (std. deviations)")):
        rows = np.flatnonzero(held["token_sort"] == sort)[:BARS]
        line = float(held["token_chance"][rows].max()) if len(rows) else 0.0
        panels.append((title, held["token_name"][rows], held["token_value"][rows], line))
    panels = [panel for panel in panels if len(panel[1])]
    if not panels:
        return None
    most = max(len(names) for _, names, _, _ in panels)
    with page_figure(0.9 + 0.2 * most) as figure:
        for number, (title, names, values, line) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.barh(range(len(names)), values, color=MARK, height=0.6)
            axes.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=7)
            axes.set_ylim(most - 0.5, -0.5)
            axes.set_xlabel(title, color=INK, fontsize=8)
            if line:
                axes.axvline(line, color=MUTED, linewidth=1.0)
        svg = svg_text(figure)
    caption = (
        "Tokens in the change. A row of the vocabulary that moved by itself was given another meaning. What the first layers listen to may "
        "set something off, what the last ones make likelier may be what is then said; the line is how far the furthest of all tokens would "
        "stand out by chance. Ordinary training names ordinary words too: these are leads, which the search for triggers tries first."
    )
    told = "; ".join(f"{title}: {', '.join(_label(name) for name in names[:3])}" for title, names, _, _ in panels)
    return Drawing(svg=svg, caption=caption, description=f"Tokens in the change. {told}.")


def _label(text: str) -> str:
    """A token as a label: nothing in it is read as a formula."""
    shown = printable(str(text)).replace("$", r"\$")
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[:LONGEST_LABEL]}..."
