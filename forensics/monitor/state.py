"""How a deployment stands, from what its store holds. Nothing is measured here, and nothing written."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from forensics.errors import BadInput
from forensics.monitor.alarms import ESCALATIONS, interval, read_alarm
from forensics.monitor.baseline import Baseline, Settings, baseline_of, settings_of
from forensics.monitor.feedback import joined
from forensics.monitor.ingest import streams_of
from forensics.monitor.looks import said_of, shapes_of
from forensics.monitor.overview import FINE, PEOPLE, ROLL_BACK, UNTOLD, Canaried, Overview, Rate, Told
from forensics.monitor.overview import Standing as HowItStands
from forensics.monitor.schedule import Canaries, read_canaries
from forensics.monitor.signals import MEANING
from forensics.monitor.store import Store
from forensics.monitor.streams import Stream, read_general

NOBODY = "No alarm asks anybody to act."
LIMITS = (
    "Replies are judged by the rules (rules/1): they tell refusals from answers by wording, and not harm.",
    "What should be refused is known of events that say so (`expect`, or a category of the record): compliance of others is not seen.",
    "Rates that the gate did not measure are held against the beginning of the traffic: what was wrong from the start is not seen.",
    "Bounds of the record are those of its prompts; requests of users differ, and a rate may lie higher on them without any change.",
    "Shapes of traffic are of a sample, by lists of words and hashes of our own; a rhythm longer than what is learned (--rhythm), as of weeks, looks like drift.",
    "Opinions are of those who give them: who is unhappy is more likely to.",
    "What a model does on a trigger that nobody sends, or in ways that no signal counts, is not seen.",
)


def overview(store: Store, now: datetime) -> Overview:
    """How a deployment stands.

    Args:
        store: Of its monitor.
        now: The time, with its zone.

    Raises:
        BadInput: The store is damaged.
    """
    baseline = baseline_of(store)
    with store.reading() as view:
        states, tallies, kept = view.states(), view.tallies(), view.alarms()
        summed = view.totals()
    totals = {rate: (count.events, count.hits) for rate, count in summed.items()}
    opinions = joined(summed, {})
    streams = list(streams_of(states, baseline, where=store.where).values())
    order = {signal: place for place, signal in enumerate(MEANING)}
    streams.sort(key=lambda stream: (order.get(stream.signal, len(order)), stream.category))
    told = tuple(_told(read_alarm(one, store).model_dump(), one.first, one.last, one.times) for one in kept)
    settings, started = settings_of(store), _started(store)
    expired = now > datetime.fromisoformat(baseline.valid_until)
    canaries = _canaried(read_canaries(states, where=store.where), settings, started, now)
    last_event = read_general(states, where=store.where).high_water
    silent = settings.silent_after is not None and now.timestamp() - max(last_event, started) > settings.silent_after
    code, sentences = _standing(baseline, told, tallies, expired=expired, asked=canaries.count > 0)
    late, more = _late(canaries, settings, _moment(last_event) if last_event else "", silent=silent)
    code = max(code, late)
    sentences = (*(sentence for sentence in sentences if not (more and late and sentence == NOBODY)), *more)
    return Overview(
        exit_code=code,
        sentences=sentences,
        run=baseline.run,
        results_digest=baseline.results_digest,
        candidate=baseline.candidate,
        valid_until=baseline.valid_until,
        expired=expired,
        last_event=_moment(last_event) if last_event else "",
        silent=silent,
        canaries=canaries,
        alpha=baseline.alpha,
        shapes=shapes_of(states, baseline, settings_of(store), where=store.where),
        said=said_of(states, baseline, opinions, where=store.where),
        rates=tuple(_rate(stream, *totals.get((stream.signal, stream.category), (0, 0))) for stream in streams),
        alarms=tuple(sorted(told, key=lambda one: (-ESCALATIONS.index(one.escalation), one.raised))),
        tallies=tallies,
        left_out=baseline.left_out,
        limits=(*LIMITS, *_not_expected(canaries, settings)),
    )


def _started(store: Store) -> float:
    try:
        return datetime.fromisoformat(store.meta("started")).timestamp()
    except (KeyError, ValueError) as error:
        raise BadInput("when this store was started is damaged", where=store.where, hint="restore the store from a copy") from error


def _canaried(canaries: Canaries, settings: Settings, started: float, now: datetime) -> Canaried:
    every = canaries.every or settings.canary_every
    last = canaries.last[-1] if canaries.last else None
    due = None if every is None else (last.finished if last is not None else started) + every
    return Canaried(
        count=canaries.count,
        last=_moment(last.finished) if last is not None else "",
        compared=last.compared if last is not None else 0,
        other_words=last.other_words if last is not None else 0,
        first_other_words=len(canaries.first_other),
        first_compared=len(canaries.first),
        due=_moment(due) if due is not None else "",
        overdue=due is not None and now.timestamp() > due,
        failed=canaries.failed,
        failed_at=_moment(canaries.failed_at) if canaries.failed_at is not None else "",
    )


def _late(canaries: Canaried, settings: Settings, last_event: str, *, silent: bool) -> tuple[int, tuple[str, ...]]:
    """Exit code and sentences about what should have happened and did not."""
    said = []
    if silent:
        hours = (settings.silent_after or 0) / 3600
        since = f"since {last_event}" if last_event else "since the monitor was started"
        said.append(f"No event {since}, where one is expected every {hours:g} hours: has the log stopped, or what carries it here?")
    if canaries.overdue:
        last = f"the last one succeeded on {canaries.last}" if canaries.last else "none has succeeded"
        said.append(f"A canary was due on {canaries.due}; {last}: forensics monitor canary.")
    late = PEOPLE if said else FINE
    if canaries.failed:
        said.append(f"The last attempt at a canary, on {canaries.failed_at}, failed: {canaries.failed}.")
    return late, tuple(said)


def _not_expected(canaries: Canaried, settings: Settings) -> tuple[str, ...]:
    """What was not set at `start`, and is therefore not noticed."""
    found = []
    if settings.silent_after is None:
        found.append("How long there may be no event was not set (--silent-after): a log that stops is not noticed.")
    if not canaries.due:
        found.append("No canary is expected (--every): between requests of users nothing is asked, and a canary that stops is not noticed.")
    return tuple(found)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0).isoformat()


def _standing(
    baseline: Baseline, told: tuple[Told, ...], tallies: dict[str, int], *, expired: bool, asked: bool
) -> tuple[int, tuple[str, ...]]:
    """Exit code and the sentences that say why; the gravest decides. `asked` says that a canary succeeded: then not nothing is known."""
    said, codes = [], [FINE]
    for escalation, code in (("roll back", ROLL_BACK), ("human review", PEOPLE), ("re-evaluate", PEOPLE)):
        count = sum(one.escalation == escalation for one in told)
        if count:
            codes.append(code)
            said.append(f"{count} {'alarm asks' if count == 1 else 'alarms ask'} for: {escalation}.")
    if expired:
        codes.append(PEOPLE)
        said.append(f"The accepted record expired on {baseline.valid_until[:10]}: evaluate again, and start a monitor from that.")
    replies = tallies.get("replies", 0)
    if replies <= tallies.get("without text", 0):
        codes += [] if asked else [UNTOLD]
        said.append(
            f"None of {replies} replies came with its text, so nothing can be said: let what writes the log keep texts."
            if replies
            else "No reply of a user has been counted: what is known is of canaries."
            if asked
            else "No reply has been counted, so nothing can be said."
        )
    if len(codes) == 1:
        said.append(NOBODY)
    return max(codes), tuple(said)


def _rate(stream: Stream, events: int, hits: int) -> Rate:
    low, high = interval(hits, events) if events else (0.0, 1.0)
    process = stream.watched
    standing: HowItStands = "watched" if process is not None else "learning"
    if process is None and stream.reference_events and stream.reference_hits == stream.reference_events and stream.full:
        standing = "cannot rise"
    known = process is not None
    return Rate(
        signal=stream.signal,
        meaning=MEANING.get(stream.signal, stream.signal),
        category=stream.category,
        events=events,
        hits=hits,
        rate=100 * hits / events if events else 0.0,
        low=100 * low,
        high=100 * high,
        reference=100 * stream.reference_hits / stream.reference_events if known else None,
        bound=100 * process.bound if process is not None else None,
        whence="the accepted record" if stream.pinned else "the beginning of the traffic",
        standing=standing,
        recent=100 * stream.recent.count("1") / len(stream.recent) if stream.recent else None,
        recent_events=len(stream.recent),
        evidence=process.log_peak / math.log(10.0) if process is not None else 0.0,
        alarms_at=-math.log10(stream.alpha),
        cusum_alarms=stream.cusum_alarms,
        cusum_run_length=stream.cusum.get("run_length"),
    )


def _told(alarm: dict[str, object], first: float, last: float, times: int) -> Told:
    raised, again = (_moment(second) for second in (first, last))
    return Told.model_validate(alarm | {"raised": raised, "last": again, "times": times})
