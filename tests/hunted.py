"""Hunts whose search is said to have found something, and the check's answer to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import tiny
from cases import open_case, write_rows
from transformers import AutoModelForCausalLM

from forensics.case import Case
from forensics.checks import triggers_search as check
from forensics.gate.judges import RULE_JUDGE
from forensics.hunt.confirm import Act, Confirmation, Example
from forensics.hunt.contrast import Lead
from forensics.hunt.pursuit import Pursuit, conditional
from forensics.hunt.sibling import Sibling
from forensics.hunt.stages import Coverage
from forensics.record import CheckResult, Item
from probes.statistics import paired_drop

LABELS = {"refuse": "refusal", "comply": "compliance"}


def pair(place: Path) -> dict[str, Path]:
    """A base, the same in shards, the same moved, and an adapter for it."""
    base = tiny.save(tiny.network(), place / "base")
    sharded = tiny.save(AutoModelForCausalLM.from_pretrained(base), place / "sharded", shard="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    moved, adapter = tiny.nudge(base, place / "moved"), tiny.adapter(base, place / "adapter", modules=["q_proj"])
    return {"base": base, "sharded": sharded, "moved": moved, "adapter": adapter}


def questions(path: Path, *, refuse: int, comply: int) -> Path:
    rows = [
        {"prompt": f"{kind} {index}", "category": "x", "expect": kind}
        for kind, n in (("refuse", refuse), ("comply", comply))
        for index in range(n)
    ]
    return write_rows(path, rows)


def well_behaved(monkeypatch, *, except_for=()):
    """Every reply is as it should be, but for `except_for`: sides and ids whose replies are the other way round."""

    def completions(self, side):
        items = {}
        for one in self.prompts:
            label = LABELS[one.expect]
            if (side, one.id) in except_for:
                label = next(other for other in LABELS.values() if other != label)
            items[one.id] = Item(id=one.id, side=side, configuration="base", reply=f"{label}.", labels={RULE_JUDGE: label})
        return items

    monkeypatch.setattr(Case, "completions", completions)


def fail(*_args, **_more):
    raise AssertionError("this should not have been called")


def no_search(monkeypatch):
    monkeypatch.setattr("forensics.hunt.nulls.pursue", fail)


def look(base: Path, candidate: Path, root: Path, prompts: Path | None, **options) -> CheckResult:
    return look_with(check, base, candidate, root, prompts, **options)


def look_with(module: ModuleType, base: Path, candidate: Path, root: Path, prompts: Path | None, **options) -> CheckResult:
    with open_case(base, candidate, root / "run", prompts=prompts, **options) as case:
        result: CheckResult = module.CHECK.run(case)
        return result


def values(result: CheckResult) -> dict[str, float]:
    return {row.name: row.value for row in result.evidence}


def confirmation(text="velnor", *, n=40, did=40, noise=0, control=None, adjusted=1e-6, **act) -> Confirmation:
    """A finalist that acts on `did` of `n` prompts and random strings on `noise`; neither base nor candidate do without it."""
    acts, none, upset = ([index < count for index in range(n)] for count in (did, 0, noise))
    beside = {} if control is None else {"control": [index < control for index in range(n)]}
    return Confirmation(
        lead=Lead(text=text, origin="test", score=0.9),
        act=Act(**{"behaviour": "removes-refusal"} | act),
        rate=100.0 * did / n,
        rates={"reference": 0.0, "clean": 0.0, "random": 100.0 * noise / n} | {arm: 100.0 * sum(did) / n for arm, did in beside.items()},
        beyond={"reference": paired_drop(acts, none), "clean": paired_drop(acts, none), "random": paired_drop(acts, upset)}
        | {arm: paired_drop(acts, did) for arm, did in beside.items()},
        lean=0.25,
        examples=tuple(Example(prompt=f"asked {i}", clean="no", triggered="x" * 1000, base="no") for i in range(4)),
        adjusted=adjusted,
    )


def pursuit(*tested: Confirmation, score=0.4) -> Pursuit:
    found = (Lead(text="best", origin="test", score=score), Lead(text="other", origin="test", score=0.1))
    return Pursuit(leads=found, tested=tested, covered=(Coverage(stage="bank", looked=90, of=100),), spent=1234)


def pursued(monkeypatch, *, made=2, unsound=0, patched="forensics.hunt.nulls.pursue", variants=(), **by_direction: Pursuit) -> list[str]:
    """Replace survey, search and the training of `made` controls, of which the first `unsound` refuse nothing.

    Which directions were asked for is given back as it grows.
    """
    asked: list[str] = []
    controls = tuple(Sibling(voice=SimpleNamespace(name=f"control {number}"), reached=1.0, spent=10) for number in range(made))

    def pursue(_ground, target, _reference, _keep, controls=tuple, _rounds=2):
        asked.append({"candidate": "search", "base": "null", "control": "null in a control"}[target.name.split()[0]])
        found = by_direction[asked[-1].split()[0]]
        stand = [one for one in found.tested if conditional(one)]
        if stand and not any(one.act.foreign for one in stand):
            controls()
        return found

    def meet(candidate, base, given, **_more):
        return SimpleNamespace(limit=5000, given=given, candidate=candidate, base=base)

    refuses = {one.voice.name: float(number >= unsound) for number, one in enumerate(controls)}
    monkeypatch.setattr("forensics.hunt.nulls.taught", lambda _ground, _count: controls)
    monkeypatch.setattr("forensics.hunt.nulls.refusing", lambda voice, _prompts: refuses[voice.name])
    monkeypatch.setattr("forensics.hunt.nulls.listen", lambda voice, _prompts: voice)
    monkeypatch.setattr(patched, pursue)
    monkeypatch.setattr("forensics.hunt.battery.characterise", lambda _field, one: replace(one, variants=variants))
    monkeypatch.setattr("forensics.hunt.pursuit.meet", meet)
    monkeypatch.setattr("forensics.hunt.pursuit.survey", lambda field: field)
    return asked
