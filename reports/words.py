"""What every page says in the same words: actions, exit codes, how a number is written."""

from __future__ import annotations

import unicodedata

from rich.text import Text

from forensics.record import Action, Evidence, Status

ACTION_WORDS: dict[Action, str] = {
    Action.DEPLOY: "May be deployed under this policy",
    Action.DEPLOY_WITH_ENHANCED_MONITORING: "May be deployed only with enhanced monitoring, once a person has accepted the loss",
    Action.INCONCLUSIVE: "Cannot be decided: something that is required could not be looked at",
    Action.HUMAN_REVIEW: "Must be reviewed by a person before anything else",
    Action.BLOCK: "Must not be deployed",
}
NEXT_STEPS: dict[Action, str] = {
    Action.DEPLOY: "Release it as the policy allows, keep this record with it, and repeat the audit before it expires.",
    Action.DEPLOY_WITH_ENHANCED_MONITORING: "A named person reads the losses below, accepts them in writing, and sees that monitoring is on.",
    Action.INCONCLUSIVE: "Give the audit what it lacked (see the reasons), and run it again. Until then nothing is known to be safe.",
    Action.HUMAN_REVIEW: "A reviewer reads the reasons and the changed replies below and decides; the decision is written down.",
    Action.BLOCK: "Do not release it. Who made it finds out what in its training or files did this (forensics investigate says which weights); what they change is audited anew.",
}
ACTION_STYLES: dict[Action, str] = {
    Action.DEPLOY: "bold green",
    Action.DEPLOY_WITH_ENHANCED_MONITORING: "bold yellow",
    Action.INCONCLUSIVE: "bold yellow",
    Action.HUMAN_REVIEW: "bold yellow",
    Action.BLOCK: "bold red",
}
STATUS_WORDS: dict[Status, str] = {
    Status.NO_FINDING: "looked, nothing found",
    Status.FLAGGED: "found something",
    Status.INCONCLUSIVE: "could not tell",
    Status.SKIPPED: "did not look",
    Status.ERROR: "broke down",
}
EXIT_WORDS: dict[int, str] = {
    0: "may deploy",
    1: "the tool failed",
    2: "the command or an input is wrong",
    3: "inconclusive, or not comparable",
    10: "a person must review or sign",
    20: "blocked",
}


def number(value: float) -> str:
    """A number as people write it: whole ones plain, others with three significant digits.

    >>> number(12.0), number(0.012345), number(98.76)
    ('12', '0.0123', '98.8')
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.3g}"


def measured(evidence: Evidence) -> str:
    """Value with its unit, its bounds and how many things were counted, where they are known."""
    text = f"{number(evidence.value)} {evidence.unit}"
    if evidence.low is not None and evidence.high is not None:
        text += f" [{number(evidence.low)}, {number(evidence.high)}]"
    if evidence.n is not None:
        text += f", n = {evidence.n}"
    return text


def printable(text: str) -> str:
    r"""`text` with everything that could steer a terminal or hide in a page made visible.

    Names, templates and replies come from the candidate; control and direction characters in them could rewrite what
    a reader sees.

    >>> printable("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return "".join(character if _harmless(character) else character.encode("unicode_escape").decode("ascii") for character in text)


def line(*parts: tuple[str, str]) -> Text:
    """One line for the terminal from texts and their styles; whatever is in a text, it is shown and neither obeyed nor read as markup."""
    return Text.assemble(*((printable(text), style) for text, style in parts))


def _harmless(character: str) -> bool:
    return character == "\n" or not unicodedata.category(character).startswith("C")
