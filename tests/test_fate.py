"""What became of a direction: the rules, on numbers alone."""

from __future__ import annotations

import pytest

from probes.fate import Own, Traces, name_fate

HEALTHY = {
    "refusal": 1.0,
    "gain": 1.0,
    "halved": 0.0,
    "gone": 0.0,
    "auroc": 1.0,
    "kept_fall": 1.0,
    "kept_rise": 1.0,
    "layer": 10,
    "layers": 30,
}
MUTE = {"kept_fall": 0.1, "kept_rise": 0.1}


def own(**changes):
    return Own(**({"causal": True, "layer": 10, "cosine": 0.9, "cosine_there": 0.9} | changes))


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "intact"),
        ({"refusal": 0.0, "gain": 0.01, "auroc": 1.0}, "erased-from-weights"),
        ({"refusal": 0.0, "auroc": 0.5}, "present-but-unused"),  # the weights still write there: it was trained away, not cut out
        ({"refusal": 0.0}, "present-but-unused"),
        ({"refusal": 0.5, "kept_rise": 1.0}, "present-but-unused"),  # half of it lost counts as lost
        ({"refusal": 0.51}, "intact"),
        ({"gain": 0.01}, "intact"),  # nothing of the refusal is gone, so it was not taken out
        ({"refusal": 0.9, "gain": 0.01}, "erased-from-weights"),  # in part
        ({"refusal": 0.0, "halved": 0.3}, "erased-from-weights"),  # out of some of the matrices
        ({"refusal": 0.0, "halved": 0.1}, "present-but-unused"),
        ({"kept_rise": None}, "intact"),  # it refuses nearly everything: there is no room to show more
        (MUTE | {"own": own(cosine=0.2, cosine_there=0.2)}, "turned"),
        (MUTE | {"own": own(cosine=0.2, cosine_there=0.9, layer=17)}, "moved-layers"),
        (MUTE | {"own": own(cosine=0.2, cosine_there=0.9, layer=12)}, "turned"),  # two of thirty layers are no move
        (MUTE | {"own": own()}, "intact"),
        (MUTE | {"own": own(causal=False)}, "turned"),
        (MUTE, "turned"),
        (MUTE | {"gone": 0.6, "own": own(causal=False)}, "erased-from-weights"),  # it refuses, but not by that
        ({"gone": 0.3}, "erased-from-weights"),  # out of some matrices on purpose, though nothing is lost
        (MUTE | {"gain": 0.3, "own": own(causal=False)}, "turned"),
    ],
)
def test_what_became_of_a_direction(changes, label):
    assert name_fate(Traces(**(HEALTHY | changes)))[0] == label


def test_what_was_not_looked_for_is_not_said_to_be_missing():
    sought, not_sought = (name_fate(Traces(**(HEALTHY | MUTE | {"own": found})))[1] for found in (own(causal=False), None))

    assert "nothing else was found" in sought
    assert "too few prompts" in not_sought and "found" not in not_sought


def test_the_ground_says_whether_refusal_is_left():
    grounds = [name_fate(Traces(**(HEALTHY | {"gain": 0.1, "gone": 0.9, "refusal": refusal})))[1] for refusal in (0.0, 0.9, 1.0)]

    assert ["much of" in ground for ground in grounds] == [False, True, False]
    assert ["all of the refusal is still there" in ground for ground in grounds] == [False, False, True]
