"""SARIF 2.1.0 of a saved record, for code scanning: a rule a kind of finding, linked to what its check says of itself, and a result a finding.

What a check could not look at is a notification of the invocation, not a result: silence there would read as "nothing found".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from forensics.asked import explanation
from forensics.record import SEVERITIES, Action, AuditRecord, CheckResult, Finding, Rule, Severity, Status, canonical_json, sha256_text
from reports.rules import against
from reports.words import ACTION_WORDS, measured, printable

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: Mapping[Severity, str] = {"info": "none", "low": "note", "medium": "warning", "high": "error", "critical": "error"}
SCORES: Mapping[Severity, str] = {"info": "0.0", "low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}
"""What code scanning sorts by (`security-severity`), from 0 to 10."""
NOTIFIED: Mapping[Status, str] = {Status.INCONCLUSIVE: "warning", Status.SKIPPED: "note", Status.ERROR: "error"}


def render_sarif(record: AuditRecord) -> str:
    """The record as a SARIF log, as JSON."""
    found = [(result, finding) for result in record.results for finding in result.findings]
    # Of findings with one label the gravest gives the rule its severity.
    rules = {f"{one.check}/{one.label}": one for _, one in sorted(found, key=lambda row: SEVERITIES.index(row[1].severity))}
    places = {name: place for place, name in enumerate(rules)}
    notices = [(result, NOTIFIED[result.status]) for result in record.results if result.status in NOTIFIED]
    told = {result.check for result, _ in notices}
    # What turns the verdict and is no finding: a band, a category, a required check that never ran, people's part.
    others = [
        rule
        for rule in record.verdict.rules
        if rule.action is not Action.DEPLOY and not rule.id.startswith("finding/") and rule.id.partition("/")[2] not in told
    ]
    run = {
        "tool": {
            "driver": {
                "name": "forensics",
                "fullName": printable(record.tool),
                "rules": [_rule(name, rule) for name, rule in rules.items()],
                "notifications": [
                    {"id": printable(name)}
                    for name in dict.fromkeys([*(result.check for result, _ in notices), *(rule.id for rule in others)])
                ],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not any(result.status is Status.ERROR for result in record.results),
                "exitCode": record.verdict.exit_code,
                "exitCodeDescription": ACTION_WORDS[record.verdict.action],
                "endTimeUtc": record.created,
                "toolExecutionNotifications": [*(_notice(result, level) for result, level in notices), *map(_turned, others)],
            }
        ],
        "automationDetails": {"id": f"forensics/{record.results_digest}"},
        "results": [_result(record, result, finding, places[f"{finding.check}/{finding.label}"]) for result, finding in found],
        "properties": {
            "action": str(record.verdict.action),
            "validUntil": record.valid_until,
            "resultsDigest": record.results_digest,
            "base": record.base.digest,
            "candidate": record.candidate.digest,
            "policy": record.policy.digest,
            "limits": [printable(limit) for limit in record.limits],
            "looked": sorted({result.check for result in record.results if result.status not in NOTIFIED}),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, allow_nan=False) + "\n"


def _rule(name: str, finding: Finding) -> dict[str, Any]:
    said = explanation(finding.check)
    rule: dict[str, Any] = {
        "id": printable(name),
        "shortDescription": {"text": _plain(f"{said.title if said else finding.check}: {finding.label}")},
        "properties": {"tags": ["security", "model"], "security-severity": SCORES[finding.severity]},
    }
    if said:
        lines = [f"{heading}: {words}" for heading, words in said.parts.items()]
        rule["fullDescription"] = {"text": _plain(said.parts.get("Asks", said.title))}
        rule["help"] = {"text": _plain("\n".join([*lines, f"More: forensics explain {finding.check}"]))}
    return rule


def _result(record: AuditRecord, result: CheckResult, finding: Finding, place: int) -> dict[str, Any]:
    graver = [rule.action for rule in against(record, result) if rule.id == f"finding/{finding.id}"]
    numbers = "\n".join(f"{item.name}: {measured(item)} ({item.where}; {item.expected})" for item in finding.evidence)
    claim = f"{finding.claim}{f' The policy asks for {graver[0]}.' if graver else ''}"
    return {
        "ruleId": printable(f"{finding.check}/{finding.label}"),
        "ruleIndex": place,
        "kind": "informational" if finding.severity == "info" else "fail",
        "level": LEVELS[finding.severity],
        "message": {"text": _plain(f"{claim}\n{numbers}")},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(record.candidate.path)}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": printable(result.configuration), "kind": "module"}],
            }
        ],
        "partialFingerprints": {
            "finding/v1": sha256_text(canonical_json([finding.id, finding.label, result.configuration, record.candidate.digest]))
        },
        "properties": {
            "severity": finding.severity,
            "confidence": finding.confidence,
            "level": finding.level or "",
            "evidence": [{"name": item.name, "value": item.value, "unit": item.unit} for item in finding.evidence],
        },
    }


def _notice(result: CheckResult, level: str) -> dict[str, Any]:
    return {
        "descriptor": {"id": result.check},
        "level": level,
        "message": {"text": _plain(f"{result.check} ({result.configuration}) {result.status}: {result.reason}")},
    }


def _turned(rule: Rule) -> dict[str, Any]:
    return {
        "descriptor": {"id": printable(rule.id)},
        "level": "error",
        "message": {"text": _plain(f"{rule.action} ({rule.configuration}): {rule.sentence}")},
    }


def _plain(text: str) -> str:
    """Text as a message of SARIF holds it: `[x](y)` there is a link and `{0}` a place to fill in, and nothing that a model wrote may be either."""
    return re.sub(r"([\\\[\]])", r"\\\1", printable(text)).replace("{", "{{").replace("}", "}}")


def _uri(path: str) -> str:
    if Path(path).is_absolute():
        return "file://" + quote(path.encode("utf-8", "surrogatepass"))
    return quote(path.encode("utf-8", "surrogatepass"), safe="/@")
