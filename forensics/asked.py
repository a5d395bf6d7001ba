"""What a check says of itself, read from its file: no check is imported for it, so it costs nothing and needs no torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HEADINGS = ("Asks", "Reads", "Reports", "Blind to", "Source")
CHECKS = Path(__file__).parent / "checks"
NAME = re.compile(r"[a-z0-9-]+\.[a-z0-9-]+")
"""An id of a check; nothing else may become a part of a path."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The docstring of a check: its first line, and what stands under each heading, by the heading, lines joined."""

    title: str
    parts: dict[str, str]


def explanation(check: str) -> Explanation | None:
    """What the check with this id says of itself; None for one that is not ours, such as an outside check, or one of another version.

    >>> explanation("weights.edit-kind").title
    'What was done to the weights?'
    """
    if not NAME.fullmatch(check):
        return None
    file = CHECKS / f"{check.replace('.', '_').replace('-', '_')}.py"
    if not file.is_file():
        return None
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    title, _, rest = text.partition("\n")
    parts = re.split(rf"^({'|'.join(HEADINGS)}):", rest, flags=re.MULTILINE)[1:]
    return Explanation(
        title=title.strip(), parts={name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)}
    )
