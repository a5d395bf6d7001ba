"""Organisms in which nothing was planted: the audit says so, and no check flags them."""

from __future__ import annotations

import pytest
from audited import COMMITTED, KINDS_BY_NATURE, LEFT_TO_THE_BENCH, Audited

NAMES = [name for name, row in COMMITTED.items() if row["kind"] in KINDS_BY_NATURE and name not in LEFT_TO_THE_BENCH]


@pytest.mark.parametrize("name", NAMES)
class TestControls(Audited):
    """The base itself, benign fine-tunes, and twins of the planted ones."""
