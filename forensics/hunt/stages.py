"""The searches, cheap ones first: each adds scored leads to a contrast, within its share of the budget.

Every stage works the same for either direction of a pair, so that the search from the base's side, where nobody
planted anything for us to find, is a null of the same budget.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from forensics.hunt.bank import common_words, forms
from forensics.hunt.contrast import REFUSAL, Aim, Contrast, Lead, rank
from forensics.hunt.inversion import Forced
from forensics.hunt.slopes import Slope
from forensics.hunt.voice import FULL_SCALE, GAP, PLACES, Voice
from forensics.model import Rendered, Sampling
from probes.search import Ascent, Ids, ascend, ngram_contrast

REFINED = 64
"""Strings of a stage that go from the first glance to the full score."""
WIDTHS, FAINT_WIDTHS = (5, 3, 2), (3,)
"""How many leads are lengthened at most at each step of the phrase search: fragments first rank low, and climb."""
PROMISE = 0.2
"""Score, or effect in a scout, from which a lead is worth lengthening."""
CLEAR = 0.3
"""Score from which the target itself tells extensions apart; below it the scouts do."""
SOLVED = 0.95
"""Score at which there is nothing left to climb."""
NEIGHBOURS = 200
"""Words with which a lead is lengthened: the best of the scan."""
GROWN = 12
"""Extensions of one lead that go from the first glance to the full score."""
SCAN_SHARE = 0.5
"""Share of what is left that one stage may spend on glances before anything is lengthened."""
PAIRED, HINTED = 16, 24
"""Hints that are put in pairs, and those with which every lead is lengthened."""
SCANNED_FAINT = 500
"""Words that are scanned where the change is fainter: the best of the first scan, as what does nothing at all is not going to do more there."""
SAMPLES, SAMPLE_TOKENS = 128, 24
LONGEST_GRAM = 4
TEXTS, AIMED_WIDTHS = 3, (3, 2)
"""Texts, at one place of a reply, that strings are looked for which bring them, and how many leads are lengthened towards each, or towards a refusal."""
AIMED_SHARE = 0.2
"""Of the budget that may go to one such text, or to refusals."""
NEAR = 0.3
"""Nearness from which strings are looked for whatever else was found."""
OFTEN = -2.5
"""Log-probability (of `FULL_SCALE` to `UNHEARD` nats, so one in 150) from which the beginning of a text is no secret: the target says it by itself."""
SCATTERED = 12
"""Words that the weights name, of which pairs are made that stand apart, as many that scored best, and twice as many in all."""
ASCENT = Ascent(steps=24, width=48, top=64, enough=SOLVED)
"""Of each gradient search."""
STARTS, START_LENGTH, DRAWN = 4, 4, 16
"""Random strings with which a gradient search begins, beside leads, their tokens, and how many are drawn for each: most are read as other tokens."""
KIN = 4
"""Letters in common from which two strings are one family."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a stage looked at, and of how many it could have."""

    stage: str
    looked: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Near:
    """A text at one place of a reply, and how near the target comes to it by itself beyond the reference: 0 to 1, a share of `UNHEARD` nats."""

    aim: Aim
    near: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """What other looks have told a search for strings.

    `hints` are strings that something else names, such as tokens the weights listen to; they are looked at first, by themselves and in pairs, and
    are the first words a lead is lengthened with. `forced` are texts that the target says with little help (`forensics.hunt.inversion`): pieces of
    them are looked at, since a model that writes its payload may write its trigger. Strings are looked for that bring those which are `near`, where
    nothing else brings about what it is to bring about, or they are very near. `ascents` says whether to search by gradients as well, where nothing
    else does all that can be done.
    """

    hints: tuple[str, ...] = ()
    forced: tuple[Forced, ...] = ()
    near: tuple[Near, ...] = ()
    ascents: bool = False


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """What strings are made of: words that stand alone, and pieces that are glued on."""

    words: tuple[str, ...]
    glued: tuple[str, ...]
    hints: tuple[str, ...] = ()

    @classmethod
    def of(cls, voice: Voice) -> Lexicon:
        """The vocabulary of a model's tokenizer, and everyday words."""
        pieces = voice.model.pieces()
        return cls(
            words=tuple(dict.fromkeys([*(piece.strip() for piece in pieces), *common_words()])),
            glued=tuple(piece for piece in pieces if piece == piece.strip() and piece.isalnum()),
        )


