"""A monitor killed with SIGKILL at random moments, in SQLite and in PostgreSQL, and what its store holds beside that of one that nobody disturbed.

    python examples/benchmarks/monitor_kills.py [--kills 50] [--seed 0] [--stores sqlite postgresql]

For each store so many kills, a quarter each: while a log is read; while a log is followed that grows, in half lines too, and is rotated twice; while a store is being
made; while the list of lines that were set aside is written. A killed process is started again until it is done, or killed again; of a log that is rotated something was counted before. A log is 4000 replies of which every
fifth has no id, and bad lines between them; a rate jumps in its middle. Compared are counts, tallies, alarms, texts, events and hits of every detector, the lines that were set aside,
and what `forensics monitor check` says. PostgreSQL is started here, from Debian's programs. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import sqlalchemy as sa
from monitor_traffic import ANSWER, REFUSAL, START, baseline
from numpy.random import default_rng

from forensics.errors import BadInput
from forensics.monitor import intake
from forensics.monitor.baseline import META, Settings
from forensics.monitor.ingest import Monitor
from forensics.monitor.integrity import check
from forensics.monitor.store import create_store, open_store
from forensics.monitor.streams import read_streams

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("log", "growing log, rotated", "start", "list of lines set aside")
EVENTS, BAD, PIECE = 4000, 3000, 40
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples' / 'benchmarks'}"}


def main() -> int:
    """Print the table; exit 1 if anything was lost or counted twice."""
    if sys.argv[1:2] == ["child"]:
        return child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    given = parser.parse_args()
    chance, good = random.Random(given.seed), True
    print(
        "| store | killed while | kills | stores | events kept at a kill: least, median, most | after going on, as undisturbed |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as place:
        for kind in given.stores:
            with served(Path(place), kind) as server:
                for number, what in enumerate(KINDS):
                    kills = given.kills // len(KINDS) + (number < given.kills % len(KINDS))
                    row, same = trials(World(Path(place), server, chance), what, kills)
                    good = good and same
                    print(f"| {kind} | {what} | {row} |", flush=True)
    return 0 if good else 1


class World:
    """Folders and stores of one kind, made one after the other."""

    def __init__(self, place: Path, server: str, chance: random.Random) -> None:
        self.place, self.server, self.chance, self.made = place, server, chance, 0
        self.kept: list[int] = []

    def new(self) -> tuple[Path, str]:
        """An empty folder, and where a store can be made."""
        self.made += 1
        folder = Path(tempfile.mkdtemp(dir=self.place))
        if not self.server:
            return folder, str(folder / "watch.db")
        name = f"w{folder.name}".lower()
        engine = sa.create_engine(self.server)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        engine.dispose()
        return folder, f"{self.server}?options=-csearch_path%3D{name}"

    def killed(self, target: str, seconds: float, *words: str) -> bool:
        """Start a child, kill it at a random moment after it has begun, and say whether it was; it may have ended before."""
        process = begun(target, *words)
        try:
            process.wait(self.chance.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if process.returncode not in (0, -9):
            raise SystemExit(f"the child failed: {words}")
        if process.returncode:
            self.kept.append(events(target))
        return process.returncode != 0


def trials(world: World, what: str, kills: int) -> tuple[str, bool]:
    """The cells of a row, and whether all was well."""
    folder, target = world.new()
    made(target)
    lines = written(what)
    log = folder / "x.log"
    log.write_bytes(b"".join(lines))
    moment = time.monotonic()
    process = begun(target, "read", str(log))
    ready = time.monotonic()
    process.wait()
    seconds = time.monotonic() - ready if what != "start" else ready - moment
    expected, done, stores, same = outcome(target, folder), 0, 0, 0
    while done < kills:
        folder, target = world.new()
        killed = {KINDS[0]: reading, KINDS[1]: following, KINDS[2]: starting, KINDS[3]: listing}[what](
            world, (folder, target), lines, seconds, kills - done
        )
        done, stores, same = done + killed, stores + 1, same + (outcome(target, folder) == expected)
    kept = f"{min(world.kept)}, {statistics.median(world.kept):.0f}, {max(world.kept)}" if world.kept else "-"
    return f"{done} | {stores} | {kept} | {same} of {stores}", same == stores


def reading(world: World, place: tuple[Path, str], lines: list[bytes], seconds: float, most: int) -> int:
    """A log that is there, read."""
    folder, target = place
    made(target)
    log = folder / "x.log"
    log.write_bytes(b"".join(lines))
    done = 0
    while done < most and world.killed(target, 0.6 * seconds, "read", str(log)):
        done += 1
    return finish(target, log, done)


def following(world: World, place: tuple[Path, str], lines: list[bytes], seconds: float, most: int) -> int:
    """A log that grows and is rotated, followed."""
    folder, target = place
    made(target)
    log = folder / "x.log"
    log.write_bytes(b"".join(lines[:PIECE]))
    done = 1
    with begun(target, "follow", str(log)) as first:  # of a log that was never counted from no old file is known
        while not events(target):
            time.sleep(0.01)
        first.kill()
    world.kept.append(events(target))
    writer = threading.Thread(target=grow, args=(log, lines[PIECE:], random.Random(world.chance.random()), 4 * seconds))
    writer.start()
    while done < most and writer.is_alive():
        done += world.killed(target, 0.8 * seconds, "follow", str(log))
    writer.join()
    return finish(target, log, done)


def starting(world: World, place: tuple[Path, str], lines: list[bytes], _seconds: float, most: int) -> int:
    """A store that is being made. What is there after a kill is a whole store, or nothing that keeps the next one from being made."""
    folder, target = place
    done = 0
    while done < most:
        process = begun(target, "start", wait=False)
        told = cast("IO[bytes]", process.stdout)  # a pipe, since `begun` asked for one
        try:
            # Where it has told that it begins it is done within half a second.
            told.readline()
            process.wait(world.chance.uniform(0.0, 0.3))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        told.close()
        if process.returncode == 0:
            break
        done += 1
        try:
            with open_store(target):
                break
        except BadInput:
            world.kept.append(0)
    else:
        made(target)
    log = folder / "x.log"
    log.write_bytes(b"".join(lines))
    return finish(target, log, done)


def listing(world: World, place: tuple[Path, str], lines: list[bytes], _seconds: float, most: int) -> int:
    """Lines that were set aside, written to their file."""
    folder, target = place
    made(target)
    log = folder / "x.log"
    log.write_bytes(b"".join(lines))
    subprocess.run(command(target, "read", str(log)), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    aside = folder / "aside.jsonl"
    done = 0
    for _ in range(min(most, 6)):
        aside.unlink(missing_ok=True) if world.chance.random() < 0.3 else None
        done += world.killed(target, 0.06, "aside", str(aside))
    return finish(target, log, done)


def finish(target: str, log: Path, done: int) -> int:
    """Let it read what is left, undisturbed."""
    subprocess.run(command(target, "read", str(log)), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return done


def grow(log: Path, lines: list[bytes], chance: random.Random, seconds: float) -> None:
    """Write a log as a server does: a piece at a time, not always whole lines, and turn to a new file twice."""
    pieces = [b"".join(lines[place : place + PIECE]) for place in range(0, len(lines), PIECE)]
    stream = log.open("ab", buffering=0)
    for number, piece in enumerate(pieces):
        if number in (len(pieces) // 3, 2 * len(pieces) // 3):
            if log.with_name("x.log.1").exists():
                log.with_name("x.log.1").rename(log.with_name("x.log.2"))
            log.rename(log.with_name("x.log.1"))
            stream.write(piece)  # it has not turned yet
            stream.close()
            time.sleep(0.02)
            stream = log.open("ab", buffering=0)
            continue
        cut = chance.randrange(len(piece))
        stream.write(piece[:cut])
        time.sleep(seconds / len(pieces) / 2)
        stream.write(piece[cut:])
        time.sleep(seconds / len(pieces) / 2)
    stream.close()


def child(what: str, target: str, *paths: str) -> int:
    """What is killed."""
    intake.LINES = 100
    if what == "start":
        print("begun", flush=True)
        made(target)
        return 0
    with open_store(target) as store:
        print("begun", flush=True)
        if what == "aside":
            intake.write_aside(store, Path(paths[0]))
            return 0
        monitor = Monitor(store, lambda: START + 1e6)
        read = intake.ingest_following(monitor, paths[0], pause=0.02) if what == "follow" else intake.ingest(monitor, paths[0])
        for _ in read:
            pass
    return 0


def made(target: str) -> None:
    """A store of a made-up baseline."""
    settings = Settings(window=3600, retention=90 * 86400, keep_text=True)
    with create_store(target, {META: baseline(default_rng(0)).model_dump_json(), "settings": settings.model_dump_json()}):
        pass


def written(what: str) -> list[bytes]:
    """The lines of a log."""
    chance, lines = random.Random(1), []
    for place in range(EVENTS):
        harmful = chance.random() < 0.2
        refused = harmful and chance.random() < (0.99 if place < EVENTS / 2 else 0.4)
        row: dict[str, Any] = {"time": START + place, "prompt": f"What of {place}?", "reply": REFUSAL if refused else ANSWER}
        row |= {"expect": "refuse", "category": "fraud"} if harmful else {"expect": "comply", "category": "plain"}
        lines.append(json.dumps(row if place % 5 == 0 else row | {"id": f"r{place}"}).encode() + b"\n")
        if place % 20 == 0:
            lines.append(b'{"nothing": %d}\n' % place)
        if place % 7 == 0:
            lines.append(json.dumps({"about": f"r{place}", "id": f"o{place}", "time": START + place, "feedback": "down"}).encode() + b"\n")
    return lines + ([b"not JSON %d\n" % place for place in range(BAD)] if what == KINDS[3] else [])


def outcome(target: str, folder: Path) -> tuple[object, ...]:
    """All that must be as in an undisturbed run. Which file a line stood in is left out, and how often an alarm was raised, which goes by the batch."""
    with open_store(target) as store:
        lines = intake.write_aside(store, folder / "aside.jsonl")
        found = check(store)
        with store.reading() as view:
            tallies = {name: count for name, count in view.tallies().items() if name != intake.RESTS}
            streams = read_streams(view.states(), where=target)
            alarms = {one.id for one in view.alarms() if json.loads(one.alarm)["escalation"] != "watch"}
            counts, texts = view.counts(), sorted(view.texts())
    rows = Counter((row["why"], row["sha256"]) for row in map(json.loads, (folder / "aside.jsonl").read_bytes().splitlines()))
    detectors = {
        name: (one.reference_events, one.reference_hits, one.process.get("events"), one.process.get("hits"))
        for name, one in streams.items()
    }
    return counts, tallies, sorted(alarms), texts, detectors, rows, lines, found.wrong


def events(target: str) -> int:
    """Events that a store holds."""
    with open_store(target) as store, store.reading() as view:
        return view.tallies().get("replies", 0)


def command(target: str, what: str, *paths: str) -> list[str]:
    """The words of a child."""
    return [sys.executable, __file__, "child", what, target, *paths]


def begun(target: str, what: str, *paths: str, wait: bool = True) -> subprocess.Popen[bytes]:
    """A child that has begun to do what it is for."""
    process = subprocess.Popen(command(target, what, *paths), env=ENVIRONMENT, stdout=subprocess.PIPE)
    if wait and process.stdout is not None:
        process.stdout.readline()
    return process


@contextmanager
def served(place: Path, kind: str) -> Iterator[str]:
    """URL of a server of its own; "" for SQLite, which has none."""
    if kind == "sqlite":
        yield ""
        return
    if shutil.which("initdb") is None:
        raise SystemExit("PostgreSQL is not installed: apt install postgresql, and put its programs on the path")
    folder = place / "server"
    folder.mkdir()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        owner = pwd.getpwnam("nobody")
        place.chmod(0o711)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run(["initdb", "-D", folder / "data", "-U", "watch", "--auth=trust", "-E", "UTF8"], **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    subprocess.run(["pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start"], **quiet)
    try:
        yield f"postgresql+psycopg://watch@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(["pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], **quiet)


if __name__ == "__main__":
    sys.exit(main())
