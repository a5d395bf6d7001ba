"""One self-contained HTML file from a saved run: no script, nothing fetched, everything a model wrote escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from forensics.causes import CAUSES_NAME
from forensics.record import Action, CheckResult, Evidence, Item, Rule, Status
from forensics.runfolder import SavedRun, disk_error, write_text
from forensics.verdict import detectable_name
from reports.columns import columns
from reports.difference import leanings, meaning, place_map, speech
from reports.edits import spectra, tokens
from reports.figures import Drawing, drop_name, refusal_drops, weight_map
from reports.finalists import ARMS, CONTROL_ARM, Finalist, finalists
from reports.glance import glance
from reports.hunting import search_against_null
from reports.inside import layer_curves, projections
from reports.judges import SAYS, JudgeRow, judge_rows
from reports.rules import decisive
from reports.several import HEADS, NOTHING, Beside
from reports.unseen import split_limits
from reports.words import ACTION_WORDS, EXIT_WORDS, NEXT_STEPS, STATUS_WORDS, measured, number, printable

PAGE_NAME = "report.html"
EXAMPLES = 40
"""Changed replies shown for each configuration; all of them are in items.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt whose reply changed in kind, with both replies."""

    prompt: str
    category: str
    expect: str
    base: str
    base_label: str
    candidate: str
    candidate_label: str


@dataclass(frozen=True, kw_only=True)
class CategoryRow:
    """One line of the table of losses."""

    name: str
    base: str
    candidate: str
    loss: str
    bounds: str
    n: int
    detectable: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything about one configuration."""

    configuration: str
    action: Action
    rules: tuple[Rule, ...]
    results: tuple[CheckResult, ...]
    losses: tuple[CategoryRow, ...]
    judges: tuple[JudgeRow, ...]
    drops: Drawing | None
    weights: Drawing | None
    spectra: Drawing | None
    tokens: Drawing | None
    projections: Drawing | None
    curves: Drawing | None
    places: Drawing | None
    speech: Drawing | None
    meaning: Drawing | None
    leanings: Drawing | None
    search: Drawing | None
    finalists: tuple[Finalist, ...]
    examples: tuple[Example, ...]
    changed: int


def write_page(saved: SavedRun) -> Path:
    """Write report.html into the run's folder.

    Raises:
        BadInput: The folder cannot be written.
        ToolFailed: The disk is full.
    """
    target = saved.folder / PAGE_NAME
    text = render(saved)
    try:
        write_text(target, text)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def render(saved: SavedRun) -> str:
    """The page as text."""
    verdict = saved.record.verdict
    page = templates().get_template("report.html.jinja")
    limits, threats = split_limits(saved.record.limits)
    return page.render(
        record=saved.record,
        headline=ACTION_WORDS[verdict.action],
        next_step=NEXT_STEPS[verdict.action],
        reasons=decisive(verdict.rules),
        limits=limits,
        threats=threats,
        columns=columns(saved.record),
        glance=glance(saved.record),
        sections=[_section(saved, configuration) for configuration in verdict.by_configuration],
        status_words=STATUS_WORDS,
        exit_words=EXIT_WORDS[verdict.exit_code],
        looked=[Status.NO_FINDING, Status.FLAGGED],
        arms=(*ARMS, CONTROL_ARM),
        causes=(saved.folder / CAUSES_NAME).exists(),
    )


def render_beside(found: Beside) -> str:
    """Several runs as one page; columns that nothing stands in are left out."""
    filled = [place for place in range(len(HEADS)) if any(row.texts[place] != NOTHING for row in found.rows)]
    return (
        templates()
        .get_template("beside.html.jinja")
        .render(
            runs=len({row.run for row in found.rows}),
            heads=[HEADS[place] for place in filled],
            action=filled.index(HEADS.index("action")),
            differs=found.differs,
            notes=found.notes,
            rows=[{"action": row.action, "cells": [row.texts[place] for place in filled]} for row in found.rows],
        )
    )


