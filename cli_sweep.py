"""The verb `sweep`: many candidates against one base, here, in several processes, or on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cli_options as opt
from cli_walk import EXIT_CODES, progress_of, request_of, told, write_page

if TYPE_CHECKING:
    from forensics.gate.replies import Progress
    from forensics.swept import SweepRecord

EPILOG = (
    "**Examples:**  `forensics sweep ./llama-base ./adapters --prompts prompts.jsonl --out autumn` · "
    "`forensics sweep ./llama-base list.txt --max-cost weights --workers 4` · `forensics sweep ./llama-base ./adapters --ray auto`\n\n"
    "The worst candidate decides the exit code; one that could not be audited counts as worse than an inconclusive one.\n\n" + EXIT_CODES
)
PAGE = "report.html"

Candidates = Annotated[
    list[str] | None,
    typer.Argument(
        help="Models or PEFT adapters to examine, folders of them, or text files that list them, one a line.",
        metavar="CANDIDATE...",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        rich_help_panel=opt.RUNNING,
        min=1,
        metavar="N",
        help="Candidates at a time, each in a process of its own (default: 1; on a cluster one a GPU, or a node).",
    ),
]
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        rich_help_panel=opt.RUNNING,
        metavar="ADDRESS",
        help="Work on this Ray cluster (HOST:PORT, or auto); its nodes see the same paths.",
    ),
]
SweepPath = Annotated[
    Path | None,
    typer.Option(
        "--out",
        rich_help_panel=opt.WRITING,
        metavar="SWEEP",
        help="Folder of the sweep (default: forensics-runs/sweep-BASE-KEY). One that was killed resumes; candidates may be added.",
    ),
]


def sweep(
    base: opt.Base,
    candidates: Candidates = None,
    controls: opt.Controls = None,
    prompts: opt.PromptFiles = None,
    suite: opt.SuiteNames = None,
    benchmarks: opt.Benchmarks = None,
    policy: opt.PolicyFile = None,
    profile: opt.Profiles = None,
    only: opt.OnlyChecks = None,
    max_cost: opt.Dearest = opt.MaxCost.search,
    workers: Workers = None,
    ray: Ray = "",
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = 64,
    max_new_tokens: opt.ReplyLength = 32,
    repeats: opt.Repeats = 0,
    max_hours: opt.MaxHours = 4.0,
    seed: opt.Seed = 0,
    train_controls: opt.TrainControls = 4,
    out: SweepPath = None,
    json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Audit many candidates against one BASE, which is opened once: a run each, and one table of all, the most concerning first.

    Candidates are held against each other as well: an adapter unlike its siblings is named, as a lead that decides nothing.
    """
    with told(), progress_of(quiet=quiet or json) as progress:
        from forensics.gate.costing import Allowance
        from forensics.gate.replies import Decoding
        from forensics.policy import load_policy
        from forensics.sweep import Sweeping
        from forensics.sweep import sweep as run
        from forensics.workers.terms import Crew

        lists = {"controls": controls, "prompts": prompts, "suites": suite, "only": only}
        how = {"max_cost": max_cost.value, "seed": seed, "train_controls": train_controls, "device": device, "benchmarks": benchmarks}
        decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size, repeats=repeats)
        decider = load_policy(policy, profile or ())
        request = request_of(base, "", lists, out=out, policy=decider, decoding=decoding, allowance=Allowance(hours=max_hours), **how)
        swept = run(Sweeping(request=request, candidates=tuple(candidates or ()), crew=Crew(workers=workers or 0, ray=ray)), progress)
        if not quiet:
            _write_pages(swept.record, swept.folder, progress)
    with told():
        if json:
            sys.stdout.write(swept.record.to_json())
        elif not quiet:
            from reports.sweeping import show_sweep

            show_sweep(swept.record, opt.console())
            typer.echo(f"{swept.folder}")
    raise typer.Exit(swept.record.exit_code)


def _write_pages(record: SweepRecord, folder: Path, progress: Progress) -> None:
    """The page of every run that has none, and one of all of them."""
    from forensics.runfolder import disk_error, write_text
    from reports.formats import of_several
    from reports.sweeping import beside_of

    runs = [row for row in record.rows if row.run]
    for done, row in enumerate(runs):
        progress("pages", done, len(runs))
        if not (folder / row.run / PAGE).exists():
            write_page(folder / row.run)
    progress("pages", len(runs), len(runs))
    if runs:
        try:
            write_text(folder / PAGE, of_several(beside_of(record, folder), "html"))
        except OSError as error:
            raise disk_error(error, folder / PAGE) from error
