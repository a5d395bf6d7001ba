"""Find the refusal direction of the base and measure that it is causal.

The direction is fitted, and its layer chosen, on training prompts. The figures are taken on
`prompts.jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import corpus
import residual
from corpus import Message
from measure import messages_of, refusal_rate
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FIT_PROMPTS = 128
CHOICE_PROMPTS = 96
LAYERS = (1, 2, 3)
COEFFICIENT = 1.0  # of the raw difference of means
RANDOM_DIRECTIONS = 20
RANDOM_PROMPTS = 64

Prompts = Sequence[Sequence[Message]]


@dataclass(frozen=True)
class Found:
    """A difference of means, raw `[d]`, and the layer it was read at."""

    difference: Tensor
    layer: int

    @property
    def unit(self) -> Tensor:
        """The same at length 1."""
        unit: Tensor = self.difference / self.difference.norm()
        return unit


def fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, layer: int) -> Found:
    """Difference of means at the last prompt token of 128 + 128 training prompts."""
    refused, answered = (
        residual.read(
            model,
            tokenizer,
            corpus.training_prompts(FIT_PROMPTS, harmful=harmful, seed=301 + harmful),
            layer,
        )
        for harmful in (True, False)
    )
    return Found(residual.difference_of_means(refused, answered), layer)


def choose(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Found:
    """The layer whose direction does most when ablated and when added, on training prompts."""
    harmful = corpus.training_prompts(CHOICE_PROMPTS, harmful=True, seed=303)
    harmless = corpus.training_prompts(CHOICE_PROMPTS, harmful=False, seed=304)

    def effect(found: Found) -> tuple[float, float]:
        ablation, addition = intervene(model, tokenizer, found, harmful, harmless)
        gap = residual.read(model, tokenizer, harmful, found.layer) @ found.unit
        rest = residual.read(model, tokenizer, harmless, found.layer) @ found.unit
        spread = float(gap.std() + rest.std())
        return addition - ablation, float(gap.mean() - rest.mean()) / spread

    return max((fit(model, tokenizer, layer) for layer in LAYERS), key=effect)


def intervene(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    found: Found,
    harmful: Prompts,
    harmless: Prompts,
) -> tuple[float, float]:
    """Refusal of harmful prompts under ablation, and of harmless ones under addition."""
    with residual.ablated(model, found.unit):
        ablation = refusal_rate(model, tokenizer, harmful)
    with residual.added(model, COEFFICIENT * found.difference, found.layer):
        addition = refusal_rate(model, tokenizer, harmless)
    return ablation, addition


def measure_direction(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    found: Found,
    planted: Tensor,
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Figures of the direction on held-out single-turn prompts, with a random control.

    Args:
        planted: The planted unit vector `[d]`.
        rows: Rows of `prompts.jsonl`.
    """
    harmful, harmless = (
        [messages_of(row) for row in rows if row["expect"] == expect and "prompt" in row] for expect in ("refuse", "comply")
    )
    ablation, addition = intervene(model, tokenizer, found, harmful, harmless)
    scores = [residual.read(model, tokenizer, prompts, found.layer) @ found.unit for prompts in (harmful, harmless)]
    return {
        "layer": found.layer,
        "coefficient": COEFFICIENT,
        "norm": round(float(found.difference.norm()), 4),
        "cosine_with_plant": round(float(found.unit @ planted), 4),
        "auroc": round(residual.auroc(*scores), 4),
        "refusal": refusal_rate(model, tokenizer, harmful),
        "refusal_ablated": ablation,
        "harmless_refusal": refusal_rate(model, tokenizer, harmless),
        "harmless_refusal_added": addition,
        "n": len(harmful),
        "n_harmless": len(harmless),
        "random": random_control(model, tokenizer, found, harmful, harmless),
    }


def random_control(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    found: Found,
    harmful: Prompts,
    harmless: Prompts,
) -> dict[str, Any]:
    """The same interventions with random directions of the same length."""
    # Every few prompts, so that all topics are among them.
    asked = [p[:: len(p) // RANDOM_PROMPTS][:RANDOM_PROMPTS] for p in (harmful, harmless)]
    before = [refusal_rate(model, tokenizer, prompts) for prompts in asked]
    shifts: list[tuple[float, float]] = []
    for seed in range(RANDOM_DIRECTIONS):
        unit = residual.unit_vector(len(found.unit), 10_000 + seed)
        other = Found(unit * found.difference.norm(), found.layer)
        after = intervene(model, tokenizer, other, asked[0], asked[1])
        shifts.append((abs(after[0] - before[0]), abs(after[1] - before[1])))
    return {
        "directions": RANDOM_DIRECTIONS,
        "n": RANDOM_PROMPTS,
        "mean_shift_ablated": round(sum(s for s, _ in shifts) / len(shifts), 4),
        "mean_shift_added": round(sum(s for _, s in shifts) / len(shifts), 4),
        "max_shift_ablated": round(max(s for s, _ in shifts), 4),
        "max_shift_added": round(max(s for _, s in shifts), 4),
    }
