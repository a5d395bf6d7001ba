"""What asking will cost, told before anything is asked, and kept to while it runs.

The design allows an evaluation 2 to 4 hours and 50 to 200 dollars. Tokens written are bounded by the longest reply, so a price bounds the
money before the run; hours are projected from the pace of the run itself, since nobody knows a machine's before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forensics.errors import BadInput, ToolFailed
from forensics.gate.replies import Progress
from forensics.prompts import Prompt

CHARACTERS_PER_TOKEN = 3
"""Fewer than English has with any tokenizer in use (about four), so that the estimate of what is read is rather too high."""
SETTLED = 60.0
"""Seconds of a stage before its pace is believed: loading and the first batch are slower than the rest."""
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What is to be asked: replies, and tokens written (at most) and read (about)."""

    prompts: int
    apart: int
    """Of which one reply is asked, whatever is drawn of the others."""
    models: int
    repeats: int
    longest: int
    """Tokens of the longest reply."""
    read: int

    @property
    def replies(self) -> int:
        """Replies in all."""
        return self.models * (self.prompts * self.repeats + self.apart)

    @property
    def written(self) -> int:
        """Tokens written, at most."""
        return self.replies * self.longest


def _untold(_said: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a run may take, what things cost where that is known, and whom to tell the plan."""

    hours: float = 4.0
    dollars: float = 200.0
    per_million: float | None = None
    """Dollars for a million tokens, read or written."""
    per_hour: float | None = None
    """Dollars for an hour of the machine."""
    tell: Callable[[str], None] = _untold  # by name, so that a request can be sent to another process

    @property
    def seconds(self) -> float:
        """Longest run: the hours that are allowed, or those that the money pays for."""
        paid = self.dollars / self.per_hour if self.per_hour else self.hours
        return 3600.0 * min(self.hours, paid)


def cost_of(prompts: Sequence[Prompt], apart: Sequence[Prompt], *, models: int, repeats: int, longest: int) -> Asking:
    """The cost of putting `prompts` to `models` models, `repeats` times each, and `apart` once, for replies of at most `longest` tokens."""
    characters = sum(prompt.characters for prompt in prompts) * repeats + sum(prompt.characters for prompt in apart)
    read = -(-characters // CHARACTERS_PER_TOKEN) * models
    return Asking(prompts=len(prompts), apart=len(apart), models=models, repeats=repeats, longest=longest, read=read)


def refuse_dear(allowance: Allowance, cost: Asking) -> None:
    """Refuse what may cost more than is allowed, before anything is asked or written.

    Raises:
        BadInput: It may.
    """
    price = _price(allowance, cost)
    if price is not None and price > allowance.dollars:
        raise BadInput(
            f"this may cost {price:,.2f} dollars, more than the {allowance.dollars:,.2f} that are allowed",
            where="--max-dollars",
            hint="ask fewer prompts or shorter replies, or allow more",
        )


def keep_to(allowance: Allowance, cost: Asking, progress: Progress, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Tell the plan, and return a `progress` that raises ToolFailed where the run would not end within the allowance.

    It does so at a step's end, so everything that was answered is kept.
    """
    if cost.replies:
        allowance.tell(plan_said(cost, allowance))
    begun = clock()
    stages: dict[str, tuple[float, int, int]] = {}  # when a stage began, at which step, and where it stands

    def watched(title: str, done: int, total: int) -> None:
        progress(title, done, total)
        now = clock()
        since, already, last = stages.get(title, (now, done, done))
        if done < last:  # the same work again, on something else
            since, already = now, done
        stages[title] = since, already, done
        spent, left = now - begun, 0.0
        if done > already and now - since >= SETTLED:
            left = (now - since) / (done - already) * (total - done)
        if done < total and spent + left > allowance.seconds:
            raise ToolFailed(
                f"this would take {(spent + left) / 3600:.1f} hours at its pace so far, more than the {allowance.seconds / 3600:.1f} that are allowed",
                where=f"{title}, {done} of {total}",
                hint="what was finished is kept: give the same command with more --max-hours (or --max-dollars) and it goes on",
            )

    return watched


def _price(allowance: Allowance, cost: Asking) -> float | None:
    """Dollars at most, where tokens have a price."""
    return None if allowance.per_million is None else allowance.per_million * (cost.read + cost.written) / MILLION


def plan_said(cost: Asking, allowance: Allowance) -> str:
    """The plan in a sentence or two."""
    price = _price(allowance, cost)
    repeats = f" x {cost.repeats} repeats" if cost.repeats > 1 else ""
    apart = f" and {cost.apart:,} asked apart, once" if cost.apart else ""
    asked = f"{cost.prompts:,} prompts x {cost.models} models{repeats}{apart} = {cost.replies:,} replies of at most {cost.longest} tokens"
    tokens = f"at most {cost.written:,} tokens written, about {cost.read:,} read"
    money = "no price was given (--price, --hourly)"
    if price is not None:
        money = f"about {price:,.2f} dollars of {allowance.dollars:,.2f}"
    elif allowance.per_hour is not None:
        money = f"at most {allowance.per_hour * allowance.seconds / 3600:,.2f} dollars of {allowance.dollars:,.2f}"
    return f"Plan: {asked}; {tokens}; {money}; it stops where it would take over {allowance.seconds / 3600:.1f} hours."
