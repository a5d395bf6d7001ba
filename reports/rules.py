"""The rules of a verdict, sorted out: which of them decided it, and which check each came from, so that formats with one line a check fail where the verdict does."""

from __future__ import annotations

from forensics.record import Action, AuditRecord, CheckResult, Rule


def against(record: AuditRecord, result: CheckResult) -> tuple[Rule, ...]:
    """The rules that keep `result`'s configuration from DEPLOY because of this very check, strictest first."""
    return tuple(
        rule
        for rule in record.verdict.rules
        if rule.action is not Action.DEPLOY and rule.configuration == result.configuration and _from(rule, result)
    )


def of_no_check(record: AuditRecord) -> tuple[Rule, ...]:
    """The rules against the candidate that no check's result in the record accounts for: a check that never ran, people's part."""
    told = [rule for result in record.results for rule in against(record, result)]
    return tuple(rule for rule in record.verdict.rules if rule.action is not Action.DEPLOY and rule not in told)


def decisive(rules: tuple[Rule, ...]) -> list[Rule]:
    """Rules that asked for more than deployment, and checks that could not tell; if there is none, those that speak for it first."""
    against = [rule for rule in rules if rule.action is not Action.DEPLOY]
    unsure = [rule for rule in rules if rule.action is Action.DEPLOY and rule.id.startswith("optional/")]
    if against:
        return against + unsure
    return [rule for rule in rules if rule not in unsure] + unsure


def _from(rule: Rule, result: CheckResult) -> bool:
    kind, _, rest = rule.id.partition("/")
    if kind in ("required", "optional"):
        return rest == result.check
    if kind == "finding":
        return any(finding.id == rest for finding in result.findings)
    return any(item in result.evidence for item in rule.evidence)
