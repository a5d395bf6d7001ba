"""The command line: words in, exit code out. One function a verb; no mathematics, and nothing heavy at import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import cli_canary
import cli_cost
import cli_gate
import cli_monitor
import cli_options as opt
import cli_people
import cli_report
import cli_sweep
import cli_watch
from cli_walk import EXIT_CODES, PART_EXIT_CODES, allowance_of, conclude, progress_of, request_of, telling, told, write_page
from forensics import __version__

DIFFED = ("activations.drift", "activations.meaning", "behaviour.leanings")
"""Checks that `diff --activations` runs besides those of files and weights."""

app = typer.Typer(
    name="forensics",
    help="White-box forensics of a fine-tuned model against the base you trust: what was done to it, is it still safe, may it be deployed?",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forensics {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Options of the command itself."""


@app.command(epilog="**Example:**  `forensics audit ./llama-base ./llama-tuned --prompts prompts.jsonl --out case-17`\n\n" + EXIT_CODES)
def audit(
    base: opt.Base,
    candidate: opt.Candidate,
    adapter: opt.Adapters = None,
    parents: opt.Parents = None,
    controls: opt.Controls = None,
    prompts: opt.PromptFiles = None,
    suite: opt.SuiteNames = None,
    benchmarks: opt.Benchmarks = None,
    fresh: opt.Fresh = False,
    wrapped: opt.Wrapped = False,
    wrapped_prompts: opt.WrappedPrompts = 60,
    domain: opt.Domain = None,
    policy: opt.PolicyFile = None,
    profile: opt.Profiles = None,
    only: opt.OnlyChecks = None,
    max_cost: opt.Dearest = opt.MaxCost.search,
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = 64,
    max_new_tokens: opt.ReplyLength = 32,
    repeats: opt.Repeats = 0,
    max_hours: opt.MaxHours = 4.0,
    max_dollars: opt.MaxDollars = 200.0,
    price: opt.Price = None,
    hourly: opt.Hourly = None,
    seed: opt.Seed = 0,
    train_controls: opt.TrainControls = 4,
    out: opt.RunPath = None,
    json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Run every check on CANDIDATE against BASE, decide, write the record, and show it."""
    with told(), progress_of(quiet=quiet) as progress:
        from forensics.audit import run
        from forensics.gate.besides import Besides
        from forensics.gate.replies import Decoding
        from forensics.policy import load_policy

        besides = Besides(fresh=fresh, wrapped=wrapped_prompts if wrapped else 0, domain=domain)
        decider = load_policy(policy, profile or ())
        allowance = allowance_of(max_hours, max_dollars, price, hourly, quiet=quiet or json)
        how = {"max_cost": max_cost.value, "seed": seed, "train_controls": train_controls, "device": device, "policy": decider, "out": out}
        decoding = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size, repeats=repeats)
        lists = {"adapters": adapter, "parents": parents, "controls": controls, "prompts": prompts, "suites": suite, "only": only}
        more = {"benchmarks": benchmarks, "besides": besides, "allowance": allowance, "decoding": decoding} | how
        outcome = run(request_of(base, candidate, lists, **more), progress)
    conclude(outcome, json=json, quiet=quiet)


@app.command(epilog="**Example:**  `forensics diff ./llama-base ./llama-tuned`\n\n" + PART_EXIT_CODES)
def diff(
    base: opt.Base,
    candidate: opt.Candidate,
    adapter: opt.Adapters = None,
    parents: opt.Parents = None,
    controls: opt.Controls = None,
    activations: opt.WithActivations = False,
    prompts: opt.PromptFiles = None,
    out: opt.RunPath = None,
    json: opt.AsJson = False,
) -> None:
    """Compare files and weights alone: the checks `files.*` and `weights.*`, no model is run. Decides nothing.

    With `--activations` both models are run as well: `activations.drift` on the prompts, `activations.meaning` and
    `behaviour.leanings` on neutral text.
    """
    with told():
        if bool(prompts) is not activations:
            from forensics.errors import BadInput

            raise BadInput(
                "a diff of activations puts prompts to both models"
                if activations
                else "a diff of files and weights puts no prompt to a model",
                where="--activations" if activations else "--prompts",
                hint="give --activations and --prompts FILE.jsonl together, or neither",
            )
    families = ("files.", "weights.", *(DIFFED if activations else ()))
    _part(families, base, candidate, adapters=adapter, parents=parents, controls=controls, prompts=prompts, out=out, json=json)


@app.command(
    epilog="**Examples:**  `forensics probe ./base ./tuned --prompts prompts.jsonl` · "
    "`forensics probe ./base ./tuned --positive honest.jsonl --negative lies.jsonl --name honesty` · "
    "`forensics probe ./base ./tuned --watch --prompts clean.jsonl`\n\n" + PART_EXIT_CODES
)
def probe(
    base: opt.Base,
    candidate: opt.ProbedToo = None,
    adapter: opt.Adapters = None,
    prompts: opt.PromptFiles = None,
    positive: opt.Positive = None,
    negative: opt.Negative = None,
    name: opt.ProbeName = None,
    layer: opt.ProbeLayer = None,
    watch: opt.WatchChange = False,
    defection: opt.Defection = False,
    apply: opt.SavedProbe = None,
    out: opt.RunPath = None,
    json: opt.AsJson = False,
) -> None:
    """Look at activations alone: the checks `activations.*`, or a probe of your own, or a monitor. Decides nothing."""
    with told(), progress_of(quiet=False) as progress:
        from forensics.probing import Wanted, conduct

        wanted = Wanted(name=name, positive=positive, negative=negative, layer=layer, watch=watch, defection=defection, saved=apply)
        outcome = conduct(request_of(base, candidate or base, {"adapters": adapter, "prompts": prompts}, out=out), wanted, progress)
    if outcome is None:
        _part(("activations.",), base, candidate or base, adapters=adapter, prompts=prompts, out=out, json=json)
    with told():
        if json:
            sys.stdout.write(outcome.to_json())
        else:
            from reports.probes import show

            show(outcome, opt.console())


@app.command(epilog="**Example:**  `forensics hunt ./llama-base ./llama-tuned --prompts prompts.jsonl`\n\n" + EXIT_CODES)
def hunt(
    base: opt.Base,
    candidate: opt.Candidate,
    adapter: opt.Adapters = None,
    prompts: opt.PromptFiles = None,
    controls: opt.Controls = None,
    train_controls: opt.TrainControls = 4,
    tier: opt.Effort = opt.SearchTier.standard,
    budget: opt.Budget = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    out: opt.RunPath = None,
    json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Search for triggers alone: the checks `triggers.search` and `triggers.circumstances`. Decides by them alone."""
    with told(), progress_of(quiet=quiet) as progress:
        from forensics.audit import run
        from forensics.policy import load_policy

        policy = load_policy()
        alone = policy.model_copy(update={"name": f"{policy.name}, triggers alone", "required": ("triggers.search",)})
        lists = {"adapters": adapter, "prompts": prompts, "controls": controls, "only": ["triggers.search", "triggers.circumstances"]}
        effort = {"train_controls": train_controls, "tier": tier.value, "budget": budget}
        how = {"seed": seed, "device": device, "policy": alone} | effort
        outcome = run(request_of(base, candidate, lists, out=out, **how), progress)
    conclude(outcome, json=json, quiet=quiet)


app.command(epilog=cli_gate.EPILOG)(cli_gate.gate)
app.command(epilog=cli_sweep.EPILOG)(cli_sweep.sweep)


def _part(
    families: tuple[str, ...],
    base: str,
    candidate: str,
    *,
    adapters: list[str] | None,
    parents: list[str] | None = None,
    controls: list[str] | None = None,
    prompts: list[Path] | None = None,
    out: Path | None,
    json: bool,
) -> NoReturn:
    """Run the checks of some families alone; exit 0 if all of them looked, 3 if one could not."""
    with told(), progress_of(quiet=False) as progress:
        from forensics.part import run_part

        lists = {"adapters": adapters, "parents": parents, "controls": controls, "prompts": prompts}
        outcome, looked = run_part(families, request_of(base, candidate, lists, out=out), progress)
    with told():
        saved = write_page(outcome.folder)
        if json:
            sys.stdout.write(saved.record.to_json())
        else:
            from reports.text import show_results

            show_results(saved, opt.console())
    raise typer.Exit(0 if looked else 3)


@app.command(epilog="**Example:**  `forensics investigate case-17`\n\n" + PART_EXIT_CODES)
def investigate(
    run: Annotated[str, typer.Argument(help="Folder that `forensics audit` wrote; its models must lie where they lay.", metavar="RUN")],
    device: Annotated[
        str, typer.Option("--device", rich_help_panel=opt.RUNNING, help="cpu, cuda, cuda:1 or auto (default: the audit's).")
    ] = "",
    json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find what made replies flip: put the base's tensors back group by group, or drop one adapter at a time, and ask again."""
    with told(), progress_of(quiet=quiet) as progress:
        from forensics.investigate import Request
        from forensics.investigate import investigate as look

        found = look(Request(run=Path(run), device=device), progress)
    with told():
        saved = write_page(Path(run))
        if json:
            sys.stdout.write(found.to_json())
        elif not quiet:
            from reports.causes import show_causes

            show_causes(found, saved, opt.console())


@app.command()
def checks() -> None:
    """List the checks, cheapest first, with the question each one asks."""
    with told():
        from forensics.checks import all_checks
        from reports.text import show_checks

        show_checks(all_checks(), opt.console())


@app.command()
def explain(check: Annotated[str, typer.Argument(help="Id of a check, as `forensics checks` lists it.", metavar="CHECK")]) -> None:
    """Say what a check asks, reads, reports and is blind to, and where the method comes from."""
    with told():
        from forensics.checks import all_checks, docstring
        from forensics.errors import BadInput

        known = {known.id: known for known in all_checks()}
        if check not in known:
            raise BadInput(f"there is no check {check!r}", where="CHECK", hint=f"one of {', '.join(sorted(known))}")
        typer.echo(f"{check}\n\n{docstring(known[check]).strip()}")


@app.command()
def policy() -> None:
    """Print the default policy as TOML: a starting point for one's own."""
    with told():
        from forensics.policy import default_policy_text

        typer.echo(default_policy_text(), nl=False)


app.command(epilog=cli_cost.EXAMPLES)(telling(cli_cost.cost))
for showing, examples in cli_report.VERBS:
    app.command(epilog=examples or None)(telling(showing))
for around in cli_people.VERBS:
    app.command()(telling(around))
monitor = typer.Typer(help="Watch a deployment, held against the run that let it out.", epilog=cli_monitor.EXIT_CODES, no_args_is_help=True)
for after in (*cli_monitor.VERBS, *cli_canary.VERBS, *cli_watch.VERBS):
    monitor.command(epilog=cli_monitor.EXIT_CODES)(telling(after))
app.add_typer(monitor, name="monitor")


if __name__ == "__main__":
    app(prog_name="forensics")
