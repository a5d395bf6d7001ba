"""Change what goes through a live model while it is read or asked: plain forward hooks that are let go at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forensics.anatomy import Anatomy
from forensics.subject import Subject


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
