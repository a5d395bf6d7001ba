"""Workers that are processes of this machine, each at the end of a pipe of its own.

A pool gives up all its tasks when one of its processes is killed (`BrokenProcessPool`); here only one pipe breaks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from forensics.errors import ForensicsError
from forensics.workers.terms import LOST, READY, Crew, Seat, Task, Work, attempt, troubled

GRACE = 5.0
"""Seconds that a process has to end when it is told to, before it is killed."""


class ProcessRoom:
    """Processes, started afresh: what this one has loaded or locked they do not inherit."""

    def __init__(self, make: Callable[[], Work[Any, Any]], crew: Crew) -> None:
        self.size = crew.workers
        self._make = make

    def open(self) -> Seat:
        """A new process."""
        return _Process(self._make)

    def hear(self, seats: Sequence[Seat], seconds: float) -> list[tuple[Seat, Any]]:
        """What processes wrote into their pipes; LOST where a pipe broke."""
        by_pipe = {seat.pipe: seat for seat in seats if isinstance(seat, _Process)}
        heard: list[tuple[Seat, Any]] = []
        for pipe in wait(list(by_pipe), seconds):
            assert isinstance(pipe, Connection)
            try:
                heard.append((by_pipe[pipe], pipe.recv()))
            except (EOFError, OSError):
                heard.append((by_pipe[pipe], LOST))
        return heard

    def close(self) -> None:
        """Nothing is held besides the processes."""


class _Process:
    """One process and our end of its pipe."""

    def __init__(self, make: Callable[[], Work[Any, Any]]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks in whatever state they are
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()  # or the pipe would stay open when the process is gone

    def give(self, task: Task[Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is gone; `hear` will say so
            self.pipe.send(task)

    def close(self) -> None:
        self._process.terminate()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, make: Callable[[], Work[Any, Any]]) -> None:
    """What a worker's process does: one task after the other, until nobody gives any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells everybody; the foreman decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        work = make()
    except ForensicsError as error:
        pipe.send(troubled(error))
        return
    pipe.send(READY)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(work, task))


def _leave_with_parent() -> None:
    """Whoever resumes what a killed foreman began must not find his workers still at it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
