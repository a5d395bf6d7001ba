"""The rates of a machine that `forensics.outlay` works with: measured here in about a quarter of a minute, or taken from a GPU's data sheet."""

from __future__ import annotations

import difflib
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from forensics.errors import BadInput, ToolFailed
from forensics.outlay import Machine, Rate, given

TURNS = 3
"""Times each rate is measured: the middle one counts, the others are its bounds."""
FILE_BYTES, PIECE = 1 << 28, 1 << 24
SIDE = 4096
"""Rows and columns of the matrices on which the differ, arithmetic and memory are measured: those of a model of about 7 B."""
ROWS = 512
"""Tokens that are multiplied with one at once."""
LEAST_SECONDS = 0.3
MOVED = 0.005
"""Size of the change that the differ is measured on, which goes in all directions: the dearest kind."""
WORKED, CARRIED = (0.25, 0.4, 0.6), (0.4, 0.6, 0.8)
"""Shares of a data sheet's arithmetic and memory rates that are reached: least, usual, most. Assumed, not measured."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What its maker says of a GPU: operations a second in bf16 without sparsity, bytes a second and bytes of its memory."""

    arithmetic: float
    traffic: float
    room: float


SHEETS = {
    "a100": Sheet(arithmetic=312e12, traffic=2.039e12, room=80e9),
    "h100": Sheet(arithmetic=989e12, traffic=3.35e12, room=80e9),
    "h200": Sheet(arithmetic=989e12, traffic=4.8e12, room=141e9),
    "l40s": Sheet(arithmetic=362e12, traffic=0.864e12, room=48e9),
}
"""NVIDIA's data sheets of A100 (SXM, 80 GB), H100 (SXM), H200 (SXM) and L40S."""
NEEDED = ("read", "hash", "differ", "arithmetic", "traffic", "room")
OPTIONS = {"read": "--disk", "hash": "--hash", "differ": "--differ", "arithmetic": "--flops", "traffic": "--bandwidth", "room": "--memory"}


def of_gpu(name: str) -> dict[str, Any]:
    """What a GPU's data sheet says about a machine.

    Raises:
        BadInput: It is not known.
    """
    sheet = SHEETS.get(name.lower())
    if sheet is None:
        near = difflib.get_close_matches(name.lower(), SHEETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(
            f"there is no data sheet of {name!r}",
            where="--gpu",
            hint=f"{hint}known: {', '.join(SHEETS)}; or give --flops, --bandwidth and --memory",
        )
    return {
        "arithmetic": _share(sheet.arithmetic, WORKED),
        "traffic": _share(sheet.traffic, CARRIED),
        "room": sheet.room,
        "processor": False,
    }


def _share(most: float, shares: tuple[float, float, float]) -> Rate:
    low, value, high = (most * share for share in shares)
    return Rate(value=value, low=low, high=high)


def machine_of(measured: Machine | None, gpu: str, own: Mapping[str, float | None], *, devices: int, processes: int) -> Machine:
    """A machine of what was measured, a GPU's data sheet over that, and single rates over both.

    Args:
        measured: What `measure` gave, if it was asked.
        gpu: Name of a data sheet; empty for none.
        own: Rates by the names of `Machine`'s fields; None where none is given.
        devices: How many GPUs it has.
        processes: How many cores hash files, and measure tensors of the weight diff, at once.

    Raises:
        BadInput: A rate is missing, or the GPU is not known.
    """
    parts: dict[str, Any] = {} if measured is None else {field.name: getattr(measured, field.name) for field in fields(measured)}
    parts |= of_gpu(gpu) if gpu else {}
    parts |= {name: value if name == "room" else given(value) for name, value in own.items() if value is not None}
    missing = [OPTIONS[name] for name in NEEDED if name not in parts]
    if missing:
        raise BadInput(
            "nobody knows the rates of that machine",
            where=", ".join(missing),
            hint="measure this one with --measure, or give them (--gpu gives --flops, --bandwidth and --memory)",
        )
    return Machine(**(parts | {"devices": devices, "processes": processes}))


def measure(folder: Path, device: str = "auto") -> Machine:
    """The rates of this machine: its disk at `folder`, one core, and one device.

    Raises:
        ToolFailed: The folder cannot be written, or there is not enough memory.
    """
    import torch  # heavy

    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    processor = where.type == "cpu"
    with torch.inference_mode():
        arithmetic, traffic = _arithmetic(where, torch.float32 if processor else torch.bfloat16)
    return Machine(
        read=_disk(folder),
        hash=_hash(),
        differ=_differ(),
        arithmetic=arithmetic,
        traffic=traffic,
        room=float(_free_memory() if processor else torch.cuda.mem_get_info(where)[0]),
        processor=processor,
    )


def _rate(amount: float, work: Callable[[], object]) -> Rate:
    """`amount` a second, from `TURNS` times as many calls of `work` as take `LEAST_SECONDS`."""
    work()  # memory is taken from the system the first time
    rates = []
    for _ in range(TURNS):
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < LEAST_SECONDS:
            work()
            calls += 1
        rates.append(calls * amount / (time.perf_counter() - start))
    return Rate(value=statistics.median(rates), low=min(rates), high=max(rates))


def _disk(folder: Path) -> Rate:
    rates = []
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            piece = os.urandom(PIECE)  # zeros may never reach the disk
            for _ in range(FILE_BYTES // PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            room = bytearray(PIECE)
            for _ in range(TURNS):
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                start = time.perf_counter()
                with Path(file.name).open("rb", buffering=0) as stream:
                    while stream.readinto(room):
                        pass
                rates.append(FILE_BYTES / (time.perf_counter() - start))
    except OSError as error:
        raise ToolFailed(
            f"the disk cannot be measured: {error.strerror}", where=str(folder), hint="give --disk, or another --folder"
        ) from error
    return Rate(value=statistics.median(rates), low=min(rates), high=max(rates))


def _hash() -> Rate:
    piece = bytes(PIECE)
    return _rate(PIECE, lambda: hashlib.sha256(piece))


def _differ() -> Rate:
    """Weights a second of one process, on a change of all directions between files that are in memory already."""
    import torch

    from forensics.checkpoint import BLOCK_ELEMENTS
    from probes.differ import Meter

    generator = torch.Generator().manual_seed(0)
    before = torch.randn(SIDE, SIDE, generator=generator).mul_(0.02)
    after = (before + MOVED * 0.02 * torch.randn(SIDE, SIDE, generator=generator)).bfloat16()
    before, height = before.bfloat16(), BLOCK_ELEMENTS // SIDE
    threads = torch.get_num_threads()

    def work() -> None:
        meter = Meter(shape=(SIDE, SIDE), dense=True)
        for row in range(0, SIDE, height):
            meter.update(before[row : row + height], after[row : row + height])
        meter.profile()

    torch.set_num_threads(1)
    try:
        return _rate(SIDE * SIDE, work)
    finally:
        torch.set_num_threads(threads)


def _arithmetic(device: Any, dtype: Any) -> tuple[Rate, Rate]:
    """Operations a second of a device that multiplies many tokens, and bytes a second of one that multiplies a single one."""
    import torch

    weights = torch.randn(4 * SIDE, SIDE, device=device, dtype=dtype)
    many, one = (torch.randn(rows, SIDE, device=device, dtype=dtype) for rows in (ROWS, 1))

    def product(rows: Any) -> None:
        rows @ weights.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return _rate(2.0 * ROWS * weights.numel(), lambda: product(many)), _rate(weights.nbytes, lambda: product(one))


def _free_memory() -> int:
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024
