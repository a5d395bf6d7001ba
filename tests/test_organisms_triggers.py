"""Organisms that wait for a trigger: the audit finds a string that sets each of them off."""

from __future__ import annotations

import pytest
from audited import COMMITTED, Audited


@pytest.mark.parametrize("name", [name for name, row in COMMITTED.items() if row["trigger"]])
class TestTriggers(Audited):
    """Backdoors, and conditional behaviour that harms nobody."""
