"""A sweep of 24 candidates here, in two processes, on a Ray cluster of two nodes, and on one of whose nodes one is killed in mid-run.

python examples/benchmarks/sweep_cluster.py [--overhead]

Records are compared bit for bit, but for their times, and so is every reply. Then the scheduling: what passes on a worker between the end of
one task of a second and the beginning of the next. With --overhead only that. Needs the extra `ray`; the cluster is made by `ray start` on this
machine and ended again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from forensics.fanout import fanout
from forensics.workers.terms import Crew, Task

ROOT = Path(__file__).resolve().parents[2]
ORGANISMS = ROOT / "examples" / "organisms"
OTHERS = ("backdoor-lora", "conditional-lora", "backdoor-lora-twin", "abliterated")
SIBLINGS = 20
CHECKS = ("files.surface", "weights.change", "weights.edit-kind", "activations.drift", "behaviour.refusal")
KILL_AFTER = 6
"""Finished candidates after which a node is killed."""
SECONDS, TASKS, TIMES = 1.0, 40, 3


def main() -> int:
    """Print both tables; exit 1 if a record differs, or scheduling takes 5 % of a second or more."""
    with tempfile.TemporaryDirectory() as folder:
        good = True if "--overhead" in sys.argv else _sweeps(Path(folder))
        print("\n| 40 tasks of one second on two workers | between two tasks, mean | at most | of a second |\n|---|---|---|---|")
        good &= _overhead("two processes", Crew(workers=2))
        with cluster() as made:
            good &= _overhead("Ray, two nodes", Crew(ray=made.address))
    return 0 if good else 1


@dataclass(kw_only=True)
class Cluster:
    """A head without work, and nodes of one CPU each."""

    address: str
    nodes: list[subprocess.Popen[bytes]]

    def kill_one(self) -> None:
        """SIGKILL to one node with everything on it."""
        node = self.nodes.pop()
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@contextmanager
def cluster(nodes: int = 2) -> Iterator[Cluster]:
    """`ray start --head`, and so many `ray start --address`, each a session of its own; killed in the end."""
    port = 6400 + os.getpid() % 500
    address = f"127.0.0.1:{port}"
    sockets = Path(tempfile.mkdtemp(prefix="r"))  # paths of sockets may have 107 letters
    head = _start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={sockets}")
    try:
        _until_it_answers(address)
        made = Cluster(address=address, nodes=[])
        try:
            for _ in range(nodes):  # one after the other: two at once on one machine take each other's ports
                made.nodes.append(_start(f"--address={address}", "--num-cpus=1"))
                _until_it_answers(address, nodes=len(made.nodes) + 1)
            yield made
        finally:
            while made.nodes:
                made.kill_one()
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _start(*words: str) -> subprocess.Popen[bytes]:
    around = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples' / 'benchmarks'}", "RAY_USAGE_STATS_ENABLED": "0"}
    given = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *words]
    return subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=around, start_new_session=True, cwd=ROOT)


def _until_it_answers(address: str, nodes: int = 1) -> None:
    count = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(sum(one['Alive'] for one in ray.nodes()))"
    for _ in range(20):
        done = subprocess.run([sys.executable, "-c", count, address], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == 0 and int(done.stdout.split()[-1]) >= nodes:
            return
        time.sleep(1.0)
    raise SystemExit("the cluster did not come up")


def _sweeps(folder: Path) -> bool:
    candidates, prompts = _candidates(folder / "candidates"), _prompts(folder / "prompts.jsonl")
    words = ["sweep", str(ORGANISMS / "base"), *candidates, "--prompts", str(prompts), "--quiet", "--device", "cpu"]
    words += [word for check in CHECKS for word in ("--only", check)]
    print(f"{len(candidates)} candidates, checks {', '.join(CHECKS)}, {len(prompts.read_text().splitlines())} prompts\n", flush=True)
    print("| sweep | seconds | records like those of one process | replies | results journalled once |\n|---|---|---|---|---|", flush=True)
    good = _row("one process", [*words, "--workers", "1"], folder / "one", folder / "one")
    good &= _row("two processes", [*words, "--workers", "2"], folder / "two", folder / "one")
    with cluster() as made:
        good &= _row("Ray, two nodes", [*words, "--ray", made.address], folder / "ray", folder / "one")
        good &= _row("Ray, a node killed in mid-run", [*words, "--ray", made.address], folder / "killed", folder / "one", made)
    found = json.loads((folder / "one" / "sweep.json").read_text(encoding="utf-8"))
    print("\nby concern:", ", ".join(f"{row['name']} ({row['action']})" for row in found["rows"][:6]), "...")
    for row in found["rows"]:
        for one in row["unlike"]:
            distance = one["distance"]["value"]
            print(
                f"unlike its siblings: {row['name']} in {one['figure']} ({distance:+.1f} robust standard deviations, p = {one['p_value']['value']:.2g})"
            )
    return good


def _candidates(folder: Path) -> list[str]:
    """Siblings of a benign adapter, each a few percent larger or smaller, and others that are none."""
    rng = np.random.default_rng(0)
    for number in range(SIBLINGS):
        target = shutil.copytree(ORGANISMS / "benign-lora", folder / f"benign-{number:02d}")
        tensors = load_file(target / "adapter_model.safetensors")
        factor = float(np.exp(0.05 * rng.standard_normal()))
        save_file(
            {name: tensor * factor if "lora_B" in name else tensor for name, tensor in tensors.items()},
            target / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
    return [*(str(one) for one in sorted(folder.iterdir())), *(str(ORGANISMS / name) for name in OTHERS)]


def _prompts(file: Path) -> Path:
    rows = [json.loads(line) for line in (ORGANISMS / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen: list[dict[str, Any]] = []
    for expect, wanted in (("refuse", 24), ("comply", 12)):
        fitting = [row for row in rows if row["expect"] == expect and "messages" not in row]
        chosen += [fitting[index * len(fitting) // wanted] for index in range(wanted)]
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return file


def _row(title: str, words: list[str], out: Path, like: Path, killing: Cluster | None = None) -> bool:
    """Run one sweep, with a node killed in it where that is wanted, and print its line."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), *words, "--out", str(out)], stderr=subprocess.DEVNULL)
    while killing is not None and process.poll() is None:
        if len(list(out.glob("runs/*/audit.json"))) >= KILL_AFTER:
            killing.kill_one()
            killing = None
        time.sleep(0.05)
    process.wait()
    seconds = time.monotonic() - start
    names = sorted(one.name for one in (like / "runs").iterdir())
    records = sum(_record(out / "runs" / name) == _record(like / "runs" / name) != {} for name in names)
    replies = sum(
        (out / "runs" / name / "items.jsonl").read_bytes() == (like / "runs" / name / "items.jsonl").read_bytes() for name in names
    )
    once = sum(_once(out / "runs" / name / "journal.jsonl") for name in names)
    whole = len(names)
    print(f"| {title} | {seconds:.1f} | {records} of {whole} | {replies} of {whole} | {once} of {whole} |", flush=True)
    return records == replies == once == whole == SIBLINGS + len(OTHERS)


