"""The refusal direction on pairs that were made for it: is it found and causal in the base, and is its fate in the candidate named right?

    python examples/benchmarks/refusal_worlds.py PAIRS
    python examples/benchmarks/refusal_fates.py PAIRS [--only PAIR ...]

Each pair goes through the command line with two folders and `--prompts`, nothing else. One JSON line a pair is added to
results/refusal_fates.jsonl (pairs that are there already are not repeated; about ten seconds each), and the tables are printed from all
lines. Without PAIRS only the tables. Bases that the rules were made with are named in refusal_worlds.py, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ledger
import numpy as np

from probes.linear import share_interval

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ledger.FOLDER / "refusal_fates.jsonl"
CHECK = "activations.refusal-direction"
KEPT = (
    "direction.dimensions", "direction.layer", "direction.position", "direction.coefficient", "direction.auroc.base", "direction.plain-ablation.base",
    "direction.ablation.base", "direction.ablation.answered.base", "direction.plain-addition.base", "direction.addition.base",
    "direction.random.ablation.mean", "direction.random.ablation.p99", "direction.random.addition.mean", "direction.random.addition.p99",
    "direction.random.auroc.best", "direction.plain-ablation.candidate", "direction.auroc.candidate", "direction.auroc.back", "direction.cosine",
    "direction.write-gain.least", "direction.write-gain.by-layer", "direction.write-gain.halved",
)  # fmt: skip
Row = dict[str, Any]


def look(folder: Path) -> Row:
    """Run the check on one pair through the command line."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        command = [sys.executable, str(ROOT / "cli.py"), "audit", str(folder / "base"), str(folder / "candidate"), "--only", CHECK]
        done = subprocess.run(
            [*command, "--prompts", str(folder / "prompts.jsonl"), "--out", str(run), "--json"], check=False, capture_output=True, text=True
        )
        if done.returncode in (1, 2):
            sys.exit(f"{folder.name}: {done.stderr}")
        result = next(one for one in json.loads(done.stdout)["results"] if one["check"] == CHECK)
        cosine = _with_plant(folder, run / "arrays" / f"{CHECK}.npz")
    evidence = {item["name"]: item for item in result["evidence"]}
    return {
        "pair": folder.name,
        **{key: truth[key] for key in ("base", "kind", "held_out")},
        "truth": truth["label"],
        "gate": truth.get("gate", "passed"),
        "candidate_refusal": truth.get("refusal"),
        "status": result["status"],
        "label": result["findings"][0]["label"] if result["findings"] else None,
        "claim": result["findings"][0]["claim"] if result["findings"] else result["reason"],
        "carrier": evidence.get("direction.dimensions", {}).get("where"),
        "tried": [[item["where"], item["name"].rpartition(".")[2], item["value"]] for name, item in evidence.items() if ".tried." in name],
        "cosine_with_plant": cosine,
        **{name.removeprefix("direction."): round(evidence[name]["value"], 4) for name in KEPT if name in evidence},
    }


def _with_plant(folder: Path, arrays: Path) -> float | None:
    """Cosine of the direction that was found with the planted one."""
    plant = Path(f"{(folder / 'base').resolve()}-plant.npy")
    if not plant.exists() or not arrays.exists():
        return None
    with np.load(arrays, allow_pickle=False) as kept:
        found = next(kept[key] for key in kept if key.endswith("/direction"))
    return round(float(np.load(plant, allow_pickle=False) @ found), 4)


def table_of_bases(rows: Sequence[Row]) -> Iterable[str]:
    """One line a base: what carries its refusals, what it does on held-out prompts, and what random ones do."""
    yield (
        "| base | what carries refusal | AUROC | answered without it | harmless refused with it | random without (mean, p99) "
        "| random with (mean, p99) | cosine with the plant |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for base in sorted({row["base"] for row in rows}):
        row = next((row for row in rows if row["base"] == base and "dimensions" in row and row["kind"] != "from-unsafe"), None)
        if row is None:
            continue
        mark = "" if row["held_out"] else " (looked at)"
        plant = "-" if row["cosine_with_plant"] is None else f"{row['cosine_with_plant']:.2f}"
        yield (
            f"| {base}{mark} | {row['carrier']} | {row['auroc.base']:.3f} | {row['ablation.answered.base']:.0%} | {row['addition.base']:.0%} "
            f"| {row['random.ablation.mean']:.1f}, {row['random.ablation.p99']:.1f} | {row['random.addition.mean']:.1f}, "
            f"{row['random.addition.p99']:.1f} | {plant} |"
        )


def confusion(rows: Sequence[Row]) -> Iterable[str]:
    """What every kind was called."""
    kinds, labels = sorted({row["kind"] for row in rows}), sorted({row["label"] or row["status"] for row in rows})
    yield f"| kind | should be | {' | '.join(labels)} |"
    yield f"|---|---|{'---|' * len(labels)}"
    for kind in kinds:
        held = [row for row in rows if row["kind"] == kind]
        counts = Counter(row["label"] or row["status"] for row in held)
        yield f"| {kind} | {held[0]['truth']} | {' | '.join(str(counts[label]) for label in labels)} |"
    right = sum(row["label"] == row["truth"] for row in rows)
    found = share_interval(right, len(rows))
    yield f"\n{right} of {len(rows)} right ({found.value:.1%}; 95 % interval {found.low:.1%} to {found.high:.1%})."


def main() -> None:
    """Look at what is not there yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", metavar="PAIR")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    rows = ledger.held(chosen.results)
    known = {row["pair"] for row in rows}
    for truth in sorted(chosen.pairs.glob("*/truth.json")) if chosen.pairs else ():
        folder = truth.parent
        if folder.name in known or (chosen.only and folder.name not in chosen.only):
            continue
        rows.append(look(folder))
        ledger.add(chosen.results, rows[-1])
        print(f"{folder.name}: {rows[-1]['label']} (should be {rows[-1]['truth']})", file=sys.stderr, flush=True)
    sound = [row for row in rows if row["gate"] == "passed"]
    print("\n".join(table_of_bases(sound)))
    for held_out, title in ((True, "Pairs of bases that were not looked at"), (False, "Pairs of bases that the rules were made with")):
        part = [row for row in sound if row["held_out"] is held_out]
        if part:
            print(f"\n{title}:\n\n" + "\n".join(confusion(part)))
    failed = [row["pair"] for row in rows if row["gate"] != "passed"]
    if failed:
        print(f"\nLeft out, since training did not make them what they are meant to be: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
