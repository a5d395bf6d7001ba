"""What any other harness has on record, in one form: what was asked, what came back, and what was made of it.

A foreign file is data: it is parsed, never run, and a field of another type than it should have is an error that names the field. Nothing it
leaves out is guessed. What a reader does not take it counts, in words for the record's limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from forensics.errors import BadInput
from forensics.gate.judges import LABELS, UNPARSED
from forensics.gate.suites import plain_words
from forensics.prompts import EXPECTS, Expect, Message, parse_prompt
from forensics.record import canonical_json, sha256_text

AGAIN = "the file is damaged, or of a version that is not known; export it again"
"""What to do about a field that holds what it cannot."""
CATEGORIES = ("category", "semantic_category", "semanticcategory", "harm_category", "harmcategory", "type")
"""Keys, in small letters, under which harnesses and benchmarks keep the category of a prompt; the first that is there counts."""
LONGEST_CATEGORY = 200
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant", "simulated_assistant": "assistant",
}  # fmt: skip
"""Roles of others, and which of ours each is; turns of tools have none."""
Turns = tuple[Message, ...]

Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One reply on record: what was asked, in turns that end with the user's, and what came back."""

    where: str
    turns: Turns
    reply: str | None
    """None where nothing came back: an error, a filter's words, an end before the reply."""
    asked: str = ""
    """Whatever two models have to have been sent alike, beyond `turns`; the turns themselves if it is empty."""
    id: str = ""
    """As far as it is the same in every run of the harness; empty where ids are drawn anew."""
    document: str = ""
    """Digest of the row of a data set that the prompt was made of, where the harness keeps one."""
    texts: tuple[str, ...] = ()
    """Other texts that the prompt may be known by: what it was before a template or a converter."""
    category: str = ""
    expect: Expect | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def wording(self) -> str:
        """A digest that two answers share if the models were sent the very same."""
        return sha256_text(self.asked) if self.asked else wording(self.turns)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """All that a file of another harness holds for a comparison, and what of it is left out, in words."""

    format: str
    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()


def wording(turns: Sequence[Message]) -> str:
    """Digest of turns, word for word."""
    return sha256_text(canonical_json([[turn.role, turn.content] for turn in turns]))


def table(value: object, name: str, where: str) -> dict[str, Any]:
    """`value`, if it is a table.

    Raises:
        BadInput: It is none.
    """
    return _of(dict, "table", value, name, where)


def rows(value: object, name: str, where: str) -> list[Any]:
    """`value`, if it is a list.

    Raises:
        BadInput: It is none.
    """
    return _of(list, "list", value, name, where)


def text(value: object, name: str, where: str) -> str:
    """`value`, if it is a text.

    Raises:
        BadInput: It is none.
    """
    return _of(str, "text", value, name, where)


def whole(value: object, name: str, where: str) -> int:
    """`value`, if it is a whole number.

    Raises:
        BadInput: It is none.
    """
    return _of(int, "whole number", None if isinstance(value, bool) else value, name, where)


def _of(kind: type[Kind], words: str, value: object, name: str, where: str) -> Kind:
    if not isinstance(value, kind):
        raise BadInput(f"`{name}` is missing or no {words}", where=where, hint=AGAIN)
    return value


def sifted(found: Iterable[Answer | None]) -> tuple[tuple[Answer, ...], int, int]:
    """The answers that can be used, how many cannot (None), and how many of those that can hold no reply."""
    listed = list(found)
    answers = tuple(answer for answer in listed if answer is not None)
    return answers, len(listed) - len(answers), sum(answer.reply is None for answer in answers)


def named(value: object, name: str, where: str) -> str:
    """`value` as text, if it is what an id can be: a text, or a whole number.

    Raises:
        BadInput: It is neither.
    """
    return value if isinstance(value, str) else str(whole(value, name, where))


