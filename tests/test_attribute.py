"""Which groups are named: the set is chosen on the flips it is not reported on, and has to do more than its control."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from forensics.attribute import attribute
from forensics.record import Action
from forensics.restore import WEIGHTS, Piece
from forensics.trial import LEAST

FLIPS = 2 * LEAST


def hits(*indices):
    found = np.zeros(FLIPS, dtype=bool)
    found[list(indices)] = True
    return found


EVEN = range(0, FLIPS, 2)
"""The half of the flips that the set is searched on."""
ODD = range(1, FLIPS, 2)
EITHER_HALF = EVEN[: LEAST // 2], EVEN[LEAST // 2 :]


class Told:
    """A trial whose outcomes are given: by layer, what putting it back undoes and what it causes alone; and what the control of a set undoes."""

    def __init__(self, undone, caused, control):
        self._undone, self._caused, self._control = undone, caused, control
        workbench = SimpleNamespace(progress=lambda *_: None)
        layout = SimpleNamespace(base_layers=len(undone), pairs=(), added=(), removed=())
        self.case = SimpleNamespace(configuration="candidate", layout=layout, workbench=workbench)
        self.question = SimpleNamespace(kind="lost-refusal", trigger="", found=FLIPS, flipped=range(FLIPS))
        self.flipped, self.lost = range(FLIPS), 0

    def whole(self):
        return np.ones(FLIPS, dtype=bool)

    def undone(self, pieces):
        return np.logical_or.reduce([self._undone[piece.layer] for piece in pieces])

    def spoiled(self, region):
        return None

    def caused(self, region, *, shuffled=False):
        return hits() if shuffled else self._caused[region.layers[0]]

    def disturbed(self, region):
        return self._control if region.kind == "set" else hits()

    def examples(self, region):
        return ()


def found(undone, caused, control):
    pieces = tuple(
        Piece(tensor=f"model.layers.{layer}.mlp.up_proj.weight", source=WEIGHTS, layer=layer, kind="mlp", change=1.0, base=4.0)
        for layer in range(len(undone))
    )
    return attribute(Told(undone, caused, control), SimpleNamespace(pieces=pieces), Action.HUMAN_REVIEW)


def test_the_flips_a_set_is_reported_on_have_no_part_in_choosing_it():
    """Layer 2 does on the searched half what layer 0 does, and everything on the other one: there alone it would be preferred."""
    undone = [hits(*EITHER_HALF[0]), hits(*EITHER_HALF[1]), hits(*EITHER_HALF[0], *ODD)]
    caused = [hits(0), hits(0), hits()]

    one = found(undone, caused, hits())

    assert one.causes[0].name == "layer 2, mlp"
    assert one.smallest == ("layer 0, mlp", "layer 1, mlp")
    assert [item.value for item in one.held_out] == [0.0]


@pytest.mark.parametrize(("control", "outcome"), [((), "several-groups"), (range(FLIPS), "spread")])
def test_a_set_that_does_no_more_than_its_change_shuffled_explains_nothing(control, outcome):
    undone = [hits(*range(0, FLIPS, 4), *range(1, FLIPS, 4)), hits(*range(2, FLIPS, 4), *range(3, FLIPS, 4))]

    one = found(undone, [hits(), hits()], hits(*control))

    assert (one.outcome, len(one.smallest), one.held_out[0].value) == (outcome, 2, 100.0)
    assert [item.name for item in one.set_control] == ["set-control.undone", "beyond-set-control.undone"]
    assert one.set_control[0].value == 100.0 * len(control) / FLIPS
    assert ("not told from any disturbance" in one.claim) is bool(control)
