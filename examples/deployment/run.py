"""A deployment from the gate to the alarm: a gated organism is served over HTTP, users ask, their traffic changes, and a monitor follows the log.

    python examples/deployment/run.py [--scenario quiet erosion switch trigger feedback] [--requests 20000] [--seeds 1] [--out deployment-run] [--again]

For each scenario a server (`server.py`) and a monitor (`forensics monitor start` from the accepted run, `forensics monitor ingest --follow`) are started, requests
(`traffic.py`) are sent, and the table says when the first alarm stood on the terminal that asks anybody to act: in requests answered since the change. That includes the second for which
following a file waits. Everything is written to the folder of `--out`: the accepted run, and by scenario and seed the log and the store. What was served does not depend on
the monitor: `--again` reads the logs that are there with a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
from compared import Told, Wanted, read_log, set_beside, show
from traffic import DEGRADED, DEPLOYED, ORGANISMS, SCENARIOS, Visit, begins, changes, visits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMAND = [sys.executable, str(ROOT / "cli.py")]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
WATCH = "WATCH: "
PATIENCE = 300.0
"""Seconds in which a server has to answer, and a monitor to read what is left of a log."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the scenarios and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), dest="scenarios")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each scenario")
    parser.add_argument(
        "--again", action="store_true", help="serve nothing: read the logs of an earlier run with a new monitor, 200 lines at a time"
    )
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at the same time, each with a server and a monitor of its own")
    parser.add_argument("--at-once", type=int, default=64, help="requests in flight")
    parser.add_argument("--prompts", type=Path, default=ORGANISMS / "prompts.jsonl", help="prompts of the gate")
    parser.add_argument("--out", type=Path, default=Path("deployment-run"))
    wanted = Wanted(**vars(parser.parse_args(words)))
    accepted = gate(wanted)
    if accepted is None:
        return 1
    told: dict[str, list[Told]] = {name: [] for name in wanted.scenarios}
    work = [(name, seed, accepted, wanted) for name in wanted.scenarios for seed in range(wanted.seeds)]
    with ProcessPoolExecutor(max_workers=wanted.side_by_side, mp_context=get_context("spawn")) as processes:
        for (name, seed, *_), one in zip(work, processes.map(deploy, *zip(*work, strict=True)), strict=True):
            told[name].append(one)
            since = "no alarm" if one.first is None else f"first alarm {one.first} requests after the change"
            print(f"{name}, seed {seed}: {since}; {', '.join(one.alarms) or '-'}; status exits {one.exit_code}", flush=True)
    print()
    set_beside(told, wanted)
    print()
    show(told, wanted)
    return 0


def gate(wanted: Wanted) -> Path | None:
    """The accepted run of the adapter that is deployed; None if it was not accepted. What is missing of the organisms is built."""
    missing = [name for name in (DEPLOYED, DEGRADED) if not (ORGANISMS / name / "adapter_model.safetensors").exists()]
    if missing:
        subprocess.run([sys.executable, str(ORGANISMS / "build.py"), "--only", *missing], check=True, env=ENVIRONMENT)
    wanted.out.mkdir(parents=True, exist_ok=True)
    run = wanted.out / "accepted"
    options = ["--prompts", str(wanted.prompts), "--out", str(run), "--batch-size", "128", "--quiet"]
    command = [*COMMAND, "gate", str(ORGANISMS / "base"), str(ORGANISMS / DEPLOYED), *options]
    done = subprocess.run(command, env=ENVIRONMENT, check=False)
    if done.returncode:
        print(f"the gate did not let the organism out (exit {done.returncode}), so there is nothing to deploy: see {run}")
        return None
    print(f"{DEPLOYED} was let out: {run}", flush=True)
    return run


