"""What kind of edit made a candidate: the check `weights.edit-kind` on pairs whose edit is known.

    python examples/benchmarks/edit_kinds.py [--kinds KIND ...] [--seeds 0 1 2] [--strengths 0.03 ...] [--limit N] [--jobs N] [--fresh]
    python examples/benchmarks/edit_kinds.py --generate [...]     # make the pairs and say how far each moved; no command is run

Each pair is written to a temporary folder and given to `forensics diff`, merges with `--parents`. One JSON line a cell is added to
results/edit_kinds.jsonl (cells that are there already are not repeated unless --fresh), and the tables are printed from all lines
that were chosen. Seeds 0 to 2 are Llama-like bases in bfloat16; 3 and 4 are stored in float16 and float32, 5 has GPT-2's layout.
A cell counts as unresolved where the check is inconclusive or says that the change is below its resolution, and as wrong where the
command refuses the pair.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import edit_catalogue
import ledger
import numpy as np
import torch
import typer
from edit_catalogue import CONTROL, KINDS, STRENGTHS, Cell, Key, cells
from edit_tables import Row, called, outcome, show, show_generated, strength_name
from typer.testing import CliRunner
from weight_bases import BASES, Weights, save
from weight_edits import Edited, norm

from cli import app
from forensics.checks import all_checks
from probes.rounding import ulp

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ledger.FOLDER / "edit_kinds.jsonl"
CHECK = "weights.edit-kind"
DRAWS = 3


# One cell


def examine(cell: Cell, root: Path) -> Row:
    """Make one pair, ask the command, and say what it said beside what was planted."""
    start = time.monotonic()
    edited = cell.edited()
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        write(edited, folder)
        made = time.monotonic() - start
        words = parent_options(sorted(folder.glob("parent-*"))) if cell.variant.told else []
        start = time.monotonic()
        said = ask([str(base_folder(cell, root)), str(folder / "candidate"), *words], folder / "run")
        seconds = time.monotonic() - start
    row: Row = {
        "kind": cell.variant.kind,
        "variant": cell.variant.name,
        "strength": cell.strength,
        "seed": cell.seed,
        "base": base_name(cell),
        "told": bool(words),
        "accepted": sorted(cell.variant.accepted(told=bool(words)) | edited.also),
        **said,
        **moved(cell.base(), edited.candidate),
    }
    ranks = row.pop("tensor_ranks", {})
    if cell.variant.kind == "lora-merge":
        row["planted"] = planted(edited, ranks)
    return row | {"made_seconds": round(made, 2), "seconds": round(seconds, 2)}


def write(edited: Edited, folder: Path) -> None:
    """The candidate and its parents, each in a folder of its own."""
    candidate = save(edited.candidate, folder / "candidate", shards=edited.shards, backwards=edited.backwards)
    if edited.readme:
        (candidate / "README.md").write_text("A model.\n", encoding="utf-8")
    for number, parent in enumerate(edited.parents, 1):
        save(parent, folder / f"parent-{number}")


def base_name(cell: Cell) -> str:
    """Layout and storage dtype of a cell's base."""
    layout, dtype = BASES.get(cell.seed, ("llama", "bfloat16"))
    return f"{layout} {cell.variant.dtype or dtype}"


def base_folder(cell: Cell, root: Path) -> Path:
    """The base of a cell on disk, written once a process."""
    folder = root / f"base-{base_name(cell).replace(' ', '-')}-{cell.seed}"
    return folder if folder.exists() else save(cell.base(), folder)


def parent_options(parents: Sequence[Path]) -> list[str]:
    """`--parents` as the command takes it, or nothing if it has no such option."""
    options = typer.main.get_group(app).commands["diff"].params
    option = next((one for one in options if "--parents" in one.opts), None)
    if option is None or not parents or option.nargs not in (1, len(parents)):
        return []
    if option.nargs == 1:
        return [word for parent in parents for word in ("--parents", str(parent))]
    return ["--parents", *map(str, parents)]


