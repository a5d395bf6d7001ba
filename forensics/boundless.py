"""What would make a library take memory without end while it merely loads a folder: refused before it is asked to."""

from __future__ import annotations

from typing import Any

from forensics.checkpoint import Checkpoint
from forensics.errors import CannotCompare
from forensics.surface import Folder
from forensics.tokenizing import LARGEST_ID, MOST_GROWTH, growth, largest_id

LONGEST_LIST = 10_000
"""How long the lists are that transformers may make of a config: one an entry of `num_labels` or layer."""


def refuse_boundless(weights: Checkpoint, surface: Folder) -> None:
    """Refuse a model, and what its tokenizer comes from, that could not be loaded within any memory.

    Raises:
        CannotCompare: Its config makes lists of a length that no model has; or its tokenizer gives tokens ids that no vocabulary has, or
            could lengthen a text without end.
        BadInput: A file of the tokenizer is damaged.
    """
    what = ""
    if unfolds(weights.config):
        what = "its config asks for more layers or labels than any model has"
    elif largest_id(surface) > LARGEST_ID:
        what = "its tokenizer gives tokens ids that no vocabulary has"
    elif growth(surface) > MOST_GROWTH:
        what = "its tokenizer could lengthen a text without end"
    if what:
        raise CannotCompare(
            f"the model cannot be loaded: {what}",
            where=weights.name,
            hint="such files were made by hand; look at the folder before anything else",
        )


def unfolds(config: dict[str, Any]) -> bool:
    """Whether transformers would make a list of a length that no model has: one entry a layer or label fills any memory."""
    stack: list[Any] = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            counts = [one for key, one in value.items() if "layer" in key or "label" in key]
            if any(isinstance(one, int | float) and one > LONGEST_LIST for one in counts):
                return True
    return False
