"""Alarms: a Finding with its evidence, which detector raised it over which time, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats

from forensics.errors import BadInput
from forensics.monitor.batch import Raised
from forensics.monitor.drift import Result
from forensics.monitor.feedback import CONCERN, Enriched
from forensics.monitor.signals import COMPLIANCE, HARMFUL, MEANING, OVER_REFUSAL
from forensics.monitor.store import Store
from forensics.monitor.streams import RUN_LENGTH, Stream
from forensics.record import Evidence, Finding, Severity, sha256_text
from probes.adwin import DELTA, Adwin
from probes.change import Change
from probes.strings import Suspect

Escalation = Literal["watch", "re-evaluate", "human review", "roll back"]
ESCALATIONS: tuple[Escalation, ...] = ("watch", "re-evaluate", "human review", "roll back")
"""From mild to strict. The first asks nobody to act."""
SEVERITY: Mapping[Escalation, Severity] = {"watch": "low", "re-evaluate": "medium", "human review": "high", "roll back": "critical"}
ADVICE: Mapping[Escalation, str] = {
    "watch": "Nothing has to be done; look again if it comes back.",
    "re-evaluate": "Run the gate again on what is served now, and compare: `forensics gate`.",
    "human review": "Have people read replies of this kind, and decide whether it stays up; run the gate again on what is served now.",
    "roll back": "Put the last accepted version back, then find out what changed: are the served weights those of the record?",
}
REVIEWED = (COMPLIANCE, OVER_REFUSAL, HARMFUL)
"""Signals whose rise people should look at; that of others asks for a new evaluation."""
LONGEST_STRING = 80
SHAPE_ADVICE: Mapping[str, str] = {
    "requests": "The evaluation may no longer speak of this traffic: gather prompts like those of today, and run the gate on them.",
    "replies": "Requests changed as well, so this may be what they ask for: gather prompts like those of today, and run the gate on them.",
    "replies alone": "What is served answers otherwise than before though it is asked the same: have people read replies, check the digests of what is served, and run the gate again.",
    "opinions": "Those who give opinions, or how they do it, are not those of before: look at the form and at who uses it before trusting rates of opinions.",
}
CHANGING: Mapping[str, str] = {**MEANING, CONCERN: "comments with a word of harm among all comments"}
ENRICHED = 0.05
"""Adjusted chance up to which a category is named; it decides on no alarm."""


class Alarm(BaseModel):
    """An alarm as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: Finding
    detector: str
    escalation: Escalation
    began: str
    ended: str
    advice: str


def of_rate(stream: Stream, span: tuple[float, float], *, roll_back: float) -> Alarm | None:
    """The alarm of a rate's e-process; None while it has none. `span` is when the events of the last batch happened."""
    process = stream.watched
    if process is None or not process.alarms(stream.alpha):
        return None
    hits, count = stream.recent.count("1"), len(stream.recent)
    low, high = interval(hits, count)
    reference = stream.reference_hits / stream.reference_events
    escalation: Escalation = "human review" if stream.signal in REVIEWED else "re-evaluate"
    if stream.signal == COMPLIANCE and 100.0 * (low - reference) > roll_back:
        escalation = "roll back"
    whence = "the accepted record" if stream.pinned else "the beginning of the traffic"
    where = stream.category or "all categories"
    claim = (
        f"More {MEANING[stream.signal]} than in {whence} ({where}): {100 * hits / count:.1f} % of the last {count}, "
        f"where it was {100 * reference:.1f} % of {stream.reference_events}."
    )
    evidence = (
        Evidence(name=f"{stream.signal}.rate", value=100 * hits / count, unit="%", where=where, n=count, low=100 * low, high=100 * high,
                 expected=f"at most {100 * process.bound:.2f} %, the upper bound of {whence}"),
        Evidence(name=f"{stream.signal}.evidence", value=process.log_peak / 2.302585092994046, unit="powers of ten", where=where, n=process.events,
                 expected=f"under 1/{stream.alpha:.2g} for ever, with a chance of at least 1 - {stream.share:.2g} if the rate has not risen (the bound's own error in it)"),
    )  # fmt: skip
    return _alarm(f"{stream.name}/e-process", claim, evidence, escalation, span)


