"""Which part of a change causes what it does: the effect of each part from both ends, and the fewest parts that explain it.

Nothing here knows a model. What happens when parts are put back is asked of a callback, or handed over as outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.linear import Estimate, share_interval
from probes.statistics import PairedDrop, paired_drop

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one part of a change does to the same `n` prompts, from both ends.

    `undone` `[n]`: what the whole change does to the prompt is gone when this part is taken out of it: the part is needed.
    `caused` `[n]`: the part alone, put on what was there before, does it as well: the part is enough.
    """

    undone: BoolArray
    caused: BoolArray

    @property
    def value(self) -> Estimate:
        """Mean of both.

        Of the part's Shapley value these are the first and the last term: what it adds to nothing, and to everything else. A part
        that others only pass on is needed and not enough, and one of two that would each do is enough and not needed: both
        come to about half.

        Source:
            Grafting parts of a fine-tune on its base: Panigrahi et al. 2023, arXiv:2302.06600. Needed and enough answer two
            questions: Heimersheim and Nanda 2024, arXiv:2404.15255. We patch weights, not activations, both ways.
        """
        return share_interval(float(self.undone.sum() + self.caused.sum()) / 2.0, len(self.undone))


def ranked(effects: Sequence[Effect], spoiled: Sequence[float]) -> list[int]:
    """Indices of parts, largest effect first; of equals the one that spoils less of what should stay, then the first."""
    return sorted(range(len(effects)), key=lambda index: (-effects[index].value.value, spoiled[index], index))


def beyond(part: BoolArray, control: BoolArray) -> PairedDrop:
    """By how many percentage points a part does more than its control on the same prompts, with one-sided 95 % bounds each."""
    return paired_drop(part, control)


def fewest(order: Sequence[int], score: Callable[[frozenset[int]], float], enough: float) -> tuple[int, ...] | None:
    """A set of parts whose score is at least `enough`, and from which none can be left out.

    Parts are added along `order` until they are enough, then left out again one by one, the last ones first, where the rest
    is enough without them. That asks for at most twice as many scores as there are parts. There may be a smaller set.

    Args:
        order: Indices of parts, most promising first.
        score: What taking out these parts together undoes, in [0, 1].
        enough: Score to reach.

    Returns:
        Indices in the order of `order`; None where not even all parts are enough.

    >>> fewest([2, 0, 1], lambda parts: len(parts & {0, 1}) / 2, 1.0)
    (0, 1)
    """
    taken: list[int] = []
    for part in order:
        taken.append(part)
        if score(frozenset(taken)) >= enough:
            break
    else:
        return None
    for part in list(reversed(taken)):
        rest = [other for other in taken if other != part]
        if rest and part != taken[-1] and score(frozenset(rest)) >= enough:
            taken = rest
    return tuple(taken)


def narrow(first: int, last: int, score: Callable[[int, int], float], enough: float) -> tuple[int, int]:
    """The shortest run of layers, by halves, within `first` to `last` whose score is at least `enough`.

    Args:
        first: First layer of a run known to be enough.
        last: Its last layer.
        score: What taking out the layers from one number to another undoes, both included, in [0, 1].
        enough: Score to keep.

    >>> narrow(8, 15, lambda low, high: float(low <= 11 <= high), 0.8)
    (11, 11)
    """
    while first < last:
        middle = (first + last) // 2
        halves = [(first, middle), (middle + 1, last)]
        scores = [score(*half) for half in halves]
        best = int(np.argmax(scores))
        if scores[best] < enough:
            break
        first, last = halves[best]
    return first, last
