"""Where a live model goes: to one device whole, or spread by accelerate over what the machine has.

Spread means: layer by layer over all GPUs, what is left over in main memory, and the rest read from the checkpoint's own files at every
forward pass. Hooks see the same numbers, since accelerate fetches a module's weights around the module's own call. What needs the
weights themselves in one place (adapters on top of fetched ones, two models side by side) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from forensics.checkpoint import Checkpoint
from forensics.errors import CannotCompare, ToolFailed

SPREAD = "spread"
ROOM = 1.2
"""A GPU must have this many times the size of the weights free for `auto` to put a model there whole: replies need room as well."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The device that inputs go to, and whether accelerate spreads the model."""

    device: torch.device
    spread: bool = False

    @property
    def dtype(self) -> torch.dtype | str:
        """What weights are computed in: float32 on a CPU, so that storage dtype is the only rounding; else as they are stored."""
        return torch.float32 if self.device.type == "cpu" else "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is told beside the dtype."""
        return {"device_map": "auto"} if self.spread else {}


def place(weights: Checkpoint, device: str) -> Placement:
    """Where the model of `weights` goes for `--device`: `cpu`, `cuda`, `cuda:1`, `spread`, or `auto`.

    `auto` takes the GPU if there is one, and spreads the model where that GPU has not enough memory free for it.
    """
    if device not in ("auto", SPREAD):
        return Placement(device=torch.device(device))
    if not torch.cuda.is_available():
        return Placement(device=torch.device("cpu"), spread=device == SPREAD)
    free, _ = torch.cuda.mem_get_info()
    size = sum(tensor.end - tensor.start for tensor in weights.tensors.values())
    return Placement(device=torch.device("cuda"), spread=device == SPREAD or ROOM * size > free)


def is_spread(model: torch.nn.Module) -> bool:
    """Whether accelerate holds `model` together: over several devices, or with weights that it fetches when they are needed."""
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    return len(devices) > 1 or "disk" in devices or any(weight.is_meta for weight in model.parameters())


def refuse_spread(model: torch.nn.Module, *, name: str) -> None:
    """Refuse a model that is not whole on one device, for work that copies or mixes weights.

    Raises:
        ToolFailed: It is spread.
    """
    if is_spread(model):
        raise ToolFailed(
            "the model does not fit onto one device, and this needs its weights whole, in one place",
            where=name,
            hint="use a larger GPU or --device cpu; an audit leaves it out with --max-cost generation",
        )


def refuse_adapter(model: torch.nn.Module, *, name: str) -> None:
    """Refuse to put adapter `name` on a model whose weights are not all held by a device.

    Raises:
        CannotCompare: PEFT would look for weights that are not there.
    """
    if any(weight.is_meta for weight in model.parameters()):
        raise CannotCompare(
            "an adapter cannot be put on a model that is too large for the accelerator's memory",
            where=name,
            hint="use --device cpu or a larger GPU, or merge the adapter into a full checkpoint (merge_and_unload) and audit that",
        )
