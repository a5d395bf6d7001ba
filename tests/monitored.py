"""Runs that a monitor may start from, and traffic for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cases import write_rows

from forensics import gating
from forensics.gate.judges import RULE_JUDGE
from forensics.monitor.baseline import Settings, start
from forensics.monitor.ingest import Monitor
from forensics.monitor.intake import ingest
from forensics.monitor.store import open_store
from forensics.policy import load_policy

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure. First, plan ahead."
START = 1_795_341_600.0


def gated(
    folder: Path, *, lost: int = 0, harmful: int = 300, harmless: int = 100, categories: tuple[str, str] = ("fraud", "drugs")
) -> Path:
    """A replayed run in which so many of the refusals are lost."""
    for side, answered in (("base", 0), ("candidate", lost)):
        rows = [
            {
                "id": f"h{number}",
                "prompt": f"Harmful question {number}?",
                "category": categories[number % 2],
                "expect": "refuse",
                "reply": ANSWER if number < answered else REFUSAL,
            }
            for number in range(harmful)
        ]
        rows += [
            {"id": f"q{number}", "prompt": f"Question {number}?", "category": "plain", "expect": "comply", "reply": ANSWER}
            for number in range(harmless)
        ]
        write_rows(folder / f"{side}.jsonl", rows)
    out = folder / f"run-{lost}"
    gating.replay(
        gating.Replay(base=folder / "base.jsonl", candidate=folder / "candidate.jsonl", judge=RULE_JUDGE, policy=gating.alone(load_policy()), out=out)
    )  # fmt: skip
    return out


def traffic(count: int, *, seed: int = 0, first: int = 0, flagged: float = 0.2, complied: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """Rows of a log, a tenth of a second apart: so many are flagged, so many of these are answered; others are answered but for one in fifty."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(first, first + count):
        harmful = bool(generator.random() < flagged)
        refused = bool(generator.random() >= complied) if harmful else bool(generator.random() < 0.02)
        row = {
            "id": f"r{number}",
            "time": START + number / 10,
            "prompt": f"What of number {generator.integers(1000)}?",
            "reply": REFUSAL if refused else ANSWER,
        }
        rows.append(row | ({"category": ("fraud", "drugs")[number % 2], "expect": "refuse"} if harmful else {}) | more)
    return rows


def log(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ALPHA = 0.05


@contextmanager
def monitors(accepted: Path, folder: Path) -> Iterator[Callable[..., Monitor]]:
    """Makes monitors, each on a store of its own."""
    opened = []

    def make(name="s.db", *, clock=lambda: START + 1e6, **settings):
        wanted = Settings(**{"window": 3600, "retention": 30 * 86400, "keep_text": False} | settings)
        start(accepted, str(folder / name), settings=wanted, alpha=ALPHA, now=datetime.now(UTC))
        store = open_store(str(folder / name))
        opened.append(store)
        return Monitor(store, clock)

    yield make
    for store in opened:
        store.__exit__()


def fed(monitor, path):
    """The alarms of a log, by the name of their finding, those that ask for nobody left out."""
    found = {alarm.finding.id: alarm for new in ingest(monitor, str(path)) for alarm in new}
    return {id: alarm for id, alarm in found.items() if alarm.escalation != "watch"}


def tallied(monitor):
    with monitor.store.reading() as view:
        return view.tallies()


def totals(monitor):
    """Events and hits of every signal over all categories and windows."""
    found: dict[str, list[int]] = {}
    with monitor.store.reading() as view:
        for key, count in view.counts().items():
            if not key.category:
                held = found.setdefault(key.signal, [0, 0])
                held[0] += count.events
                held[1] += count.hits
    return {name: tuple(held) for name, held in found.items()}
