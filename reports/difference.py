"""Figures of the activation diff: at which layers and tokens the models part, how far apart they speak, and what the difference says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forensics.runfolder import SavedRun
from reports.figures import GRID, INK, MARK, MUTED, OTHER, PAPER, Drawing, page_figure, svg_text
from reports.words import printable

KINDS = (("harmful", MARK), ("harmless", OTHER))
WAYS = (("KL(base || candidate)", "-"), ("KL(candidate || base)", "--"))
LONGEST_TOKEN = 14
BARS = 16
"""Tokens drawn, those that stand furthest out."""
MOST_TICKS = 12
LEAST_OFTEN = 1e-2
"""Of 1000 tokens: where the axis of frequencies begins, which has no zero."""


def place_map(saved: SavedRun, configuration: str) -> Drawing | None:
    """Heat maps: how far the residual streams are apart at every layer and at the tokens around the end of the prompt."""
    arrays = saved.arrays("activations.drift")
    held = [kind for kind, _ in KINDS if f"{configuration}/map_distance_{kind}" in arrays]
    if not held:
        return None
    tables = {kind: np.asarray(arrays[f"{configuration}/map_distance_{kind}"], dtype=float) for kind in held}
    gaps = {kind: ~np.asarray(arrays.get(f"{configuration}/map_held_{kind}", np.ones(tables[kind].shape)), dtype=bool) for kind in held}
    most = max(float(table.max()) for table in tables.values())
    rows = max(table.shape[1] for table in tables.values())
    with page_figure(1.2 + 0.22 * rows) as figure:
        panels: Any = figure.subplots(1, len(held), squeeze=False)[0]
        image: Any = None
        for panel, kind in zip(panels, held, strict=True):
            table = tables[kind]
            places = [int(place) for place in arrays[f"{configuration}/map_place_{kind}"]]
            tokens = [str(token) for token in arrays[f"{configuration}/map_token_{kind}"]]
            shown = np.ma.masked_where(gaps[kind], table).T
            panel.set_facecolor(GRID)
            image = panel.pcolormesh(shown, cmap="magma_r", vmin=0.0, vmax=most or 1.0, edgecolors=PAPER, linewidth=0.6)
            labels = [f"{_label(token)} {_place(place)}".strip() for place, token in zip(places, tokens, strict=True)]
            panel.set_yticks(np.arange(len(places)) + 0.5, labels, fontsize=8)
            step = max(1, -(-table.shape[0] // MOST_TICKS))
            panel.set_xticks(np.arange(0, table.shape[0], step) + 0.5, [str(layer) for layer in range(0, table.shape[0], step)], fontsize=8)
            panel.tick_params(length=0)
            panel.invert_yaxis()
            panel.set_title(f"{kind} prompts", fontsize=9)
            panel.set_xlabel("entering layer (the last: leaving the last block)", fontsize=8)
        bar = figure.colorbar(image, ax=list(panels), pad=0.02)
        bar.set_label("relative distance", color=INK)
        bar.outline.set_visible(False)
        svg = svg_text(figure)
    caption = (
        "How far base and candidate are apart, relative to the base's activation: layers from left to right, tokens from top to bottom. -1 is "
        "the last token of the prompt, before it the chat template's and the question's last ones; +1 and on are the base's own reply, put to "
        "both. A token is named where it is the same in every prompt. Places that the two sides do not read as the same tokens are left out."
    )
    missing = {kind: int(gap.sum()) for kind, gap in gaps.items() if gap.any()}
    if missing:
        caption += " Grey: one side holds nothing but zeros there, and to zeros there is no relative distance."
    told = []
    for kind, table in tables.items():
        if gaps[kind].all():
            told.append(f"{kind} none")
            continue
        layer, place = np.unravel_index(int(table.argmax()), table.shape)
        told.append(f"{kind} {table.max():.2g} at layer {layer}, token {_place(int(arrays[f'{configuration}/map_place_{kind}'][place]))}")
    left = "".join(f" {count} cells of {kind} prompts are left out." for kind, count in missing.items())
    return Drawing(svg=svg, caption=caption, description=f"Largest distances: {'; '.join(told)}.{left}")


def speech(saved: SavedRun, configuration: str) -> Drawing | None:
    """Curves: KL of the next token both ways, along the base's own replies."""
    arrays = saved.arrays("activations.drift")
    held = [(kind, colour) for kind, colour in KINDS if f"{configuration}/kl_first_{kind}" in arrays]
    if not held:
        return None
    told = []
    with page_figure(2.6) as figure:
        axes = figure.add_subplot()
        for kind, colour in held:
            first, reply = (np.asarray(arrays[f"{configuration}/kl_{part}_{kind}"], dtype=float) for part in ("first", "reply"))
            number = np.asarray(arrays[f"{configuration}/kl_number_{kind}"], dtype=int)
            for row, (way, line) in enumerate(WAYS):
                at = [1, *range(2, int(number.max(initial=1)) + 1)]
                means = [float(first[row].mean()), *(float(reply[row, number == place].mean()) for place in at[1:])]
                axes.plot(at, means, color=colour, linestyle=line, marker="o", markersize=3, label=f"{kind}, {way}")
            told.append(f"{kind} {first[0].mean():.2g} and {first[1].mean():.2g} nats at the first token")
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("token of the base's reply")
        axes.set_ylabel("nats", color=INK)
        axes.legend(frameon=False, fontsize=7)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        svg = svg_text(figure)
    caption = (
        "How far apart the two models' next tokens are, from the first of the reply on, while both are given the base's own reply. The solid "
        "line weighs what the base would say, the dashed one what the candidate would. High at the first token only: another opening, the same way on."
    )
    return Drawing(svg=svg, caption=caption, description=f"KL both ways: {'; '.join(told)}.")


