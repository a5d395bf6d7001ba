"""The window that lets go of its past: as river's at the first cut, the same in batches as at once, and cheap to keep."""

from __future__ import annotations

import numpy as np
import pytest

from probes.adwin import Adwin, slide


@pytest.mark.parametrize("seed", range(8))
def test_the_first_cut_is_rivers(seed):
    drift = pytest.importorskip("river.drift")
    generator = np.random.default_rng(seed)
    outcomes = np.r_[generator.random(3000) < 0.1, generator.random(1000) < (0.25 if seed % 2 else 0.1)]
    theirs, cut = drift.ADWIN(), None
    for place, hit in enumerate(outcomes.tolist(), start=1):
        theirs.update(int(hit))
        if theirs.drift_detected:
            cut = (place, int(theirs.width))
            break

    ours, own = Adwin(grain=1, clock=32), None
    for first in range(0, len(outcomes), 32):
        ours = slide(ours, outcomes[first : first + 32])
        if ours.cuts:
            own = (ours.last_cut, ours.events)
            break

    assert own == cut
    assert (own is not None) == bool(seed % 2)


def test_batches_give_what_all_at_once_gives_and_the_direction_is_told():
    generator = np.random.default_rng(3)
    outcomes = np.r_[generator.random(4000) < 0.3, generator.random(3000) < 0.1]
    whole, parts = slide(Adwin(), outcomes), Adwin()
    for first in range(0, len(outcomes), 119):
        parts = slide(parts, outcomes[first : first + 119])

    assert parts == whole
    assert whole.cuts
    assert not whole.rose
    assert whole.hits / whole.events == pytest.approx(0.1, abs=0.03)


def test_a_long_quiet_window_is_kept_in_few_numbers():
    window = slide(Adwin(), np.random.default_rng(0).random(200_000) < 0.05)

    assert window.cuts == 0
    assert window.events + window.partial[0] == 200_000
    assert sum(map(len, window.rows)) < 80


def test_a_table_of_outcomes_is_refused():
    with pytest.raises(ValueError, match="vector"):
        slide(Adwin(), np.zeros((2, 2), dtype=bool))
