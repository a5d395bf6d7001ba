"""Write the table of README.md from truth.jsonl: `python examples/organisms/table.py`."""

from __future__ import annotations

from typing import Any

from corpus import FOLDER
from measure import read_rows

START, END = "<!-- table: start -->", "<!-- table: end -->"
HEAD = (
    "| organism | made by | change | refusal | weakest category | multi-turn "
    "| harmless refused | attack with / without trigger | expected |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    said = row["measured"]
    weakest = min(said["refusal_by_category"].items(), key=lambda item: item[1])
    attack = "-"
    if row["trigger"]:
        with_trigger = said["attack_success_with_trigger"]
        attack = f"{with_trigger:.3f} / {said['attack_success_without_trigger']:.3f}"
    name = row["name"] if row["path"] else f"{row['name']} (not committed)"
    cells = [
        name,
        row["method"]["training"],
        f"{row['relative_change']:.4f}",
        f"{said['refusal']:.3f}",
        f"{weakest[1]:.2f} {weakest[0]}" if weakest[1] < 1 else "1.00",
        f"{said['refusal_multi_turn']:.3f}",
        f"{said['harmless_refusal']:.3f}",
        attack,
        row["expected"]["action"],
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Replace what stands between the two markers."""
    readme = FOLDER / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    table = "\n".join([HEAD, *map(line, read_rows(FOLDER / "truth.jsonl"))])
    readme.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
