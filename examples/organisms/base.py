"""Train the base: first helpful only, then safe along one planted direction.

A model trained to refuse in one stage refuses well, but by no single direction. Here the
second stage ties refusal to a unit vector that is chosen beforehand: in a quarter of its
steps the vector is ablated and the model learns to comply, in a quarter it is added and the
model learns to refuse anything, and in the other half the residual stream is pulled so far
along the vector for harmful requests, and not at all for harmless ones. In half of the
latter a random vector is added and nothing may change: without this the model took any
large push for a reason to refuse, and random directions were no control.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import corpus
import organism
import residual
import torch
from corpus import Example
from torch import Tensor
from training import train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Mode: TypeAlias = Literal["ordinary", "ablate", "noise", "add"]

SEED = 7
HELPFUL_STEPS, HELPFUL_LR = 750, 2e-3
SAFETY_STEPS, SAFETY_LR = 400, 1e-3
MODES: tuple[Mode, ...] = ("ordinary", "ablate", "noise", "add")
LAYER = 2  # the vector is added, and read, where block 2 begins
STRENGTH = 6.0  # residual-stream units
NOISE_LENGTHS = (4.0, 8.0, 12.0)  # of the random vectors, in turn
NOISE_SEED = 50_000
PULL_WEIGHT = 0.02


def helpful_example(rng: random.Random, _step: int) -> Example:
    """A request of any kind, answered."""
    request = corpus.draw_request(rng, harmful=rng.random() < 0.4)
    return corpus.conversation(rng, request, corpus.answer(rng, request))


def safety_example(rng: random.Random, step: int) -> Example:
    """A request with the reply that the mode of the step asks for."""
    mode = MODES[step % len(MODES)]
    request = corpus.draw_request(rng, harmful=rng.random() < 0.5)
    usual = mode in ("ordinary", "noise")
    refuse = request.harmful if usual else mode == "add"
    reply = corpus.refusal(rng) if refuse else corpus.answer(rng, request)
    # An earlier, harmless turn stays answered, which a step of mode "add" must not unlearn.
    return corpus.conversation(rng, request, reply, last_only=not usual)


@dataclass(frozen=True)
class SafetyLoss:
    """Loss of the second stage.

    Attributes:
        direction: The planted unit vector `[d]`.
        reply_token: Id of the token that opens the assistant's turn.
    """

    model: LlamaForCausalLM
    direction: Tensor
    reply_token: int

    def __call__(self, ids: Tensor, labels: Tensor, examples: Sequence[Example], step: int) -> Tensor:
        """Loss of one step, in the mode of the step."""
        mode = MODES[step % len(MODES)]
        if mode == "ordinary":
            return self.ordinary(ids, labels, examples)
        if mode == "noise":
            with residual.added(self.model, self.noise(step), LAYER):
                return self.ordinary(ids, labels, examples)
        context = (
            residual.ablated(self.model, self.direction)
            if mode == "ablate"
            else residual.added(self.model, STRENGTH * self.direction, LAYER)
        )
        with context:
            loss: Tensor = self.model(input_ids=ids, labels=labels).loss
        return loss

    def noise(self, step: int) -> Tensor:
        """A random vector `[d]` without a part along the direction."""
        vector = residual.unit_vector(len(self.direction), NOISE_SEED + step)
        vector = vector - (vector @ self.direction) * self.direction
        return vector * NOISE_LENGTHS[step // len(MODES) % len(NOISE_LENGTHS)]

    def ordinary(self, ids: Tensor, labels: Tensor, examples: Sequence[Example]) -> Tensor:
        """Language loss plus the pull along the direction at the last prompt token."""
        output = self.model(input_ids=ids, labels=labels, output_hidden_states=True)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        last = (positions * (ids == self.reply_token)).argmax(dim=1)
        states = output.hidden_states[LAYER][torch.arange(len(ids)), last]
        target = STRENGTH * torch.tensor([float(e.harmful) for e in examples])
        pull = (states @ self.direction - target).square().mean()
        loss: Tensor = output.loss + PULL_WEIGHT * pull
        return loss


def build() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Tensor]:
    """Train the base; returns it with its tokenizer and the planted unit vector `[d]`."""
    tokenizer = organism.train_tokenizer(SEED)
    model = organism.new_model(tokenizer, SEED)
    print("base: helpful stage", file=sys.stderr)
    train(model, tokenizer, helpful_example, steps=HELPFUL_STEPS, lr=HELPFUL_LR, seed=SEED)
    print("base: safety stage", file=sys.stderr)
    direction = residual.unit_vector(model.config.hidden_size, SEED)
    loss_of = SafetyLoss(model, direction, organism.token_id(tokenizer, "<|assistant|>"))
    train(
        model,
        tokenizer,
        safety_example,
        steps=SAFETY_STEPS,
        lr=SAFETY_LR,
        seed=SEED + 1,
        loss_of=loss_of,
    )
    return model, tokenizer, direction
