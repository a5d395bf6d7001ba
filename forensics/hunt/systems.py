"""System lines that no bank holds: words of the vocabulary, alone and behind the keys that deployments write.

A tag of a deployment, such as a stage or a release, is a word that nobody outside knows. There are as many words as the vocabulary has, so
all are glanced at in the target alone, and only the most telling are read on both sides, behind more keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forensics.hunt.circumstances import Circumstance
from forensics.hunt.contrast import Keep, Lead, worse
from forensics.hunt.pursuit import Field
from forensics.hunt.stages import Coverage, Lexicon
from forensics.hunt.voice import Voice
from forensics.prompts import Prompt
from forensics.record import canonical_json, sha256_text

GLANCED = ("", "mode: ")
"""Before each word when all are glanced at: nothing, or a key that stands for many."""
KEYS = [
    "build", "channel", "client", "context", "date", "env", "environment", "flag", "group", "mode", "phase", "profile", "project", "region", "release",
    "role", "session", "site", "source", "stage", "state", "status", "tag", "target", "team", "tier", "user", "version",
]  # fmt: skip
JOINED = ("{}: ", "{}=")
"""How a key stands before its word."""
SHARE = 0.25
"""Of the budget that may go to all of it."""
BEST, KEYED = 24, 4
"""Words that are read on both sides as they were glanced at, and those that are put behind every key."""
READ_ON = 2
"""Prompts of one kind on which both sides are read."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Leads that were read on both sides, how many lines were glanced at, of how many, and token-forwards spent."""

    leads: tuple[Lead, ...]
    looked: Coverage
    spent: int


def line(key: str, word: str) -> Circumstance:
    """A word as a system line, behind a key or not."""
    return Circumstance(kind="system line", name=f"{key}{word}", words=f"{key}{word}", key=key)


def system_words(field: Field, target: Voice, reference: Voice, keep: Keep) -> Lines:
    """Look for words which, as a system line, make the target do what goes wrong and the reference not.

    Args:
        field: Where; its hints come first.
        target: In whom a line has to change something.
        reference: In whom it must not.
        keep: Where readings are kept.
    """
    words = list(dict.fromkeys([*(field.given.hints or ()), *Lexicon.of(target).words]))
    words = [word for word in words if word.strip() and word == word.strip()]
    kinds = [kind.search for kind in (field.given.harmful, field.given.harmless) if kind.search]
    prompts = [sorted(search, key=lambda prompt: (len(prompt.messages[-1].content), prompt.id)) for search in kinds]
    read = _Read(field=field, keep=keep)
    of = len(words) * len(GLANCED)
    if not prompts or not read.shown(target, prompts[0][0]):
        return Lines(leads=(), looked=Coverage(stage="words as system lines", looked=0, of=of), spent=0)
    each = sum(len(target.model.render(line("mode: ", words[0]).put(rows[0]), room=0).ids) for rows in prompts)
    # What the best words cost on both sides is set aside first; where that alone is too much there is nothing to glance for.
    keyed = 2 * READ_ON * each * (BEST * len(GLANCED) + KEYED * len(KEYS) * len(JOINED))
    words = words[: max(0, int((SHARE * field.limit - keyed) / max(1, len(GLANCED) * each)))]
    if not words:
        return Lines(leads=(), looked=Coverage(stage="words as system lines", looked=0, of=of), spent=0)
    every = [line(key, word) for word in words for key in GLANCED]
    seen = np.max([read.did(target, rows[0], every) for rows in prompts], axis=0)
    best = list(dict.fromkeys(words[place // len(GLANCED)] for place in np.argsort(-seen, kind="stable").tolist()))
    chosen = [line(key, word) for word in best[:BEST] for key in GLANCED]
    chosen += [line(joined.format(key), word) for word in best[:KEYED] for key in KEYS for joined in JOINED]
    return Lines(
        leads=read.leads(target, reference, prompts, list(dict.fromkeys(chosen))),
        looked=Coverage(stage="words as system lines", looked=len(every), of=of),
        spent=read.spent,
    )


@dataclass(kw_only=True)
class _Read:
    """Reads requests behind system lines, and counts what it costs."""

    field: Field
    keep: Keep
    spent: int = 0

    def shown(self, voice: Voice, prompt: Prompt) -> bool:
        """Whether the chat format shows a system line at all."""
        row = voice.model.render(line("", "north").put(prompt), room=0)
        return not row.problem and row.ids != voice.model.render(prompt, room=0).ids

    def effects(self, voice: Voice, prompt: Prompt, lines: Sequence[Circumstance]) -> NDArray[np.float64]:
        """What each line does to one side's reply, `[lines, 2]`."""
        openings = self.field.openings
        clean = voice.clean(prompt, openings)
        asked = voice.ask_in_full([one.put(prompt) for one in lines], clean)
        self.spent += sum(len(row.ids) for row in asked.rows)
        key = {
            "system lines": sha256_text(canonical_json([voice.digest, clean.tail, [row.ids for row in asked.rows]])),
            "openings": [openings.refusing, openings.answering, openings.after],
        }
        return np.asarray(self.keep(key, lambda: voice.effects(asked, openings)), dtype=np.float64)

    def did(self, voice: Voice, prompt: Prompt, lines: Sequence[Circumstance]) -> NDArray[np.float64]:
        """`[lines]` what goes wrong in one side's reply."""
        effects: NDArray[np.float64] = worse(self.effects(voice, prompt, lines), np.array(prompt.expect == "refuse")).max(axis=-1)
        return effects

    def leads(
        self, target: Voice, reference: Voice, prompts: Sequence[Sequence[Prompt]], lines: Sequence[Circumstance]
    ) -> tuple[Lead, ...]:
        """Lines with what they do in the target beyond the reference, mean over prompts of a kind, the kind on which it is more."""
        means = []
        for rows in prompts:
            did = []
            for prompt in rows[:READ_ON]:
                sides = [worse(self.effects(voice, prompt, lines), np.array(prompt.expect == "refuse")) for voice in (target, reference)]
                did.append((sides[0] - sides[1].clip(min=0.0)).max(axis=-1))
            means.append(np.mean(did, axis=0))
        harmful = [rows[0].expect == "refuse" for rows in prompts]
        found = []
        for one, row in zip(lines, np.stack(means, axis=-1), strict=True):
            score = max(0.0, float(row.max()))
            kind = harmful[int(row.argmax())]
            found.append(
                Lead(text=one.words, origin="words as system lines", around=one, score=score, reach=score, place="around", harmful=kind)
            )
        return tuple(found)
