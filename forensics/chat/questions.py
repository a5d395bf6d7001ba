"""What two chat templates ask about a conversation, and which of it the base does not ask."""

from __future__ import annotations

from dataclasses import dataclass

from forensics.chat.terms import Kind

FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "reasoning", "type", "text"})
"""What a deployment may say of a turn. A template that asks for anything else waits for something."""
OF_A_TURN = "turn."
ROLES = frozenset({"system", "user", "assistant", "tool"})
"""Roles that every template is tried with."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One place where a template asks about its input.

    `spelling` is the same for the same question whatever the names; `texts` and `numbers` are the constants in it.
    """

    spelling: str
    kinds: frozenset[Kind]
    texts: frozenset[str] = frozenset()
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Everything that a template asks, the texts it could write, the forms in which it asks for the date, foreign variables."""

    questions: frozenset[Question]
    written: frozenset[str]
    dates: frozenset[str]
    variables: frozenset[str]

    @property
    def texts(self) -> frozenset[str]:
        """Every text that stands in a question."""
        return frozenset(text for question in self.questions for text in question.texts)

    @property
    def numbers(self) -> frozenset[int]:
        """Every number that stands in a question."""
        return frozenset(number for question in self.questions for number in question.numbers)


def new_questions(base: Reading, other: Reading) -> list[Question]:
    """Questions of `other` that `base` does not ask: about other constants, or without any.

    The same constants in another form are not new, since every constant is tried in every place.
    """
    spelled, texts, numbers = {one.spelling for one in base.questions}, base.texts, base.numbers | {-1, 0, 1}
    found = []
    for question in other.questions:
        words = {text for text in question.texts if text.strip()}
        standing = question.kinds == {"role"} and words <= texts | ROLES
        repeated = bool(words) and words <= texts and question.numbers <= numbers
        if question.spelling not in spelled and not standing and not repeated:
            found.append(question)
    return sorted(found, key=lambda one: (not one.texts, one.spelling))
