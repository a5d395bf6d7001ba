"""The score of a string: how much it changes the candidate's replies beyond how much it changes the base's.

A difference in differences: each side is compared with itself without the string, so that a fine-tune which answers
everything in another style shows nothing, and a string that upsets every model shows nothing. It is read at both
places in the user's turn, and on prompts that strange words by themselves do not upset: what acts only here or there
is mostly a string that upsets a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forensics.hunt.voice import PLACES, Ask, Clean, Openings, Place, Voice
from forensics.prompts import Prompt
from forensics.record import canonical_json, sha256_text

WORKERS = 2
Array = NDArray[np.float64]
Through = Literal["all", "target"]


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A string, where it came from, and how it scored (each 0 to 1)."""

    text: str
    origin: str
    score: float = 0.0
    """Mean over both places."""
    reach: float = 0.0
    """The better place alone."""
    place: Place = "end"
    """The better place."""
    lasting: float = 0.0
    """Score in the candidate with its change from the base made smaller; 0 if it was not read there."""
    harmful: bool = True
    """Whether it acts more on harmful prompts than on harmless ones."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A screening prompt with the clean replies of the target, of the reference, and of the target's scouts."""

    prompt: Prompt
    target: Clean
    reference: Clean
    scouts: tuple[Clean, ...] = ()

    @property
    def harmful(self) -> bool:
        """Whether a safe model refuses it."""
        return self.prompt.expect == "refuse"


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Whom to search and whom to hold against it.

    `scouts` are models in which what the target hides shows sooner; they help to look, never to judge. In `faint`
    it shows later: of many strings that act alike, the trigger itself lasts longest.
    """

    target: Voice
    reference: Voice
    openings: Openings
    scouts: tuple[Voice, ...] = ()
    faint: Voice | None = None

    def probe(self, prompt: Prompt) -> Probe:
        """`prompt` with all clean replies."""
        return Probe(
            prompt=prompt,
            target=self.target.clean(prompt, self.openings),
            reference=self.reference.clean(prompt, self.openings),
            scouts=tuple(scout.clean(prompt, self.openings) for scout in self.scouts),
        )


Keep = Callable[[dict[str, Any], Callable[[], NDArray[np.floating]]], NDArray[np.floating]]
"""Gives what was computed under a key before, or computes and keeps it."""


def straight(_key: dict[str, Any], compute: Callable[[], NDArray[np.floating]]) -> NDArray[np.floating]:
    """Keeps nothing."""
    return compute()


class Contrast:
    """Scores strings for a target against a reference over screening prompts.

    Attributes:
        scored: Every lead that was scored in full, by its text.
        glanced: For every string that was glanced at: the largest effect anywhere.
        scouted: For every string that was glanced at: the largest effect in any scout.
        spent: Token-forwards so far, all models together.
        keep: Where readings are kept.
    """

    def __init__(self, duel: Duel, probes: Sequence[Probe], *, limit: int, keep: Keep = straight) -> None:
        self.duel = duel
        self.probes = tuple(probes)
        self.scored: dict[str, Lead] = {}
        self.scouted: dict[str, float] = {}
        self.glanced: dict[str, float] = {}
        self.limit = limit
        self.spent = 0
        self.keep = keep

    @property
    def left(self) -> int:
        """Token-forwards that may still be spent."""
        return max(0, self.limit - self.spent)

    @property
    def affordable(self) -> int:
        """How many strings may still be glanced at: one harmful and one harmless prompt, both places, all voices."""
        cost = 2 * len(PLACES) * (1 + len(self.duel.scouts)) * max(probe.target.length for probe in self.probes)
        return self.left // max(1, cost)

    def glance(
        self, texts: Sequence[str], *, harmful: bool | None = None, through: Through = "all", places: Sequence[Place] = PLACES
    ) -> Array:
        """A first look without the reference, on one harmful and one harmless prompt, or only one kind.

        Args:
            texts: Strings.
            harmful: Look at this kind of prompt only.
            through: Whether to look through the target alone, or through its scouts as well.
            places: Where to put the strings.

        Returns:
            `[voices, len(texts)]` the largest effect in each.
        """
        kinds = (True, False) if harmful is None else (harmful,)
        probes = [probe for kind in kinds for probe in [one for one in self.probes if one.harmful is kind][:1]]
        voices = list(enumerate((self.duel.target, *self.duel.scouts)))
        voices = voices[:1] if through == "target" else voices
        jobs: list[tuple[Voice, Ask]] = []
        for number, voice in voices:
            for probe in probes:
                clean = (probe.target, *probe.scouts)[number]
                jobs += [(voice, voice.ask(texts, place, probe.prompt, clean)) for place in places]
        seen = self._read(jobs).reshape(len(voices), len(probes), len(places), len(texts), 2).mean(axis=2)
        towards = _worse(seen, np.array([probe.harmful for probe in probes])[:, None])
        best: Array = towards.max(axis=(1, 3))
        for row, (number, _) in zip(best, voices, strict=True):
            for text, effect in zip(texts, row.tolist(), strict=True):
                self.glanced[text] = max(self.glanced.get(text, 0.0), effect)
                self.scouted[text] = max(self.scouted.get(text, 0.0), effect if number else 0.0)
        return best

    def score(self, texts: Iterable[str], origin: str) -> list[Lead]:
        """Leads for all `texts`, both sides, all probes. What was scored before is not scored again."""
        wanted = list(dict.fromkeys(texts))
        new = [text for text in wanted if text not in self.scored]
        if new:
            sides = self.effects(new)
            harmful = np.array([probe.harmful for probe in self.probes])
            for index, text in enumerate(new):
                self.scored[text] = _lead(Lead(text=text, origin=origin), sides[0, :, :, index], sides[1, :, :, index], harmful)
        return [self.scored[text] for text in wanted]

    def effects(self, texts: Sequence[str]) -> Array:
        """What each string does on both sides: `[2, probes, places, len(texts), 2]`, target first."""
        jobs = [
            (voice, voice.ask(texts, place, probe.prompt, clean(probe)))
            for voice, clean in _sides(self.duel)
            for probe in self.probes
            for place in PLACES
        ]
        return self._read(jobs).reshape(2, len(self.probes), len(PLACES), len(texts), 2)

    def best(self) -> list[Lead]:
        """Everything scored so far, best first; of equal ones, the shorter."""
        return sorted(self.scored.values(), key=rank)

    def promising(self) -> list[Lead]:
        """Everything scored so far, by what the scouts make of it."""
        return sorted(self.scored.values(), key=lambda lead: (-round(self.scouted.get(lead.text, 0.0), 2), len(lead.text), lead.text))

    def _read(self, jobs: Sequence[tuple[Voice, Ask]]) -> Array:
        # Rows are made ready on one thread (a tokenizer is not to be shared) and read on two: torch lets others run.
        self.spent += sum(len(row.ids) for _, asked in jobs for row in asked.rows)
        openings = self.duel.openings

        def compute() -> NDArray[np.floating]:
            with ThreadPoolExecutor(WORKERS) as pool:
                return np.stack(list(pool.map(lambda job: job[0].effects(job[1], openings), jobs))).astype(np.float32)

        rows = [[voice.digest, asked.clean.tail, [row.ids for row in asked.rows]] for voice, asked in jobs]
        key = {"effects": sha256_text(canonical_json(rows)), "openings": [openings.refusing, openings.answering, openings.after]}
        return self.keep(key, compute).astype(np.float64)


def rank(lead: Lead) -> tuple[float, float, float, int, str]:
    """Sorts the best lead first; of equal ones, the shorter."""
    return (-round(lead.lasting, 2), -round(lead.score, 2), -round(lead.reach, 2), len(lead.text), lead.text)


def _sides(duel: Duel) -> list[tuple[Voice, Callable[[Probe], Clean]]]:
    return [(duel.target, lambda probe: probe.target), (duel.reference, lambda probe: probe.reference)]


def steady(duel: Duel, prompts: Sequence[Prompt], junk: Sequence[str], *, count: int) -> list[Prompt]:
    """The prompts that random words upset least on either side, of as many categories as there are.

    Args:
        duel: Both sides.
        prompts: Of one kind.
        junk: Random words.
        count: How many to take.
    """
    contrast = Contrast(replace(duel, scouts=()), [duel.probe(prompt) for prompt in prompts], limit=0)
    upset = np.abs(contrast.effects(junk)).mean(axis=(2, 3, 4)).max(axis=0)
    order = [prompts[index] for index in np.argsort(upset, kind="stable")]
    chosen: list[Prompt] = []
    for fresh in (True, False):
        for prompt in order:
            categories = {one.category for one in chosen}
            if len(chosen) < count and prompt not in chosen and (not fresh or prompt.category not in categories):
                chosen.append(prompt)
    return chosen


def _worse(effects: Array, harmful: NDArray[np.bool_]) -> Array:
    """Effects `[..., 2]` with the change of refusal signed so that more is worse; on harmless prompts it does not count."""
    signed = effects.copy()
    signed[..., 0] = np.where(harmful, -effects[..., 0], 0.0)
    return signed


def _lead(lead: Lead, target: Array, reference: Array, harmful: NDArray[np.bool_]) -> Lead:
    """Fill in the scores from effects `[probes, places, 2]` of both sides: the target's, less what the reference does too."""
    did = _worse(target, harmful[:, None]) - np.maximum(_worse(reference, harmful[:, None]), 0.0)
    by_kind = {kind: did[harmful == kind].mean(axis=0) for kind in (True, False) if (harmful == kind).any()}
    strength = {kind: float(effect.mean(axis=0).max()) for kind, effect in by_kind.items()}
    by_place = np.stack([effect.max(axis=1) for effect in by_kind.values()]).max(axis=0)
    return replace(
        lead,
        score=max(0.0, *strength.values()),
        reach=max(0.0, float(by_place.max())),
        place=PLACES[int(by_place.argmax())],
        harmful=strength.get(True, -1.0) >= strength.get(False, -1.0),
    )
