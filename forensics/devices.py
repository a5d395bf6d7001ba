"""What `--device` asks for: where a live model goes, how much of each device it may take, and in what numbers it computes.

    cpu   cuda   cuda:1   auto   spread
    spread,0=20GiB,cpu=8GiB,disk=/scratch/offload      limits by device, and a folder for what fits nowhere
    cpu,dtype=bf16                                     narrower numbers, where there is no room for float32

Nothing here knows torch: records are concluded without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from forensics.errors import BadInput

SPREAD = "spread"
NUMBERS = {"float32": "float32", "fp32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}
"""What may be said for a dtype, and torch's name of it."""
PACKED = ("fp8", "4bit")
"""Formats that weights are packed into while they are loaded; both need an NVIDIA GPU."""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
WORDS = "cpu, cuda, cuda:1, spread or auto, and behind it 0=20GiB, cpu=8GiB, disk=FOLDER, dtype=bf16, separated by commas; disk= comes last"
COST = {
    "bfloat16": "bfloat16: 8 bits of precision. Differences of the two models that are smaller than its rounding are not seen, and single replies turn out otherwise",
    "float16": "float16: 11 bits of precision, and nothing over 65504. Differences of the two models that are smaller than its rounding are not seen",
    "fp8": "packed float8 weights: both models were changed by the packing before anything was measured, and what is smaller than that change is not seen",
    "4bit": "packed 4-bit weights (NF4): both models were changed by the packing before anything was measured, by about a tenth of each matrix; a fine-tune is often "
    "smaller than that",
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for. `limits` are bytes by device (a number, or "cpu"), `folder` where weights lie that fit nowhere, `dtype` as torch calls it or
    one of `PACKED`; empty where nothing was said.
    """

    where: str = "auto"
    limits: dict[int | str, int] = field(default_factory=dict)
    folder: str = ""
    dtype: str = ""

    @property
    def packed(self) -> bool:
        """Whether weights are packed while they are loaded."""
        return self.dtype in PACKED

    @property
    def spelled(self) -> str:
        """As a record says it: without the folder, which changes no number."""
        limits = [f"{device}={size}" for device, size in sorted(self.limits.items(), key=str)]
        return ",".join([self.where, *limits, *([f"dtype={self.dtype}"] if self.dtype else [])])


def wish(device: str) -> Wish:
    """Read a `--device`.

    Raises:
        BadInput: It is not spelled so, or limits are given to a model that is not spread.

    >>> wish("spread,0=20GiB,cpu=8GB,dtype=bf16").limits
    {0: 21474836480, 'cpu': 8000000000}
    """
    rest, _, folder = device.partition(",disk=")
    where, *parts = rest.split(",")
    limits: dict[int | str, int] = {}
    dtype = ""
    for part in parts:
        name, given, value = part.partition("=")
        if name == "dtype" and value in (*NUMBERS, *PACKED):
            dtype = NUMBERS.get(value, value)
        elif given and (name == "cpu" or name.isdecimal()) and name != "dtype":
            limits[int(name) if name.isdecimal() else name] = _size(value, device)
        else:
            raise _misspelt(device, part)
    if ",disk=" in device and not folder:
        raise _misspelt(device, "disk=")
    if (limits or folder) and where != SPREAD:
        raise BadInput("limits and a folder are for a model that is spread", where=f"--device {device}", hint=f"begin it with {SPREAD}")
    return Wish(where=where, limits=limits, folder=folder, dtype=dtype)


def _size(value: str, device: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", value)
    if found is None or found[2].upper() not in UNITS or len(found[1]) > 20:
        raise _misspelt(device, value)
    return int(float(found[1]) * UNITS[found[2].upper()])


def _misspelt(device: str, part: str) -> BadInput:
    return BadInput(f"{part!r} says nothing about a device", where=f"--device {device}", hint=WORDS)


def refuse_no_folder(wanted: Wish) -> None:
    """Refuse a folder for weights that is not there: nothing is written where nobody asked.

    Raises:
        BadInput: It is not there.
    """
    if wanted.folder and not Path(wanted.folder).is_dir():
        raise BadInput(
            "there is no such folder for weights that fit nowhere", where=wanted.folder, hint="make it, on a disk with room for the model"
        )


def said_of_numbers(device: str) -> tuple[str, ...]:
    """What the numbers that were computed with cost in evidence, for a record's limits; nothing for float32 and where none were named."""
    said = COST.get(wish(device).dtype)
    return (
        ()
        if said is None
        else (f"Both models were computed in {said}; the README says how far figures and replies move (narrow_cost.py).",)
    )
