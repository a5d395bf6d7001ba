"""A bank of adapters that are known to be clean: what their changes look like, role by role, for another to be held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forensics.adapters import WEIGHTS_NAME, Adapter, is_adapter, open_adapter
from forensics.checkpoint import Checkpoint
from forensics.errors import BadInput, CannotCompare
from forensics.roles import place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_controls(sources: Sequence[str], base: Checkpoint) -> tuple[Adapter, ...]:
    """Every adapter named, or in a folder named: those that are its direct children.

    Raises:
        BadInput: A folder holds no adapter, or one that is damaged.
        CannotCompare: An adapter is for another base.
    """
    found: list[Adapter] = []
    for source in sources:
        path = Path(source).expanduser()
        if not path.is_dir():
            raise BadInput("this folder of control adapters does not exist", where=source, hint="give an adapter, or a folder of adapters")
        folders = [path] if is_adapter(source) else sorted(child for child in path.iterdir() if is_adapter(str(child)))
        if not folders:
            raise BadInput("this folder holds no PEFT adapter", where=source, hint="give an adapter, or a folder of adapters")
        found += [open_adapter(str(folder), base, name=f"{path.name}/{folder.name}" if folder != path else path.name) for folder in folders]
    return tuple({weights(adapter): adapter for adapter in found}.values())


def weights(adapter: Adapter) -> str:
    """What makes an adapter the same one under another name: the hash of its weights."""
    return adapter.files[WEIGHTS_NAME]


def described(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """The mean figures of an adapter's changes for every role that it changes by factors alone; see `probes.outliers.FIGURES`.

    Raises:
        CannotCompare: A number of it is not finite.
    """
    import numpy as np

    from probes.outliers import figures  # heavy: brings torch

    by_role: dict[str, list[NDArray[np.float64]]] = {}
    for change in adapter.changes:
        if change.exact:
            a, b = adapter.halves(change)
            try:
                by_role.setdefault(place(change.target).role, []).append(figures(a, b * change.exact.scale))
            except ValueError as error:
                raise CannotCompare(
                    f"{error} ({change.target} of adapter {adapter.name})", where=adapter.name, hint="leave it out of the bank"
                ) from error
    return {role: np.mean(rows, axis=0) for role, rows in sorted(by_role.items())}
