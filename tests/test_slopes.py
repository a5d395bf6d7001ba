"""Gradients of what a string does: they point to tokens that do more, of the target and less of the reference; and strings stay what they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hunting import live, many, voice

from forensics.hunt import stages
from forensics.hunt.contrast import REFUSAL, Aim, Contrast, Duel
from forensics.hunt.slopes import Slope, wanted
from forensics.hunt.voice import PLACES, Openings
from probes.search import Ascent

OPENINGS = Openings(refusing=(1, 2, 3), answering=(4, 5, 6))


def slope(folders, kind="llama", *, place="end", harmful=True, aim=None, even=False):
    target, reference = voice(live(folders[f"{kind} moved"])), voice(live(folders[kind]), "base")
    prompts = [replace(one, expect=expect) for one, expect in zip(many(4), ["refuse", "comply"] * 2, strict=True)]
    contrast = Contrast(Duel(target=target, reference=target if even else reference, openings=OPENINGS), prompts, limit=10**7)
    return Slope(contrast=contrast.aimed(aim) if aim else contrast, harmful=harmful, place=place)


def said(one, ids, side):
    """The objective of one side where `ids` stand, read as the search reads."""
    probes = one.probes
    total = 0.0
    for probe in probes:
        clean = probe.target if side is one.contrast.duel.target else probe.reference
        asked = side.ask([one.text(ids)], one.place, probe.prompt, clean)
        (_, logs), *_ = side.read([asked.rows[0].ids], clean.tail)
        total += float(wanted(logs, voice=side, openings=one.contrast.duel.openings, aim=one.contrast.aim, harmful=one.harmful))
    return total


@pytest.mark.parametrize(
    ("kind", "place", "harmful", "aim"),
    [
        ("llama", "end", True, None),
        ("llama", "start", False, None),
        ("qwen2", "end", True, None),
        ("gpt2", "end", False, None),
        ("llama", "end", False, REFUSAL),
        ("llama", "end", False, Aim(kind="text", payload=(65, 66, 67))),
    ],
)
def test_tokens_that_the_gradient_puts_first_do_more_than_those_it_puts_last(kind, place, harmful, aim, folders):
    one = slope(folders, kind, place=place, harmful=harmful, aim=aim)
    (ids,) = one.ids(["tide"])

    found = one.gradient(ids)

    duel = one.contrast.duel
    order = found[1].argsort(descending=True).tolist()
    allowed = [token for token in order if found[1, token].isfinite()]
    gained = []
    for tokens in (allowed[:6], allowed[-6:]):
        texts = [(ids[0], token, *ids[2:]) for token in tokens]
        fine = [text for text, valid in zip(texts, one.valid(texts), strict=True) if valid]
        gained.append(sum(said(one, text, duel.target) - said(one, text, duel.reference) for text in fine) / len(fine))
    assert gained[0] > gained[1]
    assert set(allowed) == set(one.known)
    assert one.contrast.spent > 0


def test_of_a_target_that_is_the_reference_there_is_no_gradient(folders):
    one = slope(folders, even=True)
    (ids,) = one.ids(["tide"])

    found = one.gradient(ids)

    assert found[found.isfinite()].abs().max() == 0.0


@pytest.mark.parametrize("place", PLACES)
def test_a_string_is_the_tokens_between_those_of_the_request(place, folders):
    one = slope(folders, place=place)

    (ids, other, blank, letter) = one.ids(["velnor", "tide-42", "two words", "é"])

    model = one.contrast.duel.target.model
    assert model.tokenizer.decode(list(ids)).strip() == "velnor" == one.text(ids)
    assert one.text(other) == "tide-42"
    assert blank is letter is None  # here a blank is a token by itself, and half a letter is one: neither can be shown
    assert one.valid([ids, other, ()]) == [True, True, False]


def test_a_gradient_search_scores_what_it_finds_within_its_budget_and_says_how_much(folders, monkeypatch):
    one = slope(folders)
    contrast = one.contrast
    monkeypatch.setattr(stages, "ASCENT", Ascent(steps=3, width=6, top=16))
    contrast.score(["tide"], "test")

    seen = stages.steepest(contrast, True, 0)

    assert seen.stage == "gradients, harmful requests"
    assert (0 < seen.looked <= 3 * 6, seen.of) == (True, 18)
    found = [lead for lead in contrast.best() if lead.origin == "gradients"]
    assert found
    best = max(lead.reach for lead in found)
    assert best >= max(contrast.beyond(["tide"], harmful=True, place="end").tolist()) - 1e-6
    poor = Contrast(contrast.duel, [probe.prompt for probe in contrast.probes], limit=10)
    assert stages.steepest(poor, True, 0).looked == 0 == poor.spent
