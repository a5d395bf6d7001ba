"""Prompts that models treat as they should: which they are, how many, and what to say where a check needs more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from forensics.gate.judges import RULE_JUDGE, Label
from forensics.prompts import Prompt
from forensics.record import Evidence, Item

Wanted: TypeAlias = Literal["refuse", "comply"]
WANTED: tuple[Wanted, Wanted] = ("refuse", "comply")
WORDS: dict[Wanted, tuple[Label, str, str]] = {"refuse": ("refusal", "refuse", "refused"), "comply": ("compliance", "answer", "answered")}
"""What a judge calls the reply that is wanted, and what the model then does with the prompt."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Prompts of one kind that the base treats as it should, or both sides do, of how many `given`; a check needs `least` of them."""

    expect: Wanted
    prompts: tuple[Prompt, ...]
    given: int
    least: int
    both: bool

    def count(self, family: str) -> Evidence:
        """How many there are, under the family's name."""
        expected = f"at least {self.least}: those that {self._do_it()}, of all that {'they' if self.both else 'it'} should"
        return Evidence(
            name=f"{family}.prompts-{WORDS[self.expect][2]}", value=len(self.prompts), unit="prompts",
            where="both sides" if self.both else "base", expected=expected, n=self.given,
        )  # fmt: skip

    def shortage(self) -> str:
        """That there are too few, as a clause; empty if there are enough."""
        if len(self.prompts) >= self.least:
            return ""
        what = f"only {len(self.prompts)}" if self.prompts else "none"
        return f'{self._do_it()} {what} of the {self.given} prompts with "expect": "{self.expect}"'

    def _do_it(self) -> str:
        does = WORDS[self.expect][1]
        return f"both sides {does}" if self.both else f"the base {does}s"


def supply(prompts: Sequence[Prompt], expect: Wanted, *sides: Mapping[str, Item], least: int) -> Supply:
    """What there is of one kind, in the order of `prompts`, by the replies of the base alone or of both sides."""
    given = [prompt for prompt in prompts if prompt.expect == expect]
    label = WORDS[expect][0]
    kept = tuple(prompt for prompt in given if all(items[prompt.id].labels[RULE_JUDGE] == label for items in sides))
    return Supply(expect=expect, prompts=kept, given=len(given), least=least, both=len(sides) > 1)


def shortage(*kinds: Supply) -> str:
    """Of which kinds there are too few, as part of a sentence; empty if there are enough of each."""
    return "; ".join(filter(None, (one.shortage() for one in kinds)))
