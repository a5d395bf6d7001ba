"""Find what carries a model's refusals: the smallest of one direction, one for every layer, and a subspace that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forensics.capture import Sites, mean_residual
from forensics.steering import Asked, Gauge, added, judged, learn_gauge, random_shifts, removed
from forensics.subject import Subject
from probes.carrier import ENOUGH, MAX_KL, SPAN_MOST, Attempt, Carrier, one, own_columns, per_layer, smallest, subspace, widened
from probes.direction import Direction
from probes.refusal import FLAT, Effect, Selection, divergence, fit, select

Array = NDArray[np.float64]
COEFFICIENTS = (1.0, 1.5, 2.0, 3.0)
"""Multiples of the raw difference of means, tried in this order. Arditi et al. use 1; where a fit set is small or the
position odd, the raw length can fall short, while large ones break the model rather than make it refuse."""
RANDOM = 100
RANDOM_BY_REPLIES = 20
"""Random carriers where the first token does not tell and every one costs generated replies."""
RANDOM_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class Found:
    """What carries a model's refusals, and how it was found.

    Attributes:
        selection: Every single direction with its effect, in the manner (linear or affine) of the carrier.
        carrier: What was chosen.
        attempts: Everything that was tried on the select part, smallest first; the chosen one among them.
        openings: How well first tokens tell refusals from answers.
        random: Absolute shifts that random carriers of its form cause by removal and by addition.
        own: For each block the directions of what enters and of what leaves it, `[d, j]`, at the chosen position.
    """

    selection: Selection
    carrier: Carrier
    attempts: tuple[Attempt, ...]
    openings: float
    random: tuple[Array, Array]
    own: tuple[Array, ...]

    @property
    def direction(self) -> Direction:
        """The direction that is added, and read off."""
        return self.carrier.direction

    @property
    def chosen(self) -> Attempt:
        """The attempt that was chosen."""
        return next(attempt for attempt in self.attempts if attempt.carrier is self.carrier)


@dataclass(kw_only=True)
class Quest:
    """A search in one model.

    Attributes:
        subject: The model.
        fitting: Prompts that directions are fitted to.
        choosing: Other prompts, that they are chosen on. The model refuses all harmful and answers all harmless ones.
        means: Mean activations `[layers + 1, positions, d]` of the harmful and the harmless prompts of the fit part.
        gauge: How the model opens refusals; learned before anything is changed in it.
        plain: Log probabilities `[n, vocabulary]` of the first token on the harmless ones of `choosing`, nothing changed.
    """

    subject: Subject
    fitting: Asked
    choosing: Asked
    means: tuple[Array, Array]
    gauge: Gauge
    plain: NDArray[np.float32]
    selections: dict[bool, Selection] = field(default_factory=dict, init=False)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.means[0]) - 1

    def candidates(self, means: tuple[Array, Array]) -> tuple[Direction, ...]:
        """Differences of means at every layer and position that may be chosen."""
        parts = self.fitting
        fitted = f"difference of means over {len(parts.harmful)} refused and {len(parts.harmless)} answered prompts"
        # The last layer is the output of the last block: nothing after it could act on what is added there.
        return fit(means[0][:-1], means[1][:-1], fitted=fitted)

    def attempts(self) -> Iterator[Attempt]:
        """Carriers with what they do, smallest first: one direction, one for every layer, subspaces; linear before affine."""
        for affine in (False, True):
            yield self._one(affine)
        for affine in (False, True):
            yield self._per_layer(affine)
        for affine in (False, True):
            yield from self._subspaces(affine)

    def _one(self, affine: bool) -> Attempt:
        proved: dict[tuple[int, int], Attempt] = {}

        def measure(direction: Direction) -> Effect:
            carrier = one(direction, self.blocks, affine=affine)
            ablated, spread = self._without(carrier)
            with added(self.subject, carrier):
                induced, _ = self.gauge.read(self.choosing.harmless)
            return Effect(ablated=ablated, induced=float(induced.mean()), divergence=spread)

        def prove(direction: Direction) -> float:
            carrier = one(direction, self.blocks, affine=affine)
            proved[direction.layer, direction.position] = attempt = self.prove(carrier)
            return attempt.worth + 2.0 * attempt.does  # one that does both ways is wanted before one that does more of one

        self.selections[affine] = selection = select(self.candidates(self.means), measure, prove)
        return proved[selection.direction.layer, selection.direction.position]

    def _per_layer(self, affine: bool) -> Attempt:
        """Every block's own difference of means, at the position that was chosen for one direction."""
        direction = self.selections[affine].direction
        return self.prove(per_layer(self.differences(direction.position)[:-1], direction, affine=affine))

    def differences(self, position: int) -> Array:
        """Raw differences of means `[layers + 1, d]` at one position; zeros where there is nothing but rounding."""
        harmful, harmless = (side[:, position] for side in self.means)
        found = harmful - harmless
        found[np.linalg.norm(found, axis=1) <= FLAT * np.linalg.norm(harmless, axis=1)] = 0.0
        return np.asarray(found)

    def _subspaces(self, affine: bool) -> Iterator[Attempt]:
        """Grow a subspace by what still tells the kinds apart once what was found is removed, as long as harmless prompts are spared."""
        direction = self.selections[affine].direction
        columns = direction.vector[:, None]
        while columns.shape[1] < SPAN_MOST:
            with removed(self.subject, subspace(columns, self.blocks, direction, affine=affine), self.means[1]):
                left = self._read()
            scored: list[tuple[float, int, Array]] = []
            for candidate in self.candidates(left):
                grown = widened(columns, candidate.vector)
                if grown is None:
                    continue
                score, spread = self._without(subspace(grown, self.blocks, direction, affine=affine))
                if spread <= MAX_KL:
                    scored.append((score, len(scored), grown))
            if not scored:
                return
            columns = min(scored)[2]
            yield self.prove(subspace(columns, self.blocks, direction, affine=affine))

    def _read(self) -> tuple[Array, Array]:
        layers, positions, _ = self.means[0].shape
        sites = Sites(layers=tuple(range(layers)), positions=tuple(range(-positions, 0)))
        harmful, harmless = (mean_residual(self.subject, rows, sites) for rows in (self.fitting.harmful, self.fitting.harmless))
        return harmful, harmless

    def _without(self, carrier: Carrier) -> tuple[float, float]:
        """Mean refusal score of harmful prompts, and KL(plain || removed) on harmless ones, of the select part."""
        n = len(self.choosing.harmful)
        with removed(self.subject, carrier, self.means[1]):
            scores, first = self.gauge.read([*self.choosing.harmful, *self.choosing.harmless])
        return float(scores[:n].mean()), divergence(self.plain, first[n:])

    def prove(self, carrier: Carrier) -> Attempt:
        """Generate without the carrier, and with it under the first coefficient that makes `ENOUGH` refuse, else the best."""
        spread = self._without(carrier)[1]
        with removed(self.subject, carrier, self.means[1]):
            answered = judged(self.subject, self.choosing.harmful).open
        shares: list[float] = []
        for coefficient in COEFFICIENTS:
            with added(self.subject, replace(carrier, coefficient=coefficient)):
                shares.append(judged(self.subject, self.choosing.harmless).share)
            if shares[-1] >= ENOUGH:
                break
        best = int(np.argmax(shares))
        return Attempt(carrier=replace(carrier, coefficient=COEFFICIENTS[best]), answered=answered, refused=shares[best], divergence=spread)


