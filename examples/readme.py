"""Write what is made from the code: the tree of modules and `forensics audit --help` in README.md, and the published schema of a record.

    python examples/readme.py

Tests compare both blocks with the code, so run this after adding a module or an option.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from forensics.record import schema_text

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "reports" / "schemas" / "forensics.audit-1.schema.json"
PACKAGES = ("forensics", "probes", "reports")
OTHERS = (
    ("examples/organisms/", "small models with known plants, and the scripts that train them: ground truth"),
    ("examples/benchmarks/", "what measures this tool; prints the tables above"),
    ("examples/demo.py", "what `make demo` runs"),
    ("tests/", "the house rules, the battery every check faces, and the rest"),
)


def main() -> None:
    """Rewrite both in place."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in (("tree", tree()), ("help", help_text())):
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        text = before + opening + block + closing + after
    readme.write_text(text, encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")


def tree() -> str:
    """One line a module: its path, and the first sentence of its docstring."""
    files = [
        ROOT / "cli.py",
        ROOT / "cli_options.py",
        ROOT / "cli_gate.py",
        ROOT / "cli_people.py",
        ROOT / "cli_report.py",
        ROOT / "cli_monitor.py",
        ROOT / "cli_walk.py",
        *(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))),
    ]
    rows = [(file.relative_to(ROOT).as_posix(), _first_sentence(file)) for file in files if file.name != "__init__.py"]
    rows.insert(0, ("pyproject.toml", "dependencies, lint and types, each with its reason"))
    rows += OTHERS
    width = max(len(path) for path, _ in rows) + 2
    return "```\n" + "".join(f"{path:<{width}}{words}\n" for path, words in rows) + "```\n"


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def help_text() -> str:
    """What `forensics audit --help` prints on a terminal of 100 columns, without colours."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "audit", "--help"], capture_output=True, text=True, check=True, env=environment
    )
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    main()