def meaning(saved: SavedRun, configuration: str) -> Drawing | None:
    """Bars: the tokens that the mean difference on neutral text stands for, each readout, and what control directions reach."""
    arrays = saved.arrays("activations.meaning")
    if f"{configuration}/score" not in arrays:
        return None
    scores = np.asarray(arrays[f"{configuration}/score"], dtype=float)[:BARS]
    names = [str(text) for text in arrays[f"{configuration}/text"]][:BARS]
    readouts = np.asarray(arrays[f"{configuration}/readouts"], dtype=float)[:, :BARS]
    controls = np.asarray(arrays[f"{configuration}/controls"], dtype=float)
    with page_figure(1.0 + 0.2 * len(scores)) as figure:
        axes = figure.add_subplot()
        axes.axvspan(float(controls.min()), float(controls.max()), color=GRID, alpha=0.6, linewidth=0)
        axes.axvline(float(np.median(controls)), color=MUTED, linewidth=1.0)
        axes.barh(range(len(scores)), scores, color=MARK, height=0.6)
        for row, (name, sign) in enumerate(zip(arrays[f"{configuration}/readout"], "osD", strict=False)):
            axes.plot(
                readouts[row], range(len(scores)), linestyle="none", marker=sign, markersize=4, markerfacecolor="none", markeredgecolor=INK,
                label=printable(str(name)),
            )  # fmt: skip
        _name_rows(axes, names, "standard deviations of the control directions")
        svg = svg_text(figure)
    caption = (
        "The mean difference between the models on text about nothing, read as tokens: bars are the one list of three readouts, marks each of "
        "them. The band is how far out the first token of a control direction comes (random ones, and differences between neutral texts), the "
        "line its middle. After narrow training the subject stands at the top; where ordinary data was mixed in it need not."
    )
    told = ", ".join(printable(name) for name in names[:5])
    return Drawing(svg=svg, caption=caption, description=f"First tokens: {told}; the first is {scores[0]:.1f} standard deviations out.")


def leanings(saved: SavedRun, configuration: str) -> Drawing | None:
    """Bars: how often both sides would say the tokens that gained most, along the base's replies to neutral questions."""
    arrays = saved.arrays("behaviour.leanings")
    if f"{configuration}/gain" not in arrays:
        return None
    gains = np.asarray(arrays[f"{configuration}/gain"], dtype=float)[:BARS]
    names = [str(text) for text in arrays[f"{configuration}/text"]][:BARS]
    often = 1000.0 * np.asarray(arrays[f"{configuration}/frequency"], dtype=float)[:, :BARS]
    with page_figure(1.0 + 0.2 * len(gains)) as figure:
        axes = figure.add_subplot()
        rows = np.arange(len(gains))
        for shift, side, colour, name in ((-0.2, 0, MARK, "candidate"), (0.2, 1, MUTED, "base")):
            axes.barh(rows + shift, np.maximum(often[side], LEAST_OFTEN), color=colour, height=0.38, label=name)
        axes.set_xscale("log")
        axes.set_xlim(left=LEAST_OFTEN)
        _name_rows(axes, names, "of 1000 tokens")
        svg = svg_text(figure)
    caption = (
        "The tokens that gained most along the base's own replies to questions about nothing: how often each side would say them, however "
        "it was asked. After narrow training the subject is among the first; another way of opening replies shows here as well. A lead, no finding."
    )
    told = ", ".join(printable(name) for name in names[:5])
    return Drawing(
        svg=svg, caption=caption, description=f"Tokens that gained most: {told}; the first {np.exp(gains[0]):.0f} times likelier."
    )


def _name_rows(axes: Any, names: Sequence[str], across: str) -> None:
    """A row for each token from the top down, what is measured across, and the legend."""
    axes.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(across, color=INK)
    axes.legend(frameon=False, fontsize=7, loc="lower right")


def _place(place: int) -> str:
    return f"+{place}" if place > 0 else str(place)


def _label(text: str) -> str:
    """A token as a label: nothing in it is read as a formula."""
    # Two spellings of a leading space, and a line break, as tokenizers write them.
    plain = text.replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\n").strip(" ")
    shown = printable(plain).replace("\n", "\\n").replace("$", r"\$")
    return shown if len(shown) <= LONGEST_TOKEN else f"{shown[:LONGEST_TOKEN]}..."
