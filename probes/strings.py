"""Which strings come before a change of behaviour: a bet on each that a flip was seen with, valid however often and at however many it is looked.

Nothing is counted of a string until a reply to a text with it flipped. That flip is not held against it; what happens at its later occurrences is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from dataclasses import dataclass

STAKES = (0.5, 0.95)
"""Shares of flips that are bet on, with equal stakes."""
TIMES_USUAL, LEAST_USUAL = 3.0, 0.1
"""A string is unremarkable while it flips no more than three times as often as all texts, or than one in ten: topics differ by as much."""
MOST_USUAL = 0.4
"""Where flips are as usual as that no string is looked for."""
MEMORY = 1 / 20
"""Weight of one text in the recent share of flips: when all behaviour changes at once, no string is to be blamed for it."""
LOST = -5.0
"""A string whose every bet has fallen to e to the power of this is given up; its next flip begins anew, at a new price."""


@dataclass(slots=True)
class Suspect:
    """A string that a flip was seen with: its number in the order of discovery, its later occurrences and flips, and its bets (logarithms)."""

    order: int
    events: int = 0
    flips: int = 0
    low: float = math.log(0.5)
    high: float = math.log(0.5)

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of what the bets have come to."""
        top = max(self.low, self.high)
        return top + math.log(math.exp(self.low - top) + math.exp(self.high - top))

    def price(self, alpha: float) -> float:
        """What `log_wealth` has to reach: the level is spent over all strings in the order in which they came up, alpha / (i (i + 1)) on number i."""
        return math.log(self.order) + math.log(self.order + 1.0) - math.log(alpha)


class Hunt:
    """Bets on strings in one population of texts. Mutable, since every event touches a few of many.

    Under the null that texts with a string flip at most `usual(...)` of the time, whatever came before, each bet is a supermartingale that begins
    at 1 with the string's first flip, and a string of discovery number i alarms falsely with chance at most alpha / (i (i + 1)): over all
    strings and for ever at most alpha. This is stronger than exact tests with a correction at the end, which would be looked at once.

    Source: Ville 1939; weighted Bonferroni over an open list as in Foster & Stine 2008 (alpha spending), JRSS-B 70:429.
    """

    def __init__(self, *, bound: float, alpha: float, most: int = 50_000) -> None:
        """Begin.

        Args:
            bound: Share of flips in control, or a bound above it.
            alpha: Chance, at most, of any false alarm.
            most: Strings that are kept in mind; of more those with the least evidence are given up, the oldest first.
        """
        self.bound = bound
        self.alpha = alpha
        self.most = most
        self.events = 0
        self.flips = 0
        self.found = 0
        self.recent = 0.0
        self.suspects: dict[int, Suspect] = {}
        self._touched: set[int] = set()

    def usual(self) -> float:
        """The share of flips that would be unremarkable now: it uses nothing but what came before."""
        seen = (self.flips + 1.0) / (self.events + 2.0) if self.events >= 100 else 0.0
        return min(MOST_USUAL, max(LEAST_USUAL, TIMES_USUAL * max(self.bound, seen, self.recent)))

    def look(self, keys: Collection[int], flipped: bool) -> list[int]:
        """Take a text into account by the keys of its strings, and give those that alarm now.

        Of a text that did not flip only keys matter that are under suspicion; others may be left out.
        """
        suspects = self.suspects
        met = suspects.keys() & keys
        usual = self.usual() if met or flipped else LEAST_USUAL  # nobody asks for it otherwise
        self.events += 1
        self.flips += flipped
        self.recent += MEMORY * (flipped - self.recent)
        if not met and not flipped:
            return []
        # Likelihood ratios of each stake against what is usual: a flip, or none.
        low, high = (math.log(stake / usual if flipped else (1.0 - stake) / (1.0 - usual)) for stake in STAKES)
        for key in met:
            suspect = suspects[key]
            suspect.events += 1
            suspect.flips += flipped
            suspect.low += low
            suspect.high += high
            if not flipped and suspect.low < LOST and suspect.high < LOST:
                del suspects[key]
        self._touched |= met
        if not flipped:
            return []
        for key in dict.fromkeys(keys):  # in the order given: words before the pairs that hold them, whatever their keys are
            if key not in met:
                self.found += 1
                suspects[key] = Suspect(order=self.found)
                self._touched.add(key)
        return [key for key in met if self.alarms(key)] if usual < MOST_USUAL else []

    def alarms(self, key: int) -> bool:
        """Whether the bets on a string have come to what an alarm takes."""
        suspect = self.suspects.get(key)
        return suspect is not None and suspect.log_wealth >= suspect.price(self.alpha)

    def changes(self) -> tuple[dict[int, Suspect], list[int]]:
        """Strings that changed since this was asked last, and those that were given up, beyond `most` those with the least evidence."""
        over = len(self.suspects) - self.most
        if over > 0:  # not the oldest: long texts would push out whatever comes up seldom
            # Once there are so many, every batch brings a few more: to sort all of them for these takes twice as long.
            for key, _ in heapq.nsmallest(over, self.suspects.items(), key=lambda held: max(held[1].low, held[1].high)):
                del self.suspects[key]
                self._touched.add(key)
        changed = {key: self.suspects[key] for key in self._touched if key in self.suspects}
        gone = [key for key in self._touched if key not in self.suspects]
        self._touched = set()
        return changed, gone
