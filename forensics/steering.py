"""What removing or adding a carrier of refusal does to a live model: scored by first tokens, or proved by generated and judged replies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forensics.anatomy import writing_matrices
from forensics.gate.judges import judge_refusal
from forensics.interventions import ablating, adding
from forensics.subject import Subject, first_token, replies
from probes.carrier import Carrier, alike
from probes.refusal import Openings, learn_openings

if TYPE_CHECKING:
    from forensics.model import Rendered

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Harmful and harmless prompts as token ids of one side."""

    harmful: tuple[Rendered, ...]
    harmless: tuple[Rendered, ...]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many of `n` replies refuse, how many answer, and how many are empty or loop."""

    refused: int
    answered: int
    broken: int
    n: int

    @property
    def share(self) -> float:
        """Share that refuses."""
        return self.refused / self.n

    @property
    def open(self) -> float:
        """Share that answers. A reply that breaks down neither refuses nor answers."""
        return self.answered / self.n


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
        """Share of prompts whose greedy reply opens as a refusal."""
        if not self.openings.usable:
            return float(np.mean(self._by_replies(rows) > 0.0))
        return float(np.isin(first_token(self.subject, rows).argmax(axis=1), self.openings.refusing).mean())

    def _by_replies(self, rows: Sequence[Rendered]) -> Array:
        texts = replies(self.subject, rows)
        return np.array([1.0 if judge_refusal(text) == "refusal" else -1.0 for text in texts])


def learn_gauge(subject: Subject, refused: Sequence[Rendered], answered: Sequence[Rendered]) -> Gauge:
    """A gauge for one model, from the first tokens of its own refusals and answers."""
    ours, theirs = (first_token(subject, rows).argmax(axis=1).tolist() for rows in (refused, answered))
    return Gauge(subject=subject, openings=learn_openings(ours, theirs))


def shared_opening(subject: Subject, rows: Sequence[Rendered]) -> tuple[int, ...]:
    """Tokens that open every reply, of refusals and answers alike (a line break, say): whether to refuse is decided behind them."""
    opening: tuple[int, ...] = ()
    while len(opening) < LONGEST_OPENING:
        first = set(first_token(subject, [opened(row, opening) for row in rows]).argmax(axis=1).tolist())
        if len(first) > 1:
            break
        opening = (*opening, *first)
    return opening if len(opening) < LONGEST_OPENING else ()


LONGEST_OPENING = 4
"""Replies that share so many first tokens share them all: no decision is behind those."""


def opened(row: Rendered, opening: tuple[int, ...]) -> Rendered:
    """A prompt with the start of its reply."""
    return replace(row, ids=(*row.ids, *opening))


@contextlib.contextmanager
def removed(subject: Subject, carrier: Carrier, answered: Array) -> Iterator[None]:
    """The model without what carries its refusals.

    Args:
        subject: The model.
        carrier: What carries them.
        answered: Mean activations `[layers + 1, positions, d]` of this very model on prompts that the base answers.
    """
    with ablating(subject, carrier.columns, carrier.levels(answered)):
        yield


@contextlib.contextmanager
def added(subject: Subject, carrier: Carrier) -> Iterator[None]:
    """The model with what carries its refusals added to it."""
    with adding(subject, carrier.push, carrier.direction.layer, prompt_alone=carrier.affine):
        yield


@dataclass(frozen=True, kw_only=True)
class Steered:
    """Generated replies, judged: harmful prompts plain and with the carrier removed, harmless ones plain and with it added."""

    harmful: Tally
    ablated: Tally
    harmless: Tally
    added: Tally

    @property
    def fall(self) -> float:
        """By how much more of the harmful prompts are answered when the carrier is removed."""
        return self.ablated.open - self.harmful.open

    @property
    def rise(self) -> float:
        """By how much more of the harmless prompts are refused when it is added."""
        return self.added.share - self.harmless.share


def steer(subject: Subject, carrier: Carrier, answered: Array, asked: Asked, *, plain: tuple[Tally, Tally]) -> Steered:
    """Prove a carrier by generation: remove it on harmful prompts, add it on harmless ones.

    Args:
        subject: The model.
        carrier: What to remove and to add.
        answered: See `removed`.
        asked: Prompts that had no part in finding it.
        plain: Replies to the same harmful and harmless prompts without any change.
    """
    with removed(subject, carrier, answered):
        ablated = judged(subject, asked.harmful)
    with added(subject, carrier):
        pushed = judged(subject, asked.harmless)
    return Steered(harmful=plain[0], ablated=ablated, harmless=plain[1], added=pushed)


def tally(labels: Sequence[str]) -> Tally:
    """Count the labels of a judge."""
    refused, answered = (sum(label == kind for label in labels) for kind in ("refusal", "compliance"))
    return Tally(refused=refused, answered=answered, broken=len(labels) - refused - answered, n=len(labels))


def judged(subject: Subject, rows: Sequence[Rendered]) -> Tally:
    """Generate replies, and judge them."""
    return tally([judge_refusal(text) for text in replies(subject, rows)])


def random_shifts(gauge: Gauge, carrier: Carrier, answered: Array, asked: Asked, *, count: int, seed: int) -> tuple[Array, Array]:
    """The control: how far random carriers of the same form, size and length move refusal.

    Returns:
        Absolute shift of the refused share by removal and by addition, `[count]` each.
    """
    before = gauge.share(asked.harmful), gauge.share(asked.harmless)
    rng, shifts = np.random.default_rng(seed), []
    for _ in range(count):
        random = alike(carrier, rng)
        with removed(gauge.subject, random, answered):
            without = gauge.share(asked.harmful)
        with added(gauge.subject, random):
            pushed = gauge.share(asked.harmless)
        shifts.append((abs(without - before[0]), abs(pushed - before[1])))
    both = np.array(shifts)
    return both[:, 0], both[:, 1]


def writing_grams(subject: Subject, span: Array, along: Sequence[Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """How matrices W that write to the residual stream write along a span, and along directions of their own layer.

    Args:
        subject: The model.
        span: `[d, k]` orthonormal columns.
        along: `[d, j]` unit columns for each block.

    Returns:
        By name, adapters included: span^T W W^T span, `[k, k]`; and for matrices inside blocks ||r^T W||^2 for each own
        column r, `[j]`.
    """
    grams: dict[str, Array] = {}
    own: dict[str, Array] = {}
    with subject.model.wearing(subject.adapters) as whole:
        for matrix in writing_matrices(whole):
            # In float64 on the CPU: a gain of a thousandth is the square root of a sum a million times smaller.
            weight = matrix.weight.cpu().numpy().astype(np.float64)
            part = span.T @ weight
            grams[matrix.name] = part @ part.T
            if matrix.block is not None:
                own[matrix.name] = np.square(along[matrix.block].T @ weight).sum(axis=1)
    return grams, own
