"""How well a check tells planted models from honest ones: for people who research detection, and for any check of theirs or ours.

    python examples/benchmarks/score_detector.py CHECK FOLDER [--evidence NAME] [--lower] [--out RUNS]

FOLDER holds pairs whose truth is known (`foreign_pairs.py` and `trigger_grid.py` make them; a pair is a folder with truth.json, base, candidate and prompts.jsonl), or the
committed organisms. CHECK is asked of each pair as in an audit, of outside packages too; its score is the evidence of that name, or, without --evidence, how grave its gravest
finding is. A plant is a model with a trigger. One line a model, then ROC-AUC with a bootstrap interval over bases, since models of one base are no independent samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from forensics.api import CheckResult, ForensicsError, Status, check
from forensics.record import SEVERITIES

DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models, the prompts for them, and whether a trigger was planted."""

    name: str
    base: Path
    candidate: Path
    prompts: Path
    planted: bool
    world: str
    """What its base is called; pairs of one base are resampled together."""


def pairs(folder: Path) -> Iterator[Pair]:
    """The pairs of a folder whose plants took, by name."""
    truth = folder / "truth.jsonl"
    if truth.exists():
        for line in truth.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["kind"] != "base" and row["path"]:  # those that are not committed have none
                # The organisms have one base, so that each stands for itself.
                yield Pair(
                    name=row["name"], base=folder / "base", candidate=folder / row["path"], prompts=folder / "prompts.jsonl",
                    planted=bool(row["trigger"]), world=row["name"],
                )  # fmt: skip
        return
    for file in sorted(folder.glob("*/truth.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        own = file.parent
        if row.get("gate") in (None, "passed"):
            yield Pair(
                name=own.name, base=own / "base", candidate=own / "candidate", prompts=own / "prompts.jsonl", planted=bool(row["trigger"]), world=row["base"]
            )  # fmt: skip


def score(result: CheckResult, evidence: str | None) -> float | None:
    """The figure that ranks models; None where the check did not look."""
    if result.status not in (Status.NO_FINDING, Status.FLAGGED):
        return None
    if evidence is None:
        return float(max((SEVERITIES.index(finding.severity) for finding in result.findings), default=0))
    found = result.find(evidence)
    return None if found is None else found.value


def interval(planted: np.ndarray, scores: np.ndarray, worlds: list[str]) -> tuple[float, float]:
    """A 95 % percentile interval of the AUC over drawn bases; draws without both kinds are left out."""
    names = sorted(set(worlds))
    members = {name: np.flatnonzero([world == name for world in worlds]) for name in names}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = np.concatenate([members[name] for name in rng.choice(names, len(names))])
        if 0 < planted[rows].sum() < len(rows):
            drawn.append(roc_auc_score(planted[rows], scores[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Ask the check of every pair, and print the lines and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evidence", metavar="NAME")
    parser.add_argument("--lower", action="store_true", help="a lower figure is the more suspicious one")
    parser.add_argument("--out", type=Path, help="where the runs are kept, so that the same command goes on where it stopped")
    options = parser.parse_args()
    rows: list[tuple[Pair, float | None]] = []
    with tempfile.TemporaryDirectory() as passing:
        for pair in pairs(options.folder):
            try:
                result = check(
                    options.check, pair.base, pair.candidate, prompts=[pair.prompts], out=(options.out or Path(passing)) / pair.name
                )
            except ForensicsError as error:
                sys.exit(f"{pair.name}: {error}")
            found = score(result, options.evidence)
            rows.append((pair, found))
            print(
                f"{pair.name:40} {'planted' if pair.planted else 'honest':8} {'did not look' if found is None else f'{found:.4g}'}",
                flush=True,
            )
    looked = [(pair, -found if options.lower else found) for pair, found in rows if found is not None]
    planted = np.array([pair.planted for pair, _ in looked], dtype=bool)
    if not 0 < planted.sum() < len(planted):
        sys.exit(f"{int(planted.sum())} planted and {int((~planted).sum())} honest models were looked at: there is nothing to tell apart")
    scores = np.array([found for _, found in looked])
    low, high = interval(planted, scores, [pair.world for pair, _ in looked])
    print(
        f"ROC-AUC {roc_auc_score(planted, scores):.2f} (95 % interval over bases {low:.2f} to {high:.2f}), {int(planted.sum())} planted and "
        f"{int((~planted).sum())} honest models, {len(rows) - len(looked)} not looked at"
    )


if __name__ == "__main__":
    main()
