"""What a model says next, token by token, along a reply that was given to it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from forensics.errors import ToolFailed, is_out_of_memory
from forensics.model import Rendered
from forensics.subject import Subject

if TYPE_CHECKING:
    from forensics.prompts import Prompt


def continued(subject: Subject, prompt: Prompt, reply: str, *, most: int) -> Rendered | None:
    """`prompt` in this side's chat format with up to `most` tokens of `reply` behind it; None where it cannot be put to it so."""
    asked = subject.model.render(prompt, room=most)
    said = subject.model.tokenizer(reply, add_special_tokens=False)["input_ids"][:most]
    if asked.problem or not said or max(said) >= subject.model.known:
        return None
    return Rendered(ids=(*asked.ids, *map(int, said)))


def next_tokens(subject: Subject, rows: Sequence[tuple[Rendered, int]]) -> NDArray[np.float32]:
    """Log probabilities of the tokens of replies, each from what stands before it, rows one after the other.

    Args:
        subject: The model.
        rows: Token ids, and how many of the last are the reply: they are predicted from what stands before each.

    Returns:
        `[tokens, vocabulary]`, float32, as many tokens of each row as its reply has.

    Raises:
        ToolFailed: One prompt does not fit into memory.
    """
    found = []
    for row, count in rows:
        ids = torch.tensor([row.ids])
        try:
            logits = subject.model.logits(ids, torch.ones_like(ids), adapters=subject.adapters)[0, -1 - count : -1]
            found.append(logits.float().log_softmax(dim=-1).cpu().numpy())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ToolFailed("there is not enough memory for one prompt", where=subject.side, hint="use a larger machine") from error
    return np.concatenate(found).astype(np.float32)