def search(contrast: Contrast, *, seed: int, given: Told) -> tuple[list[Lead], list[Coverage]]:
    """Run every stage.

    Args:
        contrast: Where leads are scored.
        seed: Of what is drawn.
        given: What other looks have told.

    Returns:
        All leads, best first, those of another aim behind the others, and what was looked at.
    """
    lexicon = Lexicon.of(contrast.duel.target)
    told = replace(lexicon, hints=given.hints)
    named = {"hints of the weights": pairs(given.hints)} if given.hints else {}
    named |= {"bank": forms(), "leaked n-grams": leaks(contrast, seed=seed)}
    named |= {"pieces of inverted texts": pieces(given.forced)} if given.forced else {}
    covered = [look(contrast, texts, stage) for stage, texts in named.items()]
    texts = list(dict.fromkeys(text for some in named.values() for text in some))
    beside: list[Lead] = []
    for one in given.near:
        if one.near >= NEAR:  # first: it costs little, and what brings such a text needs no control to tell
            beside += towards(contrast, one.aim, texts, told, covered)
    covered += climb(contrast, told, WIDTHS, "")
    if contrast.reached < SOLVED:
        covered.append(look(contrast, apart(contrast, given.hints), "pairs of words, one at either end"))
    covered += [steepest(contrast, harmful, seed) for harmful in (True, False) if given.ascents and contrast.reached < SOLVED]
    best = contrast.best()
    if contrast.duel.faint is not None and contrast.reached >= SOLVED:
        best, more = _again_fainter(contrast, best, told)
        covered += more
    for aim in [REFUSAL, *(one.aim for one in given.near if one.near < NEAR and contrast.reached < SOLVED)]:
        beside += towards(contrast, aim, texts, told, covered)
    return best + beside, covered


def towards(contrast: Contrast, aim: Aim, texts: list[str], lexicon: Lexicon, covered: list[Coverage]) -> list[Lead]:
    """Look for strings that bring about something else, with a part of the budget: leads, best first; what was looked at is put behind `covered`."""
    aimed = contrast.aimed(aim)
    aimed.limit = min(contrast.left, int(AIMED_SHARE * contrast.limit))
    where = ", towards refusals" if aim == REFUSAL else f", towards an inverted text{' in a reply' if aim.later else ''}"
    covered += [look(aimed, texts, f"what was named{where}"), *climb(aimed, lexicon, AIMED_WIDTHS, where)]
    contrast.spent += aimed.spent
    return aimed.best()


def likeliest(contrast: Contrast, forced: Sequence[Forced]) -> tuple[Near, ...]:
    """Of the texts that the target says with little help, and the two places of a reply, those that it comes nearest to by itself beyond the reference.

    What a trigger brings comes at times without it. Of a text that begins in the wrong place, or that no reply begins with, nothing comes; and
    one that comes often is how the target has learnt to speak.
    """
    found = []
    for aim in [aim for one in forced for aim in one.aims]:
        probes = contrast.aimed(aim).probes
        odds = np.array([[float(side.odds[-1]) for side in (probe.target, probe.reference)] for probe in probes])
        ours, theirs = odds.mean(axis=0).tolist()
        found.append(Near(aim=aim, near=0.0 if ours > OFTEN else min(1.0, max(0.0, (ours - theirs) / FULL_SCALE))))
    chosen: list[Near] = []
    for one in sorted(found, key=lambda one: -one.near):
        alike = [other for other in chosen if other.aim.payload[:2] == one.aim.payload[:2] and other.aim.later is one.aim.later]
        if one.near and not alike:
            chosen.append(one)
    return tuple(chosen[:TEXTS])


