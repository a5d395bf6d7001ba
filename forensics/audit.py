"""The conductor: open both sides, run the checks in order of cost, decide, write the record. Then it may be shown."""

from __future__ import annotations

import difflib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from forensics import __version__
from forensics.adapters import Adapter, is_adapter, open_adapter
from forensics.alignment import Layout, align, refuse_strangers
from forensics.bank import open_controls
from forensics.case import BASE, CANDIDATE, CONTROLS, COSTS, Case, Check, Cost, Tier
from forensics.checkpoint import Checkpoint, locate, open_checkpoint
from forensics.checks import all_checks, outside_versions
from forensics.conclusion import Facts, conclude, prompt_source, still_valid, versions
from forensics.devices import WORDS, refuse_no_folder, wish
from forensics.errors import BadInput, ForensicsError, ToolFailed, is_out_of_memory
from forensics.gate.besides import Besides, with_besides
from forensics.gate.compare import queued
from forensics.gate.costing import Allowance, Asking, cost_of, keep_to, refuse_dear
from forensics.gate.measures import ID as COMPARISON
from forensics.gate.measures import Replies
from forensics.gate.replies import TEMPERATURE, Decoding, Progress, refuse_odd_repeats
from forensics.gate.suites import prompts_of
from forensics.held import Held
from forensics.people.queue import QUEUE, Queued, queue_lines
from forensics.policy import Policy
from forensics.prompts import Prompt, PromptSet, needed_kinds
from forensics.record import (
    AdapterSource,
    AuditRecord,
    BaseSource,
    CandidateSource,
    CheckResult,
    Status,
    canonical_json,
    sha256_text,
)
from forensics.runfolder import RunFolder, load_record
from forensics.surface import Folder, has_tokenizer
from forensics.workbench import Workbench, spare_threads

CHECKS_OF_THE_CONTRACT = ("weights.edit-kind", "activations.drift", "activations.refusal-direction", "triggers.search")
"""Checks that a policy may already speak of, though this version may not have them yet."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    base: str
    candidate: str
    adapters: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    prompts: tuple[Path, ...] = ()
    suites: tuple[str, ...] = ()
    benchmarks: Path | None = None
    besides: Besides = field(default_factory=Besides)
    policy: Policy
    only: tuple[str, ...] = ()
    max_cost: Cost = "search"
    seed: int = 0
    train_controls: int = CONTROLS
    tier: Tier = "standard"
    budget: int | None = None
    device: str = "auto"
    decoding: Decoding = field(default_factory=Decoding)
    allowance: Allowance = field(default_factory=Allowance)
    """Hours and money; no part of the run's key, so that a run that was stopped goes on with more."""
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Everything read from disk before a run starts, verified and aligned."""

    base: Checkpoint
    candidate: Checkpoint
    adapters: tuple[Adapter, ...]
    candidate_is_adapter: bool
    layout: Layout
    parents: tuple[Checkpoint, ...]
    controls: tuple[Adapter, ...]
    prompt_sets: tuple[PromptSet, ...]
    prompts: tuple[Prompt, ...]
    apart: tuple[Prompt, ...] = ()
    """Prompts that are asked apart from the comparison."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished audit and the folder it was written to."""

    record: AuditRecord
    folder: Path


def run(request: Request, progress: Progress, held: Held | None = None) -> Outcome:
    """Audit CANDIDATE against BASE: the walk of the house, from files to a written record.

    Args:
        request: What to examine and how.
        progress: Told about long work as it goes.
        held: What this process keeps of the same base from earlier runs, if it makes several.

    Raises:
        BadInput: Something the user named cannot be used, or costs more than is allowed; nothing was written.
        CannotCompare: Both sides were read but do not belong together; nothing was written.
        ToolFailed: No space, no memory, or it would take longer than is allowed; what was finished is kept, and the same command resumes.
    """
    checks = select_checks(request.only, request.max_cost)
    checks = tuple(check for check in checks if request.controls or check.id in request.only or not check.by_controls)
    refuse_unknown_requirements(request.policy)
    refuse_unknown_device(request.device)
    refuse_odd_repeats(request.decoding.repeats)
    sides = open_sides(request, checks, progress, held)
    cost = _cost(request, sides, checks)
    refuse_dear(request.allowance, cost)
    key = run_key(request, sides)
    with RunFolder.begin(request.out, stem=_plain(Path(request.candidate).name), key=key) as run_folder:
        if run_folder.record_path.exists():
            return Outcome(record=still_valid(load_record(str(run_folder.path)), run_folder.path), folder=run_folder.path)
        if sides.prompts:
            run_folder.write_prompts((*sides.prompts, *sides.apart))
        progress = keep_to(request.allowance, cost, progress)
        spare_threads(sum(pair.base.elements for pair in sides.layout.pairs))
        decoding = replace(request.decoding, seed=request.seed)
        bench = Workbench(device=request.device, decoding=decoding, run=run_folder, progress=progress, held=held)
        sound = False
        try:
            cases = cases_of(request, sides, bench)
            for case in cases:
                _run_checks(case, checks, run_folder)
            sound = all(result.status is not Status.ERROR for result in run_folder.results)
        finally:
            bench.close(keep=sound)
        _write_queue(cases, run_folder)
        record = _record(request, sides, run_folder)
        run_folder.write_record(record)
    return Outcome(record=record, folder=run_folder.path)


