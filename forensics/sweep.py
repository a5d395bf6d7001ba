"""Many candidates against one base: an audit of each, in a run of its own, and one table of all of them.

Whoever does an audit opens the base once and keeps it. A candidate that cannot be audited is a row of the table. What was finished is
not done again: each candidate's run resumes as an audit does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from forensics import __version__
from forensics.adapters import is_adapter
from forensics.audit import Request, given_name, refuse_unknown_device, refuse_unknown_requirements, run, select_checks, settings
from forensics.candidates import Named, candidates_of
from forensics.checkpoint import Checkpoint, locate
from forensics.checks import outside_versions
from forensics.conclusion import prompt_source, versions
from forensics.errors import BadInput, ForensicsError
from forensics.fanout import fanout
from forensics.gate.besides import with_besides
from forensics.gate.replies import Progress, refuse_odd_repeats
from forensics.gate.suites import prompts_of
from forensics.held import Held, hold
from forensics.prompts import PromptSet
from forensics.record import SEVERITIES, AuditRecord, BaseSource, PolicySource, Status, canonical_json, sha256_text
from forensics.runfolder import InUse, load_run
from forensics.siblings import Sibling, held_together
from forensics.swept import FailedRow, FoundRow, Population, SweepFolder, SweepRecord, SweepRow, by_concern, counts_of, exit_code_of
from forensics.workers.terms import Answer, Crew, Task, Work

LINGERS = 60.0
"""Seconds that a worker which was given up may take to be gone, and its lock with it."""


@dataclass(frozen=True, kw_only=True)
class Sweeping:
    """What the user asked for: `request` is an audit's without a candidate, whose `out` is the folder of the sweep."""

    request: Request
    candidates: tuple[str, ...]
    crew: Crew


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A finished sweep and the folder it was written to."""

    record: SweepRecord
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One candidate, as it is sent to a worker: where it lies and where its run is to be."""

    source: str
    run: Path


@dataclass(kw_only=True)
class Auditor:
    """A worker: audits one candidate after the other against the base it holds."""

    request: Request
    held: Held

    def __call__(self, errand: Errand) -> str:
        """Audit one candidate; the digest of its results. The record itself is read from its run."""
        # By its folder: a hub would be asked for the base once a candidate.
        request = replace(self.request, base=str(self.held.base.path), candidate=errand.source, out=errand.run)
        until = time.monotonic() + LINGERS
        while True:
            try:
                return run(request, _silent, self.held).record.results_digest
            except InUse:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)


def sweep(sweeping: Sweeping, progress: Progress) -> Swept:
    """Audit every candidate against the base, hold them against each other, and write the table.

    Raises:
        BadInput: The base, a candidate's name, prompts, an option or the cluster cannot be used; no candidate was looked at.
        ToolFailed: No worker could be started, or the disk is full; what was finished is kept, and the same command resumes.
    """
    request = _absolute(sweeping.request)
    checks = select_checks(request.only, request.max_cost)
    refuse_unknown_requirements(request.policy)
    if not sweeping.crew.ray:
        refuse_unknown_device(request.device)
    refuse_odd_repeats(request.decoding.repeats)
    lineup = candidates_of(sweeping.candidates)
    prompts = with_besides(prompts_of(request.prompts, request.suites, request.benchmarks), request.besides, seed=request.seed).sets
    progress("reading the base", 0, 1)
    held = _hold(request)
    progress("reading the base", 1, 1)
    key = _key(request, held.base, prompts, [check.id for check in checks])
    out = request.out or Path("forensics-runs") / f"sweep-{held.base.name}-{key[:8]}"
    with SweepFolder(out.resolve(), key=key, created=datetime.now(UTC).replace(microsecond=0).isoformat()) as folder:
        answers = _audited(request, held, lineup, (sweeping.crew, folder), progress)
        rows, populations = _rows(lineup, answers, folder)
        record = SweepRecord(
            tool=f"forensics {__version__}",
            created=folder.created,
            base=BaseSource(path=str(held.base.path), digest=held.base.digest),
            prompts=tuple(prompt_source(one) for one in prompts),
            policy=PolicySource(name=request.policy.name, digest=request.policy.digest),
            seed=request.seed,
            settings=settings(request),
            rows=by_concern(rows),
            populations=populations,
            counts=counts_of(rows),
            exit_code=exit_code_of(rows),
        )
        folder.write_record(record)
    return Swept(record=record, folder=folder.path)


def make_auditor(request: Request, digest: str, known: dict[str, str]) -> Work[Errand, str]:
    """A worker's function, made where it works.

    Raises:
        BadInput: The base is another one there, or the packages are.
    """
    ours = versions() | outside_versions()
    if ours != known:
        differ = sorted(name for name in ours.keys() | known.keys() if ours.get(name) != known.get(name))
        raise BadInput(
            f"a worker has other packages than the sweep: {', '.join(differ)}",
            where="workers",
            hint="install the same versions on every node",
        )
    held = _hold(request)
    if held.base.digest != digest:
        raise BadInput(
            "the base is another one where a worker looks", where=request.base, hint="every node must see the same files at this path"
        )
    return Auditor(request=request, held=held)


