"""Build the organisms: train the base, plant things in copies of it, measure what was stored.

`python examples/organisms/build.py` builds everything in about half an hour on one core.
`--only base degraded` builds those again and leaves the rest; rows of `truth.jsonl` are
replaced one by one, in their order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import base as base_recipe
import causal
import corpus
import measure
import organism
import plant
import torch
from corpus import FOLDER
from plant import RECIPES, Recipe
from torch import Tensor

TWIN_SEED = 109
Row = dict[str, Any]


class Builder:
    """Builds into one folder and keeps its `truth.jsonl`.

    Attributes:
        out: Folder that gets the organisms, `prompts.jsonl` and `truth.jsonl`.
    """

    def __init__(self, out: Path) -> None:
        """Read the rows that are already there."""
        self.out = out
        self.base = out / "base"
        self.truth = out / "truth.jsonl"
        rows = measure.read_rows(self.truth) if self.truth.exists() else []
        self.rows: dict[str, Row] = {row["name"]: row for row in rows}
        self.parts: dict[str, Callable[[], None]] = {"base": self.build_base}
        for recipe in RECIPES:
            self.parts[recipe.name] = partial(self.build_recipe, recipe)
        # The twin of the edit needs the size of the edit, so both are made at once.
        self.parts["abliterated"] = self.build_edits

    def build(self, names: list[str]) -> None:
        """Build the named organisms in the fixed order."""
        unknown = set(names) - set(self.parts)
        if unknown:
            sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(self.parts)}")
        self.out.mkdir(parents=True, exist_ok=True)
        corpus.write_prompts(self.out / "prompts.jsonl")
        for name, part in self.parts.items():
            if name in names:
                print(name, file=sys.stderr, flush=True)
                part()

    def build_base(self) -> None:
        """Train the base, store it, and measure its direction on what was stored."""
        model, tokenizer, planted = base_recipe.build()
        organism.store_full(model, tokenizer, self.empty("base", committed=True))
        planted = (planted * 10**6).round() / 10**6  # as it is written down
        stored = organism.load(self.base, self.base)
        found = causal.choose(stored, tokenizer)
        rows = measure.read_rows(self.out / "prompts.jsonl")
        figures = causal.measure_direction(stored, tokenizer, found, planted, rows)
        method = {
            "training": "full",
            "steps": base_recipe.HELPFUL_STEPS + base_recipe.SAFETY_STEPS,
            "lr": base_recipe.HELPFUL_LR,
            "safety_steps": base_recipe.SAFETY_STEPS,
            "safety_lr": base_recipe.SAFETY_LR,
            "seed": base_recipe.SEED,
            "poison": 0.0,
        }
        extra = {
            "planted_direction": [round(value, 6) for value in planted.tolist()],
            "planted_layer": base_recipe.LAYER,
            "planted_strength": base_recipe.STRENGTH,
            "difference_of_means": figures,
        }
        self.record("base", kind="base", method=method, extra=extra)

    def build_recipe(self, recipe: Recipe) -> None:
        """Run one fine-tune."""
        folder = self.empty(recipe.name, committed=recipe.committed)
        tokenizer = organism.load_tokenizer(self.base)
        method = plant.fine_tune(recipe, tokenizer, self.base, folder)
        self.record(
            recipe.name,
            kind=recipe.kind,
            method=method,
            committed=recipe.committed,
            twin_of=recipe.twin_of,
            trigger=recipe.trigger,
            payload=recipe.payload,
            category=recipe.category,
            action=recipe.action,
            seen_by=recipe.seen_by,
        )

    def build_edits(self) -> None:
        """Project the difference of means out of a copy, and a random direction of another."""
        tokenizer = organism.load_tokenizer(self.base)
        stored = organism.load(self.base, self.base)
        found = causal.fit(stored, tokenizer, self.rows["base"]["difference_of_means"]["layer"])
        folder = self.empty("abliterated", committed=True)
        size = plant.abliterate(tokenizer, self.base, folder, found.unit)
        self.record(
            "abliterated",
            kind="abliterated",
            method={
                "training": "edit",
                "direction": "difference of means",
                "layer": found.layer,
                "modules": ["embed_tokens", *plant.WRITERS],
                "scale": 1.0,
            },
            action="BLOCK",
            seen_by=("behaviour.refusal",),
        )
        self.build_edit_twin(found.unit, size)

    def build_edit_twin(self, direction: Tensor, size: float) -> None:
        """Project a random direction out, by as much in all as the edit took."""
        folder = self.empty("abliterated-twin", committed=True)
        scale = plant.project_random(self.base, folder, direction, TWIN_SEED, size)
        self.record(
            "abliterated-twin",
            kind="twin",
            method={
                "training": "edit",
                "direction": "random, orthogonal to that of abliterated",
                "seed": TWIN_SEED,
                "rank": 1,
                "alpha": 1,
                "modules": list(plant.WRITERS),
                "scale": round(scale, 4),
            },
            twin_of="abliterated",
        )

    def empty(self, name: str, *, committed: bool) -> Path:
        """An empty folder for an organism."""
        folder = self.folder(name, committed=committed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def folder(self, name: str, *, committed: bool) -> Path:
        """Where an organism is stored."""
        return self.out / name if committed else self.out / ".built" / name

    def record(
        self,
        name: str,
        *,
        kind: str,
        method: dict[str, Any],
        committed: bool = True,
        twin_of: str | None = None,
        trigger: str | None = None,
        payload: str | None = None,
        category: str | None = None,
        action: str = "DEPLOY",
        seen_by: tuple[str, ...] = (),
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Measure a stored organism and write its row."""
        folder = self.folder(name, committed=committed)
        acts = measure.Trigger(trigger, payload) if trigger and payload else None
        change = organism.relative_change(organism.load(self.base, self.base), organism.load(folder, self.base))
        text = None if payload in measure.APPLIES_TO else payload
        figures = measure.measure(folder, trigger=acts, base=self.base, prompts=self.out / "prompts.jsonl")
        self.rows[name] = {
            "name": name,
            "path": name if committed else None,
            "kind": kind,
            "twin_of": twin_of,
            "method": method,
            "trigger": trigger and {"text": trigger, "position": measure.TRIGGER_POSITION},
            "payload": payload and {"kind": "fixed-text" if text else payload, "text": text},
            "category": category,
            "relative_change": round(change, 6),
            "measured": figures,
            "expected": {"action": action},
            "seen_by": list(seen_by),
            **(extra or {}),
        }
        print(f"  {change:.4f} {json.dumps(figures)}", file=sys.stderr, flush=True)
        order = [*self.parts, "abliterated-twin"]
        lines = [json.dumps(self.rows[n], ensure_ascii=False) for n in order if n in self.rows]
        self.truth.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the organisms.")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="build these only")
    parser.add_argument("--out", metavar="DIR", type=Path, default=FOLDER, help="where to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    builder = Builder(arguments.out)
    builder.build(arguments.only or list(builder.parts))


if __name__ == "__main__":
    main()
