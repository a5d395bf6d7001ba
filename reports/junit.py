"""JUnit XML of a saved record, for pipelines that show tests: a test a check, failed where the verdict turns against the candidate because of it.

The last test is the verdict itself, so the file fails exactly if the exit code is not 0. An optional check that could not look is a skipped
test with its reason: green would read as "nothing found".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as Xml  # only written with, never read: nothing here parses what somebody else made

from forensics.record import Action, AuditRecord, CheckResult, Rule, Status
from reports.rules import against, of_no_check
from reports.words import ACTION_WORDS, measured, printable

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document can hold, however they are written."""


def render_junit(record: AuditRecord) -> str:
    """The record as JUnit XML."""
    suites = Xml.Element("testsuites", name="forensics")
    for configuration, action in record.verdict.by_configuration.items():
        results = [result for result in record.results if result.configuration == configuration]
        cases = [_case(record, result) for result in results]
        others = [rule for rule in of_no_check(record) if rule.configuration == configuration]
        cases += [_named(rule.id, configuration, 0.0, [_fault((rule,))]) for rule in others]
        cases.append(_verdict(configuration, action))
        suites.append(_suite(configuration, record.created, cases))
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


def _suite(configuration: str, created: str, cases: Sequence[Xml.Element]) -> Xml.Element:
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    seconds = sum(float(case.get("time", "0")) for case in cases)
    suite = Xml.Element("testsuite", name=_text(configuration), timestamp=created[:19], time=f"{seconds:.3f}")
    for name, count in counts.items():
        suite.set(name, str(count))
    suite.extend(cases)
    return suite


def _case(record: AuditRecord, result: CheckResult) -> Xml.Element:
    rules = against(record, result)
    inside: list[Xml.Element] = []
    if rules:
        inside = [_fault(rules)]
    elif result.status in (Status.SKIPPED, Status.INCONCLUSIVE, Status.ERROR):
        inside = [Xml.Element("skipped", message=_text(f"{result.status}: {result.reason}"))]
    said = [finding.claim for finding in result.findings] + [f"{item.name}: {measured(item)}; {item.expected}" for item in result.evidence]
    if said:
        out = Xml.Element("system-out")
        out.text = _text("\n".join(said))
        inside.append(out)
    return _named(result.check, result.configuration, result.seconds, inside)


def _verdict(configuration: str, action: Action) -> Xml.Element:
    if action is Action.DEPLOY:
        return _named("verdict", configuration, 0.0, [])
    kind = "error" if action is Action.INCONCLUSIVE else "failure"
    return _named("verdict", configuration, 0.0, [Xml.Element(kind, message=ACTION_WORDS[action], type=str(action))])


def _fault(rules: Sequence[Rule]) -> Xml.Element:
    """What the strictest of some rules asks for: a failure, or an error where it only says that nothing could be told."""
    kind = "error" if rules[0].action is Action.INCONCLUSIVE else "failure"
    fault = Xml.Element(kind, message=_text(rules[0].sentence), type=str(rules[0].action))
    fault.text = _text("\n".join(rule.sentence for rule in rules))
    return fault


def _named(name: str, configuration: str, seconds: float, inside: Sequence[Xml.Element]) -> Xml.Element:
    case = Xml.Element("testcase", classname=_text(f"forensics.{configuration}"), name=_text(name), time=f"{seconds:.3f}")
    case.extend(inside)
    return case


def _text(text: str) -> str:
    return NO_XML.sub("?", printable(text))
