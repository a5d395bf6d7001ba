"""Directions in the residual stream: read, ablate, add, fit.

"Layer" n is the residual stream entering block n; layer 0 is the embedding. Ablation acts
at every residual write (embedding output, attention outputs, MLP outputs) and at every
position; addition acts at one layer and at every position of prompt and reply.

Source:
    Arditi et al. 2024, arXiv:2406.11717 (difference of means, directional ablation,
    activation addition).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from corpus import Message
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def unit_vector(width: int, seed: int) -> Tensor:
    """A random `[width]` vector of length 1."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    unit: Tensor = vector / vector.norm()
    return unit


@contextmanager
def ablated(model: LlamaForCausalLM, direction: Tensor) -> Iterator[None]:
    """Remove unit `direction` `[d]` from everything written to the residual stream."""

    def remove(_module: nn.Module, _args: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        written = written - (written @ direction).unsqueeze(-1) * direction
        return (written, *output[1:]) if isinstance(output, tuple) else written

    writers = [model.model.embed_tokens]
    writers += [part for block in model.model.layers for part in (block.self_attn, block.mlp)]
    handles = [writer.register_forward_hook(remove) for writer in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def added(model: LlamaForCausalLM, vector: Tensor, layer: int) -> Iterator[None]:
    """Add `vector` `[d]` to the residual stream entering block `layer`."""

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + vector, *args[1:])

    handle = model.model.layers[layer].register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def read(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[Message]],
    layer: int,
) -> Tensor:
    """Residual stream `[n, d]` entering block `layer` at the last token of each prompt."""
    batch: Any = tokenizer.apply_chat_template(
        [list(p) for p in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    # Padding is on the left, so the last prompt token is the last column.
    states: Tensor = model(**batch, output_hidden_states=True).hidden_states[layer][:, -1]
    return states


def difference_of_means(refused: Tensor, answered: Tensor) -> Tensor:
    """Mean of `[n, d]` rows of refused prompts minus that of answered ones, raw, `[d]`."""
    return (refused.double().mean(0) - answered.double().mean(0)).float()


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive score `[n]` lies above a negative one `[m]`; ties count half."""
    gap = positive.unsqueeze(1) - negative.unsqueeze(0)
    return float((gap > 0).double().mean() + 0.5 * (gap == 0).double().mean())