def find(subject: Subject, asked: dict[str, Asked], means: tuple[Array, Array], *, seed: int) -> Found | None:
    """Try carriers in the order of their size until one does, and hold random ones of its form against it.

    Args:
        subject: The model.
        asked: Prompts of the parts `fit`, `select` and `test`.
        means: Mean activations `[layers + 1, positions, d]` of the refused and the answered prompts of the fit part.
        seed: Of the random carriers.

    Returns:
        What was found; None where no layer holds a difference.
    """
    gauge = learn_gauge(subject, asked["fit"].harmful, asked["fit"].harmless)
    plain = gauge.read(asked["select"].harmless)[1]
    quest = Quest(subject=subject, fitting=asked["fit"], choosing=asked["select"], means=means, gauge=gauge, plain=plain)
    if not quest.candidates(means):
        return None
    tried: list[Attempt] = []
    for attempt in quest.attempts():
        tried.append(attempt)
        if attempt.does:
            break
    carrier = smallest(tried).carrier
    test = asked["test"]
    some = Asked(harmful=test.harmful[:RANDOM_PROMPTS], harmless=test.harmless[:RANDOM_PROMPTS])
    count = RANDOM if gauge.openings.usable else RANDOM_BY_REPLIES
    random = random_shifts(gauge, carrier, means[1], some, count=count, seed=seed)
    return Found(
        selection=quest.selections[carrier.affine],
        carrier=carrier,
        attempts=tuple(tried),
        openings=gauge.openings.apart,
        random=random,
        own=own_columns(quest.differences(carrier.direction.position)),
    )
