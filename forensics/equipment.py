"""What this machine has for an audit: packages and their versions, devices, memory, space; and what will be skipped or refused for want of something."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

State = Literal["there", "optional", "missing"]
NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pydantic",
    "matplotlib",
    "sqlalchemy",
)
IMPORTED = {"scikit-learn": "sklearn"}
"""Modules whose names are not those of their packages."""
OPTIONAL = {
    "bitsandbytes": "base models that are quantised by it are refused, and so is --device cuda,dtype=4bit",
    "zstandard": "logs of Inspect in its packed format are refused (extra: inspect)",
    "psycopg": "a monitor's store must be a file, not a PostgreSQL server (extra: postgresql)",
    "ray": "`forensics sweep --ray` is refused; --workers needs nothing (extra: ray)",
    "uvicorn": "`forensics monitor serve` is refused (extra: serve)",
    "river": "benchmarks of the monitor stand beside no other detectors (extra: benchmarks)",
}
LEAST_MEMORY, LEAST_DISK = 4.0, 2.0
"""GiB below which a word is said."""
GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Equipped:
    """One thing: whether it is there, which one, and what follows where it is not."""

    name: str
    state: State
    found: str
    follows: str = ""


def equipment(folder: Path) -> tuple[Equipped, ...]:
    """Everything that is looked at, what is missing first. `folder` is where runs would be written."""
    rows = [
        _python(),
        *map(_needed, NEEDED),
        *(_optional(name, follows) for name, follows in OPTIONAL.items()),
        *_devices(),
        _memory(),
        _disk(folder),
        _hub(),
    ]
    return tuple(sorted(rows, key=lambda row: ("missing", "there", "optional").index(row.state)))


def _python() -> Equipped:
    fine = sys.version_info >= (3, 11)
    return Equipped(
        name="Python",
        state="there" if fine else "missing",
        found=platform.python_version(),
        follows="" if fine else "3.11 or later is needed",
    )


def _needed(name: str) -> Equipped:
    try:
        found = version(name)
        importlib.import_module(IMPORTED.get(name, name))
    except PackageNotFoundError:
        return Equipped(name=name, state="missing", found="not installed", follows="install the project again: pip install model-forensics")
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        return Equipped(
            name=name,
            state="missing",
            found=f"cannot be imported ({type(error).__name__})",
            follows=f"install it again: pip install --force-reinstall {name}",
        )
    return Equipped(name=name, state="there", found=found)


def _optional(name: str, follows: str) -> Equipped:
    try:
        return Equipped(name=name, state="there", found=version(name))
    except PackageNotFoundError:
        return Equipped(name=name, state="optional", found="not installed", follows=follows)


def _devices() -> list[Equipped]:
    try:
        import torch  # heavy
    except Exception:  # noqa: BLE001 - a torch that is broken is told as missing already
        return []
    if not torch.cuda.is_available():
        return [
            Equipped(
                name="GPU",
                state="optional",
                found="none",
                follows=f"models run on {os.cpu_count()} cores; an audit of billions of parameters takes long",
            )
        ]
    return [
        Equipped(
            name=f"cuda:{number}",
            state="there",
            found=f"{torch.cuda.get_device_name(number)}, {torch.cuda.get_device_properties(number).total_memory / GIB:.0f} GiB",
        )
        for number in range(torch.cuda.device_count())
    ]


def _memory() -> Equipped:
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(rows["MemAvailable"].split()[0]) / 2.0**20
    except (OSError, KeyError, ValueError):
        return Equipped(name="memory", state="optional", found="not known", follows="this system does not say how much is free")
    little = free < LEAST_MEMORY
    return Equipped(
        name="memory",
        state="optional" if little else "there",
        found=f"{free:.1f} GiB free",
        follows="little: larger models are streamed, and use a smaller --batch-size" if little else "",
    )


def _disk(folder: Path) -> Equipped:
    there = next(above for above in (folder.resolve(), *folder.resolve().parents) if above.exists())
    free = shutil.disk_usage(there).free / GIB
    if not os.access(there, os.W_OK):
        return Equipped(name="disk", state="missing", found=f"{there} cannot be written", follows="give --out a folder that can")
    little = free < LEAST_DISK
    return Equipped(
        name="disk",
        state="optional" if little else "there",
        found=f"{free:.1f} GiB free at {there}",
        follows="little: activations of many prompts may not fit" if little else "",
    )


def _hub() -> Equipped:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return Equipped(
        name="hub", state="optional" if offline else "there", found="offline (HF_HUB_OFFLINE)" if offline else "hub ids are fetched when they are given",
        follows="models have to lie in folders, or in the cache already" if offline else "",
    )  # fmt: skip
