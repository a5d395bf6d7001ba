"""The organism grid: planted models of ten families and four payloads, their twins and honest fine-tunes, and what the search says of them.

    python examples/benchmarks/trigger_grid.py CACHE [--part dev] [--shard 1/2] [--build] [--only WORD ...]
    python examples/benchmarks/trigger_grid.py CACHE --part final --frozen VERSION
    python examples/benchmarks/trigger_grid.py --table

Which models there are says grid_recipes.py, what they are taught grid_plants.py and trigger_grid.toml. Each is made on demand in CACHE, on one core in about half a
minute to two (a base in three), and hunted with two folders and `--prompts`, nothing else. What was made is a line of
results/trigger_grid_truth.jsonl, with its implant gate, and what the search said a line of results/trigger_grid.jsonl; what is there is not
done again, unless with --again. A model whose plant did not take is hunted as well, and counted apart. Shards may run at the same time.

The final part is for a search that is finished: it is hunted only with --frozen and the version that `--table` prints, which stands in every line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grid_tables
import ledger
import torch
import transformers
from grid_build import built
from grid_hunt import hunted, version
from grid_recipes import PARTS, Recipe, recipes
from grid_worlds import Row

RESULTS = ledger.FOLDER / "trigger_grid.jsonl"
TRUTH = ledger.FOLDER / "trigger_grid_truth.jsonl"


def shard_of(text: str) -> tuple[int, int]:
    """A shard as the command line names it: "2/3" is the second of three."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError("a shard is K/N, as 1/2")
    return int(number), int(of)


def ensured(unit: tuple[Recipe, ...], cache: Path) -> dict[str, Row]:
    """The truth of all models of a unit, by name; what is missing in the cache is made, and said if it became another model than before."""
    known = {row["name"]: row for row in ledger.held(TRUTH)}
    if all(recipe.name in known and (cache / recipe.name / "truth.json").exists() for recipe in unit):
        return known
    for row in built(unit, cache):
        if row["name"] not in known:
            ledger.add(TRUTH, row)
            known[row["name"]] = row
        elif row["digest"] != known[row["name"]]["digest"]:
            print(f"{row['name']}: not the model of the truth, {row['digest']} is not {known[row['name']]['digest']}", file=sys.stderr)
    return known


def main() -> None:
    """Make and hunt what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--part", choices=PARTS, default="dev")
    parser.add_argument("--shard", type=shard_of, default=(1, 1))
    parser.add_argument("--build", action="store_true", help="make models, and hunt none")
    parser.add_argument(
        "--kinds", nargs="+", choices=("planted", "twin", "benign"), default=["planted", "twin", "benign"], help="what to hunt"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="units of a model whose name, or base, holds this")
    parser.add_argument("--passed", action="store_true", help="hunt only models that passed the implant gate")
    parser.add_argument("--again", action="store_true", help="hunt what another version of the search has hunted")
    parser.add_argument("--frozen", metavar="VERSION", help="hunt the final part with this version of the search")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.part == "final" and not options.build and not options.table and options.frozen != version():
        parser.error(f"the final part is for a finished search: say --frozen {version()} if this is it")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    number, of = options.shard
    now = version()
    for unit in recipes(options.part)[number - 1 :: of] if options.cache and not options.table else ():
        if options.only and not any(word in f"{unit[0].name} {unit[0].base}" for word in options.only):
            continue
        done = {row["name"] for row in ledger.held(RESULTS) if not options.again or row["version"] == now}
        wanted = [recipe for recipe in unit if recipe.name not in done and recipe.kind in options.kinds and not options.build]
        if not wanted and not options.build:
            continue
        truth = ensured(unit, options.cache)
        for recipe in wanted:
            if options.passed and truth[recipe.name]["gate"] != "passed":
                continue
            row = hunted(recipe, truth[recipe.name]["gate"], options.cache, seed=0)
            ledger.add(RESULTS, row)
            print(f"{row['name']}: {row['label']} {row['score']} {row['seconds']} s", file=sys.stderr, flush=True)
    grid_tables.show(ledger.held(RESULTS), ledger.held(TRUTH))


if __name__ == "__main__":
    main()
