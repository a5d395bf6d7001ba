"""The rule judge against two human labels a reply, on the public XSTest completions.

The files are not shipped. Give the folder that holds `xstest_v2_completions_*.csv` (github.com/paul-rottger/xstest).
The phrase list was adjusted after reading its misses on these very replies, so this is a development figure, not a
held-out one.

    python examples/benchmarks/judge_agreement.py FOLDER
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from forensics.gate.judges import RULE_JUDGE, judge_refusal


def main() -> int:
    """Print sensitivity and specificity for each model's replies; partial refusals are counted apart."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    files = [file for file in sorted(Path(sys.argv[1]).glob("xstest_v2_completions_*.csv")) if not file.stem.endswith("eval")]
    print(
        f"judge {RULE_JUDGE}\n\n| replies of | refusals called refusal | answers called answer | partial refusals called refusal |\n|---|---|---|---|"
    )
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [(row["final_label"], judge_refusal(row["completion"]) == "refusal") for row in csv.DictReader(stream)]
        full, none, part = ([called for label, called in rows if label.startswith(start)] for start in ("2", "1", "3"))
        print(f"| {file.stem.rpartition('_')[2]} | {_share(full)} | {_share([not called for called in none])} | {_share(part)} |")
    return 0


def _share(hits: list[bool]) -> str:
    return f"{sum(hits)} of {len(hits)} ({100 * sum(hits) / max(1, len(hits)):.1f} %)"


if __name__ == "__main__":
    sys.exit(main())
