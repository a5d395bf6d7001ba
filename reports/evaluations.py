"""A monitor's rates and alarms as OpenTelemetry takes them: `gen_ai.evaluation.result` events in OTLP's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from forensics.monitor.overview import Overview, Rate, Told
from reports.words import printable

EVENT = "gen_ai.evaluation.result"
SEVERITIES = {"watch": 9, "re-evaluate": 13, "human review": 17, "roll back": 21}
"""OpenTelemetry's numbers: INFO, WARN, ERROR, FATAL."""
INFO = 9
Row = dict[str, Any]


def evaluations(overview: Overview, now: datetime, version: str) -> Iterator[Row]:
    """A document of ResourceLogs for every rate that was counted and every alarm that stands.

    A rate's score is its share of events; its label says whether it lies below its bound. An alarm has a label, what it asks for, and no score.
    None names a response: a rate is about many, and which they were is kept nowhere.

    Args:
        overview: How the deployment stands.
        now: The time, with its zone.
        version: Of this tool.

    Source: semantic conventions for generative AI (open-telemetry/semantic-conventions-genai, in development): events, and opentelemetry-proto
        1.10 for the JSON. Attributes under `forensics.` are ours.
    """
    for rate in overview.rates:
        if rate.events:
            yield _document(overview, version, _record(_of_rate(rate), now, INFO))
    for alarm in overview.alarms:
        yield _document(overview, version, _record(_of_alarm(alarm), now, SEVERITIES[alarm.escalation]))


def _of_rate(rate: Rate) -> Row:
    above = rate.bound is not None and rate.low > rate.bound
    held = f"{rate.hits} of {rate.events}: {rate.meaning}"
    if rate.bound is not None:
        held += f"; the upper bound of {rate.whence} is {rate.bound:.3g} %, evidence {rate.evidence:.2f} of {rate.alarms_at:.2f}"
    return {
        "gen_ai.evaluation.name": f"forensics.{rate.signal}",
        "gen_ai.evaluation.score.value": rate.rate / 100,
        "gen_ai.evaluation.score.label": rate.standing if rate.bound is None else "above bound" if above else "not above bound",
        "gen_ai.evaluation.explanation": f"{held}.",
        "forensics.category": rate.category,
        "forensics.events": rate.events,
        "forensics.hits": rate.hits,
        **({"forensics.bound": rate.bound / 100} if rate.bound is not None else {}),
    }


def _of_alarm(alarm: Told) -> Row:
    return {
        "gen_ai.evaluation.name": "forensics.alarm",
        "gen_ai.evaluation.score.label": alarm.escalation,
        "gen_ai.evaluation.explanation": f"{alarm.finding.claim} {alarm.advice}",
        "forensics.alarm": alarm.finding.id,
        "forensics.detector": alarm.detector,
        "forensics.severity": alarm.finding.severity,
        "forensics.raised": alarm.raised,
        "forensics.times": alarm.times,
    }


def _record(told: Row, now: datetime, severity: int) -> Row:
    nanoseconds = str(int(now.timestamp() * 1_000_000) * 1000)
    return {
        "timeUnixNano": nanoseconds,
        "observedTimeUnixNano": nanoseconds,
        "severityNumber": severity,
        "eventName": EVENT,
        "attributes": _attributes(told),
    }


def _document(overview: Overview, version: str, record: Row) -> Row:
    resource = {"service.name": "forensics-monitor", "service.version": version, "forensics.results_digest": overview.results_digest}
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeLogs": [{"scope": {"name": "forensics.monitor", "version": version}, "logRecords": [record]}],
            }
        ]
    }


def _attributes(told: Row) -> list[Row]:
    return [{"key": key, "value": _value(value)} for key, value in told.items()]


def _value(value: str | float) -> Row:
    if isinstance(value, str):
        return {"stringValue": printable(value)}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
