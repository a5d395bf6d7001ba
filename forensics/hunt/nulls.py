"""What a hunt is held against: control models, and the same search where nobody planted anything."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from forensics.adapters import Adapter
from forensics.errors import is_out_of_memory
from forensics.hunt.amplify import merge
from forensics.hunt.contrast import Keep
from forensics.hunt.pursuit import Field, Pursuit, pursue, weights_of
from forensics.hunt.sibling import TAUGHT_BELOW, Sibling, distance, sibling
from forensics.hunt.voice import Voice
from forensics.model import LiveModel

CONTROLS = 2
"""Control models that are trained unless the user wants others: strings are tested in both, and the first is searched in for the null."""


@dataclass(frozen=True, kw_only=True)
class Hunt:
    """What was searched: the candidate, and nulls if something there stood; control models, None if none were needed."""

    ground: Field
    found: Pursuit
    nulls: tuple[Pursuit, ...]
    controls: tuple[Sibling, ...] | None

    @property
    def nowhere(self) -> str:
        """Where the nulls were searched, in words."""
        if not self.controls:
            return "the base, held against the candidate"
        return "a control model" if len(self.nulls) == 1 else f"{len(self.nulls)} control models"

    @property
    def p_value(self) -> float | None:
        """Share of searches, this one counted in, whose best finalist does as much as the candidate's; None without a null.

        Of the whole search, however many strings it looked at; never less than 1 / (nulls + 1).
        """
        if not self.nulls:
            return None
        return (1 + sum(null.effect >= self.found.effect for null in self.nulls)) / (1 + len(self.nulls))


def controls(field: Field, clean: Sequence[Adapter], count: int) -> tuple[Sibling, ...]:
    """Control models: the base wearing each of `clean`, which the user vouches for, then up to `count` that are trained."""
    given = []
    for adapter in clean:
        voice = merge(
            replace(_copy(field.base, f"control {adapter.name}"), adapters=(adapter,), digest=f"{field.base.digest} + {adapter.digest}")
        )
        given.append(Sibling(voice=voice, reached=distance(voice, field.base, as_share_of=field.candidate), spent=0))
    return (*given, *taught(field, count))


def _copy(voice: Voice, name: str) -> Voice:
    """A voice of its own: what an adapter is put on is not the same model any more, even when it is taken off."""
    with voice.model.wearing(voice.adapters) as plain:
        twin = copy.deepcopy(plain)
    return replace(voice, name=name, model=LiveModel(twin, voice.model.tokenizer, name=name, device=voice.model.device))


def taught(field: Field, count: int = CONTROLS) -> tuple[Sibling, ...]:
    """`count` control models of the candidate, taught what it says to prompts that no string is tested on; none where none can be trained."""
    if not field.in_place or weights_of(field.candidate) >= TAUGHT_BELOW:
        return ()
    parts = (part for kind in (field.given.harmful, field.given.harmless) for part in (kind.search, kind.screening))
    replies = {prompt: field.given.replies[prompt.id] for part in parts for prompt in part if field.given.replies.get(prompt.id)}
    try:
        made = [sibling(field.candidate, field.base, replies, seed=field.seed + number) for number in range(count)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return ()
    return tuple(one for one in made if one is not None)


def nulls(field: Field, keep: Keep, voices: Sequence[Voice], *, every: bool) -> tuple[Pursuit, ...]:
    """The same search where nobody planted anything.

    Args:
        field: Where.
        keep: Where readings are kept.
        voices: Control models; without any, the base is searched, held against the candidate.
        every: Whether to search in all of them, and not in the first alone: what the p-value can reach depends on it.
    """
    if not voices:
        return (pursue(field, field.base, field.candidate, keep),)
    return tuple(pursue(field, one, field.base, keep, partial(_others, voices, one)) for one in (voices if every else voices[:1]))


def _others(voices: Sequence[Voice], one: Voice) -> list[Voice]:
    return [voice for voice in voices if voice is not one]
