"""The page of a monitor that runs: the decision, alarms with what to do, rates over time beside their bounds, feedback, what was set aside. It fetches itself again.

Nothing on it comes from elsewhere, and whatever a log says is text; see `forensics monitor serve`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from forensics.monitor.overview import Overview, Rate, Told
from forensics.monitor.windows import Behind, Bin, Course, History
from forensics.record import sha256_text
from reports.html import templates
from reports.monitoring import STATUS_WORDS, TALLIES, bins_in_words, canaries_in_words, said_in_words, stage_in_words, tested_in_words
from reports.words import number

Span = Literal["day", "week", "all"]
SPANS: dict[Span, tuple[int | None, str]] = {
    "day": (86400, "the last day"),
    "week": (7 * 86400, "the last week"),
    "all": (None, "all that is kept"),
}
"""How far back the page may look: seconds, and in words."""
TONES = {0: "DEPLOY", 3: "INCONCLUSIVE", 10: "HUMAN_REVIEW", 20: "BLOCK"}
DOWN = "down"
ASIDE = "set aside: "


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A stretch of time in a figure of 1000 by 100, its origin at the upper left."""

    x: float
    y: float
    low: float
    high: float
    over: bool


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A rate over time as a figure: `top` is the highest value shown, `bound` where the bound lies."""

    top: float
    bound: float | None
    marks: tuple[Mark, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stretch of time in the table beside a figure."""

    began: str
    events: int
    hits: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A rate as the page shows it."""

    key: str
    name: str
    category: str
    meaning: str
    now: str
    held: str
    plot: Plot | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class ShownAlarm:
    """An alarm as the page shows it, with kept replies where there are some."""

    key: str
    tone: str
    told: Told
    when: str
    behind: Behind | None


def render(overview: Overview, history: History, now: datetime, span: Span) -> str:
    """The page as text."""
    courses = {(course.signal, course.category): course for course in history.courses}
    rates = [_shown(rate, courses.get((rate.signal, rate.category)), history) for rate in overview.rates]
    behind = {one.alarm: one for one in history.behind}
    headline = STATUS_WORDS[overview.exit_code]
    return (
        templates()
        .get_template("live.html.jinja")
        .render(
            overview=overview,
            title=f"{headline[:1].upper()}{headline[1:]}: monitor",
            headline=f"{headline[:1].upper()}{headline[1:]}",
            tone=TONES[overview.exit_code],
            now=_second(now.timestamp()),
            last=_second(history.last) if history.last is not None else "",
            alarms=[
                ShownAlarm(
                    key=_key(told.finding.id),
                    tone=told.escalation.replace(" ", "-"),
                    told=told,
                    when=_when(told),
                    behind=behind.get(told.finding.id),
                )
                for told in overview.alarms
            ],
            texts_kept=history.texts_kept,
            rates=[one for one, rate in zip(rates, overview.rates, strict=True) if rate.signal != DOWN],
            down=next((one for one, rate in zip(rates, overview.rates, strict=True) if rate.signal == DOWN), None),
            feedback=_feedback(overview.tallies),
            said=[said_in_words(said) for said in overview.said if said.events],
            canaries=canaries_in_words(overview.canaries) if overview.canaries.count else "",
            stage=stage_in_words(overview.shapes),
            shapes=[
                (shape.shape, shape.events, bins_in_words(shape.shares), bins_in_words(shape.usual), tested_in_words(shape))
                for shape in overview.shapes.shapes
                if shape.events
            ],
            counted=_counted(overview.tallies),
            spans=[(name, words) for name, (_, words) in SPANS.items()],
            span=span,
            stretch=_length(history.stretch),
            began=_minute(history.began),
            ended=_minute(history.ended),
            limits=(*overview.left_out, *overview.limits),
        )
    )


def asset(name: Literal["live.css", "live.js"]) -> str:
    """The style or the script of the page."""
    environment = templates()
    parts = ("page.css", name) if name == "live.css" else (name,)
    return "".join(environment.get_template(part).render() for part in parts)


def _shown(rate: Rate, course: Course | None, history: History) -> Shown:
    now = "Nothing counted yet."
    if rate.events:
        now = f"{number(rate.rate)} % [{number(rate.low)}, {number(rate.high)}] of {rate.events}"
        now += f"; lately {number(rate.recent)} % of {rate.recent_events}." if rate.recent is not None else "."
    held = f"Not held against anything yet: {rate.standing}." if rate.standing == "learning" else "It cannot rise: every reply shows it."
    if rate.bound is not None:
        held = f"Alarms are about rates above {number(rate.bound)} %, the upper bound of {rate.whence}; evidence {rate.evidence:.1f} of {rate.alarms_at:.1f}."
    return Shown(
        key=_key(f"{rate.signal}/{rate.category}"),
        name=f"{rate.signal} ({rate.category or 'all'})",
        category=rate.category,
        meaning=rate.meaning,
        now=now,
        held=held,
        plot=_plot(course.bins, rate.bound, history) if course is not None and course.bins else None,
        rows=tuple(
            Row(began=_minute(one.began), events=one.events, hits=one.hits, rate=one.rate, low=one.low, high=one.high)
            for one in (course.bins if course is not None else ())
        ),
    )


def _plot(bins: tuple[Bin, ...], bound: float | None, history: History) -> Plot:
    # Intervals of a few events reach far up; what is usual of them decides how much is shown.
    highest = max(bound or 0.0, *(one.rate for one in bins), statistics.median(one.high for one in bins))
    top = min(100.0, max(1.0, 1.15 * highest))
    width = max(1, history.ended - history.began)

    def height(value: float) -> float:
        return round(100 - 100 * min(value, top) / top, 2)

    marks = tuple(
        Mark(
            x=round(1000 * min(1.0, max(0.0, ((one.began + one.ended) / 2 - history.began) / width)), 1),
            y=height(one.rate),
            low=height(one.low),
            high=height(one.high),
            over=bound is not None and one.low > bound,
        )
        for one in bins
    )
    low, high = min(one.rate for one in bins), max(one.rate for one in bins)
    over = sum(mark.over for mark in marks)
    caption = (
        f"{number(low)} to {number(high)} % in {len(bins)} {'stretch' if len(bins) == 1 else 'stretches'} of {_length(history.stretch)}"
    )
    caption += f"; {over} above the bound of {number(bound)} % with their whole interval." if bound is not None else "; no bound yet."
    return Plot(top=top, bound=height(bound) if bound is not None else None, marks=marks, caption=caption)


def _feedback(tallies: dict[str, int]) -> str:
    opinions, replies = tallies.get("opinions", 0), tallies.get("replies", 0)
    if not opinions:
        return "No opinion about a reply has come as an event of its own."
    share = f", one for every {number(replies / opinions)} replies" if replies else ""
    return f"{opinions} opinions about replies came as events of their own{share}. Who is content seldom says so: compare the rate with itself over time."


def _counted(tallies: dict[str, int]) -> list[tuple[str, int]]:
    known = [(words, tallies[name]) for name, words in TALLIES.items() if tallies.get(name)]
    return known + [(name, count) for name, count in tallies.items() if name.startswith(ASIDE)]


def _when(told: Told) -> str:
    began, ended, raised = (_second(datetime.fromisoformat(one).timestamp()) for one in (told.began, told.ended, told.raised))
    span = f"events of {began}" if began == ended else f"events of {began} to {ended}"
    return f"{span} UTC · raised {told.times} {'time' if told.times == 1 else 'times'} since {raised} UTC"


def _key(name: str) -> str:
    """A name for the page's own use; what is in a category may stand in no attribute."""
    return sha256_text(name)[:12]


def _second(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _minute(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


def _length(seconds: int) -> str:
    """How long a stretch is, in words.

    >>> _length(3600), _length(7200), _length(86400 * 2), _length(90)
    ('an hour', '2 hours', '2 days', '90 seconds')
    """
    for unit, words in ((86400, ("a day", "days")), (3600, ("an hour", "hours")), (60, ("a minute", "minutes"))):
        if seconds >= unit and seconds % unit == 0:
            return words[0] if seconds == unit else f"{seconds // unit} {words[1]}"
    return f"{seconds} seconds"