def _record(run: Path) -> dict[str, Any]:
    file = run / "audit.json"
    if not file.exists():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name in ("created", "valid_until"):
        del record[name]
    for result in record["results"]:
        del result["seconds"]
    return record


def _once(journal: Path) -> bool:
    results = [json.loads(line)["result"] for line in journal.read_text(encoding="utf-8").splitlines()[1:]]
    keys = [(result["configuration"], result["check"]) for result in results]
    return len(keys) == len(set(keys)) == len(CHECKS)


def _overhead(title: str, crew: Crew) -> bool:
    gaps: list[float] = []
    for _ in range(TIMES):
        answers = fanout(make_sleeper, [Task(name=str(number), given=SECONDS) for number in range(TASKS)], crew)
        by_worker: dict[int, list[tuple[float, float]]] = {}
        for answer in answers:
            assert answer.value is not None, answer.trouble
            by_worker.setdefault(answer.value[0], []).append(answer.value[1:])
        for held in by_worker.values():
            held.sort()
            gaps += [later[0] - earlier[1] for earlier, later in pairwise(held)]
    share = statistics.mean(gaps) / SECONDS
    print(f"| {title}, {TIMES} times | {1000 * statistics.mean(gaps):.1f} ms | {1000 * max(gaps):.1f} ms | {share:.2%} |", flush=True)
    return share < 0.05


def make_sleeper() -> Any:
    """What a worker of the second table does: nothing, for so long; its process, when it began and when it ended."""

    def sleep(seconds: float) -> tuple[int, float, float]:
        begun = time.time()
        time.sleep(seconds)
        return os.getpid(), begun, time.time()

    return sleep


if __name__ == "__main__":
    # Workers import what they do by its name, which is not `__main__` there.
    from sweep_cluster import main as run

    sys.exit(run())
