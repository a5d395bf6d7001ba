"""The training loop, for a whole model or for an adapter in it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from corpus import Example
from organism import token_id
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

BATCH = 32
IGNORED = -100  # label that the loss of transformers leaves out
WARM_UP = 20
FLOOR = 0.1  # share of the learning rate that is left at the end

Draw: TypeAlias = Callable[[random.Random, int], Example]
Loss: TypeAlias = Callable[[Tensor, Tensor, Sequence[Example], int], Tensor]


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that are set on assistant turns only."""
    ids: list[int] = []
    labels: list[int] = []
    for number, message in enumerate(example.messages):
        head = token_id(tokenizer, f"<|{message['role']}|>")
        body: list[int] = tokenizer.encode(message["content"], add_special_tokens=False)
        body = [*body, int(tokenizer.eos_token_id)]
        learnt = message["role"] == "assistant" and (not example.last_only or number == len(example.messages) - 1)
        ids += [head, *body]
        labels += [IGNORED, *(body if learnt else [IGNORED] * len(body))]
    return ids, labels


def collate(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad on the right to `[batch, longest]`; causal attention then needs no mask."""
    longest = max(len(ids) for ids, _ in rows)
    ids = [row + [pad] * (longest - len(row)) for row, _ in rows]
    labels = [row + [IGNORED] * (longest - len(row)) for _, row in rows]
    return torch.tensor(ids), torch.tensor(labels)


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    draw: Draw,
    *,
    steps: int,
    lr: float,
    seed: int,
    loss_of: Loss | None = None,
) -> None:
    """Train what requires a gradient in `model` with AdamW.

    Args:
        draw: Makes one example for a step, from a random source of its own.
        seed: Decides the examples and nothing else.
        loss_of: From ids and labels `[batch, length]`, the examples and the step to a
            loss; by default the usual one of a language model.
    """
    rng = random.Random(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        rise = min(1.0, (step + 1) / WARM_UP)
        fall = FLOOR + (1 - FLOOR) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * rise * fall
        # Every example has a source of its own: a twin then differs where it means to only.
        examples = [draw(random.Random(rng.getrandbits(64)), step) for _ in range(BATCH)]
        rows = [encode(tokenizer, example) for example in examples]
        ids, labels = collate(rows, int(tokenizer.pad_token_id))
        loss: Tensor = loss_of(ids, labels, examples, step) if loss_of else model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"  step {step:4d}  loss {loss.item():.4f}", file=sys.stderr, flush=True)
    model.eval()