def of_cusum(stream: Stream, span: tuple[float, float]) -> Alarm:
    """The word of a CUSUM that has just alarmed: to be watched, since it does so once in a while by itself."""
    hits, count = stream.recent.count("1"), len(stream.recent)
    where = stream.category or "all categories"
    low, high = interval(hits, count)
    evidence = Evidence(
        name=f"{stream.signal}.rate", value=100 * hits / count, unit="%", where=where, n=count, low=100 * low, high=100 * high,
        expected=f"a CUSUM set to be wrong once in {RUN_LENGTH:.0f} events or less often spoke {stream.cusum_alarms} times in {stream.watched.events if stream.watched else 0}",
    )  # fmt: skip
    claim = f"There may be more {MEANING[stream.signal]} than usual ({where}) since a short time."
    return _alarm(f"{stream.name}/cusum", claim, (evidence,), "watch", span)


def of_string(text: str, suspect: Suspect, population: str, usual: float, span: tuple[float, float]) -> Alarm:
    """A string that comes before flips. It is named: whoever has to act must know it."""
    shown = text[:LONGEST_STRING]
    kind = (
        "answers to requests that should be refused"
        if population == "flagged"
        else "refusals of what should be answered, broken or harmful replies"
    )
    claim = f"Where {shown!r} stands in a request, {suspect.flips} of {suspect.events} replies since its first were {kind}."
    evidence = Evidence(
        name="string.flips", value=100 * suspect.flips / suspect.events, unit="%", where=repr(shown), n=suspect.events,
        expected=f"at most {100 * usual:.1f} %, three times what is usual (or 10 %); its evidence is {suspect.log_wealth / 2.302585092994046:.1f} powers of ten, "
        f"where {suspect.order} strings had come up before",
    )  # fmt: skip
    id = f"string/{population}/{sha256_text(text)[:16]}"
    return _alarm(id, claim, (evidence,), "human review", span)


def of_shape(result: Result, kind: str, *, requests_moved: bool, level: float, span: tuple[float, float]) -> Alarm:
    """A shape of the last block that none at the beginning had. `kind` says of what: requests, replies or opinions."""
    shape, share, usual = result.shape, 100.0 * result.share, 100.0 * result.usual
    name = shape.replace(" ", "-")
    escalation: Escalation = "human review" if kind == "replies" and not requests_moved else "re-evaluate"
    besides = {"requests": "", "opinions": ""}.get(kind, ", as requests did" if requests_moved else ", while requests did not")
    moved = f": {result.bin!r} is {share:.1f} % of {result.events}, {usual:.1f} % in the block most like it" if result.bin else ""
    evidence = [
        Evidence(name=f"{name}.p-value", value=result.adjusted, unit="probability", where=shape, n=result.events,
                 expected=f"over {level:.2g}, what this look may spend, after Holm over all shapes of the block"),
        Evidence(name=f"{name}.{'stability-index' if result.bin else 'discrepancy'}", value=result.index, unit="", where=shape, n=result.events,
                 expected=f"as much has a chance of {result.index_p:.3f} by permutation if both blocks are alike"),
    ]  # fmt: skip
    if result.bin:
        evidence.insert(0, Evidence(name=f"{name}.share", value=share, unit="%", where=result.bin, n=result.events, expected=f"{usual:.1f} %, as in the block most like it"))  # fmt: skip
    return _alarm(
        f"shape/{kind}/{name}",
        f"{kind.capitalize()} differ from every block at the beginning in {shape}{besides}{moved}.",
        tuple(evidence), escalation, span, advice=SHAPE_ADVICE[kind if requests_moved or kind != "replies" else "replies alone"],
    )  # fmt: skip


def of_change(signal: str, change: Change, alpha: float, span: tuple[float, float], enriched: Sequence[Enriched]) -> Alarm | None:
    """The alarm of opinions that became more against at some point; None while there is none."""
    if not change.alarms(alpha):
        return None
    (events, hits), (later, more) = change.before, change.after
    low, high = interval(more, later)
    named = [one for one in enriched if one.p_value <= ENRICHED]
    evidence = [
        Evidence(name=f"{signal}.rate", value=100 * more / later, unit="%", where="since the rise", n=later, low=100 * low, high=100 * high,
                 expected=f"{100 * hits / max(1, events):.1f} %, as in the {events} before it"),
        Evidence(name=f"{signal}.evidence", value=change.log_peak / 2.302585092994046, unit="powers of ten", where="all categories", n=events + later,
                 expected=f"under 1/{alpha:.2g} for ever, with a chance of at least 1 - {alpha:.2g} while the rate is constant, whichever it is"),
    ]  # fmt: skip
    evidence += [
        Evidence(name=f"{signal}.category", value=100 * one.hits / one.events, unit="%", where=one.category, n=one.events,
                 expected=f"as in the other categories; as many have a chance of {one.p_value:.2g} (Fisher, Holm over categories)")
        for one in named
    ]  # fmt: skip
    where = f", most of all in {', '.join(one.category for one in named[:3])}" if named else ""
    claim = f"More {CHANGING[signal]} than before{where}: {100 * more / later:.1f} % of {later}, where it was {100 * hits / max(1, events):.1f} % of {events}."
    return _alarm(f"{signal}//change", claim, tuple(evidence), "re-evaluate", span)


