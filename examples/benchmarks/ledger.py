"""Results that grow: one JSON line for everything that was measured, kept beside the benches, so that a long run goes on where it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "results"


def held(path: Path) -> list[Row]:
    """Lines that are there already."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add(path: Path, row: Row) -> None:
    """Put one line behind the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
