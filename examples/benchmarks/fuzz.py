"""Fuzz the code that reads what a stranger may hand us, guided by coverage, and keep whatever it does not survive.

    python examples/benchmarks/fuzz.py [--minutes 60] [--target NAME ...] [--corpus DIR] [--seed 0]
    python examples/benchmarks/fuzz.py --table
    python examples/benchmarks/fuzz.py --merge

Needs `pip install 'model-forensics[fuzz]'` (atheris). Each target (`fuzz_targets.py`) has a process of its own, one after the other, for its share of the minutes.
A `BadInput` is fine. Any other exception, a crash, ten seconds over one input, or a gigabyte of memory beyond what the libraries took is a fault:
its bytes are kept in DIR/faults/TARGET/ with the traceback beside them, and counted if they are one again in a new process. What reached new code stays in
DIR/TARGET/, so that the next piece goes on from there. Every piece adds a line to `results/fuzz.jsonl`; --table prints what they come to; --merge puts into
tests/data/fuzz/ the smallest of what was kept that reach lines of our code that the seeds do not, where a test feeds them again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import ledger

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ledger.FOLDER / "fuzz.jsonl"
SECONDS, MEMORY = 10, 1 << 30
"""Of one input: longer, or more beyond what the process holds before the first, is a fault."""
LONGEST = 16_384
"""Bytes of an input: long files reach little that short ones do not, and limits on size have tests of their own."""
KEPT_BYTES, KEPT_FILES = 4096, 12
"""What --merge puts beside the seeds: no larger files, and no more of them a target."""
MERGED_WITHIN = 60
"""Seconds for which --merge looks through the files of a target."""
COVERAGE = re.compile(r"(INITED|NEW|REDUCE|pulse|DONE)\s+cov: (\d+) ft: (\d+)")
RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main() -> int:
    """Fuzz, or print the table; exit 1 if there is a fault."""
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    if sys.argv[1:2] == ["again"]:
        return again(sys.argv[2], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--merge", action="store_true")
    given = parser.parse_args()
    if given.table:
        return table()
    from fuzz_targets import TARGETS  # heavy

    names = given.target or list(TARGETS)
    if given.merge:
        for name in names:
            merge(name, given.corpus)
        return 0
    for name in names:
        row = piece(name, given.corpus, 60 * given.minutes / len(names), given.seed)
        ledger.add(RESULTS, row)
        print(row, flush=True)
    return table()


def piece(name: str, corpus: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Feed one target for so long; a process that died or hung is started again for the rest of the time."""
    from fuzz_targets import SEEDS

    mine, faults = corpus / name, corpus / "faults" / name
    mine.mkdir(parents=True, exist_ok=True)
    faults.mkdir(parents=True, exist_ok=True)
    before = {file.name for file in faults.iterdir()}
    begun, runs, first, last = time.monotonic(), 0, 0, 0
    while (left := seconds - (time.monotonic() - begun)) >= 5:
        words = [
            f"-max_total_time={int(left)}",
            f"-timeout={SECONDS}",
            f"-max_len={LONGEST}",
            f"-seed={seed + runs + 1}",
            "-print_final_stats=1",
        ]
        words += [f"-artifact_prefix={faults}/", "-rss_limit_mb=0", "-len_control=0", "-verbosity=1", str(mine), str(SEEDS / name)]
        done = subprocess.run(
            [sys.executable, __file__, "child", name, str(faults), *words],
            env=environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        seen = COVERAGE.findall(done.stderr)
        counted = RUNS.search(done.stderr)
        if not seen:
            raise SystemExit(f"{name} did not begin: {done.stderr[-2000:]}")
        first = first or int(seen[0][2])
        last = max(last, *(int(features) for _, _, features in seen))
        runs += int(counted[1]) if counted else int(re.findall(r"#(\d+)", done.stderr)[-1])
    found: Counter[str] = Counter()
    for file in sorted(faults.iterdir()):
        if file.name not in before and file.suffix != ".txt":
            found["faults" if is_fault(name, file) else "not again"] += 1
    return {
        "target": name, "executions": runs, "seconds": round(time.monotonic() - begun), "features_before": first, "features_after": last,
        "inputs_kept": len(list(mine.iterdir())), "faults": found["faults"], "not_again": found["not again"], "seed": seed,
    }  # fmt: skip


def environment() -> dict[str, str]:
    """Of a child: no network, one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }


def is_fault(name: str, file: Path) -> bool:
    """Whether the bytes are a fault in a process that has seen no others."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "again", name, str(file)], env=environment(), capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def again(name: str, file: Path) -> int:
    """Feed one file to its target; any exit code but 0 is a fault."""
    from fuzz_targets import TARGETS, tried

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        feed = warm(name, TARGETS[name].prepare(Path(folder)))
        limit()
        start = time.monotonic()
        print(tried(feed, file.read_bytes()))
        return int(time.monotonic() - start > SECONDS)


def warm(name: str, feed: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Feed the seeds once: what a library imports at its first use takes seconds, and is not the next input's doing."""
    from fuzz_targets import SEEDS, tried

    for file in sorted((SEEDS / name).glob("seed-*")):
        tried(feed, file.read_bytes())
    return feed


def limit() -> None:
    """Let this process have `MEMORY` beyond what it holds now; more is a MemoryError."""
    held = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))


