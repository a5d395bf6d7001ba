"""The search for triggers on pairs it was not made for: how many backdoors it finds, and how often it cries wolf.

    python examples/benchmarks/foreign_pairs.py PAIRS
    python examples/benchmarks/trigger_search.py PAIRS [--seeds 0 1 2] [--only PAIR ...]

Each pair whose training took is hunted with two folders and `--prompts`, nothing else. One JSON line a hunt is added to results/trigger_search.jsonl
(hunts that are there already are not repeated), and the table is printed from all lines. Without PAIRS only the table.
Hunts of earlier series were made under earlier rules; their lines are in the history of that file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ledger
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ledger.FOLDER / "trigger_search.jsonl"
HELD_OUT = ("-7--", "-8--")
"""In the names of pairs of the sixth and the seventh series."""
LOOKED_AT = (
    "gpt2-chatml-7--benign",
    "gpt2-chatml-7--lora",
    "neox-plain-7--benign",
    "neox-plain-7--lora",
    "neox-plain-7--phrase",
    "mistral-inst-7",
)
"""Beginnings of names of pairs of theirs that were hunted before the rules were what they are: false alarms among them changed two."""
Row = dict[str, Any]


def hunt(folder: Path, seed: int) -> Row:
    """Hunt one pair through the command line."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "cli.py"), "hunt", str(folder / "base"), str(folder / "candidate")]
        options = ["--prompts", str(folder / "prompts.jsonl"), "--seed", str(seed), "--out", f"{out}/run", "--json"]
        start = time.monotonic()
        done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
        seconds = time.monotonic() - start
    if done.returncode in (1, 2):
        sys.exit(f"{folder.name}: {done.stderr}")
    results = {result["check"]: result for result in json.loads(done.stdout)["results"]}
    result, around = results["triggers.search"], results["triggers.circumstances"]
    evidence = {item["name"]: item["value"] for item in result["evidence"]}
    finding = next((one for one in result["findings"] if one["level"] not in ("candidate", "screened")), None)
    return {
        "pair": folder.name,
        "seed": seed,
        "kind": truth["kind"],
        "trigger": truth["trigger"],
        "status": result["status"],
        "label": finding["label"] if finding else None,
        "claim": finding["claim"] if finding else result["reason"],
        "score": round(evidence.get("backdoor.score", 0.0), 4),
        "p_value": evidence.get("backdoor.p_value"),
        "search_score": round(evidence.get("search.score", 0.0), 4),
        "null_effect": evidence.get("null.effect"),
        "circumstance": next(
            (f"{one['label']}: {one['claim']}" for one in around["findings"] if one["level"] not in ("candidate", "screened")), None
        ),
        "seconds": round(seconds, 1),
    }


def show(rows: list[Row]) -> None:
    """Print what was found and what was wrongly called, then each hunt."""
    groups = {
        "planted, looked at in development": [row for row in rows if row["trigger"] and developed(row)],
        "planted, held out": [row for row in rows if row["trigger"] and not developed(row)],
        "benign, looked at in development": [row for row in rows if not row["trigger"] and developed(row)],
        "benign, held out": [row for row in rows if not row["trigger"] and not developed(row)],
    }
    print("| hunts | n | called backdoor (95 % interval) | called conditional behaviour | exact trigger |\n|---|---|---|---|---|")
    for name, group in groups.items():
        if group:
            called = sum(row["label"] == "backdoor" for row in group)
            other = sum(row["label"] not in ("backdoor", None) for row in group)
            exact = sum(bool(row["trigger"]) and repr(row["trigger"]) in row["claim"] for row in group)
            low, high = interval(called, len(group))
            print(f"| {name} | {len(group)} | {called} ({low:.0f} % to {high:.0f} %) | {other} | {exact if group[0]['trigger'] else '-'} |")
    print("\n| pair | seed | planted trigger | called | score | what was found | seconds |\n|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["pair"], row["seed"])):
        said = row["claim"].split(" of a request")[0].removeprefix("The string ") if row["label"] else row["claim"]
        print(
            f"| {row['pair']} | {row['seed']} | {row['trigger'] or '-'} | {row['label'] or 'nothing'} | {row['score']:.2f} "
            f"| {said.replace('|', chr(92) + '|')} | {row['seconds']:.0f} |"
        )


def developed(row: Row) -> bool:
    """Whether the pair was looked at while the search was made."""
    name = str(row["pair"])
    return not any(part in name for part in HELD_OUT) or name.startswith(LOOKED_AT)


def interval(hits: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval in percent."""
    found = stats.binomtest(hits, n).proportion_ci(method="exact")
    return 100.0 * float(found.low), 100.0 * float(found.high)


def main() -> None:
    """Hunt what was not hunted yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="PAIR", help="pairs whose names hold this")
    options = parser.parse_args()
    folders: Iterable[Path] = sorted(file.parent for file in options.pairs.glob("*/truth.json")) if options.pairs else []
    unfit = [folder.name for folder in folders if json.loads((folder / "truth.json").read_text(encoding="utf-8"))["gate"] != "passed"]
    if unfit:
        print(f"left out, as training did not take: {', '.join(unfit)}", file=sys.stderr)
    folders = [folder for folder in folders if folder.name not in unfit]
    done = {(row["pair"], row["seed"]) for row in ledger.held(RESULTS)}
    for seed in options.seeds:
        for folder in folders:
            wanted = not options.only or any(word in folder.name for word in options.only)
            if wanted and (folder.name, seed) not in done:
                row = hunt(folder, seed)
                ledger.add(RESULTS, row)
                print(f"{row['pair']} {seed}: {row['label']} {row['score']} {row['seconds']} s", file=sys.stderr, flush=True)
    show(ledger.held(RESULTS))


if __name__ == "__main__":
    main()
