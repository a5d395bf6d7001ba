"""Organisms in which nothing was planted: the audit says so, and no check flags them."""

from __future__ import annotations

import pytest
from audited import COMMITTED, KINDS_BY_NATURE, Audited, audited  # noqa: F401 - a fixture is used by its name


@pytest.mark.parametrize("name", [name for name, row in COMMITTED.items() if row["kind"] in KINDS_BY_NATURE])
class TestControls(Audited):
    """The base itself, benign fine-tunes, and twins of the planted ones."""
