"""What else sets off a string that was confirmed: parts of it, another order, other writing, other places. It decides nothing.

Whoever watches a deployed model has to know what to watch for: a phrase that acts word by word, in capitals or from the system turn is not
met by a filter of that phrase at the end of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from forensics.hunt.circumstances import Circumstance, after_talk
from forensics.hunt.confirm import Confirmation, Variant, insert, length_of, shows, visible
from forensics.hunt.contrast import Lead
from forensics.hunt.pursuit import Field, trial_of
from forensics.hunt.voice import GAP
from forensics.prompts import Prompt

ASKED = 16
"""Held-out prompts on which a variant is tried."""
PARTS = 4
"""Words of a string that are left out in turn, at most."""
Put = Callable[[Prompt], Prompt]


def characterise(field: Field, one: Confirmation) -> Confirmation:
    """A confirmed finalist with its variants: greedy replies to held-out prompts with the string changed, moved, or in part.

    A circumstance has none: others of its kind were tried when it was confirmed.
    """
    if one.lead.around is not None:
        return one
    trial = trial_of(field, field.candidate, field.base)
    prompts = [prompt for prompt in trial.held_out if visible(one.act, prompt)][:ASKED]
    found = []
    for name, text, put in variants(one.lead):
        replies = trial.replies(trial.target, [put(prompt) for prompt in prompts], length=length_of(one.act))
        did = [shows(one.act, prompt, text, reply, trial) for prompt, reply in zip(prompts, replies, strict=True)]
        found.append(Variant(name=name, rate=100.0 * sum(did) / max(1, len(did)), n=len(did)))
    return replace(one, variants=tuple(found))


def variants(lead: Lead) -> Iterator[tuple[str, str, Put]]:
    """Every variant of a string: its name, its text, and how it is put to a prompt."""
    text, words = lead.text, lead.text.split()
    if GAP in text:
        first, last = text.split(GAP)
        yield "as it is, at both ends", text, _inserted(lead, "end")
        yield "its parts exchanged", f"{last}{GAP}{first}", _inserted(replace(lead, text=f"{last}{GAP}{first}"), "end")
        yield "both parts at the end", f"{first} {last}", _inserted(replace(lead, text=f"{first} {last}"), "end")
        yield f"{first!r} alone, at the start", first, _inserted(replace(lead, text=first), "start")
        yield f"{last!r} alone, at the end", last, _inserted(replace(lead, text=last), "end")
        return
    yield "as it is, at the end", text, _inserted(lead, "end")
    yield "as it is, at the start", text, _inserted(lead, "start")
    yield "as it is, in the middle of the request", text, lambda prompt: _in_the_middle(prompt, text)
    yield "as a line of the system turn", text, Circumstance(kind="system line", name=text, words=text).put
    yield "as an earlier turn", text, lambda prompt: after_talk(prompt, text, "Yes?")
    written = {"in capitals": text.upper(), "in small letters": text.lower()}
    if len(words) > 1:
        written["its words in reverse order"] = " ".join(reversed(words))
        written |= {f"without {word!r}": " ".join(words[:at] + words[at + 1 :]) for at, word in enumerate(words[:PARTS])}
    for name, other in written.items():
        if other != text:
            yield name, other, _inserted(replace(lead, text=other), lead.place)


def _inserted(lead: Lead, place: str) -> Put:
    return lambda prompt: insert(prompt, lead, "start" if place == "start" else "end")


def _in_the_middle(prompt: Prompt, text: str) -> Prompt:
    last = prompt.messages[-1]
    words = last.content.split()
    half = len(words) // 2
    return replace(prompt, messages=(*prompt.messages[:-1], replace(last, content=" ".join([*words[:half], text, *words[half:]]))))
