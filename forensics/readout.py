"""What the change of the weights reads and writes, in tokens: which ones it listens to, which ones it makes likelier, whose rows moved.

A matrix that reads the residual stream listens along the right singular vectors of its change; one that writes to it promotes what
lies along the left ones. Only the first layers read a stream that still holds the tokens' own embeddings, and only the last write what
the head reads, so others are not asked. The norms' gains are left out: this finds what is plain, a token that the change of a first
layer was made for and that stands far outside of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from forensics.case import Case
from forensics.differ import measured, spread, transposed
from forensics.record import canonical_json, sha256_text
from forensics.roles import MATRICES, WRITES, place
from forensics.tokenizing import token_texts

if TYPE_CHECKING:
    import torch

    from forensics.alignment import Pair
    from probes.differ import Profile

LONGEST = 60
"""Characters of a token's text that may be tried in prompts, and are shown."""
A_DIRECTION = 3
"""Tokens that one direction may name."""
DEEPEST = 8
"""Strongest directions of a matrix that are read: what a change was made for is among them, and every one costs a pass over the vocabulary."""
LISTED = 48
"""Tokens kept of each sort."""
NEAR = 0.25
"""Share of the layers that count as the first ones, or the last."""
FEW_ROWS = 0.02
"""Share of the vocabulary up to which rows that changed are single rows, each of them telling."""
OUTLIER = 3.0
"""Of a vocabulary that moved as a whole: times as far as the last of those that moved most, from which on a row stands out."""
Sort = Literal["listens", "promotes", "moved"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One token: how it came to be named, its row and text, by which tensor, and how far it stands out.

    `value` is in standard deviations of the vocabulary's cosines, or for `moved` ||dE|| / ||E|| of the row. `text` is empty where
    the tokenizer cannot be read. `chance` is how far the furthest of `tokens` tokens would stand out in any of the directions asked,
    were cosines Gaussian; 0.0 for `moved`.
    """

    sort: Sort
    token: int
    text: str
    tensor: str
    value: float
    chance: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Readings:
    """All that was read, the furthest out first, and the texts of all tokens that it may be asked about."""

    rows: tuple[Reading, ...] = ()
    texts: dict[int, str] = field(default_factory=dict)

    def name(self, token: int) -> str:
        """How a token is shown: its text, cut if it is long, or its number."""
        return self.texts.get(token, "")[:LONGEST] or f"token {token}"

    def of(self, sort: Sort) -> list[Reading]:
        """Those of one sort."""
        return [row for row in self.rows if row.sort == sort]

    def suspects(self) -> list[str]:
        """Texts that may be part of a trigger: tokens that the change listens to, and those whose rows moved, in turn."""
        listens, moved = ([row.text.strip() for row in self.of(sort)] for sort in ("listens", "moved"))
        ordered = [text for pair in zip([*listens, *[""] * len(moved)], [*moved, *[""] * len(listens)], strict=True) for text in pair]
        told = [text for text in dict.fromkeys(ordered) if any(map(str.isalnum, text)) and text.isprintable()]
        return [text for text in told if len(text) <= LONGEST]


def readings(case: Case) -> Readings:
    """Read the change of every matrix against the vocabulary; done once a run and configuration.

    Where the change of a matrix has more resolved directions than `DEEPEST`, the weaker ones are not asked: a token that only they
    stand for is not named.
    """
    sides = [case.base.digest, case.candidate.digest, *(adapter.digest for adapter in case.adapters)]
    return case.workbench.remembered(f"readings {sha256_text(canonical_json(sides))}", lambda: _read(case))


def _read(case: Case) -> Readings:
    profiles = measured(case)
    places = {place(pair.name).role: pair for pair in case.pairs if place(pair.name).role in ("embedding", "head")}
    embedding = places.get("embedding")
    if embedding is None or any(len(pair.base.shape) != 2 for pair in places.values()):
        return Readings()
    found: list[tuple[Sort, int, str, float, float]] = []
    sorts: tuple[tuple[Sort, Pair], ...] = (("listens", embedding), ("promotes", places.get("head", embedding)))
    asked = [(sort, pair, *_directions(case, profiles, sort, pair.base.shape[1])) for sort, pair in sorts]
    for matrix in {pair.name: pair for _, pair, _, names in asked if names}.values():
        # A tied matrix is passed over once for both.
        here = [(sort, directions, names) for sort, pair, directions, names in asked if pair.name == matrix.name]
        found += _stand_out(case, matrix, here)
    for pair in places.values():
        found += [("moved", row, pair.name, share, 0.0) for row, share in _moved(profiles[pair.name])]
    moved = {row for pair in places.values() for row, _ in profiles[pair.name].moved}
    texts = token_texts(case.base, sorted({row[1] for row in found} | moved))
    best = [
        Reading(
            sort=sort, token=token, text=texts.get(token, ""), tensor=name, value=value, chance=chance, tokens=embedding.base.shape[0]
        )
        for sort, token, name, value, chance in sorted(found, key=lambda row: (-row[3], row[1]))
    ]  # fmt: skip
    kept = [_once(best, sort)[:LISTED] for sort in ("listens", "promotes", "moved")]
    return Readings(rows=tuple(row for rows in kept for row in rows), texts=texts)


def _once(rows: Sequence[Reading], sort: str) -> list[Reading]:
    """Each token of a sort at its furthest."""
    first: dict[int, Reading] = {}
    for row in rows:
        if row.sort == sort:
            first.setdefault(row.token, row)
    return list(first.values())


def _directions(case: Case, profiles: dict[str, Profile], sort: str, width: int) -> tuple[torch.Tensor, list[str]]:
    """Directions of the residual stream `[width, k]` that changed matrices read or write, and the names of the matrices.

    Of each matrix at most the `DEEPEST` strongest that its spectrum resolves.
    """
    import torch  # heavy

    roles = WRITES if sort == "promotes" else tuple(role for role in MATRICES if role not in WRITES)
    vectors, names = [], []
    depth = len(case.layout.layers)
    near = max(1, round(NEAR * depth))
    layers = range(depth - near, depth) if sort == "promotes" else range(near)
    for pair in case.pairs:
        where, profile = place(pair.name), profiles[pair.name]
        role = where.role
        if (
            role not in roles
            or where.layer not in layers
            or profile.spectrum is None
            or not profile.spectrum.resolved
            or not profile.spectrum.rank
        ):
            continue
        left = (role in WRITES) != transposed(case, role)
        side, entries = (profile.spectrum.left, profile.rows) if left else (profile.spectrum.right, profile.columns)
        thinned = profile.thinned > 1 and (profile.columns is None) == left
        if profile.shape[0 if left else 1] == width and not thinned:  # not where the stream's own axis was thinned
            side = spread(side[:, : min(DEEPEST, profile.spectrum.rank)], entries, width)
            vectors.append(side)
            names += [pair.name] * side.shape[1]
    return (torch.cat(vectors, dim=1) if vectors else torch.zeros(width, 0)), names


def _stand_out(case: Case, pair: Pair, asked: Sequence[tuple[Sort, torch.Tensor, list[str]]]) -> list[tuple[Sort, int, str, float, float]]:
    """Rows of the base's vocabulary that lie further along a direction than chance has it.

    Returns:
        Sort, row, tensor, standard deviations, and how many of them chance reaches.
    """
    import torch  # heavy

    from probes.readout import Readout, finite

    directions = torch.cat([part for _, part, _ in asked], dim=1)
    labels = [(sort, name) for sort, _, names in asked for name in names]
    total, count = directions.new_zeros(directions.shape[0]).double(), 0
    for block in case.base.blocks(pair.base.name):
        # In float64: one long row would otherwise cost all others their digits.
        total, count = total + finite(block.float()).sum(dim=0, dtype=torch.float64), count + len(block)
    readout = Readout(directions=directions, centre=(total / max(1, count)).float(), most=A_DIRECTION)
    for block in case.base.blocks(pair.base.name):
        readout.update(block)
    far, tokens = readout.peaks()
    return [
        (sort, int(token), name, float(value), readout.chance)
        for column, (sort, name) in enumerate(labels)
        for value, token in zip(far[:, column], tokens[:, column], strict=True)
        if float(value) > readout.chance
    ]


def _moved(profile: Profile) -> list[tuple[int, float]]:
    """Rows of a vocabulary matrix that moved more than the rest: all of them where few did."""
    if not profile.moved:
        return []
    if profile.rows_changed <= max(len(profile.moved), FEW_ROWS * profile.shape[0]):
        return list(profile.moved)
    last = profile.moved[-1][1]
    return [(row, share) for row, share in profile.moved if share >= OUTLIER * last]
