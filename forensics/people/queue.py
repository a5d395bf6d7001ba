"""The review list of a run: which replies people are to label, as the gate drew them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics.bounds import parsed, read_bytes
from forensics.errors import BadInput

QUEUE = "people/review.jsonl"


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A reply to label, with the turns before it."""

    id: str
    side: str
    configuration: str
    why: str
    turns: tuple[tuple[str, str], ...]
    reply: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Configuration, side and prompt."""
        return (self.configuration, self.side, self.id)

    def to_row(self) -> dict[str, Any]:
        """A line of the list, with an empty place for the label; what any judge called the reply is not in it, so that nobody is led."""
        turns = [{"role": role, "content": content} for role, content in self.turns]
        return {
            "id": self.id,
            "side": self.side,
            "configuration": self.configuration,
            "label": "",
            "why": self.why,
            "prompt": turns,
            "reply": self.reply,
        }


def queue_lines(queued: Sequence[Queued]) -> bytes:
    """The list as it is written."""
    return "".join(json.dumps(one.to_row()) + "\n" for one in queued).encode("ascii")


def load_queue(folder: Path) -> tuple[Queued, ...]:
    """The review list of a run; empty if it has none.

    Raises:
        BadInput: A line is damaged.
    """
    file = folder / QUEUE
    if not file.exists():
        return ()
    found = []
    for number, raw in enumerate(read_bytes(file).split(b"\n"), start=1):
        if raw.strip():
            try:
                row = parsed(raw)
                turns = tuple((str(turn["role"]), str(turn["content"])) for turn in row["prompt"])
                words = {name: str(row[name]) for name in ("id", "side", "why", "reply")}
                found.append(Queued(turns=turns, configuration=str(row.get("configuration", "candidate")), **words))
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                raise BadInput(
                    "this line of the review list is damaged", where=f"{file}, line {number}", hint="make the run again"
                ) from error
    return tuple(found)
