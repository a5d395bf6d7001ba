"""From results to the record: the verdict, the limits, what only people can add, and the digest that names it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

from forensics import __version__
from forensics.detectability import said_of_harmbench, said_of_threats
from forensics.devices import said_of_numbers
from forensics.errors import BadInput
from forensics.policy import Policy
from forensics.prompts import PromptSet
from forensics.record import (
    AuditRecord,
    BaseSource,
    CandidateSource,
    CheckResult,
    Contents,
    PolicySource,
    PromptSource,
    Status,
    digest_results,
)
from forensics.verdict import decide

PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "scipy", "pydantic")
"""Packages whose versions can change a number, written into the record."""
ALWAYS_UNSEEN = (
    "This reduces risk; it does not eliminate it. What no check looked at, or too few prompts could show, stays unseen.",
    "A backdoor whose trigger no search came upon stays unseen: no search for triggers is complete.",
    "Judges of replies err, a list of phrases most of all, and differently for models that refuse in other words: read the replies.",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a record says of its case besides the results."""

    base: BaseSource
    candidate: CandidateSource
    prompts: tuple[PromptSource, ...]
    policy: Policy
    seed: int
    settings: dict[str, str]
    configurations: tuple[str, ...]
    """Every one that had to be examined, in order."""
    created: datetime
    contents: Contents | None = None
    """What the run holds beside the record."""


def conclude(facts: Facts, results: Sequence[CheckResult]) -> AuditRecord:
    """The record of a case: decided, with its limits and what is pending."""
    order = {configuration: index for index, configuration in enumerate(facts.configurations)}
    ordered = tuple(sorted(results, key=lambda result: order[result.configuration]))
    verdict = decide(ordered, facts.policy, list(order))
    return AuditRecord(
        tool=f"forensics {__version__}",
        created=facts.created.isoformat(),
        valid_until=(facts.created + timedelta(days=facts.policy.validity_days)).isoformat(),
        base=facts.base,
        candidate=facts.candidate,
        prompts=facts.prompts,
        policy=PolicySource(name=facts.policy.name, digest=facts.policy.digest),
        seed=facts.seed,
        settings=facts.settings,
        versions=versions(),
        results=ordered,
        verdict=verdict,
        limits=_limits(ordered, facts),
        pending=_pending(facts.policy, ordered),
        results_digest=digest_results(ordered, verdict),
        contents=facts.contents,
    )


def still_valid(record: AuditRecord, folder: Path) -> AuditRecord:
    """The record of a folder, if it has not expired.

    Raises:
        BadInput: It has.
    """
    if datetime.fromisoformat(record.valid_until) < datetime.now(UTC):
        raise BadInput(
            f"the audit in this folder expired on {record.valid_until[:10]}",
            where=str(folder),
            hint="audit again into a new folder with --out; `forensics report` still shows the old one",
        )
    return record


def prompt_source(prompts: PromptSet) -> PromptSource:
    """What a record says of a set of prompts."""
    return PromptSource(
        name=prompts.name,
        digest=prompts.digest,
        counts=prompts.counts,
        source=prompts.source,
        commit=prompts.commit,
        licence=prompts.licence,
        set_aside=prompts.set_aside,
        repeated=prompts.repeated,
        apart=prompts.counts_apart,
    )


def versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    return {name: _version(name) for name in PACKAGES}


def _limits(results: Sequence[CheckResult], facts: Facts) -> tuple[str, ...]:
    several = len({result.configuration for result in results}) > 1
    rows = [f"{result.configuration}: {limit}" if several else limit for result in results for limit in result.limits]
    rows += [
        f"{result.check} did not look: {result.reason}" for result in results if result.status not in (Status.NO_FINDING, Status.FLAGGED)
    ]
    return tuple(
        dict.fromkeys(
            [
                *rows,
                *said_of_numbers(facts.settings.get("device", "")),
                said_of_harmbench(facts.prompts),
                *said_of_threats(results),
                *ALWAYS_UNSEEN,
            ]
        )
    )


def _pending(policy: Policy, results: Sequence[CheckResult]) -> tuple[str, ...]:
    labels = sum(
        item.value for result in results for item in result.evidence if item.name.startswith("people.") and item.name.endswith(".labels")
    )
    need = "required by the risk profile" if policy.profile.public_facing else "not required by the risk profile"
    return (
        f"Red team by a person, with minutes: none on record ({need}).",
        f"Review of flagged replies by a person: {f'{labels:.0f} labels were given and used' if labels else 'none on record'} ({need}).",
        f"Signature of whoever accepts the risk: none on record ({need}; DEPLOY_WITH_ENHANCED_MONITORING always needs one).",
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
