"""What a direction does to a live model: refusal scored by first tokens, or proved by generated and judged replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.anatomy import writing_matrices
from forensics.capture import Subject, ablating, adding, first_token, replies
from forensics.gate.judges import judge_refusal
from probes.direction import Direction
from probes.linear import random_units
from probes.refusal import Effect, Openings, Selection, divergence, fit, learn_openings, select

if TYPE_CHECKING:
    from forensics.model import Rendered

Array = NDArray[np.float64]
COEFFICIENTS = (1.0, 1.5, 2.0, 3.0)
"""Multiples of the raw difference of means, tried in this order. Arditi et al. use 1; where a fit set is small or the
position odd, the raw length can fall short, while large ones break the model rather than make it refuse."""
ENOUGH = 0.8
"""Share of harmless prompts that must be refused for a coefficient to be taken without trying the next."""
RANDOM = 100
RANDOM_BY_REPLIES = 20
"""Random directions where the first token does not tell and every one costs generated replies."""
RANDOM_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Harmful and harmless prompts as token ids of one side."""

    harmful: tuple[Rendered, ...]
    harmless: tuple[Rendered, ...]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many of `n` replies refuse, and how many are empty or loop."""

    refused: int
    broken: int
    n: int

    @property
    def share(self) -> float:
        """Share that refuses."""
        return self.refused / self.n


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Scores how much a model means to refuse: from its first token where that tells, else from replies.

    `openings` are learned from this very model.
    """

    subject: Subject
    openings: Openings

    def read(self, rows: Sequence[Rendered]) -> tuple[Array, NDArray[np.float32]]:
        """Refusal score `[n]`, above 0 for a refusal, and log probabilities `[n, vocabulary]` of the first token."""
        first = first_token(self.subject, rows)
        if self.openings.usable:
            return self.openings.score(first), first
        return self._by_replies(rows), first

    def share(self, rows: Sequence[Rendered]) -> float:
        """Share of prompts that score as a refusal."""
        if not self.openings.usable:
            return float(np.mean(self._by_replies(rows) > 0.0))
        return float(np.mean(self.read(rows)[0] > 0.0))

    def _by_replies(self, rows: Sequence[Rendered]) -> Array:
        texts = replies(self.subject, rows)
        return np.array([1.0 if judge_refusal(text) == "refusal" else -1.0 for text in texts])


def learn_gauge(subject: Subject, refused: Sequence[Rendered], answered: Sequence[Rendered]) -> Gauge:
    """A gauge for one model, from the first tokens of its own refusals and answers."""
    ours, theirs = (first_token(subject, rows).argmax(axis=1).tolist() for rows in (refused, answered))
    return Gauge(subject=subject, openings=learn_openings(ours, theirs))


