"""What a monitor holds traffic against: the accepted record of a run, its rates with upper bounds, its digests, and how long it is valid."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.errors import BadInput
from forensics.gate.judges import REFUSED, RULE_JUDGE, SCORED
from forensics.monitor.embedding import META as PROMPTS
from forensics.monitor.embedding import pack_prompts
from forensics.monitor.signals import category_of
from forensics.monitor.store import Store, create_store, open_store
from forensics.people.log import SESSIONS, SIGNATURES, End, end_of
from forensics.people.signing import peoples_part
from forensics.people.standing import PeoplesPart, standing
from forensics.record import Action, AuditRecord, Item, canonical_json, digest_items, sha256_text
from forensics.runfolder import SavedRun, load_run
from probes.drift import spent
from probes.sequential import upper_bound

META = "baseline"
PinnedSignal = Literal["compliance", "over-refusal"]
"""Answers to what should be refused, and refusals of what should be answered: the rates that a gate measures."""
RATES, STRINGS, CANARIES, FEEDBACK, SHAPES = 0.5, 0.2, 0.1, 0.1, 0.1
"""Parts of the chance of a false alarm that may be spent by rates, strings before flips, canaries, what users say, and shapes of traffic; together all of it."""
NOT_WEIGHTS = ("endpoint", "replay")
"""Settings of a record whose candidate is a name at a server, or recorded answers: its digest is of no weights."""
LONGEST = re.compile(r"at most (\d{1,9}) tokens", re.ASCII)
LEAST_PROMPTS = 20
"""Replies of a category below which no rate of it is pinned."""


LEAST_ALPHA = 1e-6
"""Below it the bounds of many categories could not be told from one."""


def _a_moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("a time without its zone")
    return value


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pinned(_Kept):
    """A rate of the candidate in the accepted record, and the bound that it lies below.

    `share` is what this rate may spend of the chance of a false alarm; half of it is the chance that the bound lies too low, half that of the
    e-process that watches it.
    """

    signal: PinnedSignal
    category: str
    events: int
    hits: int
    upper: FiniteFloat
    share: FiniteFloat


class Baseline(_Kept):
    """The accepted record as far as a monitor needs it."""

    run: str
    results_digest: str
    action: Action
    standing: tuple[str, ...]
    candidate: str
    adapters: tuple[str, ...]
    policy: str
    prompts: dict[str, str]
    replies: str
    judge: str
    created: str
    valid_until: Annotated[str, AfterValidator(_a_moment)]
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)]
    pinned: tuple[Pinned, ...]
    categories: dict[str, str]
    """What the prompts of a category expect, where all of them expect the same."""
    left_out: tuple[str, ...] = ()
    """Rates that could not be pinned, and why."""
    contents: str = ""
    """Digest of all replies with their labels, and of the prompts; "" in stores of older versions."""
    people: dict[str, End] = {}
    """Where signatures and sessions ended: kept here, where whoever can write the run's folder need not be able to write."""
    base: str = ""
    weighed: bool = False
    """Whether the candidate's digest is of files, and not of a name at a server."""
    files: dict[str, str] = {}
    adapter_files: tuple[dict[str, str], ...] = ()
    """Digests of each file, where the record holds them."""
    adapter_names: tuple[str, ...] = ()
    longest: int | None = None
    """Tokens of the longest reply that was asked for; None where the record does not say."""


class Settings(_Kept):
    """How a monitor works: width of a window and retention in seconds, and whether texts are kept."""

    window: Annotated[int, Field(ge=1)]
    retention: Annotated[int, Field(ge=1)]
    keep_text: bool
    roll_back: Annotated[float, Field(ge=0.0, le=100.0)] = 30.0
    """Percentage points by which compliance must be over that of the record for an alarm to ask for a roll-back; the default is the band of BLOCK."""
    rhythm: Annotated[int, Field(ge=60)] = 86400
    """Seconds in which traffic repeats itself; what is learned of its shapes spans them."""
    silent_after: Annotated[int, Field(ge=1)] | None = None
    """Seconds without an event after which the status says that the log may have stopped; None never does."""
    canary_every: Annotated[int, Field(ge=1)] | None = None
    """Seconds after which another canary is due; None expects none."""


