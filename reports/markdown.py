"""A summary of a saved record in Markdown, for the comment on a pull request: the decision, the reasons, what was measured, what stays unseen."""

from __future__ import annotations

import re

from forensics.record import AuditRecord, CheckResult
from reports.columns import METRICS, cells_of
from reports.glance import glance
from reports.rules import decisive
from reports.unseen import split_limits
from reports.words import ACTION_WORDS, EXIT_WORDS, NEXT_STEPS, STATUS_WORDS, printable

REASONS, LIMITS, CLAIM = 10, 12, 600
"""Reasons and limits that are shown, and characters of a claim; the record has all."""
MARKS = re.compile(r"[\\`*_\[\]<>|~$&]|^(?:[-+#=]|\d+(?=[.)](?:\s|$)))")
"""What Markdown may read as a mark, anywhere or at the beginning of a text."""
GAP = "\u200b"
"""Between two characters that together would call somebody or become a link; it shows nothing."""


def render_markdown(record: AuditRecord) -> str:
    """The record as a page of Markdown without HTML, links or mentions of anybody."""
    verdict = record.verdict
    lines = [
        f"## {ACTION_WORDS[verdict.action]}",
        "",
        f"**{verdict.action}** for {safe(record.candidate.path)}, compared with the trusted base {safe(record.base.path)}.",
        f"Exit code {verdict.exit_code} ({EXIT_WORDS[verdict.exit_code]}); valid until {record.valid_until[:10]}; policy {safe(record.policy.name)}.",
        "",
        f"**Next:** {NEXT_STEPS[verdict.action]}",
        "",
        *_glance(record),
        "",
        "### Why",
        "",
    ]
    reasons = decisive(verdict.rules)
    several = len(verdict.by_configuration) > 1
    for rule in reasons[:REASONS]:
        called = "not required" if rule.id.startswith("optional/") else str(rule.action)
        lines.append(f"- **{called}** {f'({safe(rule.configuration)}) ' if several else ''}{safe(rule.sentence[:CLAIM])}")
    lines += _more(len(reasons) - REASONS, "reasons")
    lines += ["", "### What was looked at", ""]
    lines += table(
        ("check", *(("configuration",) if several else ()), "result", "what it says"),
        [
            (result.check, *((result.configuration,) if several else ()), STATUS_WORDS[result.status], _said(result))
            for result in record.results
        ],
    )
    measured = [
        (name, *(cells_of([result for result in record.results if result.configuration == each]).get(name, "") for each in verdict.by_configuration))
        for name in METRICS.values()
    ]  # fmt: skip
    measured = [row for row in measured if any(row[1:])]
    if measured:
        lines += ["", "Percentage points against the base, with one-sided 95 % bounds:", ""]
        lines += table(("", *verdict.by_configuration), measured)
    plain, threats = split_limits(record.limits)
    lines += ["", "### What stays unseen", "", "Nothing here says that the candidate is clean.", ""]
    lines += [f"- {safe(limit)}" for limit in plain[:LIMITS]]
    lines += _more(len(plain) - LIMITS + len(threats), "limits")
    if record.pending:
        lines += ["", "### What people still have to do", "", *(f"- {safe(words)}" for words in record.pending)]
    lines += ["", f"Results digest {record.results_digest[:16]}, {safe(record.tool)}."]
    return "\n".join(lines) + "\n"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table of Markdown; whatever stands in a cell, it stays a cell."""
    return [
        "| " + " | ".join(map(safe, heads)) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(map(safe, row)) + " |" for row in rows),
    ]


def safe(text: str) -> str:
    r"""Text that Markdown shows as it is: no mark, no tag, no link, nobody called, on one line.

    >>> safe("- see [this](x) <b> | @me\nhttps://x.y")
    '\\- see \\[this\\](x) \\<b\\> \\| @\u200bme https:\u200b//x.y'
    """
    flat = " ".join(printable(text).split())
    marked = MARKS.sub(lambda found: f"{found[0]}{GAP}" if found[0].isdigit() else f"\\{found[0]}", flat)
    return re.sub(r"@(?=\S)|#(?=\d)|:(?=//)|(?i:www)(?=\.)", lambda found: found[0] + GAP, marked)


def _glance(record: AuditRecord) -> list[str]:
    seen = glance(record)
    where = f" ({safe(seen.configuration)})" if seen.configuration else ""
    answers = ((f"What was done{where}", seen.done), ("What was lost", seen.lost), ("What is hidden", seen.hidden), ("How sure", seen.sure))
    return [f"- **{asked}:** {safe(said[: 2 * CLAIM])}" for asked, said in answers]


def _said(result: CheckResult) -> str:
    said = result.reason or " ".join(finding.claim for finding in result.findings[:2])
    return said[:CLAIM] or "No difference was found."


def _more(left: int, what: str) -> list[str]:
    return [f"- and {left} more {what}, in the record"] if left > 0 else []
