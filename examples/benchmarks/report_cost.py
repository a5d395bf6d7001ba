"""What a saved run costs in each format, as whole processes: beside one that only imports pydantic, which every record is read with.

    python examples/benchmarks/report_cost.py RUN [--rounds 9]

RUN is a folder that `forensics audit` wrote. Both processes start anew each round, in turn; printed is the ratio of their times, median and range.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORMS = ("json", "text", "markdown", "sarif", "junit", "model-card", "csv", "html")


def seconds(command: Sequence[str]) -> float:
    """Wall time of a process, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def main() -> None:
    """Time every format, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    bare = [sys.executable, "-c", "import pydantic; pydantic.BaseModel"]
    print("| format | times importing pydantic (range) | milliseconds |\n|---|---|---|")
    for form in FORMS:
        ours = [sys.executable, str(ROOT / "cli.py"), "report", str(options.run.resolve()), "--format", form]
        seconds(ours)  # compiles what was never run
        pairs = [(seconds(ours), seconds(bare)) for _ in range(options.rounds)]
        ratios = sorted(one / other for one, other in pairs)
        print(
            f"| {form} | {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) | {1000 * statistics.median([one for one, _ in pairs]):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
