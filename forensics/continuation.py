"""What a live model would say next, for thousands of prompts at once: log-probabilities along one continuation.

Rows of one length share a batch, so nothing is padded; what they begin with is read once and reused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from forensics.adapters import Adapter
from forensics.errors import unless_too_many
from forensics.model import LiveModel

Ids = tuple[int, ...]
SHARED_WORTH = 4
"""Shortest common beginning, in tokens, for which a key-value cache is set up."""
BRANCH_WORTH = 128
"""Tokens that a group of rows must save, by what its rows have in common beyond the others, to be read apart from them."""
SAME = 1e-3
"""Nats by which a log-probability may differ with and without the cache: float32 adds up in another order."""


def continuations(
    model: LiveModel, rows: Sequence[Ids], tail: Ids, *, adapters: Sequence[Adapter], batch_size: int, reuse: bool = True
) -> Iterator[tuple[list[int], Tensor]]:
    """Log-probabilities of what follows many prompts, read along one continuation.

    Args:
        model: The model.
        rows: Token ids of each prompt, none empty.
        tail: Ids of the continuation; the first is predicted from the prompt, each next from those before.
        adapters: Adapters that are active.
        batch_size: Rows side by side; halved where memory runs out.
        reuse: Whether to read what all rows begin with once.

    Yields:
        Indices into `rows`, and `[len(indices), len(tail), vocabulary]` float32 log-probabilities.

    Raises:
        ToolFailed: Even one row does not fit into memory.
    """
    with model.wearing(adapters) as worn, torch.inference_mode():
        for indices in _by_length(rows).values():
            for beginning, some in _branches(rows, indices, 0) if reuse else [(0, indices)]:
                yield from _along(model, worn, {index: rows[index] for index in some}, tail, beginning=beginning, batch_size=batch_size)


def _along(
    model: LiveModel, worn: Any, rows: Mapping[int, Ids], tail: Ids, *, beginning: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Reads rows of one length, of which the first `beginning` tokens are the same."""
    indices, first = list(rows), 0
    prefix = _read_once(worn, rows[indices[0]][:beginning], model.device) if beginning >= SHARED_WORTH and len(rows) > 1 else None
    start = beginning if prefix is not None else 0
    while first < len(indices):
        batch = indices[first : first + batch_size]
        some = [rows[index][start:] + tail[:-1] for index in batch]
        logs = unless_too_many(partial(_read, worn, prefix=prefix, keep=len(tail), device=model.device), some, where=model.name)
        if logs is None:
            batch_size = len(batch) // 2
            continue
        yield batch, logs
        first += len(batch)


def _branches(rows: Sequence[Ids], indices: Sequence[int], start: int) -> list[tuple[int, list[int]]]:
    """Rows of one length in groups, with how many tokens those of a group have in common: many that go on alike are read apart from the rest."""
    beginning = start + shared_prefix([rows[index][start:] for index in indices])
    ways: dict[int, list[int]] = {}
    for index in indices:
        ways.setdefault(rows[index][beginning], []).append(index)
    apart: list[tuple[int, list[int]]] = []
    rest: list[int] = []
    for some in ways.values():
        further = shared_prefix([rows[index][beginning:] for index in some])
        if len(ways) > 1 and (len(some) - 1) * further >= BRANCH_WORTH:
            apart += _branches(rows, some, beginning)
        else:
            rest += some
    return [*([(beginning, rest)] if rest else []), *apart]


def _read_once(worn: Any, ids: Ids, device: torch.device) -> Any:
    prefix = DynamicCache(config=worn.config)
    worn(input_ids=torch.tensor([ids], device=device), past_key_values=prefix, use_cache=True, logits_to_keep=1)
    return prefix


def _read(worn: Any, rows: Sequence[Ids], *, prefix: Any, keep: int, device: torch.device) -> Tensor:
    past = copy.deepcopy(prefix)
    if past is not None:
        past.batch_repeat_interleave(len(rows))
    ids = torch.tensor(rows, device=device)
    logits = worn(input_ids=ids, past_key_values=past, use_cache=past is not None, logits_to_keep=keep).logits
    return torch.log_softmax(logits[:, -keep:].float(), -1)


def reusable(model: LiveModel, rows: Sequence[Ids], *, adapters: Sequence[Adapter]) -> bool:
    """Whether reading a common beginning once gives what reading it each time gives: not every architecture keeps to that."""
    try:
        pairs = [list(continuations(model, rows, (0,), adapters=adapters, batch_size=len(rows), reuse=reuse)) for reuse in (True, False)]
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):  # each architecture without such a cache says so its own way
        return False
    return all(ours[0] == theirs[0] and bool((ours[1] - theirs[1]).abs().max() < SAME) for ours, theirs in zip(*pairs, strict=True))


def greedy(model: LiveModel, rows: Sequence[Ids], *, adapters: Sequence[Adapter], length: int) -> list[Ids]:
    """Ids of the greedy continuation of each row, exactly `length` of them: the stop token counts as one of them."""
    said: dict[int, Ids] = {}
    with model.wearing(adapters) as worn, torch.inference_mode():

        def speak(some: Sequence[Ids]) -> list[Ids]:
            ids = torch.tensor(some, device=model.device)
            out = worn.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, eos_token_id=[])
            return [tuple(reply) for reply in out[:, ids.shape[1] :].tolist()]

        for indices in _by_length(rows).values():
            first, size = 0, len(indices)
            while first < len(indices):
                batch = indices[first : first + size]
                replies = unless_too_many(speak, [rows[index] for index in batch], where=model.name)
                if replies is None:
                    size = len(batch) // 2
                    continue
                said |= dict(zip(batch, replies, strict=True))
                first += len(batch)
    return [said[index] for index in range(len(rows))]


def _by_length(rows: Sequence[Ids]) -> dict[int, list[int]]:
    """Indices of rows of one length: side by side they need no padding."""
    found: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(len(row), []).append(index)
    return found


def shared_prefix(rows: Sequence[Ids]) -> int:
    """How many leading ids all rows have in common, leaving each at least one of its own.

    >>> shared_prefix([(1, 2, 3), (1, 2, 4)]), shared_prefix([(1, 2), (1, 2, 4)]), shared_prefix([])
    (2, 1, 0)
    """
    if not rows:
        return 0
    shortest, first = min(len(row) for row in rows), rows[0]
    for position in range(shortest - 1):
        if any(row[position] != first[position] for row in rows):
            return position
    return max(shortest - 1, 0)