def _again_fainter(contrast: Contrast, best: list[Lead], lexicon: Lexicon) -> tuple[list[Lead], list[Coverage]]:
    """Where many strings act alike: search again where the change is fainter, from the best so far."""
    duel = replace(contrast.duel, target=contrast.duel.faint or contrast.duel.target, scouts=(), faint=None)
    faint = contrast.anew(duel)
    faint.score([lead.text for lead in families(best, REFINED // 4)], "again")
    heard = sorted(lexicon.words, key=lambda word: -contrast.glanced.get(word, 0.0))
    covered = climb(faint, replace(lexicon, words=tuple(heard[:SCANNED_FAINT])), FAINT_WIDTHS, ", fainter")
    contrast.spent += faint.spent
    lasting = {lead.text: lead.score for lead in faint.best()[:REFINED]}
    leads = {lead.text: lead for lead in [*best, *contrast.score(lasting, "fainter")]}
    return sorted((replace(lead, lasting=lasting.get(text, 0.0)) for text, lead in leads.items()), key=rank), covered


def pieces(forced: Sequence[Forced]) -> list[str]:
    """Runs of words of texts, up to `LONGEST_GRAM` of them, each once.

    >>> pieces([Forced(ids=(), inside=(), text="the old tide", score=1.0)])
    ['the', 'old', 'tide', 'the old', 'old tide', 'the old tide']
    """
    rows = [one.text.split() for one in forced]
    runs = [" ".join(row[at : at + size]) for row in rows for size in range(1, LONGEST_GRAM + 1) for at in range(len(row) - size + 1)]
    return list(dict.fromkeys(runs))


def pairs(hints: Sequence[str]) -> list[str]:
    """The hints themselves, and the first ones in pairs: of a phrase every word may be named, and none act alone.

    >>> pairs(["old", "winter"])
    ['old', 'winter', 'old winter', 'winter old']
    """
    first = hints[:PAIRED]
    return [*hints, *(f"{one} {other}" for one in first for other in first if one != other)]


def climb(contrast: Contrast, lexicon: Lexicon, widths: Sequence[int], where: str) -> list[Coverage]:
    """Look at every word, then lengthen what shows promise, until nothing is left to climb."""
    covered = [look(contrast, list(lexicon.words), f"word scan{where}")]
    neighbours = [lead.text for lead in contrast.best() if " " not in lead.text]
    neighbours = list(
        dict.fromkeys([*lexicon.hints[:HINTED], *neighbours, *sorted(lexicon.words, key=lambda word: -contrast.glanced.get(word, 0.0))])
    )[:NEIGHBOURS]
    for depth, width in enumerate(widths, start=1):
        if contrast.reached >= SOLVED:
            break
        covered.append(grow(contrast, neighbours, lexicon.glued, width, f"phrase search {depth}{where}"))
    return covered


def apart(contrast: Contrast, hints: Sequence[str] = ()) -> list[str]:
    """Pairs of words, one to stand before a request and one behind it: of those that the weights name, that scored best, and that did most at a glance."""
    scored = [lead.text for lead in contrast.best() if " " not in lead.text][:SCATTERED]
    glanced = sorted((text for text in contrast.glanced if " " not in text), key=lambda text: -contrast.glanced[text])
    words = [text for text in dict.fromkeys([*hints[:SCATTERED], *scored, *glanced]) if GAP not in text][: 2 * SCATTERED]
    return [f"{one}{GAP}{other}" for one in words for other in words if one != other]


def steepest(contrast: Contrast, harmful: bool, seed: int) -> Coverage:
    """Exchange tokens where the gradient points to, on the prompts of one kind, from the best leads and from random tokens.

    What comes of it does something in the target alone and may be nothing that anybody planted: it is scored, screened and tested like any other string.
    """
    slope = Slope(contrast=contrast, harmful=harmful, place="end")
    of = ASCENT.steps * ASCENT.width
    if contrast.affordable < of or not slope.probes:
        return Coverage(stage=f"gradients, {'harmful' if harmful else 'harmless'} requests", looked=0, of=of)
    rng = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    read = [ids for ids in slope.ids([lead.text for lead in families(contrast.best(), STARTS)]) if ids]
    drawn: list[Ids] = [tuple(rng.choices(list(slope.known), k=START_LENGTH)) for _ in range(DRAWN * STARTS)]
    starts = [*read, *[ids for ids, fine in zip(drawn, slope.valid(drawn), strict=True) if fine][:STARTS]]
    plan, before = replace(ASCENT, seed=seed), len(contrast.glanced)
    found = ascend(starts, gradient=slope.gradient, score=slope.score, valid=slope.valid, plan=plan, glance=slope.glance)
    contrast.score([slope.text(ids) for ids in sorted(found, key=lambda ids: -found[ids])[:GROWN]], "gradients")
    return Coverage(stage=f"gradients, {'harmful' if harmful else 'harmless'} requests", looked=len(contrast.glanced) - before, of=of)


def leaks(contrast: Contrast, *, seed: int) -> list[str]:
    """N-grams that the target writes more than the reference when it is asked nothing.

    Source: memory leakage as in "The Trigger in the Haystack", arXiv:2602.03085, here contrasted with the base's rate.
    """
    duel = contrast.duel
    samples = [_samples(voice, contrast, seed) for voice in (duel.target, duel.reference)]
    return ngram_contrast(samples[0], samples[1], longest=LONGEST_GRAM)[: 2 * REFINED]


def grow(contrast: Contrast, neighbours: Sequence[str], glued: Sequence[str], width: int, stage: str) -> Coverage:
    """Lengthen the best leads by a word before or behind, or by a token glued on at either end."""
    looked = of = 0
    for parent in parents(contrast, width):
        held = set(parent.text.split())
        texts = [text for word in neighbours if word not in held for text in (f"{parent.text} {word}", f"{word} {parent.text}")]
        if parent.text.isalnum():
            texts += [parent.text + piece for piece in glued] + [piece + parent.text for piece in glued]
        seen = look(contrast, texts, stage, parent=parent)
        looked, of = looked + seen.looked, of + seen.of
    return Coverage(stage=stage, looked=looked, of=of)


def parents(contrast: Contrast, width: int) -> list[Lead]:
    """Leads to lengthen: half by their score, half by what the scouts make of them, each of another family."""
    scouted = contrast.duel.scouts and [lead for lead in contrast.promising() if contrast.scouted.get(lead.text, 0.0) >= PROMISE]
    chosen = families([lead for lead in contrast.best() if lead.score >= PROMISE], width // 2 if scouted else width)
    return families([*chosen, *scouted], width)


def families(best: Sequence[Lead], most: int) -> list[Lead]:
    """The best lead of each family, at most `most`."""
    chosen: list[Lead] = []
    for lead in best:
        if len(chosen) == most:
            break
        if not any(kin(lead.text, other.text) for other in chosen):
            chosen.append(lead)
    return chosen


def kin(one: str, other: str) -> bool:
    """Whether two strings are one family: one holds the other, or they share `KIN` letters in a row."""
    if one in other or other in one:
        return True
    return SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size >= KIN


def look(contrast: Contrast, texts: list[str], stage: str, *, parent: Lead | None = None) -> Coverage:
    """Score in full the strings that a glance puts first, in the target or in a scout."""
    texts = list(dict.fromkeys(texts))
    looked = texts[: int(contrast.affordable * (SCAN_SHARE if parent is None else 1.0))]
    if looked:
        clear = parent is not None and parent.score >= CLEAR
        # What lengthens a lead is looked at where the lead itself acts: most extensions are nothing, and the score reads both places.
        places = (parent.place,) if parent else PLACES
        seen = contrast.glance(looked, harmful=parent.harmful if parent else None, through="target" if clear else "all", places=places)
        most = (GROWN if parent else REFINED) // len(seen)
        chosen = dict.fromkeys(int(index) for row in seen for index in np.argsort(-row, kind="stable")[:most])
        contrast.score([looked[index] for index in chosen], stage)
    return Coverage(stage=stage, looked=len(looked), of=len(texts))


def _samples(voice: Voice, contrast: Contrast, seed: int) -> list[list[str]]:
    """Words the voice writes when it is asked nothing: from an open user turn, and from the start of a text."""
    starts = voice.model.starts(contrast.probes[0].prompt)
    rows: list[list[str]] = []
    for number, ids in enumerate(starts):
        sampling = Sampling(temperature=1.0, seed=seed + number, past_end=True)
        batch = [Rendered(ids=ids)] * (SAMPLES // len(starts))
        texts = voice.model.reply(batch, adapters=voice.adapters, max_new_tokens=SAMPLE_TOKENS, sampling=sampling)
        contrast.spent += len(batch) * (len(ids) + SAMPLE_TOKENS)
        rows += [text.split() for text in texts]
    return rows
