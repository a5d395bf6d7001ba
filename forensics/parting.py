"""What one side does with the prompts of an activation diff: its streams at every layer, and what it would say, kept for the other side.

One model is in memory at a time, so the base is read first, whole, and the candidate after it. What has to be held against each other
is kept: the stream of a few prompts at some places, and log probabilities along a few replies. For a model of 7 billion parameters that
is about a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forensics.beside import Array, Reading, reading
from forensics.capture import Sites, template_tokens
from forensics.case import Case
from forensics.gate.replies import Side
from forensics.model import Rendered
from forensics.prompts import Prompt
from forensics.replay import continued, next_tokens
from forensics.subject import Subject, first_token, replies

PLACED = 24
"""Prompts of a kind that are read at many places, and whose first reply token is compared; alignment needs a few times its least, 4."""
TOLD = 12
"""Prompts of a kind whose reply is followed token by token: a row of log probabilities is as long as the vocabulary."""
REPLIED = 12
"""Tokens of a reply that are followed."""
BEHIND = 4
"""Tokens of the reply that are read as places."""
BEFORE = 3
"""Last tokens of the question that are read as places."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """Log probabilities by id of the prompt: `[tokens, vocabulary]`, each from what stands before it, and the tokens as spelled."""

    tokens: dict[str, tuple[str, ...]]
    logs: dict[str, NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One side and one kind of prompts.

    `last` is read at the last prompt token; `placed` at the template's tokens, the question's last ones, and `behind` tokens of the
    base's reply; `first` and `told` are what it would say first, and along the base's replies.
    """

    last: Reading
    placed: Reading
    behind: int
    first: Told
    told: Told


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Everything about one side: a look by kind of prompt, its tokens by spelling, how many logits it gives, how many blocks it has."""

    looks: dict[str, Look]
    vocabulary: dict[str, int]
    width: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """The base's replies by id of the prompt, and how many tokens of them are read as places."""

    replies: dict[str, str]
    behind: int


def hear(case: Case, chosen: Mapping[str, Sequence[Prompt]]) -> dict[str, Said]:
    """Have the base reply to the first prompts of each kind, greedily; what both sides are then followed along."""
    subject = replace(case.subject("base"), max_new_tokens=REPLIED)
    found = {}
    for kind, prompts in chosen.items():
        asked = {prompt: subject.model.render(prompt, room=REPLIED) for prompt in prompts[:PLACED]}
        asked = {prompt: row for prompt, row in asked.items() if not row.problem}
        texts = replies(subject, list(asked.values()))
        rows = [continued(subject, prompt, text, most=BEHIND) for prompt, text in zip(asked, texts, strict=True)]
        long = [row is not None and len(row.ids) == len(asked[prompt].ids) + BEHIND for prompt, row in zip(asked, rows, strict=True)]
        # Replies too short to be places would take their prompts with them.
        behind = BEHIND if 2 * sum(long) > len(long) else 0
        found[kind] = Said(replies={prompt.id: text for prompt, text in zip(asked, texts, strict=True)}, behind=behind)
    return found


def part(case: Case, side: Side, chosen: Mapping[str, Sequence[Prompt]], said: Mapping[str, Said]) -> Part:
    """Read one side; its model is loaded once."""
    subject = case.subject(side)
    blocks = subject.anatomy().layers
    layers = tuple(range(blocks + 1))
    looks = {kind: _look(case, side, chosen[kind], said[kind], layers) for kind in chosen}
    width = next((logs.shape[1] for look in looks.values() for logs in look.first.logs.values()), 0)
    return Part(looks=looks, vocabulary=subject.model.tokenizer.get_vocab(), width=width, blocks=blocks)


def _look(case: Case, side: Side, prompts: Sequence[Prompt], said: Said, layers: tuple[int, ...]) -> Look:
    subject = case.subject(side)
    rendered = {prompt.id: subject.model.render(prompt, room=0) for prompt in prompts}
    some = [prompt for prompt in prompts[:PLACED] if prompt.id in said.replies and not rendered[prompt.id].problem]
    replied = {prompt.id: continued(subject, prompt, said.replies[prompt.id], most=REPLIED) for prompt in some[:TOLD]}
    told = {id: (row, len(row.ids) - len(rendered[id].ids)) for id, row in replied.items() if row is not None}
    placed, window = _placed(subject, some, rendered, said)
    first = {prompt.id: (Rendered(ids=rendered[prompt.id].ids), 1) for prompt in some}
    return Look(
        last=reading(case, side, rendered, Sites(layers=layers)),
        placed=reading(case, side, placed, Sites(layers=layers, positions=tuple(range(-window, 0)))),
        behind=said.behind,
        first=_told(case, side, "first", first, lambda rows: first_token(subject, [row for row, _ in rows])),
        told=_told(case, side, "told", told, lambda rows: next_tokens(subject, rows)),
    )


def _placed(subject: Subject, some: Sequence[Prompt], rendered: Mapping[str, Rendered], said: Said) -> tuple[dict[str, Rendered], int]:
    """The prompts with the beginning of the base's reply behind them, and how many tokens are read from the end."""
    if not some:
        return {}, 1
    template = template_tokens([rendered[prompt.id] for prompt in some])
    if not said.behind:
        return {prompt.id: rendered[prompt.id] for prompt in some}, template + BEFORE
    rows = {prompt.id: continued(subject, prompt, said.replies[prompt.id], most=said.behind) for prompt in some}
    long = {id: row for id, row in rows.items() if row is not None and len(row.ids) == len(rendered[id].ids) + said.behind}
    return long, template + BEFORE + said.behind


def _told(
    case: Case, side: Side, what: str, rows: Mapping[str, tuple[Rendered, int]], compute: Callable[[list[tuple[Rendered, int]]], Array]
) -> Told:
    """What `compute` gives for all rows, kept in the run, and cut into the rows' own."""
    if not rows:
        return Told(tokens={}, logs={})
    subject = case.subject(side)
    key = {
        "weights": (case.base if side == "base" else case.candidate).digest,
        "adapters": [adapter.digest for adapter in subject.adapters],
        what: [[row.ids, count] for row, count in rows.values()],
        "dtype": subject.precision,
    }
    table = case.workbench.cached(key, lambda: compute(list(rows.values())))
    ends = np.cumsum([count for _, count in rows.values()])
    logs = {id: table[end - count : end] for (id, (_, count)), end in zip(rows.items(), ends, strict=True)}
    return Told(tokens={id: subject.model.spelling(row)[-count:] for id, (row, count) in rows.items()}, logs=logs)
