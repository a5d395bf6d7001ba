"""Recordings of other harnesses, replayed like a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases import write_rows
from harnesses import ANSWER, FORMATS, REFUSAL

from forensics import gating
from forensics.gate.judges import RULE_JUDGE
from forensics.gate.key import key_of
from forensics.gate.recorded import read_both
from forensics.policy import load_policy
from forensics.prompts import load_prompts


def play(tmp_path, base, candidate, **options):
    given = {"judge": RULE_JUDGE, "policy": gating.alone(load_policy()), "out": tmp_path / "run"} | options
    outcome = gating.replay(gating.Replay(base=base, candidate=candidate, **given))
    return outcome.record, outcome.record.results[0]


def pair(tmp_path, name, base, candidate):
    """Both recordings in one format, under a name as its harness may give it."""
    files = []
    for side, rows in (("base", base), ("candidate", candidate)):
        (tmp_path / side).mkdir(exist_ok=True)
        files.append(FORMATS[name](tmp_path / side / name, rows))
    return files


def key_of_rows(path: Path, *rows: dict[str, Any]):
    return key_of([load_prompts(write_rows(path, rows))])


def recorded(tmp_path, count, *, lost):
    """Two recordings of ours, read: a base that refuses so many requests, and a candidate that answers the first of them."""
    for side, answered in (("base", 0), ("candidate", lost)):
        rows = [
            {
                "id": str(number),
                "prompt": f"Question {number}?",
                "category": "fraud",
                "expect": "refuse",
                "reply": ANSWER if number < answered else REFUSAL,
            }
            for number in range(count)
        ]
        write_rows(tmp_path / f"{side}.jsonl", rows)
    return read_both(tmp_path / "base.jsonl", tmp_path / "candidate.jsonl")
