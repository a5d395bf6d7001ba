"""Read the activations of a live model: plain forward hooks, batch by batch.

Sites and tokens are named by `forensics.sites`. Layer `l` of `L` means `blocks.l.hook_resid_pre` for l < L and the last block's output,
before the final norm, for l = L. (`hidden_states` of transformers agrees up to l = L - 1; its last entry has the final norm applied.)
`read` gives activations as they come, `activations` and `residuals` keep them all, `statistics` and `mean_residual` keep none.

TransformerBridge is not used: it forces eager attention, which costs more than plain hooks do, and it renames the parameters of the model it wraps. Tests hold the two
against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forensics.anatomy import dissect
from forensics.errors import CannotCompare
from forensics.sites import LAST, Spot, listening, locate
from forensics.subject import Subject, padded, piecewise
from probes.moments import DIRECTIONS, Covariance, Mean, Sketch

if TYPE_CHECKING:
    from forensics.model import Rendered

MAX_TEMPLATE_TOKENS = 8
"""Most tokens at the end of a prompt that are looked at; templates of the families we know end in 2 to 6."""


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Where to read: layers from 0 to the number of blocks, and token positions counted from the end (-1 is the last)."""

    layers: tuple[int, ...]
    positions: tuple[int, ...] = (-1,)

    def names(self, blocks: int) -> tuple[str, ...]:
        """The hook names of `layers` in a model of `blocks` blocks."""
        return tuple(site_name(layer, blocks) for layer in self.layers)


def site_name(layer: int, blocks: int) -> str:
    """TransformerLens's name of layer `layer` in a model of `blocks` blocks.

    >>> site_name(0, 4), site_name(4, 4)
    ('blocks.0.hook_resid_pre', 'blocks.3.hook_resid_post')
    """
    return f"blocks.{layer}.hook_resid_pre" if layer < blocks else f"blocks.{blocks - 1}.hook_resid_post"


def template_tokens(rendered: Sequence[Rendered]) -> int:
    """How many last tokens all prompts share: what the chat template puts after the question. At least 1, at most 8."""
    shared = 0
    while shared < min(MAX_TEMPLATE_TOKENS, *(len(row.ids) for row in rendered)):
        if len({row.ids[-1 - shared] for row in rendered}) > 1:
            break
        shared += 1
    return max(1, shared)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What to read: sites by name, and tokens of every text, both as `forensics.sites` describes them."""

    sites: tuple[str, ...]
    spots: tuple[Spot, ...] = (LAST,)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One batch: `values` `[batch, sites, spots, d]`, float32, on the CPU, of the texts at `indices`.

    `there` `[batch, spots]` says which texts reach as far as a spot; where one does not, `values` holds zeros.
    """

    indices: list[int]
    values: Tensor
    there: Tensor


