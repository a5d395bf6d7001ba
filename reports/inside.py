"""Figures of what the activations show: the refusal direction in both models, and where they part."""

from __future__ import annotations

from typing import Any

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import GRID, INK, MARK, MUTED, OTHER, Drawing, page_figure, svg_text

KINDS = (("harmful", MARK), ("harmless", OTHER))
SIDES = ("base", "candidate")


def projections(saved: SavedRun, configuration: str) -> Drawing | None:
    """Strips: how far harmful and harmless held-out prompts lie along the base's refusal direction, in both models."""
    arrays = saved.arrays("activations.refusal-direction")
    rows = [(side, kind, colour, arrays.get(f"{configuration}/projection_{side}_{kind}")) for side in SIDES for kind, colour in KINDS]
    shown = [(side, kind, colour, np.asarray(values, dtype=float)) for side, kind, colour, values in rows if values is not None]
    if not shown:
        return None
    chance = np.random.default_rng(0)  # only spreads the dots, so that they do not hide each other
    with page_figure(0.9 + 0.42 * len(shown)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0.0, color=GRID, linewidth=1, zorder=0)
        for height, (_, _, colour, values) in enumerate(reversed(shown)):
            spread = height + chance.uniform(-0.22, 0.22, size=values.size)
            axes.plot(values, spread, linestyle="none", marker="o", markersize=3.5, color=colour, alpha=0.55, markeredgewidth=0)
            axes.plot([values.mean()] * 2, [height - 0.32, height + 0.32], color=INK, linewidth=1.5)
        axes.set_yticks(range(len(shown)), [f"{side}: {kind}" for side, kind, _, _ in reversed(shown)])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("projection on the base's refusal direction (residual-stream units)")
        axes.set_ylim(-0.6, len(shown) - 0.4)
        svg = svg_text(figure)
    caption = (
        "Each dot is a held-out prompt, its place how far it lies along the direction in which the base writes refusal; strokes are means. "
        "Two clouds apart: the model tells harmful from harmless there. Clouds that moved together in the candidate: it no longer does."
    )
    means = "; ".join(f"{side} {kind} {values.mean():.2g}" for side, kind, _, values in shown)
    return Drawing(svg=svg, caption=caption, description=f"Mean projections: {means}.")


def layer_curves(saved: SavedRun, configuration: str) -> Drawing | None:
    """Curves over layers: how far the residual streams are apart, how well each side separates harmful from harmless, and along what."""
    drift, direction = saved.arrays("activations.drift"), saved.arrays("activations.refusal-direction")
    layers = drift.get(f"{configuration}/layer")
    distances = [key for key in drift if key.startswith(f"{configuration}/relative_distance")]
    if layers is None or not distances:
        return None
    separations = {side: direction[key] for side in SIDES if (key := f"{configuration}/auroc_{side}") in direction}
    cosines = np.asarray(direction.get(f"{configuration}/cosine_candidate", ()), dtype=float)
    with page_figure(2.7) as figure:
        panels: Any = figure.subplots(1, 2 if separations else 1, squeeze=False)[0]
        for kind, colour in KINDS:
            distance = drift.get(f"{configuration}/relative_distance_{kind}")
            if distance is not None:
                held = np.asarray(drift.get(f"{configuration}/held_{kind}", np.ones(len(distance))), dtype=bool)
                panels[0].plot(layers, np.where(held, distance, np.nan), color=colour, marker="o", markersize=3, label=kind)
        panels[0].set_ylabel("relative distance")
        if separations:
            panels[1].axhline(0.5, color=GRID, linewidth=1, linestyle=(0, (3, 3)))
            panels[1].set_ylim(min(0.0, float(np.min(cosines, initial=0.0))), 1.05)
            panels[1].set_ylabel("AUROC; cosine")
        for side, separation in separations.items():
            colour = MARK if side == "candidate" else MUTED
            panels[1].plot(direction[f"{configuration}/auroc_layer"], separation, color=colour, marker="o", markersize=3, label=side)
        if separations and len(cosines):
            panels[1].plot(range(len(cosines)), cosines, color=INK, linestyle=(0, (4, 2)), linewidth=1, label="cosine")
        for panel in panels:
            panel.set_xlabel("entering layer")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False, fontsize=8)
        svg = svg_text(figure)
    caption = "How far base and candidate are apart at the last prompt token, relative to the base's activation, layer by layer."
    if separations:
        caption += (
            " Right: how well a difference of means fitted on the base separates harmful from harmless prompts at each layer, in both; "
            "0.5 is chance."
        )
    if separations and len(cosines):
        caption += " Dashed: cosine between the candidate's own difference of means and the base's; 1 where both point the same way."
    peak = max(float(np.max(drift[key])) for key in distances)
    return Drawing(svg=svg, caption=caption, description=f"The largest relative distance is {peak:.2g}.")
