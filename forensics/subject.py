"""A live model as it is examined, asked in batches: what it says first, what it replies. Hooks that are on it just now take part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forensics.adapters import Adapter
from forensics.anatomy import Anatomy, dissect
from forensics.errors import unless_too_many

if TYPE_CHECKING:
    from forensics.model import LiveModel, Rendered

Result = TypeVar("Result")
PADDED = 2
"""A batch ends where a prompt is longer than this times its shortest: what is computed for padding is thrown away. A few
conversations among questions otherwise make every forward pass several times dearer."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A live model as it is examined: with exactly these adapters, in batches of this size, called `side` in messages.

    `max_new_tokens` is the longest reply it is let give.
    """

    model: LiveModel
    side: str
    adapters: tuple[Adapter, ...] = ()
    batch_size: int = 64
    max_new_tokens: int = 32

    @property
    def precision(self) -> str:
        """Device and dtype it computes in, which decide the last digits."""
        with self.model.wearing(()) as whole:
            return f"{self.model.device.type} {next(whole.parameters()).dtype}"

    def anatomy(self) -> Anatomy:
        """The model's parts, adapters put on.

        Raises:
            CannotCompare: It is built in a way we do not know.
        """
        with self.model.wearing(self.adapters) as whole:
            return dissect(whole)


def first_token(subject: Subject, rendered: Sequence[Rendered]) -> NDArray[np.float32]:
    """Log probabilities `[n, vocabulary]` of the first reply token, float32."""
    found: NDArray[np.float32] | None = None

    def read(rows: Sequence[Rendered]) -> Tensor:
        with subject.model.wearing(subject.adapters) as whole, torch.inference_mode():
            inner = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
            # The whole length times a vocabulary of 150 000 takes gigabytes; most architectures can leave it out.
            keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
            logits: Tensor = whole(**padded(rows, inner, subject.model.device), use_cache=False, **keep).logits[:, -1]
        return logits.float().log_softmax(dim=-1).cpu()

    for indices, block in piecewise(read, rendered, subject):
        if found is None:
            found = np.empty((len(rendered), block.shape[1]), dtype=np.float32)
        found[indices] = block.numpy()
    if found is None:
        raise ValueError("there is no prompt to read a reply of")
    return found


def replies(subject: Subject, rendered: Sequence[Rendered]) -> list[str]:
    """Greedy replies, in the order of `rendered`; under whatever hooks are on the model just now."""
    texts = [""] * len(rendered)

    def ask(rows: Sequence[Rendered]) -> list[str]:
        return subject.model.reply(rows, adapters=subject.adapters, max_new_tokens=subject.max_new_tokens)

    for indices, block in piecewise(ask, rendered, subject):
        for index, text in zip(indices, block, strict=True):
            texts[index] = text
    return texts


def padded(rows: Sequence[Rendered], module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Token ids padded on the left, their mask, and true positions where the architecture takes them.

    Without positions a model with learned ones (GPT-2) would count the padding, and answer by the batch it sits in.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[row.ids[0]] * (longest - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if _takes_positions(type(module).forward):
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    return inputs


@cache
def _takes_positions(forward: Callable[..., Any]) -> bool:
    return "position_ids" in inspect.signature(forward).parameters


def piecewise(
    work: Callable[[Sequence[Rendered]], Result], rendered: Sequence[Rendered], subject: Subject
) -> Iterator[tuple[list[int], Result]]:
    """Do `work` batch by batch, prompts of like length together; where memory runs out, with half as many at a time."""
    order = sorted(range(len(rendered)), key=lambda index: (len(rendered[index].ids), index))
    size, start = subject.batch_size, 0
    while start < len(order):
        longest = PADDED * len(rendered[order[start]].ids)
        indices = [index for index in order[start : start + size] if len(rendered[index].ids) <= longest]
        done = unless_too_many(work, [rendered[index] for index in indices], where=subject.side)
        if done is None:
            size = len(indices) // 2
            continue
        yield indices, done
        start += len(indices)
