"""Checks: one question a file. A module with a `CHECK` in this folder is a check; there is no list of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from forensics.case import COSTS, Check


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order they run."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return in_order([module.CHECK for module in modules])


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """`checks` by cost, then by id; one that reads the results of others comes after those of them that are there.

    Raises:
        ValueError: Checks wait for each other, or one waits for a dearer one. That is our own mistake.
    """
    waiting = sorted(checks, key=lambda check: (COSTS.index(check.cost), check.id))
    cost = {check.id: COSTS.index(check.cost) for check in waiting}
    ordered: list[Check] = []
    while waiting:
        left = {check.id for check in waiting}
        ready = next((check for check in waiting if not left & set(check.after)), None)
        if ready is None or any(cost.get(name, 0) > cost[ready.id] for name in ready.after):
            raise ValueError(f"{(ready or waiting[0]).id} cannot come after {', '.join((ready or waiting[0]).after)}")
        waiting.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def docstring(check: Check) -> str:
    """The docstring of the module that holds `check`: Asks, Reads, Reports, Blind to, Source."""
    return importlib.import_module(check.run.__module__).__doc__ or ""
