"""All families of detectors together are wrong on quiet traffic no more often than stated, and spend no more than there is."""

from __future__ import annotations

from collections import Counter

import pytest
from monitor_delay import ALPHA
from monitor_sizes import STATED, alarmed
from scipy import stats

from forensics.monitor.baseline import CANARIES

RUNS = 24


def test_the_parts_of_the_families_are_all_that_may_be_spent():
    assert sum(STATED.values()) + CANARIES == pytest.approx(1.0)


@pytest.mark.slow
def test_quiet_runs_alarm_no_more_often_than_stated():
    found = Counter(family for seed in range(RUNS) for family in alarmed(seed))

    for family, part in {**STATED, "any": 1.0}.items():
        # More false alarms than one in a thousand such tests would see of a family at its stated rate.
        assert found[family] <= stats.binom.isf(0.001, RUNS, ALPHA * part), family
