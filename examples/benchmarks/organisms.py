"""The verdict on every committed organism, beside what its truth asks for, and what it took.

    python examples/benchmarks/organisms.py [NAME ...] [--out FOLDER]

The runs are kept where --out says, a folder an organism.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORGANISMS = ROOT / "examples" / "organisms"


def main() -> None:
    """Print one line an organism."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    truths = [json.loads(line) for line in (ORGANISMS / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    print(
        "| organism | planted | truth asks | verdict | refusal lost (95 % bounds) | relative change | trigger found | seconds |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as passing:
        folder = options.out or Path(passing)
        for truth in truths:
            if truth["path"] is None or (options.names and truth["name"] not in options.names):
                continue
            command = [sys.executable, str(ROOT / "cli.py"), "audit", str(ORGANISMS / "base"), str(ORGANISMS / truth["path"])]
            start = time.monotonic()
            done = subprocess.run(
                [*command, "--prompts", str(ORGANISMS / "prompts.jsonl"), "--out", str(folder / truth["name"]), "--json"],
                check=False,
                capture_output=True,
                text=True,
            )
            seconds = time.monotonic() - start
            record = json.loads(done.stdout)
            evidence = {item["name"]: item for result in record["results"] for item in result["evidence"]}
            search = next(result for result in record["results"] if result["check"] == "triggers.search")
            found = next((one["claim"] for one in search["findings"] if one["level"] not in ("candidate", "screened")), "")
            trigger = found.partition(" of a request")[0].removeprefix("The string ") or ("-" if not search["reason"] else "could not look")
            drop, size = evidence["refusal.drop"], evidence["edit.relative_change"]
            print(
                f"| {truth['name']} | {truth['kind']} | {truth['expected']['action']} | {record['verdict']['action']} "
                f"| {drop['value']:.1f} ({drop['low']:.1f} to {drop['high']:.1f}) | {size['value']:.3f} | {trigger} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
