"""The terminal page: the decision, the reasons, what each check said, what stays unseen. It fits one screen; the HTML page has what is cut here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forensics.record import CheckResult, Rule, Status
from forensics.runfolder import SavedRun
from reports.finalists import CHECKS, SHORT_ARMS, SHORT_CONTROL_ARM, Finalist, finalists
from reports.rules import decisive
from reports.unseen import split_limits
from reports.words import ACTION_STYLES, ACTION_WORDS, EXIT_WORDS, STATUS_WORDS, line, measured, printable

STATUS_STYLES: dict[Status, str] = {
    Status.NO_FINDING: "green",
    Status.FLAGGED: "red",
    Status.INCONCLUSIVE: "yellow",
    Status.SKIPPED: "dim",
    Status.ERROR: "red",
}
RULES_SHOWN = 8
LIMITS_SHOWN = 4
STRINGS_SHOWN = 3
EVIDENCE_SHOWN = 18


class Asking(Protocol):
    """What a list of checks shows of one."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def cost(self) -> str:
        """What it spends."""

    @property
    def question(self) -> str:
        """What it asks."""


def show(saved: SavedRun, console: Console) -> None:
    """Print the page of a saved run."""
    record = saved.record
    verdict = record.verdict
    console.print()
    console.print(line((f"{verdict.action}  ", ACTION_STYLES[verdict.action]), (ACTION_WORDS[verdict.action], "bold")))
    console.print(line((f"{record.candidate.path}  against  {record.base.path}", "dim")))
    for configuration, action in verdict.by_configuration.items() if len(verdict.by_configuration) > 1 else ():
        console.print(line((f"  {configuration}: ", ""), (str(action), ACTION_STYLES[action])))
    console.print()
    console.print("Why", style="bold")
    several = len(verdict.by_configuration) > 1
    for rule in decisive(verdict.rules)[:RULES_SHOWN]:
        if rule.id.startswith("optional/"):  # its reason stands in the table again
            _one_line(console, _rule(rule, several))
        else:
            console.print(_rule(rule, several))
    _left_out(console, len(decisive(verdict.rules)) - RULES_SHOWN, "reasons")
    console.print()
    console.print(_table(record.results, several))
    console.print()
    _tested_strings(saved, console, several)
    console.print("What stays unseen", style="bold")
    plain, threats = split_limits(record.limits)
    for limit in plain[:LIMITS_SHOWN]:
        _one_line(console, line((f"  - {limit}", "")))
    _left_out(console, len(plain) - LIMITS_SHOWN, "limits")
    _left_out(console, len(threats), "lines on what could be seen of each threat")
    console.print()
    code = verdict.exit_code
    console.print(line((f"valid until {record.valid_until[:10]}   policy {record.policy.name}   exit {code} ({EXIT_WORDS[code]})", "dim")))
    console.print(line((f"record  {saved.folder / 'audit.json'}", "dim")), soft_wrap=True)
    for label, page in (("page  ", "report.html"), ("causes", "causes.html")):
        if (saved.folder / page).exists():
            console.print(line((f"{label}  {saved.folder / page}", "dim")), soft_wrap=True)


def show_results(saved: SavedRun, console: Console) -> None:
    """Print what the checks of a partial run found, and no decision: the run did not look at what a decision needs."""
    record = saved.record
    console.print()
    console.print(line((f"{record.candidate.path}  against  {record.base.path}", "bold")))
    for result in record.results:
        console.print()
        where = f"  ({result.configuration})" if len(record.verdict.by_configuration) > 1 else ""
        console.print(line((result.check, "bold"), (where, ""), ("   ", ""), (STATUS_WORDS[result.status], STATUS_STYLES[result.status])))
        for text in [*([result.reason] if result.reason else []), *(finding.claim for finding in result.findings)]:
            console.print(line((f"  {text}", "")))
        for finalist in finalists(saved, result.configuration, (result.check,)) if result.check in CHECKS else ():
            console.print(_finalist(finalist, ""))
        for item in result.evidence[:EVIDENCE_SHOWN]:
            console.print(line((f"    {item.name}  ", "dim"), (measured(item), ""), (f"  {item.where}", "dim")))
        _left_out(console, len(result.evidence) - EVIDENCE_SHOWN, "numbers")
    console.print()
    console.print(line((f"record  {saved.folder / 'audit.json'}", "dim")), soft_wrap=True)
    console.print(line((f"page    {saved.folder / 'report.html'}", "dim")), soft_wrap=True)


