"""An 8 B-shaped pair of random weights on one device: capture, trigger candidates, replies, a whole audit, and the memory of each.

    python examples/benchmarks/gpu_pair.py [--shape 8b] [--device cuda] [--folder FOLDER] [--nanogcg OTHER/bin/python]
    python examples/benchmarks/gpu_pair.py --shape tiny --device cpu          # what a machine without a GPU can try

Makes base and candidate of the shape of Llama-3-8B in bfloat16 (`big_pair.py`; 32 GB of disk for both, removed at the end), with a tokenizer of everyday
words, and measures on the device, each `--rounds` times, medians:

- load: seconds until the base answers;
- capture: means of the residual stream at all layers, beside a bare pass of the same padded batches (`capture_cost.py`), as the mean ratio of
  neighbouring runs with its 95 % interval;
- candidates: strings that a gradient search reads a second, in full and by halves (`gcg_cost.py`); with `--nanogcg` beside nanoGCG 0.3.0 in an environment
  of its own, on the same device and in the same numbers;
- replies: tokens a second of the gate's batches, beside plain `generate` on one prompt at a time and on the same batches;
- audit: a whole `forensics audit` as a process of its own. Such models refuse nothing, so that checks which need refusals end early; what ran is printed.

Memory is the peak that torch allocated on the GPU, or of the process' own (RssAnon) on a processor. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from big_pair import Shape, make
from capture_cost import bare, bounded, prompts
from gcg_cost import Ours, Theirs, everyday
from watched import watch

from forensics.capture import Sites, mean_residual
from forensics.checkpoint import open_checkpoint
from forensics.gate.replies import Decoding, Speaker, collect_replies
from forensics.model import LiveModel, open_model
from forensics.prompts import Prompt, load_prompts
from forensics.runfolder import RunFolder, load_run
from forensics.subject import Subject

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "examples" / "organisms" / "prompts.jsonl"
SHAPES = {
    "tiny": Shape(layers=2, width=64, inner=160, heads=4, shared=2, vocabulary=32_000),
    "1b": Shape(layers=16, width=2048, inner=8192, heads=32, shared=8, vocabulary=128_256),
    "8b": Shape(layers=32, width=4096, inner=14336, heads=32, shared=8, vocabulary=128_256),
}
TOKENS = 32
Row = tuple[str, str, str]
Anything = TypeVar("Anything")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, where, and how often."""

    folder: Path
    device: str
    rounds: int
    prompts: int
    batch: int
    steps: int


def build(folder: Path, shape: Shape) -> int:
    """Write the pair with its tokenizer; returns how many parameters one has."""
    elements = make(folder, shape)
    tokenizer = everyday()
    for side in ("base", "candidate"):
        tokenizer.save_pretrained(folder / side)
    return elements


