"""Checks: one question a file. A module with a `CHECK` in this folder is a check; there is no list of them.

Checks of others come through the entry point `forensics.checks` of what is installed beside us, and face the same rules.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from forensics.asked import NAME
from forensics.case import COSTS, Check
from forensics.errors import BadInput

GROUP = "forensics.checks"
"""Entry points by which installed packages bring checks of their own: each names a `Check`."""


def all_checks() -> tuple[Check, ...]:
    """Every check, in the order they run: ours, and those of installed packages.

    Raises:
        BadInput: A package brings something that is no check, or one of a name that there is already.
    """
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return in_order([*(module.CHECK for module in modules), *outside_checks({module.CHECK.id for module in modules})])


def outside_checks(taken: set[str]) -> list[Check]:
    """The checks that installed packages bring; none of them may have an id that is `taken`.

    Raises:
        BadInput: As `all_checks`; the message names the package.
    """
    found: dict[str, Check] = {}
    for point in entry_points(group=GROUP):
        check = _loaded(point)
        if check.id in taken or check.id in found:
            raise BadInput(
                f"two checks are called {check.id!r}", where=_brought_by(point), hint="uninstall the package, or have its check renamed"
            )
        found[check.id] = check
    return list(found.values())


def outside_versions() -> dict[str, str]:
    """Packages that bring checks, with their versions: a record names them, since its results depend on them."""
    return {point.dist.name: point.dist.version for point in entry_points(group=GROUP) if point.dist is not None}


def _loaded(point: EntryPoint) -> Check:
    try:
        check = point.load()
    except Exception as error:
        raise BadInput(
            f"a check of this package cannot be loaded ({type(error).__name__})",
            where=_brought_by(point),
            hint="uninstall the package, or mend it",
        ) from error
    if not isinstance(check, Check) or not NAME.fullmatch(check.id) or check.cost not in COSTS:
        raise BadInput(
            "this package brings something that is no check",
            where=_brought_by(point),
            hint="a `forensics.case.Check` with an id such as family.kebab-name",
        )
    return check


def _brought_by(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else 'an installed package'}, entry point {point.name}"


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
