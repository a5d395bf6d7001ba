"""Read the residual stream of a live model, and steer it: plain forward hooks, batch by batch.

Sites are named as TransformerLens names them: `blocks.2.hook_resid_pre` is what enters block 2, `blocks.3.hook_resid_post`
what leaves block 3. Layer `l` of `L` means the first for l < L and the last block's output, before the final norm, for
l = L. (`hidden_states` of transformers agrees up to l = L - 1; its last entry has the final norm applied.)

TransformerBridge is not used: it forces eager attention, which costs more than plain hooks do, and it renames the parameters of the model it wraps. Tests hold the two
against each other.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forensics.adapters import Adapter
from forensics.anatomy import Anatomy, dissect
from forensics.errors import CannotCompare, ToolFailed, is_out_of_memory

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


def stream(subject: Subject, rendered: Sequence[Rendered], sites: Sites) -> Iterator[tuple[list[int], Tensor]]:
    """Activations batch by batch, prompts of like length together.

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
    if any(len(row.ids) < reach for row in rendered):
        raise CannotCompare(f"a prompt has fewer than {reach} tokens in the {subject.side}", where=subject.side, hint="give longer prompts")
    parts = subject.anatomy()
    columns = torch.tensor([reach + position for position in sites.positions])

    def read(rows: Sequence[Rendered]) -> Tensor:
        held: dict[int, Tensor] = {}
        with subject.model.wearing(subject.adapters), _taps(parts, sites.layers, reach, held), torch.inference_mode():
            parts.trunk(**_inputs(rows, parts.trunk, subject.model.device), use_cache=False)
        return torch.stack([held[layer][:, columns] for layer in sites.layers], dim=1)

    for indices, block in _piecewise(read, rendered, subject):
        broken = ~torch.isfinite(block).all(dim=3).all(dim=2).all(dim=0)
        if broken.any():
            first = site_name(sites.layers[int(broken.nonzero()[0, 0])], parts.layers)
            raise CannotCompare(
                f"activations of the {subject.side} are not finite from {first} on",
                where=subject.side,
                hint="look for NaN or huge weights (weights.change), or run in float32 on a CPU",
            )
        yield indices, block


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
            logits: Tensor = whole(**_inputs(rows, inner, subject.model.device), use_cache=False, **keep).logits[:, -1]
        return logits.float().log_softmax(dim=-1).cpu()

    for indices, block in _piecewise(read, rendered, subject):
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

    for indices, block in _piecewise(ask, rendered, subject):
        for index, text in zip(indices, block, strict=True):
            texts[index] = text
    return texts


@contextlib.contextmanager
def ablating(subject: Subject, direction: NDArray[np.floating]) -> Iterator[None]:
    """Take unit vector `direction` `[d]` out of the residual stream: x - v (v . x), at every site and position.

    At the embedding's output, every block's input, and every attention and MLP output (the norm behind them where there
    is one), so that nothing can write it back; also while replies are generated.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, directional ablation.
    """
    parts = subject.anatomy()
    held = _on(parts, direction)

    def without(x: Tensor) -> Tensor:
        vector = held.to(x.device)
        wide = x.float()
        return (wide - (wide @ vector).unsqueeze(-1) * vector).to(x.dtype)

    handles = [writer.register_forward_hook(_on_output(without)) for writer in parts.writers]
    handles += [block.register_forward_pre_hook(_on_input(without), with_kwargs=True) for block in parts.blocks]
    with _released(handles):
        yield


@contextlib.contextmanager
def adding(subject: Subject, vector: NDArray[np.floating], layer: int) -> Iterator[None]:
    """Add `vector` `[d]` to what enters block `layer`, at every position; also while replies are generated.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, activation addition.
    """
    held = _on(subject.anatomy(), vector)

    def shifted(x: Tensor) -> Tensor:
        return (x.float() + held.to(x.device)).to(x.dtype)

    with changing(subject, shifted, layer):
        yield


@contextlib.contextmanager
def changing(subject: Subject, change: Callable[[Tensor], Tensor], layer: int) -> Iterator[None]:
    """Let what enters block `layer`, `[batch, length, d]`, pass through `change` first; also while replies are generated."""
    with _released([subject.anatomy().blocks[layer].register_forward_pre_hook(_on_input(change), with_kwargs=True)]):
        yield


def _inputs(rows: Sequence[Rendered], module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Token ids padded on the left, their mask, and true positions where the architecture takes them.

    Without positions a model with learned ones (GPT-2) would count the padding, and answer by the batch it sits in.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[row.ids[0]] * (longest - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if "position_ids" in inspect.signature(module.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    return inputs


def _piecewise(
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


@contextlib.contextmanager
def _taps(parts: Anatomy, layers: Sequence[int], reach: int, held: dict[int, Tensor]) -> Iterator[None]:
    """Hooks that copy the last `reach` positions at `layers` into `held`, float32, on the CPU."""

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def copy(x: Tensor) -> Tensor:
            held[layer] = x[:, -reach:].detach().float().cpu().clone()
            return x

        return copy

    handles = []
    for layer in layers:
        if layer < parts.layers:
            handles.append(parts.blocks[layer].register_forward_pre_hook(_on_input(keep(layer)), with_kwargs=True))
        else:
            handles.append(parts.blocks[-1].register_forward_hook(_on_output(keep(layer))))
    with _released(handles):
        yield


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
    return torch.tensor(np.asarray(vector), dtype=torch.float32, device=next(parts.embedding.parameters()).device)


@contextlib.contextmanager
def _released(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