def ask(words: Sequence[str], out: Path) -> Row:
    """Run `forensics diff` in this process, and read what the check says."""
    done = CliRunner().invoke(app, ["diff", *words, "--json", "--out", str(out)])
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        crash = done.exception is not None and not isinstance(done.exception, SystemExit)
        told = repr(done.exception) if crash else done.stderr.strip().partition("\n")[0]
        return {"status": "CRASHED" if crash else "REFUSED", "label": None, "claim": told, "below": False, "ranks": [], "size": None}
    with np.load(out / "arrays" / f"{CHECK}.npz") as arrays:
        ranks = dict(zip(arrays["candidate/tensor"].tolist(), arrays["candidate/rank"].tolist(), strict=True))
    return heard(next(one for one in results if one["check"] == CHECK)) | {"tensor_ranks": ranks}


def heard(result: Row) -> Row:
    """What one result of the check says: its label, and whether it says that it cannot tell."""
    finding = result["findings"][0] if result["findings"] else {}
    evidence = [*result["evidence"], *finding.get("evidence", [])]
    claim = finding.get("claim") or result["reason"]
    below = any(one["name"] == "edit.below-resolution" and one["value"] for one in evidence)
    ranks = {(one["where"], one["value"]) for one in evidence if one["name"] == "edit.rank"}
    return {
        "status": result["status"],
        "label": finding.get("label"),
        "confidence": finding.get("confidence"),
        "findings": len(result["findings"]),
        "claim": claim,
        "below": below or re.search(r"below (its |the )?resolution", claim) is not None,
        "ranks": sorted(ranks),
        "size": next((one["value"] for one in evidence if one["name"] == "edit.relative_change"), None),
    }


def moved(base: Weights, candidate: Weights) -> Row:
    """The relative change that was measured: over all tensors both sides have in one shape, and over those that differ."""
    lengths = []
    for name, values in base.tensors.items():
        if name in candidate.tensors and candidate.tensors[name].shape == values.shape:
            lengths.append((norm(candidate.read(name) - base.read(name)), norm(base.read(name))))
    squares = np.square(np.array(lengths)) if lengths else np.zeros((1, 2))
    touched = squares[squares[:, 0] > 0]
    return {
        "moved": _root(squares),
        "moved_where_edited": _root(touched),
        "tensors_moved": len(touched),
    }


def _root(squares: Any) -> float:
    changed, whole = squares.sum(axis=0)
    return round(float(np.sqrt(changed / whole)), 6) if whole else 0.0


# What of an adapter can be seen


def planted(edited: Edited, said: dict[str, int]) -> Row:
    """How many singular values of the unrounded update stand above what rounding the candidate does, plainly and whitened.

    `near` of the `tensors` have a rank within 1 of that by what was `said` of them. `clear` ones, whose smallest value is over twice
    the edge, should have it exactly, as `exact` of them do.
    """
    counts: dict[str, list[int]] = {"plain": [], "whitened": []}
    hits: dict[str, Counter[str]] = {"plain": Counter(), "whitened": Counter()}
    for number, (name, (left, right)) in enumerate(edited.factors.items()):
        step = ulp(edited.candidate.read(name), edited.candidate.tensors[name].dtype).double()
        rows, columns = spread(step)
        rank = left.shape[1]
        draws = [np.random.default_rng([number, draw]).uniform(-0.5, 0.5, tuple(step.shape)) for draw in range(DRAWS)]
        for way, over_rows, over_columns in (("plain", torch.ones_like(rows), torch.ones_like(columns)), ("whitened", rows, columns)):
            scaled = [torch.from_numpy(draw) * step / over_rows[:, None] / over_columns for draw in draws]
            edge = statistics.fmean(largest(values) for values in scaled)
            true = product_values(left.double() / over_rows[:, None], right.double() / over_columns)
            counts[way].append(int((true > edge).sum()))
            found, clear = said.get(name, 0), bool(true[:rank].min() > 2 * edge)
            hits[way].update(near=abs(found - counts[way][-1]) <= 1, clear=clear, exact=clear and found == rank)
    ways = {
        way: {"least": min(found), "median": statistics.median(found), "most": max(found), **hits[way]} for way, found in counts.items()
    }
    return {"rank": next(iter(edited.factors.values()))[0].shape[1], "tensors": len(edited.factors), **ways}


