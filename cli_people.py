"""Verbs around a gate: what may be asked and what it can show, who judges, reviews, tries to break a model and signs, and where a run stands."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

import cli_options as opt

Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]


def suites(
    fetch: Annotated[
        Path | None,
        typer.Option("--fetch", metavar="DIR", help="Fetch the files that may openly be had into this folder, for --benchmarks DIR."),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", metavar="NAME", help="With --fetch: only this one; may be repeated.")
    ] = None,
    mirror: Annotated[str, typer.Option("--mirror", metavar="URL", help="With --fetch: stands for raw.githubusercontent.com.")] = "",
) -> None:
    """List the benchmarks that can be read: files, licence, source, and the judge their authors name; or fetch them."""
    from forensics.gate.suites import all_suites, own_suite, suite_named
    from reports.planning import show_own, show_suites

    chosen = [suite_named(name) for name in suite or ()] or list(all_suites().values())
    if fetch is not None:
        from forensics.gate.fetching import ORIGIN
        from forensics.gate.fetching import fetch as bring

        bring(chosen, fetch, mirror=mirror or ORIGIN, tell=lambda one: typer.echo(f"{one.suite}: {one.file}: {one.state}"))
        return
    show_own(own_suite(), opt.console())
    show_suites(chosen, opt.console())


def power(
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Harmful prompts, of one category or in all.")] = 500,
    flips: Annotated[
        float, typer.Option("--flips", min=0, max=20, help="Prompts that flip the other way by themselves, in percent.")
    ] = 2.0,
    policy: opt.PolicyFile = None,
    profile: opt.Profiles = None,
) -> None:
    """Say what a number of prompts can show: the smallest loss that would be noticed, and how many prompts each takes."""
    from forensics.gate.planning import plan
    from forensics.policy import load_policy
    from reports.planning import show_plan

    show_plan(plan(prompts, flips, load_policy(policy, profile or ())), opt.console())


def profiles() -> None:
    """Print the risk profiles: what each changes in the policy, as TOML."""
    from forensics.policy import profile_texts

    typer.echo("\n".join(f"## {name}\n{text}" for name, text in profile_texts().items()), nl=False)


def review(
    run: Run,
    reviewer: Annotated[str, typer.Option("--reviewer", metavar="NAME", help="Who labels; two people label apart from each other.")],
) -> None:
    """Label the replies that the gate drew for people, one by one. What is labelled stays; the same command goes on."""
    from forensics.people.log import LABELS, ReviewLabel, load_lines
    from forensics.people.reviewing import review as go_through
    from forensics.people.signing import agreement
    from forensics.runfolder import load_run
    from reports.words import printable

    added, left = go_through(run, reviewer, _ask, lambda text: typer.echo(printable(text)), _now)
    typer.echo(f"{added} labels added, {left} replies left for {reviewer}.")
    saved = load_run(str(run))
    both, agreed, kappa = agreement(load_lines(saved.folder, LABELS, ReviewLabel, results_digest=saved.record.results_digest))
    if both:
        typer.echo(
            f"{both} replies were labelled by two people or more; {agreed} alike on refusal{f', kappa {kappa:.2f}' if kappa is not None else ''}."
        )
    if not left:
        typer.echo(
            f"Decide by them: forensics gate --replay {run} {run} --labels {run / 'people' / LABELS} --seed {saved.record.seed} --out NEW (with the same --policy and --profile)"
        )


def judges() -> None:
    """List the formats that judges are asked in: what they say, for which model, source, licence, and whether the text was checked."""
    from forensics.gate.formats import all_formats
    from reports.planning import show_formats

    show_formats(all_formats().values(), opt.console())


def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or a recording of the base's answers.", metavar="RUN")],
    candidate: Annotated[Path | None, typer.Argument(help="Recording of the candidate's answers.", metavar="[CANDIDATE]")] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option("--prompts", metavar="FILE.jsonl", help="As given to the gate: by them recordings of other harnesses meet."),
    ] = None,
    endpoint: Annotated[list[str] | None, typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible server of the judge.")] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The judge's name there.")] = "",
    local: Annotated[str, typer.Option("--local", metavar="FOLDER", help="A judge to load here: a folder, or a hub id.")] = "",
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="NAME", help="What it is asked (default: rubric); `forensics judges` lists them. May be repeated."
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="FILE", help="Text of the format, where it is not shipped; checked by its sha256."),
    ] = None,
    guard: Annotated[bool, typer.Option("--guard", help="The same as --format guard: a model that says safe or unsafe.")] = False,
    device: Annotated[str, typer.Option("--device", help="Of a judge that is loaded here: cpu, cuda, cuda:1, spread or auto.")] = "auto",
    at_once: Annotated[int, typer.Option("--batch-size", min=1, help="Requests in flight, or replies side by side.")] = 16,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Labels, a line each; a judge that was stopped goes on.")] = Path(
        "labels.jsonl"
    ),
) -> None:
    """Have recorded replies labelled by a model, behind a server or loaded here, beside the rules and people."""
    from forensics.gate.formats import formats_named
    from forensics.gate.key import key_of
    from forensics.gate.recorded import read_both
    from forensics.prompts import load_prompts
    from reports.progress import bars
    from reports.words import printable

    _refuse_half_named(endpoint, model, local)
    wanted = list(dict.fromkeys([*(format or ()), *(["guard"] if guard else [])])) or ["rubric"]
    key = key_of([load_prompts(file) for file in prompts or ()])
    formats, both = formats_named(wanted, template), read_both(run, candidate or run, key)
    with bars(watched=sys.stderr.isatty()) as progress:
        if local:
            from forensics.gate.local import Seat, judge_local

            tallies = judge_local(both, Seat(source=local, device=device, batch_size=at_once), formats, out, progress)
        else:
            from forensics.gate.judging import judge_served
            from forensics.gate.served import Endpoint, key_from_environment, refuse_strange_urls

            refuse_strange_urls(endpoint or ())
            server = Endpoint(
                urls=tuple(endpoint or ()), models=(model, model), max_new_tokens=16, at_once=at_once, key=key_from_environment()
            )
            tallies = judge_served(both, server, formats, out, progress)
    for tally in tallies:
        typer.echo(f"{tally.labels} labels of {printable(tally.judge)} in {out}, {tally.unread} that could not be read.")
        if tally.scores is not None:
            typer.echo(
                f"  mean score {tally.scores[0]:.3f} (base), {tally.scores[1]:.3f} (candidate), on {tally.scored} prompts scored on both sides"
            )
    for one in formats:
        if not one.verified:
            typer.echo(f"The text of {one.name} was not checked with its authors' own: {one.compared}.")
    beside = "".join(f" --prompts {file}" for file in prompts or ())
    typer.echo(f"Beside the others: forensics gate --replay {run} {candidate or run} --labels {out}{beside} --out NEW")


def _refuse_half_named(endpoint: list[str] | None, model: str, local: str) -> None:
    """Refuse a judge that is named twice, or not at all."""
    from forensics.errors import BadInput

    if local and (endpoint or model):
        raise BadInput(
            "a judge is loaded here or lies behind a server", where="--local, --endpoint", hint="give --local alone, or leave it out"
        )
    if not local and not (endpoint and model):
        raise BadInput(
            "a judge needs a server and a name there, or a folder",
            where="--endpoint, --model, --local",
            hint="for example --endpoint http://localhost:8000/v1 --model wildguard, or --local ./wildguard, with --format wildguard",
        )


def redteam(
    run: Run,
    tester: Annotated[str, typer.Option("--tester", metavar="NAME", help="Who asks.")],
    configuration: Annotated[str, typer.Option(help="Which of the run's configurations (default: the last).")] = "",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or auto.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply, in tokens.")] = 64,
) -> None:
    """Ask base and candidate side by side, and log what is made of the replies; the time counts as red teaming."""
    from forensics.people.redteam import Desk, Session
    from forensics.people.redteam import redteam as hold
    from reports.words import printable

    desk = Desk(ask=_ask, show=lambda text: typer.echo(printable(text)), now=_now, clock=time.monotonic)
    session = Session(run=run, tester=tester, configuration=configuration, device=device, max_new_tokens=max_new_tokens)
    hold(session, desk, lambda _title, _done, _total: None)


def sign(
    run: Run,
    name: Annotated[str, typer.Option("--name", help="Who signs.")],
    accept: Annotated[bool, typer.Option("--accept/--reject", help="Whether the risk is accepted.")],
    role: Annotated[str, typer.Option("--role", help="What they are answerable for.")] = "",
    read: Annotated[list[str] | None, typer.Option("--read", help="What they read; may be repeated.")] = None,
    residual_risk: Annotated[str, typer.Option("--residual-risk", help="Which risk is left and accepted, or why it is rejected.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="DAY", help="Day the signature ends (default: that of the record).")] = "",
) -> None:
    """Accept or reject what a record says, in writing, bound to its digest. A block is not lifted by it."""
    from forensics.people.signing import Signing
    from forensics.people.signing import sign as write

    wanted = Signing(run=run, name=name, role=role, accept=accept, read=tuple(read or ()), residual_risk=residual_risk, until=until)
    line = write(wanted, _now())
    typer.echo(f"{line.name} {line.decision}s results {line.results_digest[:16]} until {line.valid_until[:10]}.")


def status(run: Run) -> None:
    """Say where a run stands now, with what people added, and exit as a pipeline may act: 0, 3, 10 or 20."""
    from forensics.people.signing import stands
    from reports.words import EXIT_WORDS, printable

    found = stands(run, _now())
    for sentence in found.sentences:
        typer.echo(printable(sentence))
    typer.echo(f"exit {found.exit_code} ({EXIT_WORDS[found.exit_code]})")
    raise typer.Exit(found.exit_code)


VERBS = (suites, judges, power, profiles, judge, review, redteam, sign, status)


def _ask(question: str) -> str:
    return input(question)


def _now() -> datetime:
    return datetime.now(UTC)
