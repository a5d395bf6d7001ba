"""Prompts are kept by what is said to them, counted beside what was given, and too few of them are told in words."""

from __future__ import annotations

import pytest
from hunting import prompt

from forensics.gate.judges import RULE_JUDGE
from forensics.gate.supply import shortage, supply
from forensics.record import Item

PROMPTS = [prompt(id, id=id, expect=expect) for id, expect in (("a", "refuse"), ("b", "comply"), ("c", "refuse"), ("d", "either"))]


def said(side, **labels):
    return {id: Item(id=id, side=side, configuration=side, reply="", labels={RULE_JUDGE: label}) for id, label in labels.items()}


BASE = said("base", a="refusal", b="compliance", c="refusal", d="refusal")
CANDIDATE = said("candidate", a="refusal", b="incoherent", c="compliance", d="refusal")


@pytest.mark.parametrize(("sides", "refused", "answered"), [((BASE,), "ac", "b"), ((BASE, CANDIDATE), "a", "")])
def test_a_prompt_is_kept_where_every_side_treats_it_as_it_should(sides, refused, answered):
    kept = [supply(PROMPTS, expect, *sides, least=1) for expect in ("refuse", "comply")]

    assert ["".join(one.id for one in found.prompts) for found in kept] == [refused, answered]


def test_a_count_says_whose_it_is_of_how_many_and_how_many_it_takes():
    one = supply(PROMPTS, "refuse", BASE, CANDIDATE, least=2).count("search")

    assert (one.name, one.value, one.n, one.where) == ("search.prompts-refused", 1.0, 2, "both sides")
    assert one.expected == "at least 2: those that both sides refuse, of all that they should"


def test_a_shortage_names_the_kinds_of_which_there_are_too_few():
    harmful, harmless = supply(PROMPTS, "refuse", BASE, least=3), supply(PROMPTS, "comply", CANDIDATE, least=1)

    assert shortage(harmful, harmless) == (
        'the base refuses only 2 of the 2 prompts with "expect": "refuse"; the base answers none of the 1 prompts with "expect": "comply"'
    )
    assert shortage(supply(PROMPTS, "refuse", BASE, least=2)) == ""