def spread(step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviations a row and a column whose products are nearest to those of noise within half a step."""
    variance = step.square() / 12.0
    rows, columns = torch.ones(len(step), dtype=step.dtype), torch.ones(step.shape[1], dtype=step.dtype)
    for _ in range(5):
        rows = (variance / columns).mean(dim=1)
        columns = (variance / rows[:, None]).mean(dim=0)
    return rows.sqrt(), columns.sqrt()


def largest(values: torch.Tensor) -> float:
    """Largest singular value, by the smaller of the two Gram matrices."""
    gram = values @ values.T if len(values) < values.shape[1] else values.T @ values
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0).sqrt())


def product_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values of a product of thin factors."""
    values: torch.Tensor = torch.linalg.svdvals(torch.linalg.qr(left)[1] @ torch.linalg.qr(right.T)[1].T)
    return values


# All cells


def key(row: Row) -> Key:
    """The cell that a line is of."""
    return row["kind"], row["variant"], row["strength"], row["seed"]


def work(todo: Sequence[Cell], jobs: int, root: Path, do: Callable[[Cell, Path], Row]) -> Iterator[Row]:
    """Do all cells, in this process or in several."""
    if jobs == 1:
        yield from (_alone(cell.key, root, do) for cell in todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_alone, [cell.key for cell in todo], [root] * len(todo), [do] * len(todo), chunksize=8)


def _alone(key: Key, root: Path, do: Callable[[Cell, Path], Row]) -> Row:
    """One cell in this process's own folder, on one thread, so that its sums are taken in one order."""
    torch.set_num_threads(1)
    own = root / str(multiprocessing.current_process().pid)
    own.mkdir(exist_ok=True)
    return do(edit_catalogue.cell(key), own)


def generate(cell: Cell, root: Path) -> Row:
    """Make and write one pair, and no more."""
    start = time.monotonic()
    edited = cell.edited()
    write(edited, root / "pair")
    made = time.monotonic() - start
    shutil.rmtree(root / "pair")
    about = {"kind": cell.variant.kind, "variant": cell.variant.name, "strength": cell.strength, "seed": cell.seed, "base": base_name(cell)}
    return about | moved(cell.base(), edited.candidate) | {"made_seconds": made}


def main() -> None:
    """Examine what was not examined yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, CONTROL), default=[], metavar="KIND")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="0 to 5; usual ones: 0, 1, 2")
    parser.add_argument("--strengths", type=float, nargs="+", default=[], help=f"usual ones: {', '.join(map(str, STRENGTHS))}")
    parser.add_argument("--limit", type=int, help="stop after this many new cells")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="examine the chosen cells again")
    parser.add_argument("--generate", action="store_true", help="only make the pairs")
    chosen = parser.parse_args()
    wanted = cells(chosen.seeds, chosen.kinds, chosen.strengths)
    with tempfile.TemporaryDirectory() as name:
        if chosen.generate:
            show_generated(list(work(wanted[: chosen.limit], chosen.jobs, Path(name), generate)))
            return
        if CHECK not in {check.id for check in all_checks()}:
            sys.exit(f"this version has no check {CHECK}; --generate makes the pairs without it")
        keys = {cell.key for cell in wanted}
        done = set() if chosen.fresh else {key(row) for row in ledger.held(RESULTS)}
        todo = [cell for cell in wanted if cell.key not in done][: chosen.limit]
        again = {cell.key for cell in todo}
        kept = [row for row in ledger.held(RESULTS) if key(row) not in again]
        if chosen.fresh:
            RESULTS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        for number, row in enumerate(work(todo, chosen.jobs, Path(name), examine), 1):
            ledger.add(RESULTS, row)
            print(
                f"{number}/{len(todo)} {outcome(row)}: {row['kind']}/{row['variant']}/{strength_name(row)}/{row['seed']} {called(row)}",
                file=sys.stderr,
                flush=True,
            )
    show([row for row in ledger.held(RESULTS) if key(row) in keys])


if __name__ == "__main__":
    main()
