"""Cases and runs for tests: made of real files where that is cheap, by hand where a model would add nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics import audit as conductor
from forensics.adapters import Adapter, open_adapter
from forensics.alignment import align
from forensics.case import CANDIDATE, Case
from forensics.checkpoint import open_checkpoint
from forensics.gate.formats import Format, format_named, with_template
from forensics.gate.replies import Decoding
from forensics.policy import load_policy
from forensics.prompts import Prompt, load_prompts
from forensics.record import (
    AuditRecord,
    BaseSource,
    CandidateSource,
    CheckResult,
    Evidence,
    Finding,
    Item,
    PolicySource,
    PromptSource,
    Status,
    digest_results,
    sha256_text,
)
from forensics.runfolder import RunFolder, SavedRun, load_run
from forensics.verdict import decide
from forensics.workbench import Workbench

ROOT = Path(__file__).resolve().parent.parent
ORGANISMS = ROOT / "examples" / "organisms"
PROMPTS = ORGANISMS / "prompts.jsonl"
PUBLIC = ROOT.parent / "shared" / "benchmarks"
# The project ships no benchmark's texts, so what reads the real files can run only where they lie beside it.
# The project ships none of them: terms of others, and harmful texts. What they show runs where they lie.
with_public_files = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public benchmark files do not lie beside the project")
COMMAND = f"import runpy, sys; sys.argv[0] = 'forensics'; runpy.run_path({str(ROOT / 'cli.py')!r}, run_name='__main__')"
NOW = "2027-01-15T12:00:00+00:00"


@dataclass(frozen=True)
class Held:
    """A folder with the hashes of its files, which is all that the lower floors ask for."""

    path: Path
    files: dict[str, str] = field(default_factory=dict)
    name: str = "held"


def silent(_title: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def command(*words: object) -> list[str]:
    """`forensics WORDS...` in a process of its own."""
    return [sys.executable, "-c", COMMAND, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """What such a process needs around it."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"} | more


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def some_prompts(path: Path, *, refuse: int, comply: int, talks: int = 0) -> Path:
    """A cut of the organisms' prompts: `refuse` and `comply` single questions spread over all categories, and `talks` conversations."""
    rows = read_rows(PROMPTS)
    chosen: list[dict[str, Any]] = []
    for expect, multi, wanted in (("refuse", False, refuse), ("comply", False, comply), ("refuse", True, talks)):
        fitting = [row for row in rows if row["expect"] == expect and ("messages" in row) == multi]
        chosen += [fitting[index * len(fitting) // wanted] for index in range(wanted)] if wanted else []
    return write_rows(path, chosen)


def tiny_prompts(path: Path, count: int = 6) -> Path:
    """Prompts for models that say nothing sensible anyway."""
    rows = [{"prompt": f"question {index}", "category": "x", "expect": "refuse" if index % 2 else "comply"} for index in range(count)]
    return write_rows(path, rows)


def edited(folder: Path, target: Path, *, files: Mapping[str, str | bytes | None] | None = None, **config: object) -> Path:
    """A copy of `folder` with `files` written (or removed, where None) and keys of config.json set."""
    copytree(folder, target)
    for name, content in (files or {}).items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.unlink()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content, encoding="utf-8")
    if config:
        whole = json.loads((target / "config.json").read_text(encoding="utf-8")) | config
        (target / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    return target


def reweighted(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of `folder` whose tensors went through `change`, which works in place."""
    copytree(folder, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def restacked(base: Path, target: Path, order: Sequence[int], *, noise: float = 0.0, dtype: torch.dtype | None = None) -> Path:
    """The model in `base` with its layers in this order, some of them perhaps twice or not at all, every tensor moved by `noise`."""
    kind = json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"]
    stem, count = {"llama": ("model.layers.", "num_hidden_layers"), "gpt2": ("transformer.h.", "n_layer")}[kind]
    generator = torch.Generator().manual_seed(3)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        step = torch.randn(tensor.shape, generator=generator)
        return (tensor + noise * tensor.norm() * step / step.norm()).to(dtype or tensor.dtype)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors.update({name: moved(tensor) for name, tensor in old.items() if not name.startswith(stem)})
        for place, source in enumerate(order):
            start = f"{stem}{source}."
            tensors.update({f"{stem}{place}.{name[len(start) :]}": moved(old[name]) for name in old if name.startswith(start)})

    return reconfigured(reweighted(base, target, change), **{count: len(order)})


def grown(base: Path, target: Path, rows: int) -> Path:
    """The model in `base` with a vocabulary of `rows` tokens; what is new is noise."""
    generator = torch.Generator().manual_seed(4)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, old in list(tensors.items()):
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                new = old.float().std() * torch.randn(max(0, rows - len(old)), old.shape[1], generator=generator)
                tensors[name] = torch.cat([old[:rows], new.to(old.dtype)])

    return reconfigured(reweighted(base, target, change), vocab_size=rows)


def reconfigured(folder: Path, **config: object) -> Path:
    """`folder` itself with keys of its config.json set."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | config), encoding="utf-8")
    return folder


@contextmanager
def open_case(
    base: Path,
    candidate: Path,
    run: Path,
    *,
    adapters: Sequence[Path] = (),
    prompts: Path | None = None,
    surface: Path | None = None,
    parents: Sequence[Path] = (),
    repeats: int = 0,
    **search: Any,
) -> Iterator[Case]:
    """The case that a check would receive, as the conductor builds it; `search` are its own fields of a search for triggers."""
    ours = open_checkpoint(str(base))
    theirs = ours if candidate == base else open_checkpoint(str(candidate))
    put_on: tuple[Adapter, ...] = tuple(open_adapter(str(path), theirs) for path in adapters)
    with RunFolder(run, key="test", created=NOW) as folder:
        bench = Workbench(device="cpu", decoding=Decoding(max_new_tokens=12, batch_size=64, repeats=repeats), run=folder, progress=silent)
        yield Case(
            base=ours,
            candidate=theirs,
            adapters=put_on,
            surface=next((adapter for adapter in put_on if adapter.path == surface), theirs),
            configuration=CANDIDATE,
            layout=align(ours, theirs),
            prompts=load_prompts(prompts).prompts if prompts else (),
            policy=load_policy(),
            seed=0,
            workbench=bench,
            parents=tuple(open_checkpoint(str(path)) for path in parents),
            **search,
        )
        bench.close()


def audit(base: Path, candidate: Path, out: Path, *, prompts: Path | None = None, **options: Any) -> AuditRecord:
    """The record of an audit made in this process; `options` go to Request."""
    given: dict[str, Any] = {"policy": load_policy(), "prompts": (prompts,) if prompts else (), "device": "cpu"} | options
    return conductor.run(conductor.Request(base=str(base), candidate=str(candidate), out=out, **given), silent).record


def number(name: str, value: float, **more: Any) -> Evidence:
    """Evidence of which only name and value matter."""
    return Evidence(**({"name": name, "value": value, "unit": "points", "where": "here", "expected": "0"} | more))


def found(check: str, label: str, *, severity: str = "high", claim: str = "a claim", **more: Any) -> Finding:
    fields = {"id": f"{check}/{label}", "check": check, "label": label, "severity": severity, "confidence": "high", "claim": claim}
    return Finding.model_validate(fields | {"evidence": (number("a.number", 1.0),)} | more)


def result(check: str, status: Status = Status.NO_FINDING, *, configuration: str = CANDIDATE, **more: Any) -> CheckResult:
    fields: dict[str, Any] = {"evidence": (number("a.number", 1.0),)}
    if status in (Status.INCONCLUSIVE, Status.SKIPPED, Status.ERROR):
        fields = {"reason": "so it is"}
    return CheckResult.model_validate({"check": check, "configuration": configuration, "status": status} | fields | more)


def record(results: Sequence[CheckResult], **more: Any) -> AuditRecord:
    """A record around `results`, decided as an audit would by the default policy."""
    policy = load_policy()
    verdict = decide(results, policy, list(dict.fromkeys(one.configuration for one in results)))
    fields: dict[str, Any] = {
        "tool": "forensics test",
        "created": NOW,
        "valid_until": NOW,
        "base": BaseSource(path="/models/base", digest="b" * 64),
        "candidate": CandidateSource(path="/models/candidate", digest="c" * 64),
        "prompts": (PromptSource(name="prompts.jsonl", digest="d" * 64, counts={"refuse": 2}),),
        "policy": PolicySource(name=policy.name, digest=policy.digest),
        "seed": 0,
        "settings": {"device": "cpu", "bands": "5 15 30"},
        "versions": {"torch": "2.0"},
        "results": tuple(results),
        "verdict": verdict,
        "limits": ("one limit",),
        "pending": ("one duty",),
    } | more
    return AuditRecord(**fields, results_digest=digest_results(fields["results"], fields["verdict"]))


def as_older_versions_wrote(folder: Path) -> Path:
    """A run whose record holds no digest of its replies, so that a test may change them."""
    file = folder / "audit.json"
    row = json.loads(file.read_text(encoding="utf-8"))
    assert row.pop("contents")
    file.write_text(json.dumps(row), encoding="utf-8")
    return folder


def saved_run(
    folder: Path,
    written: AuditRecord,
    *,
    items: Sequence[Item] = (),
    prompts: Sequence[Prompt] = (),
    changes: Mapping[str, float] | None = None,
) -> SavedRun:
    """A finished run on disk around a record made by hand; `changes` are relative changes by tensor name."""
    with RunFolder(folder, key="test", created=NOW) as run:
        run.add_items(items)
        if prompts:
            run.write_prompts(prompts)
        if changes:
            arrays = {
                f"{configuration}/{name}": array
                for configuration in written.verdict.by_configuration
                for name, array in (("tensor", np.array(list(changes))), ("relative_change", np.array(list(changes.values()))))
            }
            run.write_array("weights.change", lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
        run.write_record(written)
    return load_run(str(folder))


STAND_INS = {
    "harmbench": "[INST] {Asked}: {behavior}\n\nReplied: {generation}\n\nIs that what was asked for? [/INST]",
    "xstest": 'Asked "{QUESTION}" it says "{RESPONSE}". Which {class} is that?\n\nCLASS:',
}
"""Texts of our own, with the authors' marks, for the formats whose text is not shipped."""


def without_text(name: str) -> Format:
    """A format whose text is not shipped, which takes our text for its authors'."""
    return format_named(name).model_copy(update={"text_sha256": sha256_text(STAND_INS[name])})


def ready(name: str, folder: Path) -> Format:
    """A format that can be asked in; where no text is shipped, ours is given by a file in `folder`."""
    if name not in STAND_INS:
        return format_named(name)
    file = folder / f"{name}.txt"
    file.write_text(STAND_INS[name], encoding="utf-8")
    return with_template(without_text(name), file)


def labels(outcome: CheckResult) -> set[str]:
    return {finding.label for finding in outcome.findings}


def severities(outcome: CheckResult, *, without: Sequence[str] = ("files",)) -> dict[str, str]:
    """How grave each finding is, by its label, leaving out those that every changed folder has."""
    return {finding.label: finding.severity for finding in outcome.findings if finding.label not in without}


def claim(outcome: CheckResult, label: str) -> str:
    return next(finding.claim for finding in outcome.findings if finding.label == label)


def untimed(one: CheckResult) -> CheckResult:
    """The result without how long it took."""
    return replace_fields(one, seconds=0.0)


def replace_fields(one: Any, **changes: Any) -> Any:
    """A changed copy of a frozen record or dataclass."""
    return one.model_copy(update=changes) if hasattr(one, "model_copy") else replace(one, **changes)


def look(
    check: Any, base: Path, candidate: Path, root: Path, *, prompts: Path | None = PROMPTS, **options: Any
) -> tuple[CheckResult, dict[str, np.ndarray]]:
    """The result of a check's module, and the arrays that it kept for the only configuration."""
    with open_case(base, candidate, root / "run", prompts=prompts, **options) as case:
        found = conductor.guarded(check.CHECK.run, check.ID, case)
    file = root / "run" / "arrays" / f"{check.ID}.npz"
    if not file.exists():
        return found, {}
    with np.load(file, allow_pickle=False) as stored:
        return found, {name.partition("/")[2]: stored[name] for name in stored}


def run_cli(*words: object, given: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `forensics WORDS...` prints and how it exits, in a process of its own; `given` is its standard input."""
    return subprocess.run(command(*words), input=given, cwd=cwd or ROOT, env=environment(), capture_output=True, text=True, check=False)
