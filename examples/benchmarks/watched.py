"""Run a command and watch it: wall time, and the peak of the memory that is its own (anonymous, not page cache)."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What one run cost."""

    seconds: float
    peak_anonymous_mib: float
    exit_code: int
    output: str


def watch(command: Sequence[str]) -> Watched:
    """Run `command`, its errors dropped, sampling RssAnon of the process every `SAMPLE_SECONDS` (Linux only)."""
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8") as output:
        return _watched(command, output)


def _watched(command: Sequence[str], output: TextIO) -> Watched:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
    peak = 0.0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _anonymous_kib(process.pid))
            done.wait(SAMPLE_SECONDS)

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    seconds = time.monotonic() - start
    done.set()
    thread.join()
    output.seek(0)
    return Watched(seconds=seconds, peak_anonymous_mib=peak / 1024, exit_code=code, output=output.read())


def _anonymous_kib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), 0.0)
