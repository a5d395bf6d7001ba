"""Audit two of the committed organisms and show both verdicts: one that lost its refusals, one that did not.

Run by `make demo`. The runs, with their HTML pages, are written to demo-report/.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORGANISMS = ROOT / "examples" / "organisms"
SHOWN = ("degraded", "benign-lora")


def main() -> int:
    """Audit each organism through the command line, as a user would."""
    out = ROOT / "demo-report"
    shutil.rmtree(out, ignore_errors=True)
    for name in SHOWN:
        print(f"\n=== forensics audit base {name} ===", flush=True)
        command = [sys.executable, str(ROOT / "cli.py"), "audit", str(ORGANISMS / "base"), str(ORGANISMS / name)]
        done = subprocess.run([*command, "--prompts", str(ORGANISMS / "prompts.jsonl"), "--out", str(out / name)], check=False)
        if done.returncode in (1, 2):
            return done.returncode
    print("\nOpen these in a browser:")
    for name in SHOWN:
        print(f"  {out / name / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