def _audited(
    request: Request, held: Held, lineup: Sequence[Named], where: tuple[Crew, SweepFolder], progress: Progress
) -> tuple[Answer[str], ...]:
    crew, folder = where
    tasks = [Task(name=one.name, given=Errand(source=one.source, run=folder.run(one.name))) for one in lineup]
    done = 0

    def tell(_answer: Answer[str]) -> None:
        nonlocal done
        done += 1
        progress("candidates", done, len(tasks))

    progress("candidates", 0, len(tasks))
    if crew.ray or crew.workers > 1:
        make: Callable[[], Work[Errand, str]] = partial(make_auditor, request, held.base.digest, versions() | outside_versions())
        return fanout(make, tasks, crew, tell)
    try:
        return fanout(lambda: Auditor(request=request, held=held), tasks, crew, tell)
    finally:
        held.close()


def _hold(request: Request) -> Held:
    source = str(locate(request.base))
    if is_adapter(source):
        raise BadInput("BASE is an adapter, not a model", where=request.base, hint="give the full model the adapters were trained on")
    return hold(source, name=given_name(request.base))


def _absolute(request: Request) -> Request:
    """The request with every path in full: a worker may stand elsewhere."""

    def full(path: Path) -> Path:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - `resolve` would follow links, and a record names what was given

    def folder(source: str) -> str:
        return str(full(Path(source))) if Path(source).expanduser().exists() else source

    besides = request.besides if request.besides.domain is None else replace(request.besides, domain=full(request.besides.domain))
    return replace(
        request,
        base=folder(request.base),
        controls=tuple(map(folder, request.controls)),
        prompts=tuple(map(full, request.prompts)),
        benchmarks=None if request.benchmarks is None else full(request.benchmarks),
        besides=besides,
    )


def _key(request: Request, base: Checkpoint, prompts: Sequence[PromptSet], checks: Sequence[str]) -> str:
    """Digest of everything a sweep depends on but its candidates."""
    return sha256_text(
        canonical_json(
            {
                "version": __version__,
                "packages": versions() | outside_versions(),
                "base": base.digest,
                "prompts": [one.digest for one in prompts],
                "policy": request.policy.digest,
                "controls": list(request.controls),
                "checks": list(checks),
                "seed": request.seed,
                "settings": settings(request),
            }
        )
    )


def _rows(lineup: Sequence[Named], answers: Sequence[Answer[str]], folder: SweepFolder) -> tuple[list[SweepRow], tuple[Population, ...]]:
    """A row a candidate, and how they were held against each other."""
    rows, siblings = [], []
    for named, answer in zip(lineup, answers, strict=True):
        trouble = answer.trouble
        if trouble is None:
            try:
                sibling = _sibling(named, folder.run(named.name))
            except ForensicsError as error:
                trouble = error
            else:
                siblings.append(sibling)
                rows.append(_row(named, sibling))
                continue
        rows.append(_failed(named, trouble))
    populations, unlike = held_together(siblings)
    return [row.model_copy(update={"unlike": unlike.get(row.name, ())}) for row in rows], populations


def _sibling(named: Named, run_folder: Path) -> Sibling:
    saved = load_run(str(run_folder))
    record = saved.record
    configuration = next(iter(record.verdict.by_configuration))
    arrays = saved.arrays("weights.change")
    names, sizes = arrays.get(f"{configuration}/tensor"), arrays.get(f"{configuration}/relative_change")
    changes = {} if names is None or sizes is None else dict(zip(map(str, names), map(float, sizes), strict=True))
    return Sibling(name=named.name, kind="adapter" if record.candidate.adapters else "model", record=record, changes=changes)


def _row(named: Named, sibling: Sibling) -> SweepRow:
    record = sibling.record
    return SweepRow(
        name=named.name,
        candidate=named.source,
        kind=sibling.kind,
        run=f"runs/{named.name}",
        digest=record.candidate.digest,
        results_digest=record.results_digest,
        action=record.verdict.action,
        findings=_findings(record),
        could_not_look=tuple(result.check for result in record.results if result.status not in (Status.NO_FINDING, Status.FLAGGED)),
        score=max((item.value for result in record.results for item in result.evidence if item.name == "backdoor.score"), default=None),
    )


def _findings(record: AuditRecord) -> tuple[FoundRow, ...]:
    """Findings above severity info, gravest first."""
    found = [
        FoundRow(check=one.check, configuration=result.configuration, label=one.label, severity=one.severity, level=one.level)
        for result in record.results
        for one in result.findings
        if one.severity != "info"
    ]
    return tuple(sorted(found, key=lambda one: -SEVERITIES.index(one.severity)))


def _failed(named: Named, trouble: ForensicsError) -> SweepRow:
    folder = Path(named.source)
    kind = "adapter" if is_adapter(named.source) else "model" if (folder / "config.json").is_file() else "unknown"
    return SweepRow(
        name=named.name,
        candidate=named.source,
        kind=kind,
        run="",
        failed=FailedRow(exit_code=trouble.exit_code, what=trouble.what, where=trouble.where, hint=trouble.hint, details=trouble.details),
    )


def _silent(_title: str, _done: int, _total: int) -> None:
    """A worker's progress is that of the sweep: one candidate more."""
