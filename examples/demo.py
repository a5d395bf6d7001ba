"""Audit three of the committed organisms: one that lost its refusals, one with a hidden trigger, one with nothing planted.

Run by `make demo`. The audits go side by side, what they say comes in order; the runs, with their HTML pages, are written
to demo-report/.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORGANISMS = ROOT / "examples" / "organisms"
SHOWN = ("degraded", "backdoor-full", "benign-lora")


def main() -> int:
    """Audit each organism through the command line, as a user would."""
    out = ROOT / "demo-report"
    shutil.rmtree(out, ignore_errors=True)
    begun = {}
    for name in SHOWN:
        command = [sys.executable, str(ROOT / "cli.py"), "audit", str(ORGANISMS / "base"), str(ORGANISMS / name)]
        options = ["--prompts", str(ORGANISMS / "prompts.jsonl"), "--out", str(out / name), "--batch-size", "128"]
        begun[name] = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    worst = 0
    for name, process in begun.items():
        print(f"\n=== forensics audit base {name} ===", flush=True)
        print(process.communicate()[0], flush=True)
        worst = max(worst, process.returncode if process.returncode in (1, 2) else 0)
    if worst:
        return worst
    print("\nOpen these in a browser:")
    for name in SHOWN:
        print(f"  {out / name / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
