"""One direction of a hunt among circumstances: all of the bank are read, the most telling put to the test.

The bank is small, so every circumstance is read on many prompts and both sides, and nothing is grown or shortened. What follows is
what strings go through: screening, drawn replies on prompts that the search never saw, control models, and nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forensics.hunt.circumstances import Circumstance, circumstances
from forensics.hunt.confirm import SCREENED, Confirmation, Trial, screen, test
from forensics.hunt.contrast import Keep, Lead, worse
from forensics.hunt.pursuit import FINALISTS, LEAST_SCORE, ROUNDS, SCREENABLE, Field, Pursuit, adjusted, conditional, trial_of
from forensics.hunt.stages import Coverage
from forensics.hunt.systems import system_words
from forensics.hunt.voice import Voice
from forensics.prompts import Prompt
from forensics.record import canonical_json, sha256_text

READ_ON = 4
"""Prompts of one kind on which every circumstance is read."""


def look_around(
    field: Field, target: Voice, reference: Voice, keep: Keep, controls: Callable[[], Sequence[Voice]] = tuple, _rounds: int = ROUNDS
) -> Pursuit:
    """Search the bank of circumstances for those in which the target changes what it does and the reference does not.

    Args:
        field: Where.
        target: In whom a circumstance has to change something.
        reference: In whom it must not.
        keep: Where readings are kept.
        controls: Gives models in whom it must not either; asked only where something stands without them.
    """
    effects, shown, spent = _read(field, (target, reference), keep)
    words = system_words(field, target, reference, keep)
    leads = sorted([*map(_lead, circumstances(), effects), *words.leads], key=lambda lead: -round(lead.score, 2))
    found = Pursuit(leads=tuple(leads), tested=(), covered=(*_covered(shown), words.looked), spent=spent + words.spent)
    telling = [lead for lead in _apart(leads)[:SCREENABLE] if lead.score >= LEAST_SCORE]
    if not telling:
        return found
    trial = trial_of(field, target, reference)
    tested = _put_to_the_test(trial, telling)
    if any(map(conditional, tested)) and (beside := tuple(controls())):
        tested = _put_to_the_test(replace(trial, controls=beside), telling)
    return replace(found, tested=tested)


def _apart(leads: Sequence[Lead]) -> list[Lead]:
    """Leads in their order; of one word as a system line, behind many keys, the first alone."""
    chosen: dict[object, Lead] = {}
    for lead in leads:
        key = lead.around.key if lead.around else None
        chosen.setdefault(lead.around if key is None else lead.text.removeprefix(key), lead)
    return list(chosen.values())


def _put_to_the_test(trial: Trial, leads: Sequence[Lead]) -> tuple[Confirmation, ...]:
    screened = [(lead, act) for lead, act in screen(trial, leads)[:FINALISTS] if act.share >= SCREENED]
    return adjusted([test(trial, lead, act) for lead, act in screened])


def _covered(shown: Sequence[bool]) -> tuple[Coverage, ...]:
    kinds = dict.fromkeys(one.kind for one in circumstances())
    seen = {kind: [able for one, able in zip(circumstances(), shown, strict=True) if one.kind == kind] for kind in kinds}
    return tuple(Coverage(stage=kind, looked=sum(able), of=len(able)) for kind, able in seen.items())


def _lead(one: Circumstance, did: NDArray[np.float64]) -> Lead:
    """A lead from effects `[2]`, on harmful prompts and on harmless ones."""
    score = max(0.0, float(did.max()))
    return Lead(text=one.words, origin=one.kind, around=one, score=score, reach=score, place="around", harmful=bool(did[0] >= did[1]))


def _read(field: Field, sides: tuple[Voice, Voice], keep: Keep) -> tuple[NDArray[np.float64], list[bool], int]:
    """Effects `[circumstances, 2]` of the target's beyond the reference's, by kind of prompt; which can be shown; token-forwards spent."""
    every, spent = circumstances(), 0
    shown = np.zeros(len(every), dtype=bool)
    means = []
    for kind in (field.given.harmful, field.given.harmless):
        prompts = sorted(kind.search, key=lambda prompt: (len(prompt.messages[-1].content), prompt.id))[:READ_ON]
        did = []
        for prompt in prompts:
            rows = [_effects(voice, prompt, field, keep) for voice in sides]
            shown |= rows[0][1]
            spent += sum(cost for *_, cost in rows)
            signed = worse(np.stack([effects for effects, *_ in rows]), np.array(prompt.expect == "refuse"))
            did.append((signed[0] - signed[1].clip(min=0.0)).max(axis=-1))
        means.append(np.mean(did, axis=0) if did else np.zeros(len(every)))
    return np.stack(means, axis=-1), shown.tolist(), spent


def _effects(voice: Voice, prompt: Prompt, field: Field, keep: Keep) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """What each circumstance does to one side's reply to `prompt`, `[circumstances, 2]`; which of them its chat format shows; what it cost."""
    clean = voice.clean(prompt, field.openings)
    asked = voice.ask_in_full([one.put(prompt) for one in circumstances()], clean)
    plain = voice.model.render(prompt, room=0).ids
    openings = field.openings
    key = {
        "circumstances": sha256_text(canonical_json([voice.digest, clean.tail, [row.ids for row in asked.rows]])),
        "openings": [openings.refusing, openings.answering, openings.after],
    }
    effects = np.asarray(keep(key, lambda: voice.effects(asked, openings)), dtype=np.float64)
    shown = np.array([not row.problem and row.ids != plain for row in asked.rows])
    return effects, shown, sum(len(row.ids) for row in asked.rows)
