"""Read the activations of a live model, and steer it: plain forward hooks, batch by batch.

Sites and tokens are named by `forensics.sites`. Layer `l` of `L` means `blocks.l.hook_resid_pre` for l < L and the last block's output,
before the final norm, for l = L. (`hidden_states` of transformers agrees up to l = L - 1; its last entry has the final norm applied.)
`read` gives activations as they come, `activations` and `residuals` keep them all, `statistics` and `mean_residual` keep none.

TransformerBridge is not used: it forces eager attention, which costs more than plain hooks do, and it renames the parameters of the model it wraps. Tests hold the two
against each other.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forensics.adapters import Adapter
from forensics.anatomy import Anatomy, dissect
from forensics.errors import CannotCompare, ToolFailed, is_out_of_memory
from forensics.sites import LAST, Spot, listening, locate
from probes.moments import DIRECTIONS, Covariance, Mean, Sketch

if TYPE_CHECKING:
    from forensics.model import LiveModel, Rendered

Result = TypeVar("Result")
PADDED = 2
"""A batch ends where a prompt is longer than this times its shortest: what is computed for padding is thrown away. A few
conversations among questions otherwise make every forward pass several times dearer."""
MAX_TEMPLATE_TOKENS = 8
"""Most tokens at the end of a prompt that are looked at; templates of the families we know end in 2 to 6."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A live model as it is examined: with exactly these adapters, in batches of this size, called `side` in messages.

    `max_new_tokens` is the longest reply it is let give.
    """

    model: LiveModel
    side: str
    adapters: tuple[Adapter, ...] = ()
    batch_size: int = 32
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


def stream(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> Iterator[tuple[list[int], Tensor]]:
    """The residual stream batch by batch, prompts of like length together.

    Args:
        subject: The model.
        rendered: Prompts as token ids, none with a problem.
        sites: Where to read.

    Yields:
        Indices into `rendered`, and `[batch, layers, positions, d]`, float32, on the CPU.

    Raises:
        CannotCompare: A value is not finite, or a prompt is shorter than the positions ask for.
        ToolFailed: Even one prompt does not fit into memory.
    """
    reach = -min(sites.positions)
    if any(len(row.ids) - row.reply < reach and not row.problem for row in rendered):
        raise CannotCompare(f"a prompt has fewer than {reach} tokens in the {subject.side}", where=subject.side, hint="give longer prompts")
    spots = tuple(Spot(anchor="prompt", offset=position) for position in sites.positions)
    reading = Reading(sites=sites.names(subject.anatomy().layers), spots=spots)
    for heard in read(subject, rendered, reading):
        yield heard.indices, heard.values


def residuals(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> NDArray[np.float32]:
    """Activations `[n, layers, positions, d]`, float32, in the order of `rendered`; see `stream`."""
    found: NDArray[np.float32] | None = None
    for indices, block in stream(subject, rendered, sites):
        if found is None:
            found = np.empty((len(rendered), *block.shape[1:]), dtype=np.float32)
        found[indices] = block.numpy()
    if found is None:
        raise ValueError("there is no prompt to read activations of")
    return found


def mean_residual(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> NDArray[np.float64]:
    """Mean activation `[layers, positions, d]` over the prompts, summed in float64; no prompt's activations are kept."""
    total: Tensor | None = None
    for _, block in stream(subject, rendered, sites):
        part = block.sum(dim=0, dtype=torch.float64)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("there is no prompt to read activations of")
    return np.asarray(total.numpy() / len(rendered), dtype=np.float64)


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