def select_checks(only: Sequence[str], max_cost: Cost) -> tuple[Check, ...]:
    """The checks to run.

    Raises:
        BadInput: `only` names a check that does not exist.
    """
    checks = all_checks()
    known = {check.id for check in checks}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise BadInput(f"there is no check {unknown[0]!r}", where="--only", hint=f"one of {', '.join(sorted(known))}")
    allowed = COSTS[: COSTS.index(max_cost) + 1]
    return tuple(check for check in checks if check.cost in allowed and (not only or check.id in only))


def refuse_unknown_requirements(policy: Policy) -> None:
    """Refuse a policy that requires a check nobody has, or names an action for one: it would never be met, or never act.

    Raises:
        BadInput: The message names the nearest check.
    """
    known = sorted({check.id for check in all_checks()} | set(CHECKS_OF_THE_CONTRACT))
    for key, check in [(f"required: {name}", name) for name in policy.required] + [
        (f"actions.{name}", name.partition("/")[0]) for name in policy.actions
    ]:
        if check not in known:
            near = difflib.get_close_matches(check, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"one of {', '.join(known)}"
            raise BadInput(f"the policy names a check that does not exist: {check!r}", where=f"{policy.name}: {key}", hint=hint)


def refuse_unknown_device(device: str) -> None:
    """Refuse a device that torch does not know or this machine does not have, before anything is written.

    Raises:
        BadInput: The message says which of the two.
    """
    wanted = wish(device)
    refuse_no_folder(wanted)
    if wanted.packed:
        from forensics.placement import refuse_no_packing  # heavy: brings torch

        refuse_no_packing(wanted.dtype)
    if wanted.where in ("auto", "cpu", "spread"):
        return
    import torch  # heavy

    try:
        kind = torch.device(wanted.where).type
    except RuntimeError as error:
        raise BadInput(f"there is no device {device!r}", where="--device", hint=WORDS) from error
    if kind != "cuda" or not torch.cuda.is_available():
        raise BadInput(f"this machine has no device {device!r}", where="--device", hint="cpu, or auto for the best there is")


def open_sides(request: Request, checks: Sequence[Check], progress: Progress, held: Held | None = None) -> Sides:
    """Read headers, hash files, align tensors, read prompts. No weight is in memory yet.

    Raises:
        BadInput: A folder, file or prompt cannot be used.
        CannotCompare: The sides do not belong together.
    """
    prompt_sets = prompts_of(request.prompts, request.suites, request.benchmarks)
    for check in checks:
        if prompt_sets and check.needs:
            needed_kinds(prompt_sets, check.needs, by=check.id)
    if request.besides.options and not any(check.id == COMPARISON for check in checks):
        raise BadInput(
            f"only {COMPARISON} asks more than the prompts given, and it is not among the checks that run",
            where=request.besides.options[0],
            hint="leave the option out, or widen --only and --max-cost",
        )
    asked = with_besides(prompt_sets, request.besides, seed=request.seed)
    progress("reading files", 0, 1)
    ours, theirs = str(locate(request.base)), str(locate(request.candidate))  # a hub id becomes the folder it was put in
    if is_adapter(ours):
        raise BadInput("BASE is an adapter, not a model", where=request.base, hint="give the full model the adapter was trained on")
    base = open_checkpoint(ours, name=given_name(request.base)) if held is None else held.opened(ours)
    as_adapter = is_adapter(theirs)
    candidate = base if as_adapter else open_checkpoint(theirs, name=given_name(request.candidate))
    layout = align(base, candidate)
    parents = tuple(open_checkpoint(str(locate(source)), name=given_name(source)) for source in request.parents)
    refuse_strangers(base, parents)
    sources = ([request.candidate] if as_adapter else []) + list(request.adapters)
    names = _distinct([given_name(source) for source in sources])
    adapters = tuple(open_adapter(source, candidate, name=name) for source, name in zip(sources, names, strict=True))
    if request.controls and not adapters:
        raise BadInput(
            "a bank of adapters says nothing of a full checkpoint",
            where="--controls",
            hint="give a PEFT adapter as CANDIDATE, or --adapter",
        )
    controls = open_controls(request.controls, candidate)
    progress("reading files", 1, 1)
    return Sides(
        base=base,
        candidate=candidate,
        adapters=adapters,
        candidate_is_adapter=as_adapter,
        layout=layout,
        parents=parents,
        controls=controls,
        prompt_sets=asked.sets,
        prompts=asked.prompts,
        apart=asked.apart,
    )


def run_key(request: Request, sides: Sides) -> str:
    """Digest of everything a run depends on: the same key resumes, another one is another audit."""
    return sha256_text(
        canonical_json(
            {
                "version": __version__,
                "packages": versions() | outside_versions(),
                "base": sides.base.digest,
                "candidate": sides.candidate.digest,
                "adapters": [[adapter.name, adapter.digest] for adapter in sides.adapters],
                "parents": [parent.digest for parent in sides.parents],
                "controls": [control.digest for control in sides.controls],
                "prompts": [prompts.digest for prompts in sides.prompt_sets],
                "policy": request.policy.digest,
                "seed": request.seed,
                "settings": settings(request),
            }
        )
    )


def settings(request: Request) -> dict[str, str]:
    """Options that can change a result, as written into the record."""
    said = {
        "only": ",".join(sorted(request.only)),
        "max_cost": request.max_cost,
        "device": wish(request.device).spelled,
        "bands": request.policy.bands.spelled,
        "train_controls": str(request.train_controls),
        "search": request.tier if request.budget is None else f"{request.budget} token-forwards in either direction",
        "decoding": f"greedy, at most {request.decoding.max_new_tokens} tokens, batches of {request.decoding.batch_size}",
    }
    repeats = request.decoding.repeats
    outside = outside_versions()
    said |= {"outside_checks": ", ".join(f"{name} {version}" for name, version in sorted(outside.items()))} if outside else {}
    return said | ({"repeats": f"{repeats} drawn replies to each prompt at temperature {TEMPERATURE:g}"} if repeats else {})


def _cost(request: Request, sides: Sides, checks: Sequence[Check]) -> Asking:
    """What the prompts cost: nothing, where no check puts them to the models."""
    asking = any(check.cost in ("generation", "search") for check in checks)
    prompts, apart = (sides.prompts, sides.apart) if asking else ((), ())
    return cost_of(
        prompts, apart, models=1 + len(configurations(sides)), repeats=1 + request.decoding.repeats, longest=request.decoding.max_new_tokens
    )


def configurations(sides: Sides) -> tuple[tuple[str, tuple[Adapter, ...]], ...]:
    """Each configuration to examine, with its adapters: the plain candidate, each adapter alone, all of them together."""
    rows: list[tuple[str, tuple[Adapter, ...]]] = [] if sides.candidate_is_adapter else [(CANDIDATE, ())]
    rows += [(f"adapter:{adapter.name}", (adapter,)) for adapter in sides.adapters]
    if len(sides.adapters) > 1:
        rows.append((f"adapter:{'+'.join(adapter.name for adapter in sides.adapters)}", sides.adapters))
    return tuple(rows)


def cases_of(request: Request, sides: Sides, bench: Workbench) -> list[Case]:
    """A case for each configuration, with what its checks may use."""
    own = sides.candidate if has_tokenizer(sides.candidate) else sides.base
    found = []
    for configuration, adapters in configurations(sides):
        # The adapter put on last brings the tokenizer a user would load, if it brings one at all.
        surface = next((adapter for adapter in reversed(adapters) if has_tokenizer(adapter)), own)
        found.append(
            Case(
                base=sides.base,
                candidate=sides.candidate,
                adapters=adapters,
                surface=surface,
                configuration=configuration,
                layout=sides.layout,
                parents=sides.parents,
                controls=sides.controls,
                prompts=sides.prompts,
                apart=sides.apart,
                policy=request.policy,
                seed=request.seed,
                train_controls=request.train_controls,
                tier=request.tier,
                budget=request.budget,
                workbench=bench,
            )
        )
    return found


def _run_checks(case: Case, checks: Sequence[Check], run_folder: RunFolder) -> None:
    """Run the checks on one configuration, cheapest first; results the run already holds are not redone."""
    finished = {(result.configuration, result.check): result for result in run_folder.results}
    for check in checks:
        result = finished.get((case.configuration, check.id))
        if result is None:
            result = guarded(check.run, check.id, case)
            run_folder.add_result(result)
        case = replace(case, earlier=(*case.earlier, result))


def guarded(look: Callable[[Case], CheckResult], id: str, case: Case) -> CheckResult:
    """Run one check so that whatever goes wrong becomes a result: INCONCLUSIVE for what it can explain, else ERROR.

    Raises:
        ToolFailed: The machine failed (no space, no memory). That is not a statement about the candidate, and what was
            finished is kept.
    """
    start = time.monotonic()
    try:
        result = look(case)
    except ToolFailed:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ForensicsError as error:
        refuse_vanished(case)
        result = CheckResult(check=id, configuration=case.configuration, status=Status.INCONCLUSIVE, reason=error.reason)
    except BaseException as error:
        refuse_vanished(case)
        if is_out_of_memory(error):
            raise ToolFailed("there is not enough memory", where=id, hint="use a smaller --batch-size; the same command resumes") from error
        result = CheckResult(
            check=id,
            configuration=case.configuration,
            status=Status.ERROR,
            reason=f"{type(error).__name__} inside the check; the traceback is in the record.",
            traceback=traceback.format_exc(),
        )
    return result.model_copy(update={"seconds": round(time.monotonic() - start, 3)})


def refuse_vanished(case: Case) -> None:
    """Refuse to go on where a file that was there at the beginning is gone: what a check makes of that says nothing about the candidate.

    Raises:
        ToolFailed: One is gone; what was finished is kept.
    """
    folders: tuple[Folder, ...] = (case.base, case.candidate, *case.adapters, *case.parents, *case.controls)
    for folder in folders:
        gone = next((name for name in folder.files if not (folder.path / name).is_file()), None)
        if gone is not None:
            raise ToolFailed(
                "a file vanished while it was examined", where=f"{folder.name}/{gone}", hint="put it back; the same command resumes"
            )


def _write_queue(cases: Sequence[Case], run_folder: RunFolder) -> None:
    """Write which replies people should label, of every configuration that was asked; a reply of the base is in it once."""
    found: dict[tuple[str, str, str], Queued] = {}
    for case in cases:
        keys = [("base", BASE), ("candidate", case.configuration)]
        sides = [{prompt.id: run_folder.items.get((side, name, prompt.id, 0)) for prompt in case.prompts} for side, name in keys]
        base, candidate = ({id: item for id, item in items.items() if item is not None} for items in sides)
        asked = tuple(prompt for prompt in case.prompts if prompt.id in base and prompt.id in candidate)
        if asked and not case.identical:
            replies = Replies(asked, base, candidate, case.configuration, seed=case.seed)
            found.update({one.key: one for one in queued(replies)})
    if found:
        run_folder.write_bytes(QUEUE, queue_lines(list(found.values())))


def _record(request: Request, sides: Sides, run_folder: RunFolder) -> AuditRecord:
    facts = Facts(
        base=BaseSource(path=str(sides.base.path), digest=sides.base.digest),
        candidate=CandidateSource(
            path=request.candidate,
            digest=sides.adapters[0].digest if sides.candidate_is_adapter else sides.candidate.digest,
            adapters=tuple(
                AdapterSource(name=item.name, path=str(item.path), digest=item.digest, files=item.files) for item in sides.adapters
            ),
            files={} if sides.candidate_is_adapter else sides.candidate.files,
        ),
        prompts=tuple(prompt_source(prompts) for prompts in sides.prompt_sets),
        policy=request.policy,
        seed=request.seed,
        settings=settings(request),
        configurations=tuple(configuration for configuration, _ in configurations(sides)),
        created=datetime.fromisoformat(run_folder.created),
        contents=run_folder.contents(),
    )
    return conclude(facts, run_folder.results)


def _distinct(names: list[str]) -> list[str]:
    """Adapter names made fit for a configuration (no `+`, no repeats)."""
    taken: dict[str, int] = {}
    result = []
    for name in (_plain(name) for name in names):
        taken[name] = taken.get(name, 0) + 1
        result.append(name if taken[name] == 1 else f"{name}-{taken[name]}")
    return result


def given_name(source: str) -> str:
    """What a user would call `source`: the folder's name, or the model's in a hub id, without the revision."""
    return Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source.partition("@")[0].rpartition("/")[2]


def _plain(name: str) -> str:
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return kept.strip(".") or "candidate"