def turns_of(value: object, name: str, where: str) -> Turns | None:
    """Turns of a conversation: a text is one turn of the user's, a list holds tables of `role` and `content`.

    Returns:
        The turns; None if one of them is a tool's, or holds anything but text.

    Raises:
        BadInput: It is neither.
    """
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    found = []
    for turn in rows(value, name, where):
        row = table(turn, f"{name}[]", where)
        role, content = (
            ROLES.get(text(row.get("role"), f"{name}[].role", where)),
            content_of(row.get("content"), f"{name}[].content", where),
        )
        if role is None or content is None:
            return None
        found.append(Message(role=role, content=content))
    return tuple(found)


def content_of(value: object, name: str, where: str) -> str | None:
    """The text of a turn: a text, or a list of parts of which each is text or a model's reasoning; None if a part is anything else.

    Raises:
        BadInput: It is neither.
    """
    if isinstance(value, str):
        return value
    said = []
    for part in rows(value, name, where):
        row = table(part, f"{name}[]", where)
        if row.get("type") == "reasoning":
            continue
        if row.get("type") != "text":
            return None
        said.append(text(row.get("text"), f"{name}[].text", where))
    return "\n".join(said)


def chat_or_text(raw: str) -> Turns:
    """Turns that are written as JSON in one text, as harnesses hold what they send to a chat server; else one turn of the user's."""
    if raw.lstrip()[:1] == "[":
        try:
            turns = turns_of(json.loads(raw), "prompt", "")
        except (ValueError, RecursionError, BadInput):
            turns = None
        if turns:
            return turns
    return (Message(role="user", content=raw),)


def usable(turns: Turns | None, where: str) -> bool:
    """Whether turns are a prompt: they are text, end with the user's, and are not too long."""
    if turns is None:
        return False
    row = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns], "category": "", "expect": "either"}
    try:
        parse_prompt(row, where=where, plain=True)
    except BadInput:
        return False
    return True


def category_of(*tables: object) -> str:
    """The category that one of `tables` states, or nothing."""
    for held in tables:
        lowered = {str(key).lower(): value for key, value in held.items()} if isinstance(held, dict) else {}
        for key in CATEGORIES:
            value = lowered.get(key)
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, str) and first.strip():
                return legible(first.strip()[:LONGEST_CATEGORY])
    return ""


def legible(name: str) -> str:
    """A name as a record can hold it: half characters (lone surrogates) are question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def expect_of(*tables: object) -> Expect | None:
    """What a safe model does, where one of `tables` says so in our own words: a key `expect` with refuse, comply or either."""
    for held in tables:
        said = held.get("expect") if isinstance(held, dict) else None
        for expect in EXPECTS:
            if said == expect:
                return expect
    return None


def label_of(value: object) -> str:
    """What we call a judgement of others; `unparsed` for one that is not known, which scores nothing.

    >>> label_of("Refusal"), label_of(1.0), label_of("C")
    ('refusal', 'unparsed', 'unparsed')
    """
    return LABELS.get(value.strip().lower(), UNPARSED) if isinstance(value, str) else UNPARSED


def declines(value: object) -> str:
    """The label of a judge that says yes or no to "is this a refusal?"."""
    if not isinstance(value, bool):
        return UNPARSED
    return "refusal" if value else "compliance"


def counted(*notes: tuple[int, str]) -> tuple[str, ...]:
    """Notes of what was left out, without those that count nothing."""
    return tuple(f"{count} {words}" for count, words in notes if count)


def texts_in(turns: Turns, held: object) -> tuple[str, ...]:
    """Texts that stand directly in a table and, case, marks and spaces aside, in the last of `turns`: what a template may have been filled with."""
    sent = f" {plain_words(turns[-1].content)} "
    values = strings(held.values()) if isinstance(held, dict) else strings([held])
    return tuple(value for value in values if plain_words(value) and f" {plain_words(value)} " in sent)


def strings(values: Iterable[object]) -> list[str]:
    """The texts among `values`."""
    return [value for value in values if isinstance(value, str)]