@contextlib.contextmanager
def ablating(
    subject: Subject, removed: NDArray[np.floating] | Sequence[NDArray[np.floating]], levels: Sequence[NDArray[np.floating]] = ()
) -> Iterator[None]:
    """Take a direction or a subspace out of the residual stream: x - Q Q^T x, at every site and position.

    At the embedding's output, every block's input, and every attention and MLP output (the norm behind them where there
    is one), so that nothing can write it back; also while replies are generated.

    Args:
        subject: The model.
        removed: A unit vector `[d]` or orthonormal columns `[d, k]`, taken out everywhere; or `[d, k]` for each block,
            taken out of what enters that block and of what it writes (the first also of the embedding).
        levels: What the components are set to instead, `[k]` for each of the layers 0 to the number of blocks. Then only
            the tokens of prompts are changed, and not those of replies.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, directional ablation. A direction of its own for every layer is how
        published tools edit weights (Heretic); a subspace is what Wollschläger et al. 2025, arXiv:2502.17420, find
        refusal to lie in; levels are the affine edit of Marshall et al. 2024, arXiv:2411.09003, here along any columns.
    """
    parts = subject.anatomy()
    each = [removed] * parts.layers if isinstance(removed, np.ndarray) else list(removed)
    if len(each) != parts.layers or len(levels) not in (0, parts.layers + 1):
        raise ValueError(f"columns for each of {parts.layers} blocks, and levels for one layer more, got {len(each)} and {len(levels)}")
    columns = [wide.unsqueeze(1) if wide.ndim == 1 else wide for wide in (_on(parts, one) for one in each)]
    placed: list[Tensor | None] = [_on(parts, level) for level in levels] or [None] * (parts.layers + 1)
    off = [_moved_to(held, None, prompt_alone=bool(levels)) for held in columns]
    on = [_moved_to(held, level, prompt_alone=bool(levels)) for held, level in zip([*columns, columns[-1]], placed, strict=True)]
    with _hooks() as keep:
        keep(parts.embedding.register_forward_hook(_on_output(on[0])))
        keep(parts.blocks[-1].register_forward_hook(_on_output(on[-1])))
        for layer, (block, *writers) in enumerate(zip(parts.blocks, parts.attention_writes, parts.mlp_writes, strict=True)):
            keep(block.register_forward_pre_hook(_on_input(on[layer]), with_kwargs=True))
            for writer in writers:
                keep(writer.register_forward_hook(_on_output(off[layer])))
        yield


def _moved_to(columns: Tensor, level: Tensor | None, *, prompt_alone: bool) -> Callable[[Tensor], Tensor]:
    """A function that takes the components of `columns` `[d, k]` out of a stream, or sets them to `level` `[k]`."""

    def change(x: Tensor) -> Tensor:
        if prompt_alone and (x.ndim < 3 or x.shape[-2] == 1):  # a reply's token comes alone; OPT's MLP hides which is which
            return x
        held, values = columns.to(x.device), x.float()
        values = values - (values @ held) @ held.T
        if level is not None:
            values = values + held @ level.to(x.device)
        return values.to(x.dtype)

    return change


@contextlib.contextmanager
def adding(subject: Subject, vector: NDArray[np.floating], layer: int, *, prompt_alone: bool = False) -> Iterator[None]:
    """Add `vector` `[d]` to what enters block `layer`, at every position; also while replies are generated, unless `prompt_alone`.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, activation addition.
    """
    held = _on(subject.anatomy(), vector)

    def shifted(x: Tensor) -> Tensor:
        if prompt_alone and x.shape[-2] == 1:
            return x
        return (x.float() + held.to(x.device)).to(x.dtype)

    with changing(subject, shifted, layer):
        yield


@contextlib.contextmanager
def changing(subject: Subject, change: Callable[[Tensor], Tensor], layer: int) -> Iterator[None]:
    """Let what enters block `layer`, `[batch, length, d]`, pass through `change` first; also while replies are generated."""
    with _hooks() as keep:
        keep(subject.anatomy().blocks[layer].register_forward_pre_hook(_on_input(change), with_kwargs=True))
        yield


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
        try:
            done = work([rendered[index] for index in indices])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(indices) == 1:
                raise ToolFailed(
                    "there is not enough memory for one prompt", where=subject.side, hint="use a larger machine, or --max-cost weights"
                ) from error
            size = len(indices) // 2
            continue
        yield indices, done
        start += len(indices)


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _on_output(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        # Attention gives (output, weights), experts (output, router logits), some blocks a tuple of one.
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _on(parts: Anatomy, vector: NDArray[np.floating]) -> Tensor:
    device = next(parts.embedding.parameters()).device
    return torch.tensor(np.asarray(vector), dtype=torch.float32, device="cpu" if device.type == "meta" else device)


@contextlib.contextmanager
def _hooks() -> Iterator[Callable[[Any], object]]:
    """A function to keep handles of hooks with; they are removed at the end, also where setting the next one fails."""
    with contextlib.ExitStack() as stack:
        yield lambda handle: stack.callback(handle.remove)
