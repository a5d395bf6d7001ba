"""The conductor of recorded answers: two recordings, compared and decided like a live run, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from forensics.audit import Outcome
from forensics.case import CANDIDATE
from forensics.conclusion import Facts, conclude, prompt_source, still_valid, versions
from forensics.errors import BadInput
from forensics.gate.besides import Besides, with_besides
from forensics.gate.capability import ID as CAPABILITY
from forensics.gate.carried import carried
from forensics.gate.compare import compare, queued
from forensics.gate.consistency import ID as CONSISTENCY
from forensics.gate.consistency import NOT_DRAWN, Draws, compare_draws, not_drawn
from forensics.gate.costing import Allowance, cost_of, keep_to, refuse_dear
from forensics.gate.judges import RULE_JUDGE
from forensics.gate.key import Key, key_of
from forensics.gate.measures import Replies
from forensics.gate.opinions import ID as OPINIONS
from forensics.gate.pairing import Both, Recorded, decided
from forensics.gate.panel import judges_of
from forensics.gate.recorded import read_both, with_labels
from forensics.gate.replies import NOT_ASKED, TEMPERATURE, Progress, refuse_odd_repeats
from forensics.gate.served import Endpoint, collect_served, refuse_strange_urls
from forensics.gate.style import ID as STYLE
from forensics.gate.style import compare_style
from forensics.gate.suites import prompts_of
from forensics.people.queue import QUEUE, queue_lines
from forensics.policy import Policy
from forensics.prompts import Prompt, PromptSet, needed_kinds
from forensics.record import AuditRecord, BaseSource, CandidateSource, CheckResult, Item, canonical_json, sha256_text
from forensics.runfolder import RunFolder, load_record

GATED = ("behaviour.refusal",)
"""What the policy of a gate alone requires."""
LIVE = (*GATED, CAPABILITY, CONSISTENCY, OPINIONS, STYLE)
"""Checks of a gate alone where both models are held."""
UNSEEN_SERVED = (
    "Models behind a server were asked: no file, no weight, no activation, and no search for triggers; what lies behind the two names is the provider's "
    "word. Ask for the digests of the weights that are served, the base they were made of, the data and settings of the fine-tune, and when either changes.",
    "The server's own filters, system prompt, and sampling are part of every reply.",
)
ONE_REPLY = "Of recorded answers one to each prompt is read: how far a model wavers between several is not known."
UNSEEN = "Recorded answers alone were looked at: no file, no weight, no activation, and no search for triggers."


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the user asked for: two recordings, labels beside them, whose labels decide, and where it stands what a safe model does."""

    base: Path
    candidate: Path
    labels: tuple[Path, ...] = ()
    prompts: tuple[Path, ...] = ()
    suites: tuple[str, ...] = ()
    benchmarks: Path | None = None
    judge: str
    policy: Policy
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the user asked for: a server with two models, and the prompts to put to both."""

    endpoint: Endpoint
    prompts: tuple[Path, ...] = ()
    suites: tuple[str, ...] = ()
    benchmarks: Path | None = None
    besides: Besides = field(default_factory=Besides)
    policy: Policy
    allowance: Allowance = field(default_factory=Allowance)
    out: Path | None = None


def alone(policy: Policy) -> Policy:
    """The policy of a gate alone: its thresholds, with nothing required that only an audit looks at."""
    return policy.model_copy(update={"name": f"{policy.name}, gate alone", "required": GATED})


def refuse_half_given(
    base: str | None,
    candidate: str | None,
    models_only: Sequence[object],
    recordings: object,
    labels: Sequence[Path] | None,
    endpoint: object = None,
) -> None:
    """Refuse a gate that is given neither two models nor two recordings, or something of both.

    `models_only` are options that only models take, the adapters first.

    Raises:
        BadInput: The message says which.
    """
    if recordings is None and (base is None or candidate is None):
        raise BadInput(
            "a gate compares two sides", where="BASE CANDIDATE", hint="give two models, or two recordings with --replay BASE CANDIDATE"
        )
    if recordings is None and labels:
        raise BadInput(
            "labels belong to recorded answers", where="--labels", hint="replay the run they are of: --replay RUN RUN --labels FILE"
        )
    if endpoint and recordings is not None:
        raise BadInput("recorded answers need no server", where="--endpoint", hint="leave out --replay, or --endpoint")
    if endpoint and models_only[0]:
        raise BadInput("a server has adapters as models of their own", where="--adapter", hint="give the adapter's name there as CANDIDATE")
    if recordings is not None and (base is not None or candidate is not None or any(models_only)):
        raise BadInput(
            "recorded answers are compared without a model",
            where="--replay",
            hint="leave out the models, --adapter, --fresh, --wrapped, --domain and --repeats",
        )


def replay(request: Replay) -> Outcome:
    """Compare two recordings and write a record with the verdict.

    Raises:
        BadInput: A file cannot be used, or nobody called `request.judge` judged both sides; nothing was written.
        CannotCompare: The recordings were not asked the same; nothing was written.
        ToolFailed: No space.
    """
    key = key_of(prompts_of(request.prompts, request.suites, request.benchmarks))
    both = decided(with_labels(read_both(request.base, request.candidate, key), request.labels), key)
    known = judges_of(both.base.items, both.candidate.items)
    if request.judge not in known:
        raise BadInput(f"no judge {request.judge!r} judged both sides", where="--judge", hint=f"one of {', '.join(known)}")
    with RunFolder.begin(request.out, stem="replay", key=_key(request, both, key)) as run:
        if run.record_path.exists():
            return Outcome(record=still_valid(load_record(str(run.path)), run.path), folder=run.path)
        run.write_prompts(both.prompts)
        run.add_items(side.items[prompt.id] for prompt in both.prompts for side in (both.base, both.candidate))
        tables = [table for side in (both.base, both.candidate) for table in side.draws]
        run.add_items(table[prompt.id] for table in tables for prompt in both.prompts if prompt.id in table)
        replies = Replies(
            tuple(prompt for prompt in both.prompts if prompt.apart is None),
            both.base.items,
            both.candidate.items,
            CANDIDATE,
            judge=request.judge,
            seed=request.seed,
            unanswered=both.unanswered,
            apart=tuple(prompt for prompt in both.prompts if prompt.apart is not None),
            unanswered_apart=both.unanswered_apart,
        )
        facts = Facts(
            base=BaseSource(path=str(both.base.path), digest=both.base.digest),
            candidate=CandidateSource(path=str(both.candidate.path), digest=both.candidate.digest),
            prompts=tuple(prompt_source(one) for one in _sources(both, key)),
            policy=request.policy,
            seed=request.seed,
            settings={
                "bands": request.policy.bands.spelled,
                "replay": "recorded answers" + "".join(f"; {side}: {format}" for side, format in both.formats),
                "judge": request.judge,
                "labels": f"{both.labels} added from files",
            },
            configurations=(CANDIDATE,),
            created=datetime.fromisoformat(run.created),
        )
        one_sided = (f"{both.alone} prompts were put to one side only and are not compared.",) if both.alone else ()
        draws = _recorded_draws(both, replies.prompts)
        looked = (*GATED, STYLE, *((CONSISTENCY,) if isinstance(draws, Draws) else ()))
        besides = carried(both.candidate, looked, request.policy, CANDIDATE)
        record = _concluded(run, replies, facts, (UNSEEN, *besides.limits, *one_sided, *both.notes), draws, besides.results)
    return Outcome(record=record, folder=run.path)


def ask_served(request: Served, progress: Progress) -> Outcome:
    """Ask two models behind a server, compare, and write a record with the verdict.

    Raises:
        BadInput: Prompts cannot be used, or the server does not know a model, or refuses; nothing is lost that was answered.
        ToolFailed: The server does not answer, or no space; the same command resumes.
    """
    refuse_strange_urls(request.endpoint.urls)
    refuse_odd_repeats(request.endpoint.repeats)
    sets = prompts_of(request.prompts, request.suites, request.benchmarks)
    if not sets:
        raise BadInput(
            "there is nothing to ask",
            where="--endpoint",
            hint="give --prompts FILE.jsonl, --suite forensics for those that are shipped, or --benchmarks DIR",
        )
    needed_kinds(sets, ("refuse", "comply"), by=GATED[0])
    endpoint = request.endpoint
    wanted = with_besides(sets, request.besides, seed=endpoint.seed)
    cost = cost_of(wanted.prompts, wanted.apart, models=len(endpoint.models), repeats=1 + endpoint.repeats, longest=endpoint.max_new_tokens)
    refuse_dear(request.allowance, cost)
    asked = {
        "endpoint": " ".join(endpoint.shown),
        "models": " ".join(endpoint.models),
        "decoding": f"temperature 0, at most {endpoint.max_new_tokens} tokens",
    }
    if endpoint.repeats:
        asked |= {"repeats": f"{endpoint.repeats} drawn replies to each prompt at temperature {TEMPERATURE:g}"}
    key = sha256_text(
        canonical_json(
            {
                "served": asked,
                "prompts": [one.digest for one in wanted.sets],
                "policy": request.policy.digest,
                "seed": endpoint.seed,
                "versions": versions(),
            }
        )
    )
    with RunFolder.begin(request.out, stem="served", key=key) as run:
        if run.record_path.exists():
            raise BadInput(
                f"this gate was finished on {run.created[:10]}, and what lies behind the names may have changed since",
                where=str(run.path),
                hint="ask again into a new folder with --out; `forensics report` shows this one",
            )
        run.write_prompts(wanted.every)
        progress = keep_to(request.allowance, cost, progress)
        collect_served(endpoint, wanted.prompts, run=run, progress=progress)
        collect_served(replace(endpoint, repeats=0), wanted.apart, run=run, progress=progress)  # of these one reply is read
        ours, theirs = ({prompt.id: run.items[side, side, prompt.id, 0] for prompt in wanted.every} for side in ("base", CANDIDATE))
        names = [f"{endpoint.shown[0]}#{model}" for model in endpoint.models]
        facts = Facts(
            base=BaseSource(path=names[0], digest=sha256_text(names[0])),
            candidate=CandidateSource(path=names[1], digest=sha256_text(names[1])),
            prompts=tuple(prompt_source(one) for one in wanted.sets),
            policy=request.policy,
            seed=endpoint.seed,
            settings=asked | {"bands": request.policy.bands.spelled},
            configurations=(CANDIDATE,),
            created=datetime.fromisoformat(run.created),
        )
        replies = Replies(wanted.prompts, ours, theirs, CANDIDATE, seed=endpoint.seed, apart=wanted.apart)
        record = _concluded(run, replies, facts, UNSEEN_SERVED, _draws(run, wanted.prompts, endpoint))
    return Outcome(record=record, folder=run.path)


def _draws(run: RunFolder, prompts: tuple[Prompt, ...], endpoint: Endpoint) -> Draws | str:
    """The drawn replies of both served models, or why there are none."""
    if not endpoint.repeats:
        return NOT_DRAWN
    ours, theirs = (
        [{prompt.id: run.items[side, side, prompt.id, repeat] for prompt in prompts} for repeat in range(1, endpoint.repeats + 1)]
        for side in ("base", CANDIDATE)
    )
    return Draws(prompts=prompts, base=ours, candidate=theirs, configuration=CANDIDATE, seed=endpoint.seed)


def _recorded_draws(both: Both, prompts: tuple[Prompt, ...]) -> Draws | str:
    """The drawn replies of two runs that are replayed, or why none are compared."""
    ours, theirs = both.base, both.candidate
    if not (ours.draws or theirs.draws):
        return ONE_REPLY
    if len(ours.draws) != len(theirs.draws):
        return (
            f"The recordings hold {len(ours.draws)} and {len(theirs.draws)} drawn replies to each prompt: they are compared where both sides are runs "
            "with as many."
        )
    # By the seed of the run, so that the same draws lead to the same numbers.
    seed = theirs.record.seed if theirs.record is not None else 0
    base, candidate = ([_whole(table, prompts, side.items) for table in side.draws] for side in (ours, theirs))
    return Draws(prompts=prompts, base=base, candidate=candidate, configuration=CANDIDATE, seed=seed)


def _whole(table: Mapping[str, Item], prompts: Sequence[Prompt], asked: Mapping[str, Item]) -> dict[str, Item]:
    """The drawn replies of one repeat; to a prompt that has none as to one that was not asked."""
    missing = {"reply": "", "labels": {RULE_JUDGE: NOT_ASKED}}
    return {prompt.id: table.get(prompt.id) or asked[prompt.id].model_copy(update=missing) for prompt in prompts}


def _concluded(
    run: RunFolder, replies: Replies, facts: Facts, unseen: tuple[str, ...], draws: Draws | str, besides: Sequence[CheckResult] = ()
) -> AuditRecord:
    """Compare, write what people should label, decide, and write the record.

    `draws` may be why there are none; `besides` are results of another run that stand as they are.
    """
    finished = {result.check for result in run.results}
    if GATED[0] not in finished:
        result = compare(replies, facts.policy)
        run.add_result(result.model_copy(update={"limits": (*unseen, *result.limits)}))
    if STYLE not in finished:
        run.add_result(compare_style(replies, facts.policy))
    if CONSISTENCY not in finished | {result.check for result in besides}:
        run.add_result(not_drawn(CANDIDATE, draws) if isinstance(draws, str) else compare_draws(draws, facts.policy))
    for result in besides:
        if result.check not in finished:
            run.add_result(result)
    run.write_bytes(QUEUE, queue_lines(queued(replies)))
    record = conclude(replace(facts, contents=run.contents()), run.results)
    run.write_record(record)
    return record


def _digest(prompts: Sequence[Prompt]) -> str:
    return sha256_text(canonical_json([prompt.to_row() for prompt in prompts]))


def _sources(both: Both, key: Key | None) -> list[PromptSet]:
    """Where the compared prompts come from: of each prompt file those that were recognised, and the others as recorded."""
    known = {prompt.id: both.base.asked[prompt.id].known or both.candidate.asked[prompt.id].known for prompt in both.prompts}
    found, named = [], set(known.values())
    for one in key.sets if key is not None else ():
        taken = tuple(prompt for prompt in one.prompts if prompt.id in named)
        if taken:
            found.append(replace(one, prompts=taken, repeated=0))
    others = tuple(prompt for prompt in both.prompts if not known[prompt.id])
    if others:
        found.append(PromptSet(name="recorded", digest=_digest(others), prompts=others))
    return found


def _key(request: Replay, both: Both, key: Key | None) -> str:
    """Digest of everything the run depends on, labels and judges included."""

    def said(side: Recorded) -> list[object]:
        tables = (side.items, *side.draws)
        rows = [[table.get(prompt.id) for prompt in both.prompts] for table in tables]
        return [[item.id, item.repeat, item.reply, sorted(item.labels.items())] for row in rows for item in row if item is not None]

    return sha256_text(
        canonical_json(
            {
                "replay": [_digest(both.prompts), said(both.base), said(both.candidate), both.alone, both.unanswered, both.notes],
                "record": both.candidate.record.results_digest if both.candidate.record is not None else "",
                "unanswered apart": _digest(both.unanswered_apart),
                "key": [one.digest for one in key.sets] if key is not None else [],
                "versions": versions(),
                "policy": request.policy.digest,
                "judge": request.judge,
                "seed": request.seed,
            }
        )
    )
