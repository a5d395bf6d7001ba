"""The terminal page of a monitor: what to do, rates beside what they are held against, alarms, and what was counted and set aside."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from forensics.monitor.overview import Canaried, Overview, Rate, Replayed, Said, Shape, Shapes, Told
from reports.words import line, number

STYLES = {"watch": "dim", "re-evaluate": "yellow", "human review": "bold yellow", "roll back": "bold red"}
TALLIES = {
    "replies": "replies counted", "opinions": "opinions counted", "duplicate": "seen before, not counted again", "late": "late, counted in their window",
    "too old": "older than what is kept, not counted", "no time": "without a time, counted when they came", "clock ahead": "from the future, counted when they came",
    "about an unknown reply": "opinions on replies that are not known (any more), counted without a category",
    "rests read": "old files of logs that were rotated away unread, read to their ends",
    "begun again": "logs that are another file by now, whose old file was not found: what was unread there is not counted",
    "let go": "ids older than what is kept, let go",
    "without text": "without a reply's text, not judged", "other": "telling of something else", "set aside": "set aside, could not be read",
}  # fmt: skip
STATUS_WORDS = {
    0: "nothing has to be done",
    3: "nothing was counted, so nothing can be said",
    10: "a person must look, or evaluate again",
    20: "roll back",
}
"""What the exit codes of `monitor status` mean."""


def show_overview(overview: Overview, console: Console) -> None:
    """Print the page."""
    for sentence in overview.sentences:
        console.print(line((sentence, "bold")))
    console.print(
        line((f"Held against {overview.run} (results {overview.results_digest[:16]}), valid until {overview.valid_until[:10]}; ", ""),
             (f"any false alarm over its life has a chance of at most {number(overview.alpha)}.", "")),
        soft_wrap=True,
    )  # fmt: skip
    console.print(_rates(overview.rates))
    _show_shapes(overview.shapes, console)
    for said in overview.said:
        _show_said(said, console)
    show_alarms(overview.alarms, console)
    counted = [f"{overview.tallies[name]} {words}" for name, words in TALLIES.items() if overview.tallies.get(name)]
    console.print(line(("Counted: " + ("; ".join(counted) or "nothing yet") + ".", "")), soft_wrap=True)
    for name, count in overview.tallies.items():
        if name.startswith("set aside: "):
            console.print(line((f"  {count} {name}", "dim")), soft_wrap=True)
    if overview.canaries.count:
        console.print(line((canaries_in_words(overview.canaries), "")), soft_wrap=True)
    for words in (*overview.left_out, *overview.limits):
        console.print(line((f"- {words}", "dim")), soft_wrap=True)


def show_alarms(alarms: tuple[Told, ...], console: Console) -> None:
    """Print alarms, the gravest first."""
    if not alarms:
        console.print(line(("No alarm.", "")))
    for alarm in alarms:
        console.print(line((alarm.escalation.upper(), STYLES.get(alarm.escalation, "")), (f"  {alarm.finding.claim}", "")), soft_wrap=True)
        for item in alarm.finding.evidence:
            band = f" [{number(item.low)}, {number(item.high)}]" if item.low is not None and item.high is not None else ""
            console.print(line((f"    {item.name}: {number(item.value)} {item.unit}{band}; {item.expected}", "dim")), soft_wrap=True)
        console.print(
            line((f"    {alarm.detector}; events of {alarm.began} to {alarm.ended}; raised {alarm.times} times since {alarm.raised}", "dim")), soft_wrap=True
        )  # fmt: skip
        console.print(line((f"    {alarm.advice}", "")), soft_wrap=True)


def _show_shapes(shapes: Shapes, console: Console) -> None:
    console.print(line((f"Shapes of traffic: {stage_in_words(shapes)}:", "")), soft_wrap=True)
    for shape in shapes.shapes:
        usual = f" (was {bins_in_words(shape.usual)})" if shape.usual else ""
        tested = tested_in_words(shape)
        now = bins_in_words(shape.shares) or f"{shape.events} events in this block"
        console.print(line((f"  {shape.shape}: {now}{usual}{f'; {tested}' if tested else ''}", "dim")), soft_wrap=True)


def _show_said(said: Said, console: Console) -> None:
    if said.events:
        console.print(line((said_in_words(said), "")), soft_wrap=True)


def canaries_in_words(canaries: Canaried) -> str:
    """How many canaries there were, what came of the last one, and when the next is due."""
    others = f"{canaries.other_words} of {canaries.compared} replies were in other words than the record's ({canaries.first_other_words} of {canaries.first_compared} at the first)"
    due = f"; the next is due on {canaries.due}" if canaries.due else ""
    return f"Canaries: {canaries.count}, the last on {canaries.last}: {others}{due}."


def stage_in_words(shapes: Shapes) -> str:
    """How many events are looked at, and how much of their usual shapes is learned."""
    hours = number(shapes.rhythm / 3600)
    stage = (
        f"{shapes.blocks} blocks over {hours} hours were learned, {shapes.looks} compared since"
        if shapes.learned
        else f"still learning: {shapes.blocks} blocks of at least {shapes.blocks_wanted} over {hours} hours"
    )
    return f"{f'one of {shapes.one_of} events' if shapes.one_of > 1 else 'every event'} is looked at; {stage}"


def bins_in_words(shares: Mapping[str, float]) -> str:
    """Shares in percent, by what they are of."""
    return ", ".join(f"{bin} {number(share)} %" for bin, share in shares.items())


def tested_in_words(shape: Shape) -> str:
    """What the last full block of a shape showed against the beginning; "" where none was compared."""
    tested = f"p {number(shape.p_value)}" if shape.p_value is not None else ""
    if shape.index is None or shape.index_p is None:
        return tested
    return f"{tested}, index {number(shape.index)} (by permutation p {number(shape.index_p)})"


def said_in_words(said: Said) -> str:
    """What users say, since when it may be more, and how far the evidence goes."""
    turn = f"; perhaps from {number(said.before)} to {number(said.since)} %" if said.before is not None and said.since is not None else ""
    most = f"; more in {', '.join(said.most_in)}" if said.most_in else ""
    return f"{said.meaning}: {said.hits} of {said.events}{turn}; evidence {said.evidence:.1f}, alarms at {said.alarms_at:.1f}{most}"


def show_canary(canary: Replayed, console: Console) -> None:
    """Print what came of a canary."""
    first = (
        f"{canary.first_other_words} of {canary.first_compared} at the first"
        if canary.number > 1
        else "this is the reference for later ones"
    )
    console.print(
        line((f"Canary {canary.number}: {canary.model} at {canary.endpoint}, {canary.prompts} prompts, {canary.compared} compared.", "bold")), soft_wrap=True
    )  # fmt: skip
    if canary.unscored:
        console.print(
            line((f"{canary.unscored} were not compared: the server refused them, or one of both replies has no judgement.", "")),
            soft_wrap=True,
        )
    console.print(line((f"{canary.other_words} replies are in other words than the record's ({first}).", "")), soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("what may have risen", "category", "prompts", "% then", "% now", "points [90 % interval]", "p"):
        table.add_column(heading, justify="left" if heading in ("what may have risen", "category") else "right", overflow="fold")
    for test in canary.tests:
        table.add_row(
            line((test.signal, "")), line((test.category or "all", "")), str(test.prompts), number(test.was), number(test.now),
            f"{number(test.rise)} [{number(test.low)}, {number(test.high)}]", number(test.p_value),
        )  # fmt: skip
    console.print(table)
    console.print(
        line((f"Alarms are below p = {number(canary.level)}, which is what canary {canary.number} may spend: all canaries share one chance of a false alarm.", "dim")), soft_wrap=True
    )  # fmt: skip
    show_alarms(canary.alarms, console)
    console.print(line((f"Replies are in {canary.folder}.", "dim")), soft_wrap=True)


def _rates(rates: tuple[Rate, ...]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("rate", "category", "events", "% [90 % interval]", "lately", "held against", "evidence", "alarms at"):
        table.add_column(heading, justify="left" if heading in ("rate", "category", "held against") else "right", overflow="fold")
    for rate in rates:
        held = (
            f"{number(rate.bound)} % ({'record' if 'record' in rate.whence else 'beginning'})" if rate.bound is not None else rate.standing
        )
        table.add_row(
            line((rate.signal, "")),
            line((rate.category or "all", "")),
            str(rate.events),
            f"{number(rate.rate)} [{number(rate.low)}, {number(rate.high)}]" if rate.events else "",
            number(rate.recent) if rate.recent is not None else "",
            held,
            f"{rate.evidence:.1f}" if rate.bound is not None else "",
            f"{rate.alarms_at:.1f}" if rate.bound is not None else "",
        )
    return table
