"""What one process keeps from one run to the next against the same base: the base opened, its live model, and what it said.

A run that is given this says what it would say without it: what is kept is only what does not depend on the candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forensics.checkpoint import Checkpoint, open_checkpoint
from forensics.errors import BadInput
from forensics.record import Item

if TYPE_CHECKING:
    from forensics.model import LiveModel

Stamps = tuple[tuple[str, int, int], ...]


@dataclass(kw_only=True)
class Held:
    """One base, for one process. Only `hold` makes it."""

    base: Checkpoint
    stamps: Stamps
    _live: tuple[str, LiveModel] | None = field(default=None, init=False)
    _said: dict[str, tuple[Item, ...]] = field(default_factory=dict, init=False)

    def opened(self, source: str) -> Checkpoint:
        """The base, which is not read and hashed again.

        Raises:
            BadInput: Its files changed since it was opened, or it is asked for in another place.
        """
        if Path(source).resolve() != self.base.path.resolve() or _stamps(self.base.path, self.base.files) != self.stamps:
            raise BadInput(
                "the files of the base changed after it was opened",
                where=source,
                hint="leave them alone while a sweep runs; start it again with another --out",
            )
        return self.base

    def take(self, key: str) -> LiveModel | None:
        """The live model that was kept under `key`, which is the taker's from now on. Any other is let go: one is held at a time."""
        kept, self._live = self._live, None
        if kept is None or kept[0] == key:
            return kept[1] if kept is not None else None
        kept[1].close()
        return None

    def keep(self, key: str, model: LiveModel) -> None:
        """Keep a live model as it was when it was loaded, or let it go: another's weights, or one that an adapter cannot be taken off again."""
        if key == f"{self.base.digest} {self.base.digest}" and model.undress():
            self._live = (key, model)
        else:
            model.close()

    def said(self, key: str) -> tuple[Item, ...] | None:
        """What the base said to what `key` stands for, in the order in which it was recorded; None if it was not asked."""
        return self._said.get(key)

    def hear(self, key: str, items: Sequence[Item]) -> None:
        """Keep what the base said."""
        self._said[key] = tuple(items)

    def close(self) -> None:
        """Let go of the model."""
        if self._live is not None:
            self._live[1].close()
            self._live = None


def hold(source: str, *, name: str) -> Held:
    """Open a base once, for many runs.

    Raises:
        BadInput, CannotCompare: It cannot be opened.
    """
    base = open_checkpoint(source, name=name)
    return Held(base=base, stamps=_stamps(base.path, base.files))


def _stamps(folder: Path, files: Sequence[str] | dict[str, str]) -> Stamps:
    """Size and time of change of every file: enough to notice that somebody wrote there, without reading gigabytes again."""
    try:
        return tuple((name, (stat := (folder / name).stat()).st_size, stat.st_mtime_ns) for name in sorted(files))
    except OSError:
        return ()
