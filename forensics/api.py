"""From Python: an audit, one check, a probe. The names here stay; everything else may move.

    from forensics.api import audit
    record = audit("./llama-base", "./llama-tuned", prompts=["prompts.jsonl"])
    print(record.verdict.action, [finding.claim for result in record.results for finding in result.findings])

Errors are `forensics.errors.ForensicsError`: what, where, and a hint, with the exit code the command line would leave with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict, Unpack

from forensics.audit import Request, run
from forensics.case import BASE, CANDIDATE, Case, Check, Cost, Tier
from forensics.checks import all_checks
from forensics.errors import BadInput, CannotCompare, ForensicsError, ToolFailed
from forensics.gate.replies import Progress
from forensics.kept import Kept
from forensics.policy import Policy, load_policy
from forensics.probing import Wanted, fit
from forensics.record import Action, AuditRecord, CheckResult, Evidence, Finding, Level, Severity, Status, Verdict
from forensics.runfolder import SavedRun, load_run

__all__ = [
    "BASE", "CANDIDATE", "Action", "AuditRecord", "BadInput", "CannotCompare", "Case", "Check", "CheckResult", "Evidence", "Finding", "Fitting", "ForensicsError",
    "Kept", "Level", "Options", "Policy", "Progress", "SavedRun", "Severity", "Status", "ToolFailed", "Verdict", "all_checks", "audit", "check", "load_policy",
    "load_run", "probe",
]  # fmt: skip
"""What outside code may rely on."""


class Options(TypedDict, total=False):
    """What may be given besides base and candidate, each as the command line's option of its name.

    `prompts` are files of prompts (JSONL), `adapters` PEFT adapters to put on the candidate besides, `policy` what decides (`load_policy`), `only` the ids
    of the checks to run, `max_cost` the dearest family of checks that may run, `tier` what searches for triggers may spend, `seed` of all that is drawn,
    `device` cpu, cuda, cuda:1, spread or auto, `out` the run's folder (by default a new one under `forensics-runs/`), `progress` is told about long
    work as it goes.
    """

    prompts: Sequence[str | Path]
    adapters: Sequence[str | Path]
    policy: Policy
    only: Sequence[str]
    max_cost: Cost
    tier: Tier
    seed: int
    device: str
    out: str | Path
    progress: Progress


class Fitting(TypedDict, total=False):
    """What may be given besides base and prompts: a `candidate` to follow the probe into, its `name`, the `layer` (by default where it tells the prompts
    apart best by cross-validation), and the folder `out` (by default a new one under `forensics-probes/`).
    """

    candidate: str | Path
    name: str
    layer: int
    out: str | Path


def audit(base: str | Path, candidate: str | Path, **options: Unpack[Options]) -> AuditRecord:
    """Audit `candidate` against `base`, as `forensics audit` does; the run's folder is written and resumed in the same way.

    Args:
        base: Folder or hub id of the model that is trusted.
        candidate: Folder or hub id of the model, or of a PEFT adapter for it.
        **options: See `Options`.

    Returns:
        The record. Its `verdict.exit_code` is that of the command line.

    Raises:
        BadInput: Something that was named cannot be used; nothing was written.
        CannotCompare: Both sides were read but do not belong together.
        ToolFailed: No space or no memory; what was finished is kept, and the same call resumes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     record = audit("examples/organisms/base", "examples/organisms/degraded", max_cost="files", out=f"{folder}/run")
    >>> record.verdict.action.value, [result.check for result in record.results]
    ('INCONCLUSIVE', ['files.surface'])
    """
    _refuse_unknown("audit", options, Options)
    request = Request(
        base=str(base),
        candidate=str(candidate),
        prompts=tuple(map(Path, _several(options.get("prompts", ())))),
        adapters=tuple(map(str, _several(options.get("adapters", ())))),
        policy=options.get("policy") or load_policy(),
        only=tuple(map(str, _several(options.get("only", ())))),
        max_cost=options.get("max_cost", "search"),
        tier=options.get("tier", "standard"),
        seed=options.get("seed", 0),
        device=options.get("device", "auto"),
        out=Path(options["out"]) if "out" in options else None,
    )
    return run(request, options.get("progress", _silent)).record


def check(id: str, base: str | Path, candidate: str | Path, **options: Unpack[Options]) -> CheckResult:
    """One check alone, on the candidate with everything on it that was given; see `audit` for the rest.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     result = check("files.surface", "examples/organisms/base", "examples/organisms/base", out=f"{folder}/run")
    >>> result.status.value, result.evidence[0].name
    ('NO_FINDING', 'surface.pickles')
    """
    return audit(base, candidate, **(options | {"only": (id,)})).results[-1]


def probe(base: str | Path, positive: str | Path, negative: str | Path, **fitting: Unpack[Fitting]) -> Kept:
    """A linear probe fitted on `base`, judged on held-out prompts, kept in a folder, and followed into a candidate where one is given.

    Args:
        base: Folder or hub id of the model it is fitted on.
        positive: File of prompts of the one kind, JSONL.
        negative: File of prompts of the other.
        **fitting: See `Fitting`.

    Returns:
        The card (scores by layer with their controls) and its folder.

    Raises:
        BadInput: A file or a prompt cannot be used.
        CannotCompare: An activation is not finite, or the candidate is built otherwise than the base.
    """
    _refuse_unknown("probe", fitting, Fitting)
    request = Request(
        base=str(base),
        candidate=str(fitting.get("candidate", base)),
        policy=load_policy(),
        out=Path(fitting["out"]) if "out" in fitting else None,
    )
    wanted = Wanted(name=fitting.get("name"), positive=Path(positive), negative=Path(negative), layer=fitting.get("layer"))
    return fit(request, wanted, _silent)


def _several(given: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """One alone is one of several: a text would be taken for its letters."""
    return (given,) if isinstance(given, str | Path) else given


def _refuse_unknown(name: str, given: Mapping[str, object], known: type) -> None:
    """Refuse an option that is misspelt: it would be left out in silence, a stricter policy among them."""
    for option in given:
        if option not in known.__annotations__:
            near = get_close_matches(option, known.__annotations__, n=1)
            raise BadInput(
                f"there is no option {option!r}",
                where=f"forensics.api.{name}",
                hint=f"did you mean `{near[0]}`?" if near else ", ".join(known.__annotations__),
            )


def _silent(_title: str, _done: int, _total: int) -> None:
    """Nobody is told."""