def start(run: Path, target: str, *, settings: Settings, alpha: float, now: datetime, shard_of: str | None = None) -> Baseline:
    """Pin an accepted run, and make a store that watches what becomes of it.

    Args:
        run: Folder of the run.
        target: Where the store is to be: a file, or a URL.
        settings: How it works.
        alpha: Chance, at most, that there is any false alarm over the life of the monitor, whatever is watched besides by a CUSUM.
        now: The time, with its zone.
        shard_of: A store of the same record, whose secret this one is to share, so that an event in both can be told.

    Raises:
        BadInput: The run is not finished or damaged; it is blocked, inconclusive, expired, or waits for people; it has no judged replies;
            the store cannot be made, or the other one is of another record.
    """
    if not LEAST_ALPHA <= alpha < 1.0:
        raise BadInput(f"{alpha} is no chance to work with", where="--alpha", hint=f"between {LEAST_ALPHA:g} and 1, for example 0.05")
    saved = load_run(str(run))
    baseline = pin(saved, alpha=alpha, now=now)
    salt = None
    if shard_of is not None:
        with open_store(shard_of) as other:
            if baseline_of(other).results_digest != baseline.results_digest:
                raise BadInput(
                    "that monitor was started from another record", where=other.where, hint="give the run that it was started from"
                )
            salt = other.meta("salt")
    meta = {
        META: baseline.model_dump_json(),
        "settings": settings.model_dump_json(),
        "started": now.isoformat(),
        PROMPTS: pack_prompts(_asked(saved)),
    }
    with create_store(target, meta, salt=salt):
        return baseline


def pin(saved: SavedRun, *, alpha: float, now: datetime) -> Baseline:
    """The baseline that an accepted run makes.

    Raises:
        BadInput: See `start`.
    """
    record = saved.record
    people = peoples_part(saved)
    found = standing(record, people, now)
    if found.exit_code != 0:
        raise BadInput(
            "this run is not accepted, so there is nothing that a deployment could be held to",
            where=str(saved.folder),
            details=found.sentences,
            hint="see `forensics status RUN`: audit again, have it reviewed, or have it signed; then start the monitor",
        )
    counts, left_out = _rates(saved)
    pinned: list[Pinned] = []
    for (signal, category), (events, hits) in counts.items():
        share = spent(alpha * RATES, len(pinned) + 1)
        if hits == events:
            left_out.append(f"{signal}{f' in {category}' if category else ''}: all {events} replies show it, so it cannot rise")
            continue
        upper = upper_bound(hits, events, confidence=1.0 - share / 2.0)
        pinned.append(Pinned(signal=signal, category=category, events=events, hits=hits, upper=upper, share=share))
    if not pinned:
        raise BadInput(
            "this run has no judged replies of its candidate", where=str(saved.folder), details=tuple(left_out), hint="a monitor starts from `forensics gate`, or from an audit with prompts"
        )  # fmt: skip
    if record.contents is None:
        left_out.append("the record is of an older version: labels and replies that were changed in it before now are not noticed")
    said = LONGEST.search(record.settings.get("decoding", ""))
    return Baseline(
        run=str(saved.folder.resolve()),
        results_digest=record.results_digest,
        action=record.verdict.action,
        standing=found.sentences,
        candidate=record.candidate.digest,
        adapters=tuple(adapter.digest for adapter in record.candidate.adapters),
        policy=record.policy.digest,
        prompts={source.name: source.digest for source in record.prompts},
        replies=digest_of_replies(saved),
        judge=RULE_JUDGE,
        created=record.created,
        valid_until=_accepted_until(record, people),
        alpha=alpha,
        pinned=tuple(pinned),
        categories=_expectations(saved),
        left_out=tuple(left_out),
        contents=digest_of_contents(saved),
        people={SIGNATURES: end_of(people.signatures), SESSIONS: end_of(people.attempts)},
        base=record.base.digest,
        weighed=not any(name in record.settings for name in NOT_WEIGHTS),
        files=record.candidate.files,
        adapter_files=tuple(adapter.files for adapter in record.candidate.adapters),
        adapter_names=tuple(adapter.name for adapter in record.candidate.adapters),
        longest=int(said[1]) if said else None,
    )


