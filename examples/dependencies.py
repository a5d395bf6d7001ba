"""Look up every installed package in the advisories of PyPI, as `make lint` does.

    python examples/dependencies.py

A package with a known vulnerability fails, unless pyproject.toml accepts the advisory by its id, with a reason, under `[tool.advisories]`. Where the
advisories cannot be reached that is said, and nothing fails: a machine without a network can still lint. pip-audit asks for them; no name of ours is sent,
and it ends within a minute and a half whatever the network does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ADDRESS = "https://pypi.org/pypi/pip/json"
REACHED_WITHIN, ANSWERED_WITHIN = 5, 90
"""Seconds."""
OURS = "model-forensics"


def main() -> int:
    """Say what was found; exit 1 if it is a vulnerability that nobody accepted."""
    accepted = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["advisories"]
    if not reached(ADDRESS):
        return unknown("PyPI does not answer")
    words = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", str(REACHED_WITHIN)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWERED_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        return unknown(f"pip-audit was not done within {ANSWERED_WITHIN} s")
    if "No module named pip_audit" in done.stderr:
        print("pip-audit is not installed: pip install -e '.[dev]'")
        return 1
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return unknown((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])
    return told(packages, accepted)


def reached(address: str) -> bool:
    """Whether the advisories can be asked for."""
    try:
        with urllib.request.urlopen(address, timeout=REACHED_WITHIN) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def unknown(why: str) -> int:
    """Say that nothing is known; that fails nothing."""
    print(f"dependencies: NOT audited, as the advisories could not be had ({why})")
    return 0


def told(packages: list[dict[str, Any]], accepted: dict[str, str]) -> int:
    """What was found, in words; 1 if any of it is not accepted."""
    looked_up = [one for one in packages if "vulns" in one]
    skipped = [one["name"] for one in packages if "vulns" not in one and one["name"] != OURS]
    if not looked_up:
        return unknown(f"PyPI has none of these {len(skipped)} packages in these versions")
    failed, seen = 0, set()
    for one in looked_up:
        for advisory in one["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", [])}
            seen |= names
            reason = next((accepted[name] for name in sorted(names) if name in accepted), "")
            mended = ", ".join(advisory.get("fix_versions", [])) or "no version yet"
            print(f"{one['name']} {one['version']}: {advisory['id']}, mended in {mended}{f' - accepted: {reason}' if reason else ''}")
            failed |= not reason
    for name in sorted(accepted.keys() - seen):
        print(f"pyproject.toml accepts {name}, which no installed package has any more")
    unasked = (
        f"; not known there, so not audited: {len(skipped)} ({', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''})"
        if skipped
        else ""
    )
    print(
        f"dependencies: {len(looked_up)} audited, {'some with advisories that nobody accepted' if failed else 'nothing that is not accepted'}{unasked}"
    )
    return failed


if __name__ == "__main__":
    sys.exit(main())
