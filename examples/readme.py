"""Write what is made from the code: the tree of modules and `forensics audit --help` in README.md, the published schema
of a record, and a page for each check in docs/checks/.

    python examples/readme.py [--check]

Tests compare both blocks with the code, so run this after adding a module or an option.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from forensics.asked import explanation
from forensics.record import schema_text
from forensics.swept import schema_text as sweep_schema_text

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "reports" / "schemas" / "forensics.audit-1.schema.json"
SWEPT = ROOT / "reports" / "schemas" / "forensics.sweep-1.schema.json"
CHECKS = ROOT / "docs" / "checks"
PACKAGES = ("forensics", "probes", "reports")
OTHERS = (
    ("examples/organisms/", "small models with known plants, and the scripts that train them: ground truth"),
    ("examples/benchmarks/", "what measures this tool; prints the tables above"),
    (
        "examples/deployment/",
        "an organism behind a server, users whose traffic changes, and a monitor that follows: `python examples/deployment/run.py`",
    ),
    ("examples/demo.py", "what `make demo` runs"),
    ("examples/dependencies.py", "what `make lint` asks of the advisories"),
    ("tests/", "the house rules, the battery every check faces, and the rest"),
)


def main() -> None:
    """Rewrite all of it in place; or, with --check, say what is not what it would be made."""
    stale = []
    for file, text in made().items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(file.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                file.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"run python examples/readme.py: {', '.join(stale)}")


def made() -> dict[Path, str]:
    """Every file that is made from the code, with its text."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in (("tree", tree()), ("help", help_text())):
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        text = before + opening + block + closing + after
    return {readme: text, SCHEMA: schema_text(), SWEPT: sweep_schema_text(), **check_pages()}


def check_pages() -> dict[Path, str]:
    """A page for each check, from its own docstring, and a list of them."""
    files = [file for file in sorted((ROOT / "forensics" / "checks").glob("*.py")) if file.name != "__init__.py"]
    ids = [file.stem.replace("_", ".", 1).replace("_", "-") for file in files]
    pages = {}
    for id in ids:
        said = explanation(id)
        assert said is not None, id
        parts = "\n\n".join(f"## {heading}\n\n{words}" for heading, words in said.parts.items())
        pages[CHECKS / f"{id}.md"] = (
            f"# {id}\n\n{said.title}\n\n{parts}\n\n(From the check itself; `forensics explain {id}` prints the same.)\n"
        )
    rows = "".join(f"| [{id}]({id}.md) | {said.title} |\n" for id in ids if (said := explanation(id)) is not None)
    pages[CHECKS / "README.md"] = f"# The checks\n\n| check | asks |\n|---|---|\n{rows}"
    return pages


def tree() -> str:
    """One line a module: its path, and the first sentence of its docstring."""
    files = [
        ROOT / "cli.py",
        ROOT / "cli_options.py",
        ROOT / "cli_gate.py",
        ROOT / "cli_canary.py",
        ROOT / "cli_cost.py",
        ROOT / "cli_people.py",
        ROOT / "cli_report.py",
        ROOT / "cli_monitor.py",
        ROOT / "cli_walk.py",
        ROOT / "cli_watch.py",
        ROOT / "cli_serve.py",
        ROOT / "cli_sweep.py",
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