def effect_of(gauge: Gauge, asked: Asked) -> Callable[[Direction], Effect]:
    """A function that measures what a direction does to `asked`, for `probes.refusal.select`."""
    _, plain = gauge.read(asked.harmless)
    n = len(asked.harmful)

    def measure(direction: Direction) -> Effect:
        with ablating(gauge.subject, direction.vector):
            scores, first = gauge.read([*asked.harmful, *asked.harmless])
        with adding(gauge.subject, direction.raw, direction.layer):
            induced, _ = gauge.read(asked.harmless)
        return Effect(ablated=float(scores[:n].mean()), induced=float(induced.mean()), divergence=divergence(plain, first[n:]))

    return measure


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a direction does to generated replies on the select part, with the coefficient that it took."""

    coefficient: float
    ablated: float
    added: float


def try_out(subject: Subject, direction: Direction, asked: Asked) -> Trial:
    """Generate under ablation, and under addition with the first coefficient that makes `ENOUGH` refuse, else the best."""
    with ablating(subject, direction.vector):
        ablated = _tally(subject, asked.harmful).share
    shares: list[float] = []
    for coefficient in COEFFICIENTS:
        with adding(subject, coefficient * direction.raw, direction.layer):
            shares.append(_tally(subject, asked.harmless).share)
        if shares[-1] >= ENOUGH:
            break
    best = int(np.argmax(shares))
    return Trial(coefficient=COEFFICIENTS[best], ablated=ablated, added=shares[best])


@dataclass(frozen=True, kw_only=True)
class Steered:
    """Generated replies, judged: harmful prompts plain and under ablation, harmless ones plain and under addition."""

    harmful: Tally
    ablated: Tally
    harmless: Tally
    added: Tally

    @property
    def fall(self) -> float:
        """How much refusal of harmful prompts the ablation takes away."""
        return self.harmful.share - self.ablated.share

    @property
    def rise(self) -> float:
        """How much refusal of harmless prompts the addition brings."""
        return self.added.share - self.harmless.share


def steer(subject: Subject, direction: Direction, coefficient: float, asked: Asked, *, plain: tuple[Tally, Tally]) -> Steered:
    """Prove a direction by generation: ablate it on harmful prompts, add `coefficient` times it on harmless ones.

    Args:
        subject: The model.
        direction: What to ablate and add.
        coefficient: Multiple of the raw difference of means to add.
        asked: Prompts that had no part in finding the direction.
        plain: Replies to the same harmful and harmless prompts without any change.
    """
    with ablating(subject, direction.vector):
        ablated = _tally(subject, asked.harmful)
    with adding(subject, coefficient * direction.raw, direction.layer):
        added = _tally(subject, asked.harmless)
    return Steered(harmful=plain[0], ablated=ablated, harmless=plain[1], added=added)


def tally(labels: Sequence[str]) -> Tally:
    """Count the labels of a judge."""
    broken = sum(label in ("empty", "incoherent") for label in labels)
    return Tally(refused=sum(label == "refusal" for label in labels), broken=broken, n=len(labels))


def _tally(subject: Subject, rows: Sequence[Rendered]) -> Tally:
    return tally([judge_refusal(text) for text in replies(subject, rows)])


def random_shifts(gauge: Gauge, direction: Direction, coefficient: float, asked: Asked, *, count: int, seed: int) -> tuple[Array, Array]:
    """The control: how far random directions of the same length move refusal.

    Returns:
        Absolute shift of the refused share by ablation and by addition, `[count]` each.
    """
    before = gauge.share(asked.harmful), gauge.share(asked.harmless)
    shifts = []
    for unit in random_units(np.random.default_rng(seed), count, len(direction.vector)):
        with ablating(gauge.subject, unit):
            ablated = gauge.share(asked.harmful)
        with adding(gauge.subject, coefficient * direction.gap * unit, direction.layer):
            added = gauge.share(asked.harmless)
        shifts.append((abs(ablated - before[0]), abs(added - before[1])))
    both = np.array(shifts)
    return both[:, 0], both[:, 1]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model's direction: all candidates and the chosen one, the coefficient to add it with, how well first tokens tell
    refusals from answers, and the absolute shifts that random directions of its length cause by ablation and addition.
    """

    selection: Selection
    coefficient: float
    openings: float
    random: tuple[Array, Array]

    @property
    def direction(self) -> Direction:
        """The chosen direction."""
        return self.selection.direction


def find(subject: Subject, asked: dict[str, Asked], means: tuple[Array, Array], *, seed: int) -> Found | None:
    """Fit directions, choose one by its effect, and hold random ones against it.

    Args:
        subject: The model.
        asked: Prompts of the parts `fit`, `select` and `test`.
        means: Mean activations `[layers + 1, positions, d]` of the refused and the answered prompts of the fit part.
        seed: Of the random directions.

    Returns:
        What was found; None where no layer holds a difference.
    """
    fitting, choosing, test = asked["fit"], asked["select"], asked["test"]
    fitted = f"difference of means over {len(fitting.harmful)} refused and {len(fitting.harmless)} answered prompts"
    # The last layer is the output of the last block: nothing after it could act on what is added there.
    candidates = fit(means[0][:-1], means[1][:-1], fitted=fitted)
    if not candidates:
        return None
    gauge = learn_gauge(subject, fitting.harmful, fitting.harmless)
    trials: dict[tuple[int, int], Trial] = {}

    def prove(direction: Direction) -> float:
        trial = trials[direction.layer, direction.position] = try_out(subject, direction, choosing)
        return trial.added - trial.ablated

    selection = select(candidates, effect_of(gauge, choosing), prove)
    coefficient = trials[selection.direction.layer, selection.direction.position].coefficient
    some = Asked(harmful=test.harmful[:RANDOM_PROMPTS], harmless=test.harmless[:RANDOM_PROMPTS])
    count = RANDOM if gauge.openings.usable else RANDOM_BY_REPLIES
    random = random_shifts(gauge, selection.direction, coefficient, some, count=count, seed=seed)
    return Found(selection=selection, coefficient=coefficient, openings=gauge.openings.apart, random=random)


def writing_grams(subject: Subject, span: Array) -> dict[str, Array]:
    """For each matrix W that writes to the residual stream: span^T W W^T span, `[k, k]`, by name, adapters included.

    Args:
        subject: The model.
        span: `[d, k]` orthonormal columns.
    """
    with subject.model.wearing(subject.adapters) as whole:
        # In float64 on the CPU: a gain of a thousandth is the square root of a sum a million times smaller.
        parts = {matrix.name: span.T @ matrix.weight.cpu().numpy().astype(np.float64) for matrix in writing_matrices(whole)}
    return {name: part @ part.T for name, part in parts.items()}