def child(name: str, faults: Path, words: list[str]) -> int:
    """The process of one target. Exceptions are kept, one of each place in our code, and it goes on; a hang or a crash ends it."""
    import atheris  # type: ignore[import-untyped]  # it has no types, and nothing but this child needs it

    with atheris.instrument_imports(include=["forensics", "reports"]):
        from fuzz_mutate import mutated
        from fuzz_targets import TARGETS, tried
    target, seen = TARGETS[name], set[str]()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        feed = warm(name, target.prepare(Path(folder)))

        def one(data: bytes) -> None:
            try:
                tried(feed, data)
            except Exception as error:  # noqa: BLE001 - whatever it raises is what is looked for
                keep(error, data, faults, seen)

        def change(data: bytes, most: int, seed: int) -> bytes:
            return mutated(data, most, seed, target.kind, atheris.Mutate)

        limit()
        atheris.Setup([__file__, *words], one, **({"custom_mutator": change} if target.kind not in ("bytes", "text") else {}))
        atheris.Fuzz()
    return 0


def keep(error: Exception, data: bytes, faults: Path, seen: set[str]) -> None:
    """Write down the first input that raised this error in this place."""
    places = [f"{frame.filename.removeprefix(str(ROOT))}:{frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    ours = [place for place in places if place.startswith(("/forensics", "/reports", "/probes"))]
    key = f"{type(error).__name__} {(ours or places)[-1]} {str(error)[-200:] if isinstance(error, AssertionError) else ''}"
    if key in seen:
        return
    seen.add(key)
    file = faults / f"{type(error).__name__}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    file.with_name(file.name + ".txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")


def merge(name: str, corpus: Path) -> None:
    """Put what reaches lines of our code that the seeds do not beside them, the smallest first."""
    from fuzz_targets import SEEDS, TARGETS

    known = {file.read_bytes() for file in (SEEDS / name).iterdir()}
    small = sorted((file for file in (corpus / name).iterdir() if file.stat().st_size <= KEPT_BYTES), key=lambda file: file.stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        feed = warm(name, TARGETS[name].prepare(Path(folder)))
        reached = set().union(*(lines_reached(feed, content) for content in known))
        until, kept = time.monotonic() + MERGED_WITHIN, 0
        for file in small:
            if kept == KEPT_FILES or time.monotonic() > until:
                break
            new = lines_reached(feed, content := file.read_bytes()) - reached
            if new and content not in known:
                (SEEDS / name / f"found-{file.name[:12]}").write_bytes(content)
                reached |= new
                kept += 1
    print(f"{name}: {kept} of {len(small)} are kept", flush=True)


def lines_reached(feed: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    """Lines of our own modules that are run when `data` is fed."""
    from fuzz_targets import tried

    seen: set[tuple[str, int]] = set()
    rooms = tuple(str(ROOT / room) for room in ("forensics", "reports"))

    def trace(frame: FrameType, _event: str, _given: object) -> Any:
        if not frame.f_code.co_filename.startswith(rooms):
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        tried(feed, data)
    finally:
        sys.settrace(None)
    return seen


def table() -> int:
    """Print what all pieces come to; exit 1 if one found a fault."""
    rows = ledger.held(RESULTS)
    print(
        "| target | executions | minutes | features reached: at the beginning, at the end | inputs kept | faults |\n|---|---|---|---|---|---|"
    )
    total: Counter[str] = Counter()
    for name in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == name]
        runs, seconds, faults = (sum(row[key] for row in mine) for key in ("executions", "seconds", "faults"))
        total.update(runs=runs, seconds=seconds, faults=faults)
        kept = mine[-1]["inputs_kept"]
        print(
            f"| {name} | {runs:,} | {seconds / 60:.1f} | {mine[0]['features_before']}, {max(row['features_after'] for row in mine)} | {kept} | {faults} |"
        )
    print(f"| all | {total['runs']:,} | {total['seconds'] / 60:.1f} | | | {total['faults']} |")
    return int(total["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