def read(subject: Subject, rendered: Sequence[Rendered], reading: Reading) -> Iterator[Heard]:
    """Activations batch by batch, texts of like length together.

    Args:
        subject: The model.
        rendered: Texts as token ids, none with a problem.
        reading: Where to read.

    Raises:
        BadInput: There is no such site.
        CannotCompare: A value is not finite, a text cannot be put to the model, or its blocks have no such site.
        ToolFailed: Even one text does not fit into memory.
    """
    problem = next((row.problem for row in rendered if row.problem), "")
    if problem:
        count = sum(bool(row.problem) for row in rendered)
        raise CannotCompare(
            f"{count} of {len(rendered)} texts cannot be put to the {subject.side}: {problem}",
            where=subject.side,
            hint="leave them out (LiveModel.render says which), or give shorter ones",
        )
    with subject.model.wearing(subject.adapters) as whole:
        parts = dissect(whole)
        taps = locate(parts, reading.sites)

    def ask(rows: Sequence[Rendered]) -> tuple[Tensor, Tensor]:
        places = _Places.of(rows, reading.spots, subject.model.device)
        held: list[Tensor] = [places.index] * len(taps)

        def keep(site: int, x: Tensor) -> None:
            held[site] = places.pick(x)

        with subject.model.wearing(subject.adapters), listening(taps, keep), torch.inference_mode():
            parts.trunk(**padded(rows, parts.trunk, subject.model.device), use_cache=False)
        return torch.stack([x.float().cpu() for x in held], dim=1), places.there

    for indices, (values, there) in piecewise(ask, rendered, subject):
        broken = ~torch.isfinite(values).all(dim=3).all(dim=2).all(dim=0)
        if broken.any():
            raise CannotCompare(
                f"activations of the {subject.side} are not finite from {reading.sites[int(broken.nonzero()[0, 0])]} on",
                where=subject.side,
                hint="look for NaN or huge weights (weights.change), or run in float32 on a CPU",
            )
        yield Heard(indices=indices, values=values, there=there)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where the spots of a batch are in its padded rows: columns `index` `[batch, spots]` in `rows` `[batch, 1]`; for means over a reply
    the columns `reply` `[batch, length]` that it takes; `mean` says which spots are means, `there` `[batch, spots]` which there are.
    """

    rows: Tensor
    index: Tensor
    reply: Tensor
    mean: tuple[int, ...]
    there: Tensor
    whole: bool

    @classmethod
    def of(cls, rows: Sequence[Rendered], spots: Sequence[Spot], device: torch.device) -> _Places:
        longest = max(len(row.ids) for row in rows)
        tokens = [[spot.tokens(row) for spot in spots] for row in rows]
        pads = [longest - len(row.ids) for row in rows]
        index = [[pad + found.start if found else 0 for found in line] for pad, line in zip(pads, tokens, strict=True)]
        there = torch.tensor([[bool(found) for found in line] for line in tokens])
        return cls(
            rows=torch.arange(len(rows), device=device)[:, None],
            index=torch.tensor(index, device=device),
            reply=torch.arange(longest) >= longest - torch.tensor([row.reply for row in rows])[:, None],
            mean=tuple(place for place, spot in enumerate(spots) if spot.anchor == "reply-mean"),
            there=there,
            whole=bool(there.all()),
        )

    def pick(self, x: Tensor) -> Tensor:
        """`[batch, spots, d]` of activations, in a place of their own; zeros where a row has no such token."""
        wide = x.detach().reshape(*self.reply.shape, -1)  # OPT gives its MLP all tokens in one row
        # Between devices only where accelerate has spread the model; else these stay what they are.
        found = wide[self.rows.to(x.device), self.index.to(x.device)]
        if self.mean:
            mask = self.reply.to(x.device)
            total = torch.where(mask[:, :, None], wide, 0).sum(dim=1, dtype=torch.float32)
            found = found.float()
            found[:, list(self.mean)] = (total / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, None]
        return found if self.whole else torch.where(self.there.to(x.device)[:, :, None], found, 0)


def activations(subject: Subject, rendered: Sequence[Rendered], reading: Reading) -> NDArray[np.float32]:
    """Activations `[n, sites, spots, d]`, float32, in the order of `rendered`; see `read`.

    Raises:
        CannotCompare: A text does not reach as far as a spot; and as `read`.
    """
    found: NDArray[np.float32] | None = None
    for heard in read(subject, rendered, reading):
        if not heard.there.all():
            row, spot = (int(place) for place in (~heard.there).nonzero()[0])
            raise CannotCompare(
                f"text {heard.indices[row] + 1} has no {reading.spots[spot]} in the {subject.side}",
                where=subject.side,
                hint="give longer texts, or read statistics, which count what is there",
            )
        if found is None:
            found = np.empty((len(rendered), *heard.values.shape[1:]), dtype=np.float32)
        found[heard.indices] = heard.values.numpy()
    if found is None:
        raise ValueError("there is no text to read activations of")
    return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What is kept beside count and mean: nothing, the whole covariance, or a sketch of its `directions` strongest directions."""

    kind: Literal["mean", "covariance", "sketch"] = "mean"
    directions: int = DIRECTIONS

    def empty(self, width: int) -> Mean:
        """An accumulator that has seen nothing."""
        if self.kind == "sketch":
            return Sketch(width, size=self.directions)
        return Covariance(width) if self.kind == "covariance" else Mean(width)


def statistics(subject: Subject, rendered: Sequence[Rendered], reading: Reading, spread: Spread | None = None) -> list[list[Mean]]:
    """Count, mean and spread of activations at every site and spot, in one pass and in memory that does not grow with the texts.

    Returns:
        For every site a list by spot. Texts that do not reach as far as a spot are not in its count, which may be 0.

    Raises:
        CannotCompare, ToolFailed: As `read`.
    """
    how = spread or Spread()
    seen: list[list[Mean]] = []
    for heard in read(subject, rendered, reading):
        values, there = heard.values.numpy(), heard.there.numpy()
        if not seen:
            seen = [[how.empty(values.shape[3]) for _ in reading.spots] for _ in reading.sites]
        for site, line in enumerate(seen):
            for spot, accumulator in enumerate(line):
                accumulator.add(values[there[:, spot], site, spot])
    if not seen:
        raise ValueError("there is no text to read activations of")
    return seen


def reading_of(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> Reading:
    """`sites` by name, in the model of `subject`.

    Raises:
        CannotCompare: A prompt is shorter than the positions ask for.
    """
    reach = -min(sites.positions)
    if any(len(row.ids) - row.reply < reach and not row.problem for row in rendered):
        raise CannotCompare(f"a prompt has fewer than {reach} tokens in the {subject.side}", where=subject.side, hint="give longer prompts")
    spots = tuple(Spot(anchor="prompt", offset=position) for position in sites.positions)
    return Reading(sites=sites.names(subject.anatomy().layers), spots=spots)


def stream(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> Iterator[tuple[list[int], Tensor]]:
    """The residual stream batch by batch: indices into `rendered`, and `[batch, layers, positions, d]`, float32, on the CPU.

    Raises:
        CannotCompare, ToolFailed: As `read` and `reading_of`.
    """
    for heard in read(subject, rendered, reading_of(subject, rendered, sites)):
        yield heard.indices, heard.values


def residuals(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> NDArray[np.float32]:
    """The residual stream `[n, layers, positions, d]`, float32, in the order of `rendered`; raises as `stream`."""
    return activations(subject, rendered, reading_of(subject, rendered, sites))


def mean_residual(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> NDArray[np.float64]:
    """Mean of the residual stream `[layers, positions, d]` over the prompts, in float64; no prompt's activations are kept."""
    seen = statistics(subject, rendered, reading_of(subject, rendered, sites))
    return np.stack([np.stack([place.mean for place in line]) for line in seen])
