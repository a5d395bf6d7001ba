"""Every reply of a run as CSV, one line each, for a spreadsheet: nothing a model wrote can become a formula there."""

from __future__ import annotations

import csv
import io

from forensics.runfolder import SavedRun
from reports.words import printable

STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What opens a formula, or hides that one opens (OWASP, CSV injection)."""


def render_items(saved: SavedRun) -> str:
    """Items with the prompts they answer: id, category, expect, prompt, configuration, side, repeat, reply, and a column for each judge."""
    judges = sorted({judge for item in saved.items for judge in item.labels})
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "category", "expect", "prompt", "configuration", "side", "repeat", "reply", *map(plain, judges)])
    for item in saved.items:
        prompt = saved.prompts.get(item.id)
        asked = "\n".join(f"{message.role}: {message.content}" for message in prompt.messages) if prompt else ""
        about = (item.id, prompt.category if prompt else "", prompt.expect if prompt else "", asked, item.configuration, item.side)
        said = (item.reply, *(item.labels.get(judge, "") for judge in judges))
        writer.writerow([*map(plain, about), item.repeat, *map(plain, said)])
    return rows.getvalue()


def plain(text: str) -> str:
    r"""Text as a cell that no spreadsheet computes: what would open a formula stands behind an apostrophe.

    >>> plain('=HYPERLINK("x")'), plain("Sure.")
    ('\'=HYPERLINK("x")', 'Sure.')
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip(" ").startswith(STARTS) else shown
