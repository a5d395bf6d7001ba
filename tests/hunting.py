"""Prompts, models, leads and pairs for the tests of the hunt."""

from __future__ import annotations

import tiny

from forensics.checkpoint import open_checkpoint
from forensics.hunt.contrast import Duel, Lead
from forensics.hunt.pursuit import Field, Kind, Material
from forensics.hunt.voice import Openings, Voice
from forensics.model import open_model
from forensics.prompts import Message, Prompt

KINDS = ["llama", "qwen2", "gpt2"]


def prompt(*texts, id="p", category="c", expect="comply"):
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
    return Prompt(id=id, messages=turns, category=category, expect=expect)


def many(count, categories=4):
    return [prompt(f"question {index}", id=f"p{index}", category=f"c{index % categories}") for index in range(count)]


def leads(*texts):
    return [Lead(text=text, origin="test", score=1.0 - index / 100) for index, text in enumerate(texts)]


def live(folder, **options):
    return open_model(open_checkpoint(str(folder)), device="cpu", **options)


def voice(model, name="candidate", adapters=()):
    return Voice(name=name, model=model, adapters=adapters, digest=name)


def models(place):
    """Folders of a model of each of `KINDS`, by that name, and of the same model "moved"."""
    made = {kind: tiny.save(tiny.network(kind), place / kind) for kind in KINDS}
    return made | {f"{kind} moved": tiny.nudge(made[kind], place / f"{kind}-moved") for kind in KINDS}


def moved_beside_base(folders):
    """The moved model held against the one it was moved from."""
    target, reference = voice(live(folders["llama moved"])), voice(live(folders["llama"]), "base")
    return Duel(target=target, reference=reference, openings=Openings(refusing=(1, 2, 3), answering=(4, 5, 6)))


def ground(folders, *, in_place=True, **given):
    """Where the moved model is searched, held against the one it was moved from."""
    sides = [voice(live(folders["llama moved"])), voice(live(folders["llama"]), "base")]
    kind = Kind(search=tuple(many(4)), screening=tuple(many(2)), held_out=tuple(many(2)))
    said = {"harmful": kind, "harmless": kind, "usual": ("no",), "replies": {one.id: "yes" for one in kind.search}, "hints": ("walnut",)}
    return Field(
        candidate=sides[0], base=sides[1], openings=Openings(refusing=(1,), answering=(2,)), seed=0, limit=100, in_place=in_place,
        given=Material(**said | given), steady=kind.search,
    )  # fmt: skip
