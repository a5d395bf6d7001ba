"""The verb that works out what an audit takes before anybody begins one: hours, machines and money, from measured rates or given ones."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import cli_options as opt

MODEL, ASKED, MACHINE = "The model", "What is asked", "The machine"
EXAMPLES = (
    "**Examples:**  `forensics cost --measure`  ·  `forensics cost --parameters 70e9 --measure --gpu h100 --gpus 4 --hourly 12 --candidates 20 --max-hours 24`\n\n"
    "**Exit codes:** 0 done · 1 the tool failed · 2 the command is wrong"
)


Parameters = Annotated[float, typer.Option("--parameters", rich_help_panel=MODEL, help="Weights of the model.")]
Active = Annotated[
    float | None, typer.Option("--active", rich_help_panel=MODEL, help="Of a mixture of experts: weights that act at each token.")
]
Dtype = Annotated[str, typer.Option("--dtype", rich_help_panel=MODEL, help="float32, bf16, fp16, fp8, int8 or 4bit, as stored.")]
Prompts = Annotated[int, typer.Option("--prompts", rich_help_panel=ASKED, min=1, help="Prompts put to both models.")]
PromptTokens = Annotated[float, typer.Option("--prompt-tokens", rich_help_panel=ASKED, min=1, help="Tokens of one.")]
Candidates = Annotated[int, typer.Option("--candidates", rich_help_panel=ASKED, min=1, help="Candidates, each audited by itself.")]
Machines = Annotated[int, typer.Option("--machines", rich_help_panel=MACHINE, min=1, help="Machines that share the candidates.")]
MaxHours = Annotated[
    float | None,
    typer.Option("--max-hours", rich_help_panel=MACHINE, min=0.01, help="As many machines as finish within so many hours."),
]
Measured = Annotated[bool, typer.Option("--measure", rich_help_panel=MACHINE, help="Measure this machine's rates (under a minute).")]
Folder = Annotated[Path, typer.Option("--folder", rich_help_panel=MACHINE, help="With --measure: on the disk that holds the models.")]
Gpu = Annotated[str, typer.Option("--gpu", rich_help_panel=MACHINE, help="a100, h100, h200 or l40s: shares of its data sheet.")]
Gpus = Annotated[int, typer.Option("--gpus", rich_help_panel=MACHINE, min=1, help="GPUs of a machine.")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        rich_help_panel=MACHINE,
        min=1,
        help="Files hashed, and tensors of the weight diff measured, at once: cores, up to 6 (default: those here with --measure, else 1).",
    ),
]
Disk = Annotated[float | None, typer.Option("--disk", rich_help_panel=MACHINE, metavar="MB/s", help="What the disk reads.")]
Hashed = Annotated[float | None, typer.Option("--hash", rich_help_panel=MACHINE, metavar="MB/s", help="Of sha256.")]
Differ = Annotated[float | None, typer.Option("--differ", rich_help_panel=MACHINE, metavar="M/s", help="Million weights of one process.")]
Flops = Annotated[float | None, typer.Option("--flops", rich_help_panel=MACHINE, help="Operations a second that a device reaches.")]
Bandwidth = Annotated[
    float | None, typer.Option("--bandwidth", rich_help_panel=MACHINE, metavar="GB/s", help="What a device carries from its memory.")
]
Memory = Annotated[float | None, typer.Option("--memory", rich_help_panel=MACHINE, metavar="GB", help="Of one device.")]


def cost(
    parameters: Parameters = 8e9,
    active: Active = None,
    dtype: Dtype = "bf16",
    prompts: Prompts = 500,
    prompt_tokens: PromptTokens = 60.0,
    max_new_tokens: opt.ReplyLength = 32,
    batch_size: opt.BatchSize = 64,
    repeats: opt.Repeats = 0,
    tier: opt.Effort = opt.SearchTier.standard,
    candidates: Candidates = 1,
    machines: Machines = 1,
    max_hours: MaxHours = None,
    hourly: opt.Hourly = None,
    measure: Measured = False,
    folder: Folder = Path(),
    device: opt.Device = "auto",
    gpu: Gpu = "",
    gpus: Gpus = 1,
    processes: Processes = None,
    disk: Disk = None,
    hash: Hashed = None,
    differ: Differ = None,
    flops: Flops = None,
    bandwidth: Bandwidth = None,
    memory: Memory = None,
    json: opt.AsJson = False,
) -> None:
    """Work out what an audit of a large model takes: hours, machines and money, and where it waits for the disk."""
    from forensics.outlay import RATES, Load, Size, fleet, machines_for, outlay
    from forensics.rates import machine_of
    from forensics.rates import measure as look
    from forensics.record import canonical_json
    from reports.outlay import show_outlay

    own = {"read": _times(disk, 1e6), "hash": _times(hash, 1e6), "differ": _times(differ, 1e6), "arithmetic": flops}
    own |= {"traffic": _times(bandwidth, 1e9), "room": _times(memory, 1e9)}
    _refuse_nothing(own)
    machine = machine_of(
        look(folder, device) if measure else None, gpu, own, devices=gpus, processes=processes or (_cores() if measure else 1)
    )
    load = Load(prompts=prompts, tokens=prompt_tokens, reply=max_new_tokens, batch=batch_size, repeats=repeats, tier=tier.value)
    one = outlay(machine, Size(parameters=parameters, active=parameters if active is None else active, dtype=dtype), load)
    if max_hours is not None:
        machines = _enough(machines_for(one, candidates=candidates, hours=max_hours), one.seconds)
    together = fleet(one, candidates=candidates, machines=machines, hourly=hourly)
    if json:
        sys.stdout.write(
            canonical_json({"outlay": asdict(one), "seconds": one.seconds, "fleet": asdict(together), "machine": asdict(machine)}) + "\n"
        )
        return
    show_outlay(one, together, {name: getattr(machine, name) for name in RATES}, opt.console())


def _cores() -> int:
    from forensics.differ import MOST_AT_ONCE

    return min(os.cpu_count() or 1, MOST_AT_ONCE)


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _refuse_nothing(own: dict[str, float | None]) -> None:
    from forensics.errors import BadInput
    from forensics.rates import OPTIONS

    for name, value in own.items():
        if value is not None and not 0.0 < value < float("inf"):
            raise BadInput(
                "a rate is more than nothing", where=OPTIONS[name], hint="leave it out and give --measure, or give what the machine does"
            )


def _enough(machines: int | None, seconds: float) -> int:
    from forensics.errors import BadInput

    if machines is None:
        raise BadInput(
            f"a single audit takes {seconds / 3600:.1f} hours, and is not shared out",
            where="--max-hours",
            hint="allow more, take a faster machine, or leave stages out of the audit (--max-cost)",
        )
    return machines