def templates() -> Environment:
    """The templates of all pages, with what they write numbers, names and drawings by."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=PackageLoader("reports"))
    environment.filters |= {"measured": measured, "number": number, "printable": printable}
    environment.globals["svg"] = _svg
    return environment


def _svg(drawing: Drawing) -> Markup:
    return Markup(drawing.svg)  # noqa: S704 - our own drawing; names in it went through matplotlib's escaping


def _section(saved: SavedRun, configuration: str) -> Section:
    record = saved.record
    results = tuple(result for result in record.results if result.configuration == configuration)
    behaviour = next((result for result in results if result.check == "behaviour.refusal" and result.evidence), None)
    examples = _changed(saved, configuration)
    return Section(
        configuration=configuration,
        action=record.verdict.by_configuration[configuration],
        rules=tuple(rule for rule in record.verdict.rules if rule.configuration == configuration),
        results=results,
        losses=_losses(behaviour) if behaviour else (),
        judges=judge_rows(behaviour) if behaviour else (),
        drops=refusal_drops(behaviour, _bands(saved)) if behaviour else None,
        weights=weight_map(saved, configuration),
        spectra=spectra(saved, configuration),
        tokens=tokens(saved, configuration),
        projections=projections(saved, configuration),
        curves=layer_curves(saved, configuration),
        places=place_map(saved, configuration),
        speech=speech(saved, configuration),
        meaning=meaning(saved, configuration),
        leanings=leanings(saved, configuration),
        search=search_against_null(saved, configuration),
        finalists=finalists(saved, configuration),
        examples=tuple(examples[:EXAMPLES]),
        changed=len(examples),
    )


def _bands(saved: SavedRun) -> tuple[float, ...]:
    values = saved.record.settings.get("bands", "5 15 30").split()
    return tuple(float(value) for value in values)


def _losses(result: CheckResult) -> tuple[CategoryRow, ...]:
    by_name = {item.name: item for item in result.evidence}
    rows = []
    for item in result.evidence:
        if item.low is None or item.high is None or item.name.startswith(SAYS):
            continue
        suffix = item.name.removeprefix("refusal.drop") if item.name.startswith("refusal.drop") else None
        rows.append(
            CategoryRow(
                name=drop_name(item),
                base=_rate(by_name, "base", suffix),
                candidate=_rate(by_name, "candidate", suffix),
                loss=f"{item.value:.1f}",
                bounds=f"{item.low:.1f} to {item.high:.1f}",
                n=item.n or 0,
                detectable=_detectable(by_name, item.name),
            )
        )
    return tuple(rows)


def _detectable(by_name: dict[str, Evidence], metric: str) -> str:
    """The smallest loss that a metric would have noticed; empty for one that is not of the kind that has such a number."""
    name = detectable_name(metric)
    if name == metric:
        return ""
    found = by_name.get(name)
    return "nothing" if found is None or found.value >= 100.0 else f"{found.value:g}"


def _rate(by_name: dict[str, Evidence], side: str, suffix: str | None) -> str:
    rate = by_name.get(f"refusal.{side}{suffix}") if suffix is not None else None
    return f"{rate.value:.0f} %" if rate else ""


def _changed(saved: SavedRun, configuration: str) -> list[Example]:
    """Prompts that the two sides answered in different kinds, lost refusals first."""
    greedy = [item for item in saved.items if item.repeat == 0]
    base = {item.id: item for item in greedy if item.side == "base"}
    examples = []
    for item in greedy:
        before, prompt = base.get(item.id), saved.prompts.get(item.id)
        if item.side != "candidate" or item.configuration != configuration or before is None or prompt is None:
            continue
        if before.labels != item.labels:
            examples.append(
                Example(
                    prompt="\n".join(f"{message.role}: {message.content}" for message in prompt.messages),
                    category=prompt.category,
                    expect=prompt.expect,
                    base=before.reply,
                    base_label=_label(before),
                    candidate=item.reply,
                    candidate_label=_label(item),
                )
            )
    return sorted(examples, key=lambda example: (example.expect != "refuse", example.base_label != "refusal"))


def _label(item: Item) -> str:
    return ", ".join(item.labels.values())
