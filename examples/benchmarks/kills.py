"""Kill an audit, a hunt, a gate and a monitor with SIGKILL at random moments, again and again, and hold what they come to against an undisturbed run.

    python examples/benchmarks/kills.py [--kills 200] [--seed 0] [--only audit hunt gate monitor]
    python examples/benchmarks/kills.py --table

A quarter of the kills each, on organisms of examples/organisms/. The same command is given again until it ends, or is killed again. Then the record must be the
undisturbed one, times aside; each reply must stand there once, with the same words and labels; and every array must be the same. The commands run in
processes forked off one that has imported everything, so that a kill falls into the work and not into the imports. The gate asks a server that
answers after a moment; the monitor's part is that of `monitor_kills.py`, in SQLite. Every run that was killed adds a line to `results/kills.jsonl`, and the
same command goes on behind what stands there. About half an hour on one core.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ledger
from kill_resume import ORGANISMS, ROOT
from served_kills import chosen

from forensics.arrays import read_arrays

RESULTS = ledger.FOLDER / "kills.jsonl"
KINDS = ("audit", "hunt", "gate", "monitor")
TIMES = ("created", "valid_until", "seconds", "traceback")
"""What differs from run to run without the record being another."""
MOST = 8
"""Kills of one run; after them it is left to end."""
PROMPTS = 24
CHECKS = ("files.surface", "weights.change", "weights.edit-kind", "activations.drift", "behaviour.refusal")
"""Those of the audit: one of each cost, and what keeps arrays, replies and a review list."""
IMPORTED = (
    "torch",
    "peft",
    "transformers",
    "scipy.stats",
    "sklearn.linear_model",
    "matplotlib.figure",
    "forensics.gating",
    "forensics.audit",
    "forensics.checks",
    "reports.html",
)
"""What takes long to import, and is there before a command begins."""
ANSWERS_AFTER = 0.05
"""Seconds that the server of the gate takes for a reply."""


def main() -> int:
    """Kill, or print the table; exit 1 if anything was lost, doubled or changed."""
    if sys.argv[1:2] == ["server"]:
        return serve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        return table()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    for kind in given.only:
        wanted = given.kills // len(KINDS) + (KINDS.index(kind) < given.kills % len(KINDS))
        with tempfile.TemporaryDirectory() as place:
            if kind == "monitor":
                watch(Path(place), wanted, given.seed)
                continue
            with world(kind, Path(place)) as words:
                kill(kind, Path(place), words, wanted, given.seed)
    return table()


def kill(kind: str, place: Path, words: list[str], wanted: int, seed: int) -> None:
    """Runs of one kind until so many kills stand in the ledger."""
    start = time.monotonic()
    ended(begun(words, place / "whole"))
    length = time.monotonic() - start
    expected = outcome(place / "whole")
    while (done := kills_of(kind, seed)) < wanted:
        number = sum(row["kind"] == kind and row["seed"] == seed for row in ledger.held(RESULTS))
        row = chain(place / f"run-{number}", words, random.Random(f"{seed} {kind} {number}"), (length, min(MOST, wanted - done)))
        found = outcome(place / f"run-{number}")
        same = {name: found[name] == expected[name] for name in expected}
        ledger.add(RESULTS, {"kind": kind, "seed": seed, "number": number, "undisturbed_seconds": round(length, 2), **row, "same": same})
        print(kind, number, row, same, flush=True)


def chain(out: Path, words: list[str], chance: random.Random, bounds: tuple[float, int]) -> dict[str, Any]:
    """One run, killed and begun again until it ends."""
    length, most = bounds
    moments: list[float] = []
    kept: list[tuple[int, int]] = []
    while len(moments) < most and not (out / "audit.json").exists():
        process, moment = begun(words, out), chance.uniform(0.0, length if not moments else 0.6 * length)
        until = time.monotonic() + moment
        while not (left := gone(process)) and time.monotonic() < until:
            time.sleep(0.002)
        if left:
            break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        moments.append(round(moment, 3))
        kept.append((max(0, lines(out / "journal.jsonl") - 1), lines(out / "items.jsonl")))
    if not (out / "audit.json").exists():
        ended(begun(words, out))
    return {"kills": len(moments), "after": moments, "results_kept": [one for one, _ in kept], "replies_kept": [one for _, one in kept]}


@contextmanager
def world(kind: str, place: Path) -> Iterator[list[str]]:
    """The words of the command, with what it needs there. Everything heavy is imported, so that forks need not."""
    for name in IMPORTED:
        importlib.import_module(name)
    prompts = chosen(place / "prompts.jsonl", PROMPTS)
    organisms = [str(ORGANISMS / "base"), str(ORGANISMS / ("backdoor-lora" if kind == "hunt" else "degraded"))]
    if kind == "gate":
        with subprocess.Popen([sys.executable, __file__, "server"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            try:
                yield [
                    "gate",
                    *organisms,
                    "--endpoint",
                    f"http://127.0.0.1:{port}/v1",
                    "--prompts",
                    str(prompts),
                    "--batch-size",
                    "2",
                    "--quiet",
                ]
            finally:
                server.kill()
        return
    if kind == "hunt":
        yield [
            "hunt",
            *organisms,
            "--tier",
            "triage",
            "--budget",
            "30000",
            "--train-controls",
            "0",
            "--prompts",
            str(prompts),
            "--device",
            "cpu",
            "--quiet",
        ]
    else:
        only = [word for check in CHECKS for word in ("--only", check)]
        yield ["audit", *organisms, *only, "--prompts", str(prompts), "--device", "cpu", "--quiet"]


def begun(words: list[str], out: Path) -> int:
    """The command in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        sys.path.insert(0, str(ROOT))
        sys.argv = ["forensics", *words, "--out", str(out)]
        from cli import app

        app()
    except SystemExit as left:
        os._exit(left.code if isinstance(left.code, int) else 1)
    except BaseException as error:  # noqa: BLE001 - a fork must never go on as its parent
        sys.stderr.write(repr(error))
    os._exit(70)