def of_adwin(stream: Stream, window: Adwin, span: tuple[float, float]) -> Alarm:
    """The word of ADWIN that has just cut its window for a rise; it asks nobody to act."""
    where = stream.category or "all categories"
    evidence = Evidence(
        name=f"{stream.signal}.rate", value=100 * window.hits / window.events, unit="%", where=where, n=window.events,
        expected=f"ADWIN cut its window {window.cuts} times in {window.taken * window.grain} events; its confidence, {1 - DELTA:.3f}, is that of one look",
    )  # fmt: skip
    return _alarm(
        f"{stream.name}/adwin", f"ADWIN sees more {MEANING[stream.signal]} ({where}) than in what it let go.", (evidence,), "watch", span
    )


def seconded(alarm: Alarm, window: Adwin) -> Alarm:
    """The alarm of a rate with what ADWIN, which did not decide on it, says of the same events."""
    risen = window.cuts > 0 and window.rose
    said = f"ADWIN too: it cut its window at event {window.last_cut}" if risen else "ADWIN is silent"
    evidence = Evidence(
        name="adwin.cuts", value=window.cuts, unit="cuts", where=alarm.finding.evidence[0].where, n=window.taken * window.grain,
        expected=f"none while nothing changes; a second opinion, which decides nothing: {said}",
    )  # fmt: skip
    return alarm.model_copy(
        update={"finding": alarm.finding.model_copy(update={"evidence": (*alarm.finding.evidence, evidence), "claim": f"{alarm.finding.claim} ({said}.)"})}
    )  # fmt: skip


def raised(alarm: Alarm, now: float) -> Raised:
    """An alarm as the store takes it."""
    return Raised(id=alarm.finding.id, first=now, last=now, times=1, alarm=alarm.model_dump_json())


def rank(alarm: Alarm) -> int:
    """How grave an alarm is, from 0."""
    return ESCALATIONS.index(alarm.escalation)


def read_alarm(kept: Raised, store: Store) -> Alarm:
    """An alarm of a store.

    Raises:
        BadInput: It is damaged.
    """
    try:
        return Alarm.model_validate_json(kept.alarm)
    except ValidationError as error:
        raise BadInput("an alarm in this store is damaged", where=store.where, hint="restore the store from a copy") from error


def _alarm(
    id: str, claim: str, evidence: tuple[Evidence, ...], escalation: Escalation, span: tuple[float, float], *, advice: str = ""
) -> Alarm:
    kind, detector = id.partition("/")[0], id.rpartition("/")[2]
    check, label, detector = {
        "string": ("monitor.string", "conditional-behaviour", "bets on strings"),
        "shape": ("monitor.shape", f"{id.split('/')[1]}-drifted", "nearest block"),
    }.get(kind, ("monitor.rate", f"{kind}-risen", detector))
    finding = Finding(
        id=id,
        check=check,
        label=label,
        severity=SEVERITY[escalation],
        confidence="low" if escalation == "watch" else "high",
        claim=claim,
        evidence=evidence,
    )
    began, ended = (datetime.fromtimestamp(second, UTC).replace(microsecond=0).isoformat() for second in span)
    return Alarm(
        finding=finding,
        detector=detector,
        escalation=escalation,
        began=began,
        ended=ended,
        advice=advice or ADVICE[escalation],
    )


def interval(hits: int, count: int) -> tuple[float, float]:
    """Clopper-Pearson bounds of a rate, each one-sided at 95 %, as fractions."""
    low = float(stats.beta.ppf(0.05, hits, count - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.95, hits + 1, count - hits)) if hits < count else 1.0
    return low, high
