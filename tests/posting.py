"""A monitor that is served, in a process of its own, and ways to post to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from cases import command, environment

from forensics.monitor.store import open_store

JSON, PROTOBUF, LINES = "application/json", "application/x-protobuf", "application/x-ndjson"
# Whoever runs the tests in the background ignores it, and a child would too.
HEARD = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


@dataclass
class Served:
    """A service that runs."""

    url: str
    child: subprocess.Popen

    def post(self, path: str, body: bytes, kind: str = JSON, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{self.url}/v1/{path}", content=body, headers={"content-type": kind} | named, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={name.replace("_", "-"): value for name, value in headers.items()}, timeout=60)

    def end(self, how: int = signal.SIGINT) -> tuple[str, str]:
        """Ask it to end, and give what it said since it began to serve."""
        self.child.send_signal(how)
        return self.child.communicate(timeout=60)


@contextmanager
def served(store: Path, *words: object, **variables: str) -> Iterator[Served]:
    """`forensics monitor serve` on a free port."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = command("monitor", "serve", store, "--port", "0", *words)
    around = environment(PYTHONUNBUFFERED="1", **variables)
    with subprocess.Popen(line, env=around, text=True, preexec_fn=HEARD, cwd=os.fspath(store.parent), **pipes) as child:
        try:
            told = child.stdout.readline()
            found = re.search(r"http://(\S+):(\d+)/", told)
            assert found, told + child.stderr.read()
            yield Served(url=f"http://{found[1].replace('0.0.0.0', '127.0.0.1')}:{found[2]}", child=child)
        finally:
            child.kill()


def tallies(store: Path) -> dict[str, int]:
    with open_store(str(store)) as opened, opened.reading() as view:
        return view.tallies()