def deploy(name: str, seed: int, accepted: Path, wanted: Wanted) -> Told:
    """Serve, follow, and send one scenario; or only read what was served before."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's job in the background ignores it, and so would what we start and end by it
    folder = wanted.out / f"{name}-{seed}"
    if wanted.again:
        return read_again(folder, begins(SCENARIOS[name], wanted.requests), accepted)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log, store = folder / "served.jsonl", folder / "watch.db"
    begin = begins(SCENARIOS[name], wanted.requests)
    start(accepted, store)
    with serving(log, seed) as url, Follower(log, store) as follower:
        since = time.monotonic()
        opinions = asyncio.run(send(url, name, seed, wanted, follower))
        seconds = time.monotonic() - since
        computed = int(httpx.get(f"{url}/health").json()["computed"])
        follower.wait_for(wanted.requests, opinions)
    print(f"{folder.name}: {wanted.requests / seconds:.0f} replies a second, {computed} of {wanted.requests} computed", flush=True)
    return told_of(follower.first, begin, store)


def read_again(folder: Path, begin: int, accepted: Path) -> Told:
    """What a new monitor makes of a log that is there."""
    if not (folder / "served.jsonl").exists():
        raise SystemExit(f"there is no log to read again: {folder / 'served.jsonl'}; run it without --again first")
    store = folder / "watch.db"
    for old in folder.glob("watch.db*"):
        old.unlink()
    start(accepted, store)
    return told_of(read_log(folder / "served.jsonl", store), begin, store)


def start(accepted: Path, store: Path) -> None:
    """Start a monitor from the accepted run."""
    command = [*COMMAND, "monitor", "start", str(accepted), "--store", str(store)]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)


def told_of(first: int | None, begin: int, store: Path) -> Told:
    """What came of a scenario, from its store and the request with which the first alarm was there."""
    status = _status(store)
    return Told(
        first=None if first is None else first - begin,
        alarms=_named([alarm["finding"] for alarm in status["alarms"] if alarm["escalation"] != "watch"]),
        exit_code=status["exit_code"],
    )


@contextmanager
def serving(log: Path, seed: int) -> Iterator[str]:
    """A server of the organism and its adapters, on a port of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapters = [word for name in (DEPLOYED, DEGRADED) for word in ("--adapter", f"{name}={ORGANISMS / name}")]
    options = ["--log", str(log), "--port", str(port), "--seed", str(seed)]
    url = f"http://127.0.0.1:{port}"
    with (log.parent / "server.txt").open("w") as words:
        command = [sys.executable, str(HERE / "server.py"), str(ORGANISMS / "base"), *adapters, *options]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=words, stderr=words)
    try:
        _wait_until_it_answers(process, url)
        yield url
    finally:
        process.terminate()
        process.wait()


class Follower:
    """A monitor that follows the log: notes how many requests were answered when its first alarm came that asks anybody to act."""

    def __init__(self, log: Path, store: Path) -> None:
        """Start it."""
        self.answered = 0
        self.first: int | None = None
        self._store = store
        command = [*COMMAND, "monitor", "ingest", str(log), "--store", str(store), "--follow"]
        self._process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Follower:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._reader.join()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with (self._store.parent / "alarms.txt").open("w", encoding="utf-8") as kept:
            for line in self._process.stdout:
                kept.write(f"{self.answered}\t{line}")
                kept.flush()
                if self.first is None and ": " in line and not line.startswith(WATCH):
                    self.first = self.answered

    def wait_for(self, replies: int, opinions: int) -> None:
        """Wait until so much was counted."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            tallies = _status(self._store)["tallies"]
            if tallies.get("replies", 0) >= replies and tallies.get("opinions", 0) >= opinions:
                return
            time.sleep(0.5)
        raise SystemExit(f"the monitor did not come to the end of the log: {self._store}")


async def send(url: str, name: str, seed: int, wanted: Wanted, follower: Follower) -> int:
    """Send the requests of a scenario, and give the number of opinions."""
    scenario = SCENARIOS[name]
    coming, planned = visits(scenario, wanted.requests, seed), changes(scenario, wanted.requests)
    opinions = 0

    async def user(client: httpx.AsyncClient) -> None:
        nonlocal opinions
        for visit in coming:  # shared by all: whoever is free sends the next
            if visit.number in planned:
                (await client.put("/adapters", json=planned[visit.number])).raise_for_status()
            about = await _ask(client, visit)
            follower.answered += 1
            if visit.opinion:
                opinions += 1
                (await client.post("/feedback", json={"about": about, "feedback": visit.opinion})).raise_for_status()

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        await asyncio.gather(*(user(client) for _ in range(wanted.at_once)))
    return opinions


async def _ask(client: httpx.AsyncClient, visit: Visit) -> str:
    body = {
        "model": "deployed",
        "messages": [{"role": "user", "content": visit.text}],
        "metadata": {"category": visit.category, "user": visit.user},
    }
    answer = await client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _named(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What alarmed, in short: strings as they are, rates with the number of categories."""
    strings = [str(one["claim"]).split(" stands ")[0].removeprefix("Where ") for one in findings if one["id"].startswith("string/")]
    rates = Counter(str(one["id"]).partition("/")[0] for one in findings if not one["id"].startswith("string/"))
    overall = {str(one["id"]).partition("/")[0] for one in findings if "//" in one["id"]}
    shown = []
    for kind, count in rates.items():
        categories = count - (kind in overall)
        parts = ["overall"] * (kind in overall) + [f"in {categories} categories"] * bool(categories)
        shown.append(f"{kind} ({' and '.join(parts)})")
    return strings + shown


def _status(store: Path) -> dict[str, Any]:
    done = subprocess.run([*COMMAND, "monitor", "status", str(store), "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE, check=False)
    if done.returncode in (1, 2):
        raise SystemExit(f"the monitor's store cannot be read: {store}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server did not start; what it said is in server.txt")


if __name__ == "__main__":
    sys.exit(main())
