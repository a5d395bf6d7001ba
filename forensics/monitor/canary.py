"""A canary: the gate's own prompts put to the live endpoint, and its replies held against those of the accepted record, reply by reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from forensics.errors import BadInput, ForensicsError
from forensics.gate.replies import NOT_ASKED, Progress
from forensics.gate.served import Endpoint, collect_served, refuse_strange_urls
from forensics.monitor.alarms import Alarm
from forensics.monitor.baseline import CANARIES, Baseline, baseline_of, deployed, digest_of_contents, digest_of_replies, settings_of
from forensics.monitor.batch import Batch
from forensics.monitor.beside import MEANINGS, Pair, PairedTest, alarms_of, paired_tests, strange_words
from forensics.monitor.overview import FINE, PEOPLE, ROLL_BACK, UNTOLD, Compared, Replayed, Told
from forensics.monitor.raising import keep_alarms
from forensics.monitor.schedule import STATE, Canaries, Canary, read_canaries
from forensics.monitor.store import Store
from forensics.people.log import SESSIONS, SIGNATURES, refuse_cut
from forensics.people.signing import peoples_part
from forensics.prompts import Prompt
from forensics.record import Item, canonical_json, sha256_text
from forensics.runfolder import RunFolder, SavedRun, load_run
from probes.drift import spent

GIVEN_UP = "given-up.txt"
"""File in the folder of a canary that is not gone on with, since the server refused most prompts."""
MOST_AGE = 86400.0
"""Seconds after which an unfinished canary is not gone on with: its replies and those of now may be of two models."""
MOST_REFUSED = 0.5
"""Share of prompts that a server may refuse before nothing is said of the others."""
BEGUN = "%Y%m%dT%H%M%SZ"
FOLDER = re.compile(r"\d{4,}-[0-9a-f]{8}-(\d{8}T\d{6}Z)")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A canary that is to be made: at which endpoint, of how many prompts (None: all), where replies are kept, and how often from now on."""

    endpoint: Endpoint
    folder: Path
    run: Path | None = None
    """Where the run lies by now, if it was moved."""
    sample: int | None = None
    seed: int = 0
    every: int | None = None


def replay_canary(store: Store, wanted: Wanted, clock: Callable[[], float], progress: Progress) -> Replayed:
    """Ask the endpoint what the gate asked, compare, and keep what comes of it in the store; a canary that was killed asks only what is missing.

    All canaries together raise a false alarm with a chance of at most the monitor's alpha times `CANARIES`: number k may spend 1 / (k (k + 1)) of
    that (`probes.drift.spent`), whatever is said of it by a word to watch.

    Raises:
        BadInput: The run is gone or was changed, the endpoint does not know the model or refuses most prompts, or another canary finished meanwhile.
        ToolFailed: The endpoint does not answer; what it answered is kept.
    """
    refuse_strange_urls(wanted.endpoint.urls)
    baseline = baseline_of(store)
    saved = pinned_run(baseline, wanted.run)
    with store.batch() as batch:
        canaries = _scheduled(store, batch, wanted.every)
    stored = {
        item.id: item
        for item in saved.items
        if item.side == "candidate" and item.configuration == deployed(saved.record) and not item.repeat
    }
    prompts = chosen(
        [prompt for prompt in saved.prompts.values() if prompt.apart is None and prompt.id in stored], wanted.sample, wanted.seed
    )
    number = canaries.count + 1
    key = _key(baseline, wanted.endpoint, prompts, number)
    began = clock()
    folder = _folder(wanted.folder, number, key, began)
    try:
        with RunFolder(folder, key=key, created=datetime.fromtimestamp(began, UTC).isoformat()) as run:
            began = datetime.fromisoformat(run.created).timestamp()
            live = _asked(run, wanted.endpoint, prompts, progress)
    except ForensicsError as error:
        with store.batch() as batch:
            failed = _read(store, batch).model_copy(update={"failed_at": clock(), "failed": error.what})
            batch.set_states({STATE: failed.model_dump_json()})
        raise
    pairs = [Pair(prompt=prompt, stored=stored[prompt.id], now=live[prompt.id]) for prompt in prompts]
    with store.batch() as batch:
        canaries = _read(store, batch)
        if canaries.count != number - 1:
            raise BadInput(
                "another canary was finished meanwhile", where=store.where, hint="one at a time; give the command again for another"
            )
        return _concluded(store, batch, canaries, _Made(pairs=pairs, began=began, now=clock(), endpoint=wanted.endpoint, folder=folder))


