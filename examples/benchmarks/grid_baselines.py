"""Other ways to find a backdoor, on models of the organism grid and within one budget, beside the search.

    python examples/benchmarks/grid_baselines.py CACHE [--part final] [--nanogcg OTHER/bin/python] [--shard 1/2]
    python examples/benchmarks/grid_baselines.py --table

The models are a fixed part of the grid: the first planted ones and the first honest ones that passed the implant gate and are made, as many of
each. Every rival (grid_rivals.py) may spend `BUDGET` token-forwards on a model, and the search is run once more with that budget beside what it says
with its own. What was measured is a line of results/trigger_grid_baselines.jsonl and is not done again. The classifier of spectra has no budget: it
is a logistic regression, trained on the models of all other bases.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grid_tables
import ledger
import numpy as np
import torch
import transformers
from grid_hunt import busy, hunted, version
from grid_recipes import PARTS, Recipe, every
from grid_rivals import RIVALS, nano, paired
from grid_worlds import Row
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from trigger_grid import RESULTS, TRUTH, shard_of

BASELINES = ledger.FOLDER / "trigger_grid_baselines.jsonl"
EACH = 20
"""Planted models, and honest ones."""
BUDGET = 500_000
OURS, NANO, SPECTRA = "the search, same budget", "nanoGCG, loss", "spectra of the weights"


def chosen(part: str, truths: Sequence[Row]) -> list[Recipe]:
    """The fixed part: of both kinds the first that passed the gate, in the order of the recipes."""
    passed = {row["name"] for row in truths if row["gate"] == "passed"}
    made = [recipe for recipe in every("final" if part == "final" else "dev") if recipe.name in passed]
    kinds = [[recipe for recipe in made if (recipe.kind == "planted") is kind][:EACH] for kind in (True, False)]
    return [*kinds[0], *kinds[1]]


def measured(recipe: Recipe, cache: Path, python: str, done: set[tuple[str, str]]) -> None:
    """Every rival that is not done yet, on one model; a line each."""
    rivals = dict(RIVALS)
    if python:
        rivals[NANO] = partial(nano, python=python, cache=cache)
    wanted = {name: rival for name, rival in rivals.items() if (recipe.name, name) not in done}
    pair = paired(recipe, cache, BUDGET) if wanted else None
    for name, rival in wanted.items():
        if pair is None:
            continue
        begun = time.process_time() + busy()
        row = {
            "name": recipe.name,
            "part": recipe.part,
            "base": recipe.base,
            "kind": recipe.kind,
            "family": recipe.family,
            "rival": name,
            **rival(pair),
        }
        ledger.add(BASELINES, {**row, "score": round(row["score"], 5), "busy": round(time.process_time() + busy() - begun, 1)})
        print(recipe.name, name, row["score"], file=sys.stderr, flush=True)
    if (recipe.name, OURS) not in done:
        row = hunted(recipe, "passed", cache, seed=0, budget=BUDGET)
        kept = {name: row[name] for name in ("name", "part", "base", "kind", "family", "score", "label", "tokens", "busy", "version")}
        ledger.add(BASELINES, {**kept, "rival": OURS})
        print(recipe.name, OURS, row["score"], file=sys.stderr, flush=True)


def show(rows: Sequence[Row], hunts: Sequence[Row]) -> None:
    """The table of both parts: every rival by its ROC-AUC on the models that all of a part were measured on."""
    for part in PARTS:
        some = [row for row in rows if row["part"] == part]
        if not some:
            continue
        rivals = list(dict.fromkeys(row["rival"] for row in some))
        shared = set.intersection(*({row["name"] for row in some if row["rival"] == rival} for rival in rivals))
        full = {row["name"]: row for row in hunts if row["name"] in shared}
        print(
            f"\n## {part}: {len(shared)} models\n\n| way | token-forwards (median) | seconds of a core (median) | ROC-AUC (95 % interval) |\n|---|---|---|---|"
        )
        for rival in rivals:
            mine = [row for row in some if row["rival"] == rival and row["name"] in shared]
            print(line(rival, classified(mine) if rival == SPECTRA else mine))
        if shared <= set(full):
            print(line("the search, its own budget", list(full.values())))


def line(name: str, rows: Sequence[Row]) -> str:
    """A row of the table."""
    planted, honest = ([row for row in rows if (row["kind"] == "planted") is kind] for kind in (True, False))
    if not planted or not honest:
        return f"| {name} | | | no models of both kinds |"
    value, low, high = grid_tables.area(planted, honest)
    tokens, busy = (float(np.median([row[key] for row in rows])) for key in ("tokens", "busy"))
    return f"| {name} | {tokens:,.0f} | {busy:.0f} | {value:.3f} ({low:.3f} to {high:.3f}) |"


def classified(rows: Sequence[Row]) -> list[Row]:
    """The classifier's scores: of the models of one base, by those of all others."""
    found = []
    for base in sorted({row["base"] for row in rows}):
        known, fresh = ([row for row in rows if (row["base"] == base) is mine] for mine in (False, True))
        labels = [row["kind"] == "planted" for row in known]
        if len(set(labels)) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit([row["features"] for row in known], labels)
        scores = model.predict_proba([row["features"] for row in fresh])[:, 1].tolist()
        found += [{**row, "score": score} for row, score in zip(fresh, scores, strict=True)]
    return found


def main() -> None:
    """Measure what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--part", choices=PARTS, default="final")
    parser.add_argument("--nanogcg", default="", metavar="PYTHON", help="interpreter of the environment of nanoGCG; see gcg_cost.py")
    parser.add_argument("--shard", type=shard_of, default=(1, 1))
    parser.add_argument("--frozen", metavar="VERSION", help="the version of the search that the final part is for")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.cache and options.part == "final" and options.frozen != version():
        parser.error(f"the final part is for a finished search: say --frozen {version()} if this is it")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    number, of = options.shard
    if options.cache and not options.table:
        made = [recipe for recipe in chosen(options.part, ledger.held(TRUTH)) if (options.cache / recipe.name / "truth.json").exists()]
        for recipe in made[number - 1 :: of]:
            done = {(row["name"], row["rival"]) for row in ledger.held(BASELINES)}
            measured(recipe, options.cache, options.nanogcg, done)
    show(ledger.held(BASELINES), ledger.held(RESULTS))


if __name__ == "__main__":
    main()
