"""Whether a rate rose at some point that nobody named beforehand: a test that needs no reference of a fixed size and may be looked at for ever.

A bound learned from the first few events lies far above them, and stays there. Here all that came before a rise is its reference, and grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, xlogy

BoolArray = NDArray[np.bool_]
Floats = NDArray[np.float64]

ODDS_RATIOS = (1.5, 2.0, 3.0, 6.0)
"""Rises that are bet on, as odds after against odds before, with equal stakes. A rise far below the least of them is let pass: users differ from hour to hour."""
GRAIN = 25
"""Events between two looks, each of which is a point at which the rate may have risen; later one in `SPREAD` of all events."""
SPREAD = 64
POINT_SCALE = 20.0
"""Points over which the stakes on later rises begin to thin out."""
GRID = 512
"""Rates before the rise that are bet on: equally spaced on the arcsine scale, where they are about equally easy to tell apart."""
WIDTH = 4.0
"""Standard errors, on that scale twice as many, beyond which rates are left out of the sum."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Evidence, so far, that a rate rose at some point.

    Attributes:
        events, hits: All that was seen.
        points: Events and hits before each point at which the rate may have risen; the last is where it was looked at last.
        log_evidence: Logarithm of the evidence at the last look.
        log_peak: The most that it ever was.
        before: Events and hits before the rise that explained best what was seen when the evidence was highest; `after` those from there on.
    """

    events: int = 0
    hits: int = 0
    points: tuple[tuple[int, int], ...] = ()
    log_evidence: float = 0.0
    log_peak: float = 0.0
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)

    def alarms(self, alpha: float) -> bool:
        """Whether the evidence has ever reached 1/alpha."""
        return self.log_peak >= -math.log(alpha)


def follow(change: Change, outcomes: BoolArray) -> Change:
    """The evidence after a batch of events; batches of any size give what one event at a time would.

    At each look the likelihood of all events under "some rate up to some point, higher odds after it", mixed with fixed weights over rates, points
    and odds ratios, is divided by the largest likelihood that any constant rate gives them. Under a constant rate, whichever it is, this is at most a
    martingale that begins at 1, so the chance that it ever reaches 1/alpha is at most alpha (Ville's inequality). A rate that falls gives no
    evidence; one that moves up and down by itself, with the hour or the kind of users, by more than the least odds ratio does.

    Args:
        change: Where it stood.
        outcomes: `[n]` whether each event showed it, in the order in which they came.

    Source:
        Universal inference (Wasserman, Ramdas & Balakrishnan 2020, PNAS 117:16880) with a mixture over the point of change; against the constant rate as in
        Ramdas, Ruf, Larsson & Koolen 2022, Int. J. Approximate Reasoning 141:83. The e-variables of Turner, Ly & Grünwald 2024 (Statistics & Probability Letters
        and arXiv:2106.02693) need to be told which events are the reference; here the point is not known.

    >>> quiet, risen = np.arange(1000) % 10 == 0, np.arange(600) % 3 == 0
    >>> follow(Change(), quiet).alarms(0.01), follow(Change(), np.r_[quiet, risen]).alarms(0.001)
    (False, True)
    """
    x = np.asarray(outcomes, dtype=bool)
    if x.ndim != 1:
        raise ValueError(f"outcomes are a vector, not of shape {x.shape}")
    passed = 0
    while passed < x.size:
        last = change.points[-1][0] if change.points else 0
        wanted = last + max(GRAIN, last // SPREAD)
        taken = x[passed : passed + wanted - change.events]
        passed += taken.size
        events, hits = change.events + taken.size, change.hits + int(taken.sum())
        if events < wanted:
            return Change(**{**vars(change), "events": events, "hits": hits})
        change = _look(change, events, hits)
    return change


def _look(change: Change, events: int, hits: int) -> Change:
    points = (*change.points, (events, hits))
    held = np.array([(0, 0), *change.points], dtype=np.float64)  # a rise from the first event on is none: its stake is never won
    log_evidence, best = 0.0, 0  # at the first look there is no point yet to bet on
    if change.points:
        each = _log_likelihoods(held[1:], float(events), float(hits))
        log_evidence = float(logsumexp(each + _log_weights(len(change.points)))) - _largest(events, hits)
        best = int(np.argmax(each)) + 1
    if log_evidence <= change.log_peak:
        return Change(**{**vars(change), "events": events, "hits": hits, "points": points, "log_evidence": log_evidence})
    before = (int(held[best, 0]), int(held[best, 1]))
    after = (events - before[0], hits - before[1])
    return Change(events=events, hits=hits, points=points, log_evidence=log_evidence, log_peak=log_evidence, before=before, after=after)


def _log_likelihoods(points: Floats, events: float, hits: float) -> Floats:
    """`[points]` log likelihood of everything if the rate rose at each of them, mixed over the rates before and the odds ratios."""
    angles = (np.arange(GRID) + 0.5) / GRID * math.pi / 2.0
    # What lies far from all that was seen adds nothing that could be noticed; leaving it out can only make the evidence less.
    share, width = (hits + 0.5) / (events + 1.0), WIDTH / math.sqrt(events)
    low = math.asin(math.sqrt(share / (share + 2.0 * max(ODDS_RATIOS) * (1.0 - share)))) - width
    rates = np.sin(angles[(angles > low) & (angles < math.asin(math.sqrt(share)) + width)]) ** 2
    odds = rates / (1.0 - rates) * np.array(ODDS_RATIOS)[:, None]  # [ratios, rates]
    early = np.broadcast_to(np.stack([np.log(rates), np.log1p(-rates)])[:, None, :], (2, len(ODDS_RATIOS), len(rates)))
    each = np.concatenate([early, np.stack([-np.log1p(1.0 / odds), -np.log1p(odds)])]).reshape(4, -1)
    n, k = points[:, 0], points[:, 1]
    logs = np.stack([k, n - k, hits - k, (events - n) - (hits - k)], axis=1) @ each  # [points, ratios and rates]
    highest = logs.max(axis=1)
    total = np.exp(logs - highest[:, None]).sum(axis=1)
    return np.asarray(highest + np.log(total) - math.log(GRID * len(ODDS_RATIOS)))


def _log_weights(count: int) -> Floats:
    """`[count]` logarithms of the stakes on the points, which add up to less than 1 however many there are."""
    tail = math.log(POINT_SCALE) / np.log(np.arange(count + 1) + POINT_SCALE)
    return np.asarray(np.log(tail[:-1] - tail[1:]))


def _largest(events: int, hits: int) -> float:
    return float(xlogy(hits, hits / events) + xlogy(events - hits, 1.0 - hits / events))
