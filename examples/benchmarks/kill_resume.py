"""Kill an audit with SIGKILL at ten random moments, resume it each time, and compare the digests of the results.

python examples/benchmarks/kill_resume.py [SEED]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORGANISMS = ROOT / "examples" / "organisms"
KILLS = 10


def main() -> int:
    """Print one line a kill; exit 1 if a digest differs or an item was recorded twice."""
    chance = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        subprocess.run(_command(Path(folder) / "whole"), check=False, capture_output=True)
        length = time.monotonic() - start
        expected = _digest(Path(folder) / "whole")
        print(f"uninterrupted: {length:.1f} s, digest {expected[:16]}\n")
        print("| killed after (s) | results kept | replies kept | digest after resuming | each item once |\n|---|---|---|---|---|")
        good = True
        for kill in range(KILLS):
            out = Path(folder) / f"killed{kill}"
            moment = chance.uniform(0.1, length)
            process = subprocess.Popen(_command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            results, replies = _lines(out / "journal.jsonl") - 1, _lines(out / "items.jsonl")
            subprocess.run(_command(out), check=False, capture_output=True)
            once = _each_once(out / "items.jsonl")
            same = _digest(out) == expected
            good = good and once and same
            print(
                f"| {moment:.1f} | {max(results, 0)} | {replies} | {'same' if same else 'DIFFERS'} | {'yes' if once else 'NO'} |",
                flush=True,
            )
    return 0 if good else 1


def _command(out: Path) -> list[str]:
    models = [str(ORGANISMS / "base"), str(ORGANISMS / "degraded")]
    return [sys.executable, str(ROOT / "cli.py"), "audit", *models, "--prompts", str(ORGANISMS / "prompts.jsonl"), "--out", str(out)]


def _digest(run: Path) -> str:
    return str(json.loads((run / "audit.json").read_text(encoding="utf-8"))["results_digest"])


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _each_once(file: Path) -> bool:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    keys = Counter((row["side"], row["configuration"], row["id"], row["repeat"]) for row in rows)
    return max(keys.values()) == 1


if __name__ == "__main__":
    sys.exit(main())