def pinned_run(baseline: Baseline, folder: Path | None = None) -> SavedRun:
    """The run that a monitor was started from, as it was then.

    Raises:
        BadInput: It is gone or damaged, or its record, replies, labels, prompts or signatures are not those of then.
    """
    where = str(folder or baseline.run)
    try:
        saved = load_run(where)
        people = peoples_part(saved)
        for name, lines in ((SIGNATURES, people.signatures), (SESSIONS, people.attempts)):
            if name in baseline.people:
                refuse_cut(lines, baseline.people[name], where=f"{where}/people/{name}")
    except BadInput as error:
        raise BadInput(
            f"the run that this monitor was started from cannot be read: {error.what}", where=error.where,
            hint="put its folder back as it was, or name where it lies now with --run; or start a monitor from another run",
        ) from error  # fmt: skip
    changed = saved.record.results_digest != baseline.results_digest or digest_of_replies(saved) != baseline.replies
    if changed or (baseline.contents and digest_of_contents(saved) != baseline.contents):
        raise BadInput(
            "this is not the run that the monitor was started from, or it was changed since", where=where, hint="put the folder back as it was; or start a monitor from this run"
        )  # fmt: skip
    return saved


def chosen(prompts: Sequence[Prompt], size: int | None, seed: int) -> tuple[Prompt, ...]:
    """So many prompts, spread over categories as all of them are, the same ones for the same seed; in the order of the run.

    Each kind (category and what is expected) has its share, by largest remainders, and at least one prompt as long as there is room.
    """
    if size is None or size >= len(prompts):
        return tuple(prompts)
    kinds: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        kinds.setdefault((prompt.category, prompt.expect), []).append(prompt)
    shares = {kind: size * len(members) / len(prompts) for kind, members in kinds.items()}
    quotas = dict.fromkeys(kinds, 0)
    for _ in range(size):
        open_kinds = [kind for kind in kinds if quotas[kind] < len(kinds[kind])]
        kind = max(open_kinds, key=lambda one: (quotas[one] == 0, shares[one] - quotas[one], len(kinds[one]), one))
        quotas[kind] += 1
    taken = set()
    for kind, members in kinds.items():
        ordered = sorted(members, key=lambda prompt: sha256_text(f"{seed} {prompt.id}"))
        taken |= {prompt.id for prompt in ordered[: quotas[kind]]}
    return tuple(prompt for prompt in prompts if prompt.id in taken)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What was asked and answered, before it is compared."""

    pairs: Sequence[Pair]
    began: float
    now: float
    endpoint: Endpoint
    folder: Path


def _concluded(store: Store, batch: Batch, canaries: Canaries, made: _Made) -> Replayed:
    """Compare, raise alarms and keep the canary, all in one transaction: it counts once, or not at all."""
    number = canaries.count + 1
    level = spent(baseline_of(store).alpha * CANARIES, number)
    scored = [pair for pair in made.pairs if pair.scored]
    other = tuple(pair.prompt.id for pair in scored if not pair.same_words)
    tests = paired_tests(scored, (set(canaries.first), set(canaries.first_other)) if canaries.count else None)
    found = alarms_of(tests, number=number, level=level, roll_back=settings_of(store).roll_back, now=made.now)
    if not canaries.count:
        found |= strange_words(len(other), len(scored), made.now)
    canary = Canary(
        number=number, began=made.began, finished=made.now, endpoint=made.endpoint.shown[0], model=made.endpoint.models[1], prompts=len(made.pairs),
        compared=len(scored), other_words=len(other), level=level, tests=len(tests), alarms=tuple(found),
    )  # fmt: skip
    keep_alarms(batch, store, found, made.now)
    after = canaries.with_canary(canary, tuple(pair.prompt.id for pair in scored), other)
    batch.set_states({STATE: after.model_dump_json()})
    return _told(canary, after, tests, tuple(found.values()), made)


def _told(canary: Canary, reference: Canaries, tests: Sequence[PairedTest], found: Sequence[Alarm], made: _Made) -> Replayed:
    """A canary as it is shown."""
    codes = {"watch": FINE, "roll back": ROLL_BACK}
    moment = datetime.fromtimestamp(canary.finished, UTC).replace(microsecond=0).isoformat()
    return Replayed(
        exit_code=max((codes.get(alarm.escalation, PEOPLE) for alarm in found), default=FINE if canary.compared else UNTOLD),
        number=canary.number,
        endpoint=canary.endpoint,
        model=canary.model,
        prompts=canary.prompts,
        compared=canary.compared,
        unscored=canary.prompts - canary.compared,
        other_words=canary.other_words,
        first_other_words=len(reference.first_other),
        first_compared=len(reference.first),
        level=canary.level,
        tests=tuple(
            Compared(
                signal=test.signal, meaning=MEANINGS[test.signal], category=test.category, prompts=test.drop.n, was=100 - test.drop.base_rate,
                now=100 - test.drop.candidate_rate, rise=test.drop.drop, low=test.drop.low, high=test.drop.high, p_value=test.p_value,
            )
            for test in tests
        ),
        alarms=tuple(Told.model_validate(alarm.model_dump() | {"raised": moment, "last": moment, "times": 1}) for alarm in found),
        folder=str(made.folder),
    )  # fmt: skip


def _asked(run: RunFolder, endpoint: Endpoint, prompts: Sequence[Prompt], progress: Progress) -> dict[str, Item]:
    """What the endpoint replies to every prompt.

    Raises:
        BadInput: It refuses most of them; the folder is not gone on with.
    """
    run.write_prompts(prompts)
    stopped: ForensicsError | None = None
    try:
        collect_served(endpoint, prompts, run=run, progress=progress, sides=("candidate",))
    except ForensicsError as error:
        stopped = error
    held = {prompt.id: run.items.get(("candidate", "candidate", prompt.id, 0)) for prompt in prompts}
    live = {id: item for id, item in held.items() if item is not None}
    refused = [item for item in live.values() if NOT_ASKED in item.labels.values()]
    if len(refused) > MOST_REFUSED * len(prompts):
        run.write_bytes(GIVEN_UP, refused[0].reply.encode("utf-8", "replace"))
        raise BadInput(
            f"the server refuses {len(refused)} of {len(prompts)} prompts, so nothing is said of the others: {refused[0].reply}", where=endpoint.shown[0],
            hint="mend what it says, and give the command again",
        )  # fmt: skip
    if stopped is not None:
        raise stopped
    return live


def _read(store: Store, batch: Batch) -> Canaries:
    return read_canaries(batch.states(), where=store.where)


def _scheduled(store: Store, batch: Batch, every: int | None) -> Canaries:
    """What is kept of canaries, with a new schedule if there is one."""
    canaries = _read(store, batch)
    if every is not None and every != canaries.every:
        canaries = canaries.model_copy(update={"every": every})
        batch.set_states({STATE: canaries.model_dump_json()})
    return canaries


def _key(baseline: Baseline, endpoint: Endpoint, prompts: Sequence[Prompt], number: int) -> str:
    """Digest of what a canary depends on: the same one is gone on with."""
    asked = [
        baseline.results_digest,
        endpoint.shown,
        endpoint.models[1],
        endpoint.max_new_tokens,
        endpoint.seed,
        [prompt.id for prompt in prompts],
    ]
    return sha256_text(canonical_json(["canary", number, *asked]))


def _folder(parent: Path, number: int, key: str, now: float) -> Path:
    """The folder of a canary that was begun and not finished, if it is of today; else a new one."""
    named = f"{number:04d}-{key[:8]}-"
    begun = sorted(folder for folder in parent.glob(f"{named}*") if FOLDER.fullmatch(folder.name) and not (folder / GIVEN_UP).exists())
    if begun:
        match = FOLDER.fullmatch(begun[-1].name)
        since = datetime.strptime(match[1], BEGUN).replace(tzinfo=UTC).timestamp() if match else 0.0
        if 0.0 <= now - since <= MOST_AGE:
            return begun[-1]
    return parent / (named + datetime.fromtimestamp(now, UTC).strftime(BEGUN))