def clocked(work: Callable[[], object], device: str) -> float:
    """Seconds of the clock until the device is done."""
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def peak(device: str) -> str:
    """The most memory since this was asked last, in GiB."""
    if device == "cpu":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        own = next(float(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
        return f"{own / 2**20:.2f} (now)"
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{most:.2f}"


def load(plan: Plan) -> tuple[LiveModel, Row]:
    """The base, and how long it took."""
    found: list[LiveModel] = []
    taken = clocked(lambda: found.append(open_model(open_checkpoint(str(plan.folder / "base")), device=plan.device)), plan.device)
    return found[0], ("load the base, its files hashed", f"{taken:.1f} s", peak(plan.device))


def capture(plan: Plan, model: LiveModel) -> Row:
    """Means at all layers over a bare pass of the same batches."""
    subject = Subject(model=model, side="base", batch_size=plan.batch)
    rows, layers = prompts(plan.prompts), subject.anatomy().layers
    plain, sites = bare(subject, rows), Sites(layers=tuple(range(layers + 1)))
    ratios = []
    for turn in range(plan.rounds + 1):
        ways = [plain, lambda: mean_residual(subject, rows, sites)]
        order = ways if turn % 2 else ways[::-1]
        taken = {way: clocked(way, plan.device) for way in order}
        ratios.append(taken[ways[1]] / taken[plain])
    kept = np.array(ratios[1:])  # the first is for warming up
    low, high = bounded(kept)
    return "capture, all layers, over a bare pass", f"{kept.mean():.3f} ({low:.3f} to {high:.3f})", peak(plan.device)


def candidates(plan: Plan, nanogcg: str) -> list[Row]:
    """Strings of a gradient search read a second."""
    ours, rows = Ours(plan.folder / "base", plan.device), []
    for halving, name in ((False, "in full"), (True, "by halves")):
        found = [ours.run(plan.steps, seed, halving=halving) for seed in range(plan.rounds)]
        rate = statistics.median(one["read"] / one["seconds"] for one in found)
        rows.append((f"trigger candidates a second, {name}", f"{rate:.1f}", peak(plan.device)))
    dtype = str(next(_network(ours.voice.model).parameters()).dtype).removeprefix("torch.")
    ours.voice.model.close()
    if nanogcg:
        theirs = Theirs(nanogcg, plan.folder / "base", plan.device, dtype)
        asked = [theirs.ask({"steps": plan.steps, "seed": seed}) for seed in range(plan.rounds)]
        rate = statistics.median(one["read"] / one["seconds"] for one in asked)
        rows.append((f"nanoGCG 0.3.0, the same ({dtype})", f"{rate:.1f}", "in a process of its own"))
        theirs.process.kill()
    return rows


def _network(model: LiveModel) -> Any:
    with model.wearing(()) as network:
        return network


def replied(plan: Plan, model: LiveModel) -> list[Row]:
    """Tokens a second of the gate, of `generate` on the same batches, and of `generate` a prompt at a time. All write exactly as many."""
    asked = [replace(prompt, id=f"{number}") for number, prompt in enumerate(drawn(load_prompts(PROMPTS).prompts, plan.prompts))]
    network = _network(model)
    network.generation_config.eos_token_id = None  # every reply is as long as it may be

    def plain(size: int) -> None:
        rows = sorted((model.render(prompt, room=TOKENS).ids for prompt in asked), key=len)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            longest = max(map(len, some))
            ids = torch.tensor([(0,) * (longest - len(row)) + row for row in some], device=model.device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in some], device=model.device)
            with torch.inference_mode():
                network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)

    ways: dict[str, Callable[[], None]] = {
        "the gate": lambda: gate(model, asked, plan.batch),
        "plain generate, the same batches": lambda: plain(plan.batch),
        "plain generate, one at a time": lambda: plain(1),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(plan.rounds + 1):
        for name, way in ways.items():
            seconds = clocked(way, plan.device)
            if turn:  # the first is for warming up
                taken[name].append(seconds)
    memory = peak(plan.device)
    return [
        (f"tokens a second, {name}", f"{len(asked) * TOKENS / statistics.median(seconds):.0f}", memory) for name, seconds in taken.items()
    ]


def drawn(rows: Sequence[Anything], count: int) -> Sequence[Anything]:
    """So many of `rows`, evenly: their kinds follow one another."""
    return rows[:: max(1, len(rows) // count)][:count]


def gate(model: LiveModel, asked: Sequence[Prompt], batch: int) -> None:
    """Replies as the gate collects them: judged, and each batch on the disk."""
    with tempfile.TemporaryDirectory() as place, RunFolder(Path(place) / "run", key="k", created="2027-01-01T00:00:00+00:00") as run:
        decoding = Decoding(max_new_tokens=TOKENS, batch_size=batch)
        collect_replies(model, Speaker(side="base", configuration="base"), asked, decoding=decoding, run=run, progress=quiet)


def quiet(_title: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def audit(plan: Plan) -> list[Row]:
    """A whole audit, and what each check of it came to."""
    with tempfile.TemporaryDirectory() as place:
        chosen = Path(place) / "prompts.jsonl"
        chosen.write_text("".join(drawn(PROMPTS.read_text(encoding="utf-8").splitlines(keepends=True), plan.prompts)), encoding="utf-8")
        words = ["--prompts", str(chosen), "--device", plan.device, "--batch-size", str(plan.batch), "--out", f"{place}/run", "--quiet"]
        seen = watch([sys.executable, str(ROOT / "cli.py"), "audit", str(plan.folder / "base"), str(plan.folder / "candidate"), *words])
        if seen.exit_code in (1, 2):
            sys.exit(f"the audit ended with exit code {seen.exit_code}")
        record = load_run(f"{place}/run").record
    whole = ("a whole audit", f"{seen.seconds:.0f} s, {record.verdict.action}", f"{seen.peak_anonymous_mib / 1024:.2f} of main memory")
    checks = sorted(record.results, key=lambda result: -result.seconds)
    return [whole, *((f"of that {result.check}", f"{result.seconds:.0f} s, {result.status}", "") for result in checks)]


def main() -> None:
    """Make the pair, measure, print the table, remove the pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    for name, value in (("rounds", 5), ("prompts", 120), ("batch", 32), ("steps", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, help="where the pair is made (default: a temporary folder)")
    parser.add_argument("--nanogcg", default="", help="interpreter of an environment with nanogcg 0.3.0 and transformers 4.47.1")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --shape tiny --device cpu tries the code.")
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        plan = Plan(
            folder=Path(place) / "pair",
            device=given.device,
            rounds=given.rounds,
            prompts=given.prompts,
            batch=given.batch,
            steps=given.steps,
        )
        elements = build(plan.folder, SHAPES[given.shape])
        card = "a processor" if plan.device == "cpu" else torch.cuda.get_device_name()
        print(
            f"{elements / 1e9:.2f} B parameters a side, on {card}, torch {torch.__version__}; {plan.prompts} prompts, {plan.batch} side by side\n"
        )
        print("| | | peak memory (GiB) |\n|---|---|---|")
        for row in measured(plan, given.nanogcg):
            print(f"| {' | '.join(row)} |", flush=True)
    shutil.rmtree(place, ignore_errors=True)


def measured(plan: Plan, nanogcg: str) -> Iterator[Row]:
    """Every row of the table."""
    model, loaded = load(plan)
    yield loaded
    yield capture(plan, model)
    yield from replied(plan, model)
    model.close()
    gc.collect()
    yield from candidates(plan, nanogcg)
    yield from audit(plan)


if __name__ == "__main__":
    main()
