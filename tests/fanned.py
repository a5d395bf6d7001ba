"""Work that a fan of workers does in tests: importable wherever a worker is, so it stands in a module of its own."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from forensics.errors import BadInput, CannotCompare


@dataclass(kw_only=True)
class Errand:
    """What one task is to do: note that it began, then whatever is asked for."""

    notes: Path
    number: int
    seconds: float = 0.0
    dies: int = 0
    """How many times its worker is killed before it does its work."""
    wrong: str = ""


class Worker:
    """Counts its tasks, so that a test sees whether it was kept."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, errand: Errand) -> tuple[int, int, int]:
        note = errand.notes / f"{errand.number}.txt"
        with note.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        if len(note.read_text().splitlines()) <= errand.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(errand.seconds)
        if errand.wrong == "input":
            raise BadInput("its files are bad", where="a file", hint="mend it", details=("one", "two"))
        if errand.wrong == "other":
            raise ValueError("nobody thought of this")
        self.done += 1
        return errand.number, os.getpid(), self.done


def make() -> Worker:
    return Worker()


def refuse() -> Worker:
    raise CannotCompare("nobody can work here", where="here", hint="go elsewhere")


def die() -> Worker:
    os.kill(os.getpid(), signal.SIGKILL)
    return Worker()


def begun(notes: Path) -> dict[int, int]:
    """How often each task was begun."""
    return {int(note.stem): len(note.read_text().splitlines()) for note in notes.glob("*.txt")}
