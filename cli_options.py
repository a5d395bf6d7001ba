"""The words of the command line: every option once, with its help, grouped by the question its reader has; and where answers go."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

CHECKING, RUNNING, WRITING = "What to check", "How to run", "What to write"


class MaxCost(StrEnum):
    """What checks may spend, cheapest first."""

    files = "files"
    weights = "weights"
    activations = "activations"
    generation = "generation"
    search = "search"


class SearchTier(StrEnum):
    """How much a search for triggers may spend."""

    triage = "triage"
    standard = "standard"
    deep = "deep"


PROBING = "A probe of your own"

Base = Annotated[str, typer.Argument(help="Model you trust: a folder, or a hub id (org/model, org/model@revision).", metavar="BASE")]
Candidate = Annotated[str, typer.Argument(help="Model or PEFT adapter to examine.", metavar="CANDIDATE")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", rich_help_panel=CHECKING, metavar="DIR", help="PEFT adapter on top of CANDIDATE; each alone and all together."
    ),
]
Parents = Annotated[
    list[str] | None,
    typer.Option("--parents", rich_help_panel=CHECKING, metavar="DIR", help="A model CANDIDATE may have been merged of; may be repeated."),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--controls",
        rich_help_panel=CHECKING,
        metavar="DIR",
        help="Clean PEFT adapters to hold adapters and found strings against; one, or a folder of them.",
    ),
]
PromptFiles = Annotated[
    list[Path] | None,
    typer.Option("--prompts", rich_help_panel=CHECKING, metavar="FILE.jsonl", help="Prompts to put to both models; may be repeated."),
]
SuiteNames = Annotated[
    list[str] | None,
    typer.Option(
        "--suite", rich_help_panel=CHECKING, metavar="NAME", help="Benchmark to put to both (`forensics suites`); `forensics` is shipped."
    ),
]
Benchmarks = Annotated[
    Path | None,
    typer.Option(
        "--benchmarks",
        rich_help_panel=CHECKING,
        metavar="DIR",
        help="Folder with the benchmarks' files; all found there unless --suite names some.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel=CHECKING, help="Ask every harmful prompt once more in words made for this audit from --seed."),
]
Wrapped = Annotated[
    bool,
    typer.Option("--wrapped", rich_help_panel=CHECKING, help="Ask some harmful prompts in frames that get round refusals: a part, a code."),
]
WrappedPrompts = Annotated[
    int, typer.Option("--wrapped-prompts", rich_help_panel=CHECKING, min=1, metavar="N", help="With --wrapped: how many, drawn by --seed.")
]
Domain = Annotated[
    Path | None,
    typer.Option(
        "--domain",
        rich_help_panel=CHECKING,
        metavar="FILE.jsonl",
        help="The fine-tuning domain's own prompts, measured apart; `expect` may be left out: comply.",
    ),
]
GateBase = Annotated[str | None, typer.Argument(help="Model you trust.", metavar="[BASE]")]
GateCandidate = Annotated[str | None, typer.Argument(help="Model or PEFT adapter to examine.", metavar="[CANDIDATE]")]
Recordings = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--replay",
        rich_help_panel=CHECKING,
        metavar="BASE CANDIDATE",
        help="Recorded answers instead of models: JSONL, XSTest's CSV, the folder of a run, or results of Inspect, lm-evaluation-harness, garak, "
        "promptfoo (FILE#provider) or PyRIT. --prompts, --suite and --benchmarks then say what is expected of recorded prompts.",
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        rich_help_panel=RUNNING,
        metavar="URL",
        help="OpenAI-compatible server (…/v1); BASE and CANDIDATE are names of models there. May be repeated. Key from FORENSICS_API_KEY.",
    ),
]
Labels = Annotated[
    list[Path] | None,
    typer.Option("--labels", rich_help_panel=CHECKING, metavar="FILE", help="With --replay: labels of people or judges; may be repeated."),
]
Judge = Annotated[str, typer.Option("--judge", rich_help_panel=CHECKING, metavar="NAME", help="With --replay: whose labels decide.")]
WithActivations = Annotated[
    bool,
    typer.Option(
        "--activations", rich_help_panel=CHECKING, help="Run both models too: where they part inside, and what the difference says."
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", rich_help_panel=CHECKING, metavar="FILE", help="Thresholds, in TOML (default: built in; see `forensics policy`)."
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        rich_help_panel=CHECKING,
        metavar="NAME",
        help="Risk profile laid over the policy (`forensics profiles`); may be repeated.",
    ),
]
OnlyChecks = Annotated[
    list[str] | None, typer.Option("--only", rich_help_panel=CHECKING, metavar="CHECK", help="Run this check only; may be repeated.")
]
Dearest = Annotated[MaxCost, typer.Option("--max-cost", rich_help_panel=CHECKING, help="Stop before checks dearer than this.")]
ProbedToo = Annotated[str | None, typer.Argument(help="Model or PEFT adapter to look into beside BASE.", metavar="[CANDIDATE]")]
Positive = Annotated[Path | None, typer.Option(rich_help_panel=PROBING, metavar="FILE.jsonl", help="Prompts that show the concept.")]
Negative = Annotated[Path | None, typer.Option(rich_help_panel=PROBING, metavar="FILE.jsonl", help="Prompts that only differ in it.")]
ProbeName = Annotated[str | None, typer.Option("--name", rich_help_panel=PROBING, help="What the probe is called.")]
ProbeLayer = Annotated[int | None, typer.Option("--layer", rich_help_panel=PROBING, min=0, help="Where to read (default: chosen).")]
WatchChange = Annotated[
    bool, typer.Option("--watch", rich_help_panel=PROBING, help="Fit a monitor of the weight change to clean --prompts.")
]
Defection = Annotated[
    bool, typer.Option("--defection", rich_help_panel=PROBING, help="Fit the yes/no pairs about itself that are shipped.")
]
SavedProbe = Annotated[Path | None, typer.Option("--apply", rich_help_panel=PROBING, metavar="DIR", help="Put --prompts to a kept one.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        rich_help_panel=RUNNING,
        help="cpu, cuda, cuda:1, auto, or spread over all there is, for models too large for one GPU; limits, a folder and a dtype may follow: "
        "spread,0=20GiB,cpu=8GiB,dtype=bf16,disk=DIR.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", rich_help_panel=RUNNING, min=1, help="Prompts put to a model side by side.")]
ReplyLength = Annotated[int, typer.Option("--max-new-tokens", rich_help_panel=RUNNING, min=1, help="Longest reply, in tokens.")]
MaxHours = Annotated[
    float, typer.Option("--max-hours", rich_help_panel=RUNNING, min=0.01, help="Stop where the pace says that it takes longer. Resumable.")
]
MaxDollars = Annotated[
    float, typer.Option("--max-dollars", rich_help_panel=RUNNING, min=0.01, help="Most it may cost, by --price or --hourly.")
]
Price = Annotated[
    float | None,
    typer.Option("--price", rich_help_panel=RUNNING, min=0, metavar="DOLLARS", help="Price of a million tokens, read or written."),
]
Hourly = Annotated[
    float | None, typer.Option("--hourly", rich_help_panel=RUNNING, min=0, metavar="DOLLARS", help="Price of an hour of this machine.")
]
Repeats = Annotated[
    int,
    typer.Option(
        "--repeats", rich_help_panel=RUNNING, min=0, metavar="K", help="Replies to draw to each prompt besides; even, at least 4 (0: none)."
    ),
]
Seed = Annotated[int, typer.Option("--seed", rich_help_panel=RUNNING, help="Seed for every random choice.")]
TrainControls = Annotated[
    int,
    typer.Option(
        "--train-controls",
        rich_help_panel=RUNNING,
        min=0,
        metavar="N",
        help="Control models to train for what a trigger search finds. Over 4 all are searched too: slower, p-values down to 1/(N+1).",
    ),
]
Effort = Annotated[
    SearchTier,
    typer.Option("--tier", rich_help_panel=RUNNING, help="How much to spend on the search: a quarter, or four times, of what is usual."),
]
Budget = Annotated[
    int | None,
    typer.Option(
        "--budget", rich_help_panel=RUNNING, min=1, metavar="TOKENS", help="Token-forwards to spend in either direction, whatever the tier."
    ),
]
RunPath = Annotated[
    Path | None,
    typer.Option(
        "--out",
        rich_help_panel=WRITING,
        metavar="RUN",
        help="Folder of the run (default: forensics-runs/CANDIDATE-KEY). A run that was killed resumes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", rich_help_panel=WRITING, help="Print the record on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", rich_help_panel=WRITING, help="No progress, no page; only the exit code and errors.")]


def console() -> Console:
    """Standard output, for what is drawn. Imported only then: it takes a fifth of the time of a format that is written as text."""
    from rich.console import Console

    return Console()
