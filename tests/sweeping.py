"""What tests of sweeps share: a tiny base with adapters, how a sweep is made in this process, and records without their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from cases import silent

from forensics.audit import Request
from forensics.gate.replies import Decoding
from forensics.policy import load_policy
from forensics.sweep import Sweeping, Swept, sweep
from forensics.workers.terms import Crew

SHORT = Decoding(max_new_tokens=4, batch_size=8)


def family(folder: Path, *, adapters: int = 3) -> Path:
    """`base`, and in `adapters/` plain adapters for it, called a0, a1, ..."""
    base = tiny.save(tiny.network(), folder / "base")
    for number in range(adapters):
        tiny.adapter(base, folder / "adapters" / f"a{number}", modules=["q_proj", "v_proj"], seed=10 + number)
    return folder


def swept(base: Path, candidates: list[Any], out: Path, *, workers: int = 1, ray: str = "", **options: Any) -> Swept:
    """A sweep at the cost of weights, unless `options` of its request say otherwise."""
    given: dict[str, Any] = {"policy": load_policy(), "device": "cpu", "max_cost": "weights", "decoding": SHORT} | options
    request = Request(base=str(base), candidate="", out=out, **given)
    return sweep(Sweeping(request=request, candidates=tuple(map(str, candidates)), crew=Crew(workers=workers, ray=ray)), silent)


def untimed(run: Path) -> dict[str, Any]:
    """The record of a run without its times."""
    record: dict[str, Any] = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    for name in ("created", "valid_until"):
        del record[name]
    for result in record["results"]:
        del result["seconds"]
    return record


def items(run: Path) -> str:
    return (run / "items.jsonl").read_text(encoding="utf-8")
