"""The page of an investigation: which part of the weights made replies flip, ranked, with what is said when it is put back."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from forensics.causes import Cause, Causes, load_causes
from forensics.record import Evidence
from forensics.runfolder import SavedRun, disk_error, write_text
from reports.figures import INK, MARK, MUTED, OTHER, Drawing, page_figure, svg_text
from reports.html import templates
from reports.words import line, measured, printable

PAGE_NAME = "causes.html"
KIND_WORDS = {
    "lost-refusal": "refusals that were lost",
    "over-refusal": "harmless requests that are refused now",
    "trigger": "what the trigger sets off",
}
OUTCOME_WORDS = {
    "one-group": "one group explains it",
    "several-groups": "several groups explain it together",
    "spread": "no single group and no small set explains it",
    "not-in-weights": "the cause is not in the weights",
}
SHOWN = 6
"""Groups listed in the terminal; all of them are on the page."""
LONGEST_NAME = 34


def write_causes(saved: SavedRun) -> Path | None:
    """Write causes.html into the run's folder, if the run was investigated.

    Raises:
        BadInput: What was saved cannot be read, or the folder cannot be written.
        ToolFailed: The disk is full.
    """
    found = load_causes(saved.folder, results_digest=saved.record.results_digest)
    if found is None:
        return None
    target, text = saved.folder / PAGE_NAME, render_causes(saved, found)
    try:
        write_text(target, text)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def render_causes(saved: SavedRun, found: Causes) -> str:
    """The page as text."""
    sections = [(one, *(bars(causes) if causes else None for causes in (one.causes, one.adapters))) for one in found.investigations]
    page = templates().get_template("causes.html.jinja")
    return page.render(record=saved.record, found=found, sections=sections, kinds=KIND_WORDS, outcomes=OUTCOME_WORDS)


def bars(causes: tuple[Cause, ...]) -> Drawing:
    """Of every group, what it undoes and what it causes by itself, with 95 % intervals, and the same of its control."""
    with page_figure(1.1 + 0.42 * len(causes)) as figure:
        axes = figure.add_subplot()
        for height, cause in enumerate(reversed(causes)):
            for item, colour, shape, shift in ((cause.undone, MARK, "o", 0.14), (cause.caused, OTHER, "s", -0.14)):
                axes.plot([item.low or 0.0, item.high or 0.0], [height + shift] * 2, color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot([item.value], [height + shift], marker=shape, color=colour, markersize=5)
            for item, shift in zip(cause.control[:2], (0.14, -0.14), strict=False):
                axes.plot([item.value], [height + shift], marker="x", color=INK, markersize=5, linestyle="none")
        axes.plot([], [], color=MARK, marker="o", label="undone when put back")
        axes.plot([], [], color=OTHER, marker="s", label="flipped by it alone")
        axes.plot([], [], color=INK, marker="x", linestyle="none", label="control: shuffled")
        axes.set_yticks(range(len(causes)), [_short(cause.name) for cause in reversed(causes)])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(-3, 103)
        axes.set_ylim(-0.6, len(causes) - 0.4)
        axes.set_xlabel("percent of the flipped prompts", color=MUTED)
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
        svg = svg_text(figure)
    caption = (
        "Upper bar: how many of the flipped prompts are answered as by the base again when the base's tensors stand in the group's place. "
        "Lower bar: how many flip in the base when the group alone is the candidate's. Crosses: the same for a change of the same size in "
        "that place, its rows and columns shuffled."
    )
    first = causes[0]
    return Drawing(
        svg=svg,
        caption=caption,
        description=f"First {printable(first.name)}: undoes {first.undone.value:.0f} %, causes {first.caused.value:.0f} %.",
    )


def show_causes(found: Causes, saved: SavedRun, console: Console) -> None:
    """Print what was found, one table an investigation."""
    for one in found.investigations:
        console.print()
        trigger = f" ({one.trigger!r})" if one.trigger else ""
        console.print(line((f"{one.configuration}: {KIND_WORDS[one.kind]}{trigger}", "bold"), (f"   {OUTCOME_WORDS[one.outcome]}", "")))
        console.print(line((f"  {one.claim}", "")))
        if one.narrowed:
            console.print(line((f"  Within it, {one.narrowed} is enough to put back.", "")))
        for item in (*one.held_out, *one.set_control):
            console.print(line((f"  {item.name}  ", "dim"), (measured(item), ""), (f"  {item.expected}", "dim")))
        for causes in filter(None, (one.adapters, one.causes)):
            console.print(_table(causes))
            if len(causes) > SHOWN:
                console.print(f"  ... and {len(causes) - SHOWN} more on the page", style="dim")
        for limit in one.limits:
            console.print(line((f"  - {limit}", "dim")))
    console.print()
    for limit in found.limits:
        console.print(line((f"not looked into: {limit}", "yellow")))
    console.print(line((f"causes  {saved.folder / 'causes.json'}", "dim")), soft_wrap=True)
    console.print(line((f"page    {saved.folder / PAGE_NAME}", "dim")), soft_wrap=True)


def _table(causes: tuple[Cause, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="bold")
    for heading in ("put back", "moved", "undone %", "causes %", "control %", "spoils %"):
        table.add_column(heading, justify="left" if heading == "put back" else "right", no_wrap=True)
    for cause in causes[:SHOWN]:
        control = " / ".join(f"{item.value:.0f}" for item in cause.control[:2]) or "-"
        spoiled = f"{cause.spoiled.value:.0f}" if cause.spoiled else "-"
        cells = [cause.name, f"{cause.change:.3f}", _interval(cause.undone), _interval(cause.caused), control, spoiled]
        table.add_row(*(line((cell, "")) for cell in cells))
    return table


def _interval(item: Evidence) -> str:
    return f"{item.value:.0f} [{item.low or 0.0:.0f}, {item.high or 0.0:.0f}]"


def _short(name: str) -> str:
    text = printable(name).replace("$", r"\$")  # a lone dollar would start a formula
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
