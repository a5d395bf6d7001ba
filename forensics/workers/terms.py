"""What a foreman and workers say to each other: tasks, answers, errors in plain words, and when a worker is ready or lost."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from forensics.errors import BadInput, CannotCompare, ForensicsError, ToolFailed

Given = TypeVar("Given")
Value = TypeVar("Value")
Work = Callable[[Given], Value]

READY: Final = "ready"
LOST: Final = "lost"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who works: here, in `workers` processes of this machine, or on the Ray cluster at `ray` ("auto", or HOST:PORT)."""

    workers: int = 0
    """None is one: here; on a cluster one for each GPU, or one for each node where there are none."""
    ray: str = ""
    tries: int = 3
    """How often a task is given to a worker, if workers are lost with it."""
    patience: float = 120.0
    """Seconds to wait until any worker is ready."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Given]):
    """One piece of work, by a name that errors call it by."""

    name: str
    given: Given


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[Value]):
    """What became of one task: its value, or the error that ended it. `tries` counts the workers that it was given to."""

    name: str
    value: Value | None = None
    trouble: ForensicsError | None = None
    tries: int = 1


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """An error in plain words, as it comes back from a worker."""

    exit_code: int
    what: str
    where: str
    hint: str
    details: tuple[str, ...] = ()

    def error(self) -> ForensicsError:
        """The error that it was."""
        kinds: dict[int, type[ForensicsError]] = {kind.exit_code: kind for kind in (ToolFailed, BadInput, CannotCompare)}
        return kinds[self.exit_code](self.what, where=self.where, hint=self.hint, details=self.details)


class Seat(Protocol):
    """One worker as its foreman sees it."""

    def give(self, task: Task[Any]) -> None:
        """Have it begin; what it says comes by the room's `hear`."""

    def close(self) -> None:
        """End it, whatever it is doing."""


class Room(Protocol):
    """Where workers are: how many there may be, how one is made, what they say, and how all of it ends."""

    size: int

    def open(self) -> Seat:
        """A new worker; it says READY, or what kept it from getting there."""

    def hear(self, seats: Sequence[Seat], seconds: float) -> list[tuple[Seat, Any]]:
        """What seats said within so many seconds: READY, LOST, a `Trouble`, or a value in a list of one."""

    def close(self) -> None:
        """Let go of whatever the room itself holds."""


def attempt(work: Work[Given, Value], task: Task[Given]) -> list[Value] | Trouble:
    """Do one task; its value in a list of one, or what went wrong in plain words that name it."""
    try:
        return [work(task.given)]
    except ForensicsError as error:
        return troubled(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to this task and stops no other
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Trouble(
            exit_code=1,
            what=f"{type(error).__name__}: {error}",
            where=task.name,
            hint="this is a bug in the tool, or the machine failed; run it alone to see more",
            details=(f"in {last.name}, line {last.lineno} of {last.filename.rpartition('/')[2]}",),
        )


def troubled(error: ForensicsError) -> Trouble:
    """An error in words that can be sent."""
    return Trouble(exit_code=error.exit_code, what=error.what, where=error.where, hint=error.hint, details=error.details)
