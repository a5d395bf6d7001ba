"""Where a live model goes: to one device whole, or spread by accelerate over what the machine has.

Spread means: layer by layer over all GPUs, what is left over in main memory, and the rest read from the checkpoint's own files at every
forward pass (or from a folder, where they are kept as they are computed with). Hooks see the same numbers, since accelerate fetches a module's weights around the module's own call. What needs the
weights themselves in one place (adapters on top of fetched ones, two models side by side) is refused.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import torch

from forensics.checkpoint import Checkpoint
from forensics.devices import SPREAD, Wish, refuse_no_folder, wish
from forensics.errors import BadInput, CannotCompare, ToolFailed

ROOM = 1.2
"""A GPU must have this many times the size of the weights free for `auto` to put a model there whole: replies need room as well."""
FLOAT8_FROM = (8, 9)
"""Compute capability from which on a GPU multiplies in float8."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The device that inputs go to, whether accelerate spreads the model, and what was wished for besides."""

    device: torch.device
    spread: bool = False
    wanted: Wish = field(default_factory=Wish)

    @property
    def dtype(self) -> torch.dtype | str:
        """What weights are computed in: as wished; else float32 on a CPU, so that storage dtype is the only rounding, or as they are stored."""
        if self.wanted.packed:
            return torch.bfloat16
        if self.wanted.dtype:
            named: torch.dtype = getattr(torch, self.wanted.dtype)
            return named
        return torch.float32 if self.device.type == "cpu" else "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is told beside the dtype."""
        told: dict[str, Any] = {"device_map": "auto"} if self.spread else {}
        if self.wanted.packed and not self.spread:
            told = {"device_map": {"": str(self.device)}}  # what is packed cannot be moved afterwards
        told |= {"max_memory": self.wanted.limits} if self.wanted.limits else {}
        told |= {"offload_folder": self.wanted.folder} if self.wanted.folder else {}
        return told | ({"quantization_config": _packing(self.wanted.dtype)} if self.wanted.packed else {})


def place(weights: Checkpoint, device: str) -> Placement:
    """Where the model of `weights` goes for `--device`: `cpu`, `cuda`, `cuda:1`, `spread`, or `auto`.

    `auto` takes the GPU if there is one, and spreads the model where that GPU has not enough memory free for it. Limits, a folder and
    a dtype may follow (`forensics.devices`).

    Raises:
        BadInput: It is misspelt, or weights are to be packed where they cannot be.
    """
    wanted = wish(device)
    refuse_no_folder(wanted)
    if wanted.packed:
        refuse_no_packing(wanted.dtype)
    if wanted.where not in ("auto", SPREAD):
        return Placement(device=torch.device(wanted.where), wanted=wanted)
    if not torch.cuda.is_available():
        return Placement(device=torch.device("cpu"), spread=wanted.where == SPREAD, wanted=wanted)
    free, _ = torch.cuda.mem_get_info()
    size = sum(tensor.end - tensor.start for tensor in weights.tensors.values())
    return Placement(device=torch.device("cuda"), spread=wanted.where == SPREAD or ROOM * size > free, wanted=wanted)


def refuse_no_packing(dtype: str) -> None:
    """Refuse to pack weights where there is no NVIDIA GPU, or not what it takes.

    Raises:
        BadInput: There is not.
    """
    if not torch.cuda.is_available():
        why = "this machine has no NVIDIA GPU"
    elif dtype == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        why = "bitsandbytes is not installed"
    elif dtype == "fp8" and torch.cuda.get_device_capability() < FLOAT8_FROM:
        why = "this GPU does not compute in float8"
    else:
        return
    raise BadInput(
        f"weights cannot be packed into {dtype}: {why}",
        where="--device",
        hint="use dtype=bf16, or spread the model (spread,0=20GiB,cpu=60GiB,disk=FOLDER)",
    )


def _packing(dtype: str) -> Any:
    """What has transformers pack the weights while it loads them. Not tested: no machine of ours has such a GPU."""
    from transformers import BitsAndBytesConfig, FineGrainedFP8Config  # heavy

    if dtype == "fp8":
        return FineGrainedFP8Config()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def is_spread(model: torch.nn.Module) -> bool:
    """Whether accelerate holds `model` together: over several devices, or with weights that it fetches when they are needed."""
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    return len(devices) > 1 or "disk" in devices or any(weight.is_meta for weight in model.parameters())


def refuse_spread(model: torch.nn.Module, *, name: str, packed: bool = False) -> None:
    """Refuse a model that is not whole on one device, or whose weights were packed, for work that copies or mixes weights.

    Raises:
        ToolFailed: It is.
    """
    if packed:
        raise ToolFailed(
            "this copies and mixes weights, and they were packed into few bits",
            where=name,
            hint="leave out dtype=4bit or dtype=fp8; an audit leaves it out with --max-cost generation",
        )
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
