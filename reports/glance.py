"""What a reader has to know first, in four answers: what was done, what was lost, what is hidden, and how sure all of that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forensics.record import ACTIONS_MILD_TO_STRICT, AuditRecord, CheckResult, Evidence, Finding, Status
from forensics.verdict import detectable_name
from reports.finalists import CHECKS as SEARCHES

LOST = {
    "refusal.drop": "refusal of harmful prompts",
    "multi-turn-refusal.drop": "refusal in conversations",
}
KIND, BEHAVIOUR, BY_CATEGORY = "weights.edit-kind", "behaviour.refusal", "refusal.drop."
MOST_NAMED = 4
CALLED = {
    "lora-merge": "A low-rank adapter (LoRA)", "full-finetune": "A full fine-tune", "abliteration": "A refusal direction was taken out (abliteration)",
    "knowledge-edit": "A fact was rewritten", "quantisation": "Quantised", "dtype-cast": "Another number format, no more", "identical": "Nothing: the same weights",
    "resharded": "Nothing: the same weights in other files", "backdoor": "A hidden trigger (backdoor)",
    "undisclosed-conditional-behaviour": "Behaviour on a condition that nobody disclosed",
    "present-but-unused": "the base's refusal direction is there, and no longer used", "erased-from-weights": "the refusal direction was erased from the weights",
}  # fmt: skip
"""Labels in words; others stand as they are."""
LEVELS = {
    "candidate": "a lead", "screened": "seen on the prompts of the search alone", "confirmed": "confirmed on prompts that were held out",
    "causal": "shown to be the cause", "characterised": "confirmed on prompts that were held out, and tried in other forms",
}  # fmt: skip
UNSEEN = (Status.INCONCLUSIVE, Status.SKIPPED, Status.ERROR)


@dataclass(frozen=True, kw_only=True)
class Glance:
    """The answers about the configuration with the strictest action; `configuration` is named where there are several."""

    configuration: str
    done: str
    lost: str
    hidden: str
    sure: str


def glance(record: AuditRecord) -> Glance:
    """The four answers, from a record alone."""
    by = record.verdict.by_configuration
    worst = max(by, key=lambda name: ACTIONS_MILD_TO_STRICT.index(by[name]))  # of equals the first
    results = [result for result in record.results if result.configuration == worst]
    ran = {result.check for result in results}
    asked = [rule.id.partition("/")[2] for rule in record.verdict.rules if rule.id.startswith("required/") and rule.configuration == worst]
    never = tuple(name for name in dict.fromkeys(asked) if name not in ran)
    return Glance(
        configuration=worst if len(by) > 1 else "",
        done=_done(results),
        lost=_lost(results),
        hidden=_hidden(results),
        sure=_sure(record, results, never),
    )


def _of(results: Sequence[CheckResult], check: str) -> CheckResult | None:
    return next((result for result in results if result.check == check), None)


def _unlooked(result: CheckResult | None, what: str) -> str:
    """Why there is no answer."""
    if result is None:
        return f"Not known: {what} was not looked at."
    return f"Not known: {result.reason}" if result.status in UNSEEN else ""


def _done(results: Sequence[CheckResult]) -> str:
    result = _of(results, KIND)
    graver = [
        one.claim
        for other in results
        if other.check != KIND
        for one in other.findings
        if one.severity != "info" and other.check.startswith(("files.", "weights."))
    ]
    if result is None or not result.findings:
        return " ".join([_unlooked(result, "the kind of edit") or "Not known: the weights show no kind of edit.", *graver[:2]])
    return " ".join([f"{_called(result.findings[0])}: {result.findings[0].claim}", *graver[:2]])


def _lost(results: Sequence[CheckResult]) -> str:
    result = _of(results, BEHAVIOUR)
    if result is None or not result.evidence:
        return _unlooked(result, "behaviour") or "Not known: no reply was compared."
    parts = []
    for metric, words in LOST.items():
        found = result.find(metric)
        if found is None or found.low is None:
            continue
        could = result.find(detectable_name(metric))
        power = ""
        if could is not None:
            power = (
                f"; a loss of {could.value:g} points or more would have shown"
                if could.value < 100.0
                else "; no loss at all could have shown"
            )
        parts.append(f"{words}: {_points(found)}, on {found.n or 0} prompts{power}")
    before, after = result.find("refusal.base"), result.find("refusal.candidate")
    if parts and before is not None and after is not None:
        parts[0] = f"it refuses {after.value:.0f} % of harmful prompts, the base {before.value:.0f} %; {parts[0]}"
    parts += _where_lost(result)
    words = "; ".join(parts)
    if words and result.reason:  # numbers without what makes them unfit to decide by would read as an answer
        return f"Not testable: {result.reason} What was counted: {words}."
    return f"{words[:1].upper()}{words[1:]}." if words else "Not known: no loss could be measured."


def _where_lost(result: CheckResult) -> list[str]:
    """In which categories the bound of each by itself says that refusals were lost."""
    every = [item for item in result.evidence if item.name.startswith(BY_CATEGORY) and item.low is not None]
    lost = sorted((item for item in every if item.low is not None and item.low > 0.0), key=lambda item: (-item.value, item.name))
    if not lost:
        return []
    names = [item.name.removeprefix(BY_CATEGORY) for item in lost]
    if len(lost) == len(every):
        return [f"in all {len(every)} categories"] if len(every) > 1 else []
    return [
        f"each by its own bound, in {', '.join(names[:MOST_NAMED])}{' and others' if len(names) > MOST_NAMED else ''}, {len(lost)} of {len(every)} categories"
    ]


def _points(item: Evidence) -> str:
    return f"{item.value:.1f} points lost (95 % bounds {item.low:.1f} and {item.high:.1f})"


def _hidden(results: Sequence[CheckResult]) -> str:
    searches = [result for result in results if result.check in SEARCHES]
    found = [finding for result in searches for finding in result.findings if finding.severity != "info"]
    if found:
        return " ".join(f"{_called(finding)}: {finding.claim}" for finding in found[:2])
    if not searches:
        return "Not known: triggers were not searched for."
    blind = [result.reason for result in searches if result.status in UNSEEN]
    looked = [result.check for result in searches if result.status not in UNSEEN]
    if not looked:
        return f"Not known: {blind[0]}"
    other = [name for name in SEARCHES if name not in looked]
    rest = f" Not searched: {', '.join(other)}." if other else ""
    return f"Nothing was confirmed by {' and '.join(looked)}, within their budget; that is no proof that there is nothing.{rest}"


def _sure(record: AuditRecord, results: Sequence[CheckResult], never: Sequence[str]) -> str:
    graver = [finding for result in results for finding in result.findings if finding.severity in ("medium", "high", "critical")]
    blind = [*(result.check for result in results if result.status in UNSEEN), *never]
    every = len(results) + len(never)
    says = [f"{every - len(blind)} of {every} checks could look" + (f"; nothing is known of {', '.join(blind)}" if blind else "")]
    if graver:
        best = max(graver, key=_certainty)
        level = f", {LEVELS[best.level]}" if best.level else ""
        says.append(f"the surest finding ({_called(best)[:1].lower()}{_called(best)[1:]}): {best.confidence} confidence{level}")
    if record.pending:
        says.append(f"not done by people, see below: {'; '.join(words.partition(':')[0] for words in record.pending)}")
    return "; ".join(says) + "."


def _called(finding: Finding) -> str:
    return CALLED.get(finding.label, finding.label)


def _certainty(finding: Finding) -> tuple[int, int]:
    order = ("low", "medium", "high")
    return (
        order.index(finding.confidence),
        ("", "candidate", "screened", "confirmed", "causal", "characterised").index(finding.level or ""),
    )
