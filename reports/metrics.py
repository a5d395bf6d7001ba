"""A monitor's state as Prometheus scrapes it: counters of what came, rates with bounds, evidence, alarms, expiry."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from forensics.monitor.overview import Overview, Rate
from reports.monitoring import STATUS_WORDS, STYLES
from reports.words import printable

__all__ = ["CONTENT_TYPE", "exposition"]
PREFIX = "forensics_monitor"
ASIDE = "set aside"
LINES = "lines"
LOGS = ("rests read", "begun again")
"""Tallies of logs; all others are of events."""


def exposition(overview: Overview, last: float | None) -> bytes:
    """The metrics as text, in Prometheus's format 0.0.4.

    Counts by signal and category are gauges: what is older than the store keeps is let go, so they may fall. Only tallies never do. A rate that
    nothing was counted for has no value, rather than 0.

    Args:
        overview: How the deployment stands.
        last: When the latest event was, in seconds since 1970; None while there is none.

    Source: Prometheus, "Metric and label naming" (one prefix, base units, `_total`, `_ratio`, `_timestamp_seconds`, few values a label).
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_State(overview, last))
    return generate_latest(registry)


class _State(Collector):
    """What is collected of one overview."""

    def __init__(self, overview: Overview, last: float | None) -> None:
        self._overview = overview
        self._last = last

    def collect(self) -> Iterable[Metric]:
        """All metrics."""
        yield from _of_tallies(self._overview.tallies)
        yield from _of_rates(self._overview.rates)
        yield from _of_decision(self._overview)
        if self._last is not None:
            yield _gauge("last_event_timestamp_seconds", "When the latest event was that was counted.", [((), self._last)])


def _of_tallies(tallies: dict[str, int]) -> Iterable[Metric]:
    events = CounterMetricFamily(f"{PREFIX}_events", "Events by what became of them; a kind may hold those of another.", labels=("kind",))
    aside = CounterMetricFamily(f"{PREFIX}_set_aside", "Lines and posts that could not be read, by why.", labels=("reason",))
    logs = CounterMetricFamily(
        f"{PREFIX}_rotated_logs", "Logs that were rotated away, by what became of what they held unread.", labels=("outcome",)
    )
    for name, count in tallies.items():
        kind, _, reason = name.partition(": ")
        if reason and kind == ASIDE:
            aside.add_metric((printable(reason),), count)
        elif name in LOGS:
            logs.add_metric((name.replace(" ", "_"),), count)
        elif name != LINES:
            events.add_metric((name.replace(" ", "_"),), count)
    lines = CounterMetricFamily(f"{PREFIX}_lines", "Lines of logs, spans and records that were read.")
    lines.add_metric((), tallies.get(LINES, 0))
    return events, aside, lines, logs


def _of_rates(rates: tuple[Rate, ...]) -> Iterable[Metric]:
    counted = [rate for rate in rates if rate.events]
    judged = [rate for rate in rates if rate.bound is not None]
    by = ("signal", "category")
    interval = GaugeMetricFamily(f"{PREFIX}_rate_interval_ratio", "Ends of the 90 % interval of a rate.", labels=(*by, "end"))
    for rate in counted:
        for end, value in (("low", rate.low), ("high", rate.high)):
            interval.add_metric((*_named(rate), end), value / 100)
    cusum = CounterMetricFamily(f"{PREFIX}_cusum_alarms", "How often a CUSUM spoke, which only asks to watch.", labels=by)
    for rate in judged:
        cusum.add_metric(_named(rate), rate.cusum_alarms)
    return (
        _gauge("kept_events", "Events that a rate counts, of the time that is kept.", [(_named(rate), rate.events) for rate in rates], by),
        _gauge("kept_hits", "Events of those that showed the signal.", [(_named(rate), rate.hits) for rate in rates], by),
        _gauge("rate_ratio", "Share of events that showed the signal.", [(_named(rate), rate.rate / 100) for rate in counted], by),
        interval,
        _gauge(
            "recent_rate_ratio",
            "The same of the last events.",
            [(_named(rate), rate.recent / 100) for rate in rates if rate.recent is not None],
            by,
        ),
        _gauge("bound_ratio", "Alarms are about rates above it.", [(_named(rate), (rate.bound or 0.0) / 100) for rate in judged], by),
        _gauge("evidence_decades", "Evidence against the bound, in powers of ten.", [(_named(rate), rate.evidence) for rate in judged], by),
        _gauge("evidence_alarm_decades", "Evidence at which a rate alarms.", [(_named(rate), rate.alarms_at) for rate in judged], by),
        cusum,
    )


def _of_decision(overview: Overview) -> Iterable[Metric]:
    raised = {name: sum(alarm.escalation == name for alarm in overview.alarms) for name in STYLES}
    expiry = datetime.fromisoformat(overview.valid_until).timestamp()
    told = {"results_digest": overview.results_digest, "candidate": overview.candidate}
    info = InfoMetricFamily(PREFIX, "The accepted record that traffic is held against.")
    info.add_metric((), {name: printable(value) for name, value in told.items()})
    return (
        _gauge("alarms", "Alarms that stand, by what they ask for.", [((name,), count) for name, count in raised.items()], ("escalation",)),
        _gauge("evaluation_expiry_timestamp_seconds", "When the accepted record expires.", [((), expiry)]),
        _gauge(
            "decision",
            "1 for how the deployment stands, 0 for the others; exit codes of `forensics monitor status`.",
            [((words, str(code)), int(code == overview.exit_code)) for code, words in STATUS_WORDS.items()],
            ("decision", "exit_code"),
        ),
        info,
        _gauge("silent", "1 if no event came for longer than it should take.", [((), int(overview.silent))]),
        _gauge("canaries", "Canaries that succeeded.", [((), overview.canaries.count)]),
        _gauge("canary_overdue", "1 if a canary is overdue.", [((), int(overview.canaries.overdue))]),
        _gauge(
            "said_evidence_decades",
            "Evidence that users' opinions turned, in powers of ten.",
            [((one.signal,), one.evidence) for one in overview.said],
            ("signal",),
        ),
        _gauge(
            "said_alarm_decades",
            "Evidence at which opinions alarm.",
            [((one.signal,), one.alarms_at) for one in overview.said],
            ("signal",),
        ),
    )


def _gauge(name: str, help: str, rows: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _named(rate: Rate) -> tuple[str, str]:
    return printable(rate.signal), printable(rate.category)
