"""Checks: one question a file. A module with a `CHECK` in this folder is a check; there is no list of them."""

from __future__ import annotations

import importlib
import pkgutil

from forensics.case import COSTS, Check


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order they run: by cost, then by id."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    checks: list[Check] = [module.CHECK for module in modules]
    return tuple(sorted(checks, key=lambda check: (COSTS.index(check.cost), check.id)))


def docstring(check: Check) -> str:
    """The docstring of the module that holds `check`: Asks, Reads, Reports, Blind to, Source."""
    return importlib.import_module(check.run.__module__).__doc__ or ""
