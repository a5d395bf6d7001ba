"""What an audit says: evidence, findings, results, a verdict, and the record that holds them all.

These types are the contract with whoever reads `audit.json`. They are frozen, refuse unknown fields and
numbers that are not finite, and are written with a schema name and version. Nothing here knows how it is shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from forensics.bounds import parsed
from forensics.errors import BadInput

MOST_VALUES = 1_000_000
"""Values of JSON in a record: a long one holds some ten thousand."""
SCHEMA_NAME = "forensics.audit"
SCHEMA_VERSION = 1
SCHEMA = f"{SCHEMA_NAME}/{SCHEMA_VERSION}"

NOT_IN_DIGEST = ("seconds", "traceback")
"""Fields of a result that differ from run to run without the result being another one."""

Severity = Literal["info", "low", "medium", "high", "critical"]
Confidence = Literal["low", "medium", "high"]
Level = Literal["candidate", "screened", "confirmed", "causal", "characterised"]
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")


class Status(StrEnum):
    """How a check ended. Only the first two may lack a reason."""

    NO_FINDING = "NO_FINDING"
    FLAGGED = "FLAGGED"
    INCONCLUSIVE = "INCONCLUSIVE"
    SKIPPED = "SKIPPED"
    ERROR = "ERROR"


class Action(StrEnum):
    """What may be done with the candidate."""

    DEPLOY = "DEPLOY"
    DEPLOY_WITH_ENHANCED_MONITORING = "DEPLOY_WITH_ENHANCED_MONITORING"
    INCONCLUSIVE = "INCONCLUSIVE"
    HUMAN_REVIEW = "HUMAN_REVIEW"
    BLOCK = "BLOCK"


ACTIONS_MILD_TO_STRICT: tuple[Action, ...] = tuple(Action)
"""Precedence: the overall action is the strictest that any rule asks for."""

EXIT_CODES: dict[Action, int] = {
    Action.DEPLOY: 0,
    Action.DEPLOY_WITH_ENHANCED_MONITORING: 10,
    Action.INCONCLUSIVE: 3,
    Action.HUMAN_REVIEW: 10,
    Action.BLOCK: 20,
}


def strictest(actions: list[Action]) -> Action:
    """The strictest of `actions`; DEPLOY when there are none."""
    return max(actions, key=ACTIONS_MILD_TO_STRICT.index, default=Action.DEPLOY)


class _Written(BaseModel):
    """Base of everything that goes to disk: frozen, strict, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Evidence(_Written):
    """One number that can be read alone.

    `low` and `high` bound the value where an interval was computed; `expected` says what an unremarkable
    candidate would show and how that is known; `n` is how many things were counted.
    """

    name: str = Field(min_length=1)
    value: FiniteFloat
    unit: str
    where: str
    expected: str
    n: int | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @model_validator(mode="after")
    def _interval_in_order(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both `low` and `high`")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"`low` {self.low} lies above `high` {self.high}")
        return self


class Finding(_Written):
    """A claim about the candidate, with how bad it would be and, separately, how sure we are."""

    id: str = Field(min_length=1)
    check: str
    label: str
    severity: Severity
    confidence: Confidence
    claim: str
    level: Level | None = None
    evidence: tuple[Evidence, ...] = Field(min_length=1)


class CheckResult(_Written):
    """What one check says about one configuration of the candidate."""

    check: str
    configuration: str
    status: Status
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    limits: tuple[str, ...] = ()
    traceback: str = ""
    seconds: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _status_matches_findings(self) -> Self:
        if self.status in (Status.INCONCLUSIVE, Status.SKIPPED, Status.ERROR) and not self.reason:
            raise ValueError(f"{self.check}: {self.status} needs a reason")
        grave = any(finding.severity != "info" for finding in self.findings)
        if self.status is Status.FLAGGED and not grave:
            raise ValueError(f"{self.check}: FLAGGED needs a finding above severity info")
        if self.status is Status.NO_FINDING and grave:
            raise ValueError(f"{self.check}: NO_FINDING holds a finding above severity info")
        if self.status is Status.NO_FINDING and not self.evidence:
            raise ValueError(f"{self.check}: NO_FINDING needs evidence that it looked")
        return self

    def find(self, name: str) -> Evidence | None:
        """The evidence called `name`, or None if this check did not report it."""
        return next((item for item in self.evidence if item.name == name), None)


class Item(_Written):
    """One reply: which prompt, which side, what was said, and what each judge calls it. A line of items.jsonl."""

    id: str
    side: Literal["base", "candidate"]
    configuration: str
    repeat: int = 0
    reply: str
    labels: dict[str, str]


class Rule(_Written):
    """One sentence of the policy that applied, the action it asks for, and the numbers it read."""

    id: str
    sentence: str
    action: Action
    configuration: str
    evidence: tuple[Evidence, ...] = ()


class Verdict(_Written):
    """What may be done, and the policy sentences that decided it. The overall action is the worst."""

    action: Action
    exit_code: int
    rules: tuple[Rule, ...] = Field(min_length=1)
    by_configuration: dict[str, Action]


class AdapterSource(_Written):
    """A PEFT adapter that was part of the candidate; `files` are the digests of its files, in records that hold them."""

    name: str
    path: str
    digest: str
    files: dict[str, str] = Field(default_factory=dict)


class BaseSource(_Written):
    """The trusted side: where it lay and the digest of its files."""

    path: str
    digest: str


class CandidateSource(_Written):
    """The examined side: where it lay, its digest, the adapters put on it, and the digests of its files, in records that hold them."""

    path: str
    digest: str
    adapters: tuple[AdapterSource, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)


class PromptSource(_Written):
    """A prompt file that was used, by digest, and how many prompts of each kind it holds; `apart` are those that count in no primary metric.

    Of a public benchmark also where it comes from, under which licence, how many of its rows hold no prompt, and how many an earlier one holds.
    """

    name: str
    digest: str
    counts: dict[str, int]
    source: str = ""
    commit: str = ""
    licence: str = ""
    set_aside: int = 0
    repeated: int = 0
    apart: dict[str, int] = Field(default_factory=dict)


class Contents(_Written):
    """What lay beside the record when it was written: how many replies, their digest with their labels, and that of the prompts file ("" if none)."""

    items: int = Field(ge=0)
    items_digest: str
    prompts_digest: str = ""

    @property
    def digest(self) -> str:
        """One digest of all of it; signatures cite it."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))


class PolicySource(_Written):
    """The policy that decided, by digest."""

    name: str
    digest: str


class AuditRecord(_Written):
    """The whole case. Pages are made from this and from nothing else."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    tool: str
    created: str
    valid_until: str
    base: BaseSource
    candidate: CandidateSource
    prompts: tuple[PromptSource, ...]
    policy: PolicySource
    seed: int
    settings: dict[str, str]
    versions: dict[str, str]
    results: tuple[CheckResult, ...]
    verdict: Verdict
    limits: tuple[str, ...]
    pending: tuple[str, ...]
    results_digest: str
    contents: Contents | None = None
    """None in records of older versions, whose replies nothing holds in place."""

    def to_json(self) -> str:
        """The record as indented JSON, ending in a newline."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> AuditRecord:
        """Read a saved record.

        Raises:
            BadInput: Not JSON, not one of our records, of a schema this version does not know, or its
                results no longer match its `results_digest`.
        """
        try:
            raw = parsed(text, most=MOST_VALUES)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"this is not a saved audit: {error}",
                where=where,
                hint="give the folder that `forensics audit --out` wrote, or its audit.json",
            ) from error
        _refuse_other_schemas(raw, where=where)
        try:
            record = cls.model_validate(raw)
        except ValueError as error:  # half a character in a text is one that is no ValidationError
            rows = error.errors() if isinstance(error, ValidationError) else []
            details = tuple(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in rows)
            raise BadInput(
                f"this audit record does not follow schema {SCHEMA}",
                where=where,
                details=details,
                hint="the file was edited or is damaged; run the audit again",
            ) from error
        if digest_results(record.results, record.verdict) != record.results_digest:
            raise BadInput(
                "results and verdict do not match the record's own results_digest",
                where=where,
                hint="the file was edited after the audit; run the audit again, or restore the original",
            )
        _refuse_unreadable(record, where=where)
        return record


def _refuse_unreadable(record: AuditRecord, *, where: str) -> None:
    """Refuse texts that stand for times and numbers, and are none, and a verdict that contradicts itself: whoever reads the record would stumble over them."""
    verdict, what = record.verdict, ""
    try:
        if any(datetime.fromisoformat(time).tzinfo is None for time in (record.created, record.valid_until)):
            what = "a time without a zone"
        if not all(math.isfinite(float(band)) for band in record.settings.get("bands", "").split()):
            what = "a band that is no number"
    except ValueError:
        what = "a time or a band that is none"
    if verdict.exit_code != EXIT_CODES[verdict.action] or verdict.action != strictest(list(verdict.by_configuration.values())):
        what = "an action that is not that of its exit code, or of its configurations"
    if what:
        raise BadInput(f"this audit record holds {what}", where=where, hint="it was made by hand, or by another tool; run the audit again")


def _refuse_other_schemas(raw: object, *, where: str) -> None:
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found == SCHEMA:
        return
    name, _, version = found.partition("/") if isinstance(found, str) else ("", "", "")
    if name != SCHEMA_NAME or not re.fullmatch(r"[0-9]{1,9}", version):
        raise BadInput(
            f"this JSON is not a saved audit (schema {found!r}, expected {SCHEMA!r})",
            where=where,
            hint="give the folder that `forensics audit --out` wrote, or its audit.json",
        )
    older = int(version) < SCHEMA_VERSION
    raise BadInput(
        f"this audit was saved under {'an older' if older else 'a newer'} schema ({found}; this version reads {SCHEMA})",
        where=where,
        hint="run the audit again" if older else "install the version of the tool that wrote it",
    )


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a saved record, as indented JSON: what is published of the contract."""
    schema = AuditRecord.model_json_schema(by_alias=True)
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{SCHEMA.replace('/', ':')}", "title": SCHEMA}
    return json.dumps({**schema, **about}, indent=1, sort_keys=True) + "\n"


def canonical_json(value: Any) -> str:
    """JSON that is the same text for the same content: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hexadecimal sha256 of UTF-8 `text`; lone surrogates, which a model's reply can hold, are kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_items(items: Iterable[Item]) -> str:
    """sha256 over replies in their order, each with its labels."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(canonical_json(item.model_dump(mode="json")).encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()


def digest_results(results: tuple[CheckResult, ...], verdict: Verdict) -> str:
    """sha256 of the canonical JSON of results and verdict, without times and tracebacks.

    Two audits are called identical when this agrees; signatures cite it.
    """
    rows = []
    for result in results:
        row = result.model_dump(mode="json")
        rows.append({key: value for key, value in row.items() if key not in NOT_IN_DIGEST})
    return sha256_text(canonical_json({"results": rows, "verdict": verdict.model_dump(mode="json")}))