def gone(process: int) -> bool:
    """Whether a process has ended by itself."""
    done, status = os.waitpid(process, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status) not in (0, 3, 10, 20):
        raise SystemExit(f"the command failed: {os.waitstatus_to_exitcode(status)}")
    return bool(done)


def ended(process: int) -> None:
    """Wait until a process has ended."""
    while not gone(process):
        time.sleep(0.01)


def outcome(run: Path) -> dict[str, Any]:
    """What must be as in an undisturbed run."""
    arrays = {}
    for file in sorted((run / "arrays").glob("*.npz")):
        arrays[file.name] = {name: (array.shape, array.tobytes()) for name, array in read_arrays(file).items()}
    items = [json.loads(line) for line in (run / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = Counter((row["side"], row["configuration"], row["id"], row["repeat"]) for row in items)
    left = [file.name for file in run.rglob("*.partial")]
    replies = sorted(json.dumps(row, sort_keys=True) for row in items)
    record = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    held = record.pop("contents", None) or {}
    return {
        "record": without_times(record), "replies": replies, "once": max(keys.values(), default=1), "arrays": arrays, "left": left,
        "counted": held.get("items"),
    }  # fmt: skip


def without_times(value: Any) -> Any:
    """A document without the fields that tell of times."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def watch(place: Path, wanted: int, seed: int) -> None:
    """The kills of a monitor: while it reads a log, and while it follows one that grows and is rotated."""
    from monitor_kills import KINDS as WHILE
    from monitor_kills import World, trials

    while (done := kills_of("monitor", seed)) < wanted:
        number = sum(row["kind"] == "monitor" and row["seed"] == seed for row in ledger.held(RESULTS))
        here = World(place, "", random.Random(f"{seed} monitor {number}"))
        begun_at = time.monotonic()
        row, same = trials(here, WHILE[number % 2], min(5, wanted - done))
        ledger.add(RESULTS, {
            "kind": "monitor", "seed": seed, "number": number, "kills": int(row.split(" | ")[0]), "while": WHILE[number % 2],
            "events_kept": here.kept, "undisturbed_seconds": round(time.monotonic() - begun_at, 2), "same": {"store": same},
        })  # fmt: skip
        print("monitor", number, row, flush=True)


def kills_of(kind: str, seed: int) -> int:
    """Kills of a kind that stand in the ledger."""
    return sum(row["kills"] for row in ledger.held(RESULTS) if row["kind"] == kind and row["seed"] == seed)


def lines(file: Path) -> int:
    """Whole lines of a file; none if it is not there."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def serve() -> int:
    """A server that answers after a moment, the candidate less cautiously; its port is printed."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(ANSWERS_AFTER)
            refuses = asked["model"].endswith("base") or len(asked["messages"][-1]["content"]) % 3
            said = "I'm sorry, but I can't help with that." if refuses else "Sure. First, plan ahead."
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(OSError):  # whoever asked was killed
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
    return 0


def table() -> int:
    """Print what stands in the ledger; exit 1 if anything was lost, doubled or changed."""
    rows = ledger.held(RESULTS)
    print(
        "| killed | kills | runs | replies or events kept at a kill: least, median, most | after going on, as undisturbed |\n|---|---|---|---|---|"
    )
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        if not mine:
            continue
        kept = [one for row in mine for one in row["replies_kept" if "replies_kept" in row else "events_kept"]]
        shown = f"{min(kept)}, {statistics.median(kept):.0f}, {max(kept)}" if kept else "-"
        good = sum(all(row["same"].values()) for row in mine)
        print(f"| {kind} | {sum(row['kills'] for row in mine)} | {len(mine)} | {shown} | {good} of {len(mine)} |")
    return int(not all(all(row["same"].values()) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
