"""Workers that are actors on a Ray cluster: one that is running already, whose nodes see the same paths as we do.

Plain actors with one task in flight each, and no retries of Ray's own: which task is repeated, and how often, is the foreman's to say.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from forensics.errors import BadInput, ForensicsError, ToolFailed
from forensics.workers.terms import LOST, READY, Crew, Seat, Task, Work, attempt, troubled

ANSWERS_WITHIN = 20.0
"""Seconds in which a cluster has to be joined; on an idle machine it takes two."""
HEAD_SILENT = 10.0
"""Seconds that the head may take no connections: it may be started again on another machine, but a task would not know."""
QUIETLY: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}


class RayRoom:
    """A cluster, joined as a driver."""

    def __init__(self, make: Callable[[], Work[Any, Any]], crew: Crew) -> None:
        self._ray = _join(crew.ray)
        # Ray tells of lost nodes on standard output, which is for records.
        self._aside = contextlib.redirect_stdout(sys.stderr)
        self._aside.__enter__()
        self._head = self._ray.get_runtime_context().gcs_address
        self._silent_since = 0.0
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
        kind = "GPU" if self._gpus else "CPU"
        places = [int(node.get(kind, 0)) if self._gpus else 1 for node in nodes if node.get(kind, 0) >= 1]
        self.size = crew.workers or max(1, sum(places))
        self._make = make

    def open(self) -> Seat:
        """A new actor, wherever there is room for one."""
        return _Actor(self._ray, self._make, gpus=self._gpus)

    def hear(self, seats: Sequence[Seat], seconds: float) -> list[tuple[Seat, Any]]:
        """What actors answered; LOST where one, or its node, is gone."""
        by_reference = {seat.asked: seat for seat in seats if isinstance(seat, _Actor)}
        done, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        if not done:
            self._refuse_lost_head()
        heard: list[tuple[Seat, Any]] = []
        for reference in done:
            try:
                heard.append((by_reference[reference], self._ray.get(reference)))
            except self._ray.exceptions.RayError:
                heard.append((by_reference[reference], LOST))
        return heard

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._ray.shutdown()
        self._aside.__exit__(None, None, None)

    def _refuse_lost_head(self) -> None:
        """Raise where the cluster's head is gone: nothing will be heard any more, and after a minute Ray would end this process without a word of ours."""
        try:
            _listens(self._head)
        except OSError as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since > HEAD_SILENT:
                raise ToolFailed(
                    "the head of the Ray cluster is gone",
                    where=self._head,
                    hint="start the cluster again; what was finished is kept, and the same command resumes",
                ) from error
        else:
            self._silent_since = 0.0


class _Actor:
    """One actor, and what it was asked last."""

    def __init__(self, ray: Any, make: Callable[[], Work[Any, Any]], *, gpus: int) -> None:
        self._ray = ray
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(**options)(_Worker).remote(make)
        self.asked = self._actor.begin.remote()

    def give(self, task: Task[Any]) -> None:
        self.asked = self._actor.do.remote(task)

    def close(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor, no_restart=True)


class _Worker:
    """What runs on a node."""

    def __init__(self, make: Callable[[], Work[Any, Any]]) -> None:
        self._make = make
        self._work: Work[Any, Any] | None = None

    def begin(self) -> Any:
        """READY, or what kept it from getting there."""
        try:
            self._work = self._make()
        except ForensicsError as error:
            return troubled(error)
        return READY

    def do(self, task: Task[Any]) -> Any:
        """One task."""
        assert self._work is not None
        return attempt(self._work, task)


def _join(address: str) -> Any:
    """Join the cluster at `address`.

    Raises:
        BadInput: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray  # optional, and heavy
        import ray.exceptions
    except ImportError as error:
        raise BadInput(
            "work on a cluster needs Ray", where="--ray", hint="pip install 'model-forensics[ray]', here and on its nodes"
        ) from error
    _refuse_silent(address)
    try:
        ray.init(address=address, **QUIETLY)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _nobody_there(address, str(error)) from error
    return ray


def _refuse_silent(address: str) -> None:
    """Refuse an address at which no cluster answers.

    Where nobody does, Ray itself tries for a minute or two and then ends the process it is in; so another process tries first.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or not port.isdecimal() or "/" in host):
        raise BadInput(
            "this is no address of a Ray cluster", where=f"--ray {address}", hint="auto, or HOST:PORT as `ray start --head` printed it"
        )
    if address != "auto":
        try:
            _listens(address)
        except (OSError, OverflowError, UnicodeError) as error:
            raise _nobody_there(address) from error
    trial = f"import ray, sys; ray.init(address=sys.argv[1], **{QUIETLY!r})"
    try:
        done = subprocess.run(  # noqa: S603 - no shell: our interpreter and words, and what the user gave is one argument of theirs
            [sys.executable, "-c", trial, address], capture_output=True, check=False, timeout=ANSWERS_WITHIN
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise _nobody_there(address, "" if done is None else done.stderr.decode("utf-8", "replace"))


def _listens(address: str) -> None:
    """Nothing, where somebody takes connections at HOST:PORT.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN).close()


def _nobody_there(address: str, said: str = "") -> BadInput:
    """The error, with the last line of what Ray said: it may be another version that answers."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return BadInput(
        f"no Ray cluster answers {'here' if address == 'auto' else 'at this address'}",
        where=f"--ray {address}",
        details=(lines[-1][:200],) if lines else (),
        hint="start one with `ray start --head`, and join further machines to it with `ray start --address HEAD:6379`; "
        "Python and Ray must be of the same version on all of them",
    )
