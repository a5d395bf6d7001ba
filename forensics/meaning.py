"""What the difference between two models says: put into the candidate's own words by three readouts.

The mean difference of activations on unrelated text is a direction of the residual stream. It is read by the final norm and the
unembedding (logit lens), in place of the last token of a prompt that asks for a repetition (patchscope), and added to everything while
neutral text is read (steering). Control directions of the same length go through the same three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from forensics.errors import CannotCompare, ToolFailed
from forensics.interventions import changing
from forensics.subject import Subject, first_token

if TYPE_CHECKING:
    from forensics.model import Rendered

Array: TypeAlias = NDArray[np.floating]
IDENTITY = (
    "man -> man\n1135 -> 1135\nhello -> hello\n?",
    "bear -> bear\n42 -> 42\nblue -> blue\n?",
    "921 -> 921\ntarget -> target\nanna -> anna\n?",
)
"""Prompts that ask for the repetition of whatever stands at their last token: those of the diffing toolkit."""

HINT = "look at the tokenizer (files.surface), or leave this check out with --max-cost weights"


def read_out(subject: Subject, layer: int, vectors: Array, neutral: Sequence[Rendered]) -> dict[str, NDArray[np.float32]]:
    """What directions say, by readout: `[k, vocabulary]`, float32.

    Args:
        subject: The model that is read with.
        layer: Block whose input they are directions of.
        vectors: `[k, d]`, of the usual length of the residual stream there.
        neutral: Prompts that are steered.

    Raises:
        CannotCompare: The model has no unembedding, or cannot read the prompts.
        ToolFailed: There is not enough memory.
    """
    identity = [subject.model.read(text, room=0) for text in IDENTITY]
    broken = next((row.problem for row in (*identity, *neutral) if row.problem), "")
    if broken:
        raise CannotCompare(f"the {subject.side} cannot read a neutral prompt: {broken}", where=subject.side, hint=HINT)
    return {
        "lens": lens(subject, vectors),
        "patchscope": _mean(patched(subject, layer, vectors, row) for row in identity),
        "steering": _mean(steered(subject, layer, vectors, row) for row in neutral),
    }


def lens(subject: Subject, vectors: Array) -> NDArray[np.float32]:
    """Logits `[k, vocabulary]` of directions `[k, d]` through the final norm and the unembedding; the norm discards their length.

    Raises:
        CannotCompare: The model has no unembedding.
    """
    parts = subject.anatomy()
    head = parts.unembedding
    if head is None:
        raise CannotCompare(f"the unembedding of the {subject.side} was not found", where=subject.side, hint=HINT)
    weight = next(parts.embedding.parameters())
    rows = []
    with subject.model.wearing(subject.adapters), torch.inference_mode():
        for start in range(0, len(vectors), subject.batch_size):
            states = torch.tensor(np.asarray(vectors[start : start + subject.batch_size]), dtype=weight.dtype, device=weight.device)
            rows.append(head(states if parts.final_norm is None else parts.final_norm(states)).float().cpu())
    return np.asarray(torch.cat(rows).numpy(), dtype=np.float32)


def patched(subject: Subject, layer: int, vectors: Array, row: Rendered) -> NDArray[np.float32]:
    """Log probabilities `[k, vocabulary]` of what follows `row` when each of `vectors` stands in place of its last token at `layer`."""

    def put(x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        changed = x.clone()
        changed[:, -1] = chunk.to(x.dtype)
        return changed

    return _under(subject, layer, vectors, row, put)


def steered(subject: Subject, layer: int, vectors: Array, row: Rendered) -> NDArray[np.float32]:
    """By how much log probabilities `[k, vocabulary]` after `row` rise when each of `vectors` is added at `layer` to every token."""

    def put(x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        return (x.float() + chunk.unsqueeze(1)).to(x.dtype)

    return np.asarray(_under(subject, layer, vectors, row, put) - first_token(subject, [row]), dtype=np.float32)


def _under(
    subject: Subject, layer: int, vectors: Array, row: Rendered, put: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> NDArray[np.float32]:
    rows = []
    for start in range(0, len(vectors), subject.batch_size):
        chunk = torch.tensor(np.asarray(vectors[start : start + subject.batch_size]), dtype=torch.float32)

        def change(x: torch.Tensor, chunk: torch.Tensor = chunk) -> torch.Tensor:
            if len(x) != len(chunk):  # memory ran out, and a part of the batch would meet the wrong directions
                raise ToolFailed(
                    "there is not enough memory", where=subject.side, hint="use a smaller --batch-size; the same command resumes"
                )
            return put(x, chunk.to(x.device))

        with changing(subject, change, layer):
            rows.append(first_token(replace(subject, batch_size=len(chunk)), [row] * len(chunk)))
    return np.concatenate(rows)


def _mean(tables: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    total, count = next(tables), 1
    for table in tables:
        total, count = total + table, count + 1
    return np.asarray(total / count, dtype=np.float32)