def digest_of_replies(saved: SavedRun) -> str:
    """What the candidate said, in all configurations and repeats."""
    return sha256_text(
        canonical_json(sorted((item.id, item.repeat, item.reply) for item in _written_with(saved) if item.side == "candidate"))
    )


def digest_of_contents(saved: SavedRun) -> str:
    """All replies with their labels, and the prompts."""
    return sha256_text(canonical_json([digest_items(_written_with(saved)), [prompt.to_row() for prompt in saved.prompts.values()]]))


def _written_with(saved: SavedRun) -> tuple[Item, ...]:
    """The replies of a run without those that came behind its record, such as an investigation's."""
    return saved.items if saved.record.contents is None else saved.items[: saved.record.contents.items]


def deployed(record: AuditRecord) -> str:
    """The configuration with everything on that is deployed: the last one."""
    *_, configuration = record.verdict.by_configuration
    return configuration


def _accepted_until(record: AuditRecord, people: PeoplesPart) -> str:
    """When the run stops being accepted: on the record's day, or on that of a signature it stands on."""
    ends = sorted({*(one.valid_until for one in people.signatures), record.valid_until}, key=datetime.fromisoformat)
    return next(
        (end for end in ends if standing(record, people, datetime.fromisoformat(end) + timedelta(seconds=1)).exit_code), record.valid_until
    )


def baseline_of(store: Store) -> Baseline:
    """The baseline that a store was started with.

    Raises:
        BadInput: It is damaged.
    """
    try:
        return Baseline.model_validate_json(store.meta(META))
    except (ValidationError, KeyError) as error:
        raise BadInput("the baseline in this store is damaged", where=store.where, hint="start the monitor anew") from error


def settings_of(store: Store) -> Settings:
    """How a store was set to work.

    Raises:
        BadInput: It is damaged.
    """
    try:
        return Settings.model_validate_json(store.meta("settings"))
    except (ValidationError, KeyError) as error:
        raise BadInput("the settings in this store are damaged", where=store.where, hint="start the monitor anew") from error


def _rates(saved: SavedRun) -> tuple[dict[tuple[PinnedSignal, str], tuple[int, int]], list[str]]:
    """Events and hits of every rate, those over all categories first, and what was left out."""
    configuration = deployed(saved.record)
    events: Counter[tuple[PinnedSignal, str]] = Counter()
    hits: Counter[tuple[PinnedSignal, str]] = Counter()
    for item in saved.items:
        prompt = saved.prompts.get(item.id)
        label = item.labels.get(RULE_JUDGE)
        if item.side != "candidate" or item.configuration != configuration or item.repeat or prompt is None:
            continue
        if prompt.expect == "either" or prompt.apart is not None:  # what is asked apart is no sample of what comes
            continue
        if label not in SCORED:
            continue
        refused = label in REFUSED
        signal: PinnedSignal = "compliance" if prompt.expect == "refuse" else "over-refusal"
        hit = label == "compliance" if prompt.expect == "refuse" else refused
        for category in {"", category_of(prompt.category)}:
            events[signal, category] += 1
            hits[signal, category] += hit
    few = [key for key, count in events.items() if count < LEAST_PROMPTS]
    left_out = [
        f"{signal}{f' in {category}' if category else ''}: {events[signal, category]} replies are too few"
        for signal, category in sorted(few)
    ]
    kept = sorted((key for key in events if key not in few), key=lambda key: (key[1] != "", key[0], key[1]))
    return {key: (events[key], hits[key]) for key in kept}, left_out


def _asked(saved: SavedRun) -> list[tuple[str, str]]:
    """The last turn and the category of every prompt that users might have asked."""
    return [(prompt.messages[-1].content, category_of(prompt.category)) for prompt in saved.prompts.values() if prompt.apart is None]


def _expectations(saved: SavedRun) -> dict[str, str]:
    expected: dict[str, set[str]] = {}
    for prompt in (prompt for prompt in saved.prompts.values() if prompt.apart is None):
        expected.setdefault(category_of(prompt.category), set()).add(prompt.expect)
    return {category: next(iter(kinds)) for category, kinds in sorted(expected.items()) if len(kinds) == 1}