def _rule(rule: Rule, several: bool) -> Text:
    where = f"[{rule.configuration}] " if several else ""
    if rule.id.startswith("optional/"):
        return line(("  (not required)  ", "dim"), (where + rule.sentence, ""))
    return line((f"  {rule.action}  ", ACTION_STYLES[rule.action]), (where + rule.sentence, ""))


def _table(results: tuple[CheckResult, ...], several: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in (["configuration"] if several else []) + ["check", "result", "in short"]:
        table.add_column(heading, overflow="fold")
    for result in results:
        said = line((_short(result), ""))
        said = said if result.status in (Status.FLAGGED, Status.ERROR) else _cut(said)  # the page has the rest
        cells = [line((result.check, "")), line((STATUS_WORDS[result.status], STATUS_STYLES[result.status])), said]
        table.add_row(*([line((result.configuration, ""))] if several else []), *cells)
    return table


def _tested_strings(saved: SavedRun, console: Console, several: bool) -> None:
    tested = [(name, finalist) for name in saved.record.verdict.by_configuration for finalist in finalists(saved, name)]
    if tested:
        what = "Strings and circumstances" if any(finalist.around for _, finalist in tested) else "Strings"
        console.print(f"{what} put to the test", style="bold")
        for name, finalist in tested[:STRINGS_SHOWN]:
            told = _finalist(finalist, f"[{name}] " if several else "")
            if finalist.confirmed:
                console.print(told)
            else:
                _one_line(console, told)
        _left_out(console, len(tested) - STRINGS_SHOWN, "of them")
        console.print()


def _finalist(finalist: Finalist, where: str) -> Text:
    string = printable(finalist.string).replace("\n", "\\n")  # a string is one line here, whatever is in it
    quoted = f'"{string}"'
    names = (*SHORT_ARMS[:-1], "others of its kind") if finalist.around else SHORT_ARMS
    arms = list(zip(names, finalist.rates, strict=True))
    arms += [] if finalist.control is None else [(SHORT_CONTROL_ARM, finalist.control)]
    rates = ", ".join(f"{arm} {rate:.0f} %" for arm, rate in arms)
    sure = ("confirmed", "bold red") if finalist.confirmed else ("not confirmed", "dim")
    return line((f"  {where}{string if finalist.around else quoted} {finalist.does}: {rates} — ", ""), sure)


def _one_line(console: Console, text: Text) -> None:
    console.print(text, no_wrap=True, overflow="ellipsis")


def _cut(text: Text) -> Text:
    """The text on one line, with a mark where it is cut: a summary fits a screen."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _short(result: CheckResult) -> str:
    grave = [finding for finding in result.findings if finding.severity != "info"]
    if grave:
        more = f" (and {len(grave) - 1} more findings)" if len(grave) > 1 else ""
        return grave[0].claim + more
    if result.reason:
        return result.reason
    if result.findings:
        return result.findings[0].claim
    # The number with an interval is what the check is about; a check without one lists its main count first.
    main = next((item for item in result.evidence if item.low is not None), result.evidence[0])
    return f"{main.name}: {measured(main)}"


def _left_out(console: Console, count: int, what: str) -> None:
    if count > 0:
        console.print(f"  ... and {count} more {what} in the record", style="dim")


def show_checks(checks: Sequence[Asking], console: Console) -> None:
    """Print the checks, cheapest first, with the question each one asks."""
    table = Table("check", "cost", "asks", box=None, padding=(0, 2, 0, 0))
    for check in checks:
        table.add_row(check.id, check.cost, check.question)
    console.print(table)
