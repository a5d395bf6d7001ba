"""The same work in this process, in several processes, or on a Ray cluster: one function, and one order of answers.

A worker is made once and given one task after the other, so what it opened stays open. Answers come in the order of the tasks, whatever
finishes first. A worker that is lost is replaced, and of all tasks only the one it had is done again. What travels is the few words of a task
and its answer: whatever is large a worker reads from paths that it shares with us.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, cast

from forensics.errors import ToolFailed
from forensics.workers.terms import LOST, READY, Answer, Crew, Given, Room, Seat, Task, Trouble, Value, Work, attempt

LOOK_AGAIN = 1.0
"""Seconds after which a wait for workers looks whether any of them is left."""


def fanout(
    make: Callable[[], Work[Given, Value]],
    tasks: Sequence[Task[Given]],
    crew: Crew,
    tell: Callable[[Answer[Value]], None] = lambda _answer: None,
) -> tuple[Answer[Value], ...]:
    """Do every task, and return all answers in the order of `tasks`.

    Args:
        make: Makes a worker's function, once in each worker. It and the tasks are sent, so they are small, and importable there.
        tasks: What is to be done.
        crew: Who does it.
        tell: Told each answer as it comes, in whatever order that is.

    Returns:
        An answer a task. An error of one is its answer and keeps nobody from the others; so is a task with which workers were lost
        `crew.tries` times.

    Raises:
        ForensicsError: `make` raised it: no worker can work.
        BadInput: The cluster cannot be had.
        ToolFailed: No worker could be started.
    """
    if not crew.ray and crew.workers <= 1:
        return _one_by_one(make(), tasks, tell)
    if not tasks:
        return ()
    room = _room(make, crew)
    try:
        return _Foreman(room=room, tasks=tasks, crew=crew, tell=tell).work()
    finally:
        room.close()


def _room(make: Callable[[], Work[Any, Any]], crew: Crew) -> Room:
    if crew.ray:
        from forensics.workers.cluster import RayRoom

        return RayRoom(make, crew)
    from forensics.workers.processes import ProcessRoom

    return ProcessRoom(make, crew)


def _one_by_one(work: Work[Given, Value], tasks: Sequence[Task[Given]], tell: Callable[[Answer[Value]], None]) -> tuple[Answer[Value], ...]:
    answers = []
    for task in tasks:
        answers.append(_answer(task, attempt(work, task), tries=1))
        tell(answers[-1])
    return tuple(answers)


def _answer(task: Task[Any], said: list[Value] | Trouble, *, tries: int) -> Answer[Value]:
    if isinstance(said, Trouble):
        return Answer(name=task.name, trouble=said.error(), tries=tries)
    return Answer(name=task.name, value=said[0], tries=tries)


@dataclass(kw_only=True)
class _Foreman(Generic[Given, Value]):
    """Gives tasks to whoever is free, and gives them again where a worker is lost."""

    room: Room
    tasks: Sequence[Task[Given]]
    crew: Crew
    tell: Callable[[Answer[Value]], None]
    _answers: dict[int, Answer[Value]] = field(default_factory=dict)
    _tries: dict[int, int] = field(default_factory=dict)
    _starting: list[Seat] = field(default_factory=list)
    _idle: list[Seat] = field(default_factory=list)
    _busy: dict[Seat, int] = field(default_factory=dict)
    _lost_at_start: int = 0
    _alone_since: float = 0.0

    def work(self) -> tuple[Answer[Value], ...]:
        waiting = deque(range(len(self.tasks)))
        self._alone_since = time.monotonic()
        try:
            while len(self._answers) < len(self.tasks):
                while waiting and self._idle:
                    self._give(self._idle.pop(), waiting.popleft())
                self._fill(len(waiting))
                for seat, said in self.room.hear([*self._starting, *self._busy], LOOK_AGAIN):
                    again = self._heard(seat, said)
                    if again is not None:
                        waiting.appendleft(again)
                self._refuse_to_wait_for_nobody()
        finally:
            for seat in (*self._starting, *self._idle, *self._busy):
                seat.close()
        return tuple(self._answers[index] for index in range(len(self.tasks)))

    def _fill(self, waiting: int) -> None:
        """Have as many workers as there is room for, and work for."""
        held = len(self._starting) + len(self._idle) + len(self._busy)
        for _ in range(min(self.room.size - held, waiting - len(self._starting) - len(self._idle))):
            self._starting.append(self.room.open())

    def _give(self, seat: Seat, index: int) -> None:
        self._tries[index] = self._tries.get(index, 0) + 1
        self._busy[seat] = index
        seat.give(self.tasks[index])

    def _heard(self, seat: Seat, said: Any) -> int | None:
        """Take in what a worker said; the task that has to be given again, if it was lost with one."""
        if seat in self._starting:
            self._starting.remove(seat)
            if said == READY:
                self._idle.append(seat)
                return None
            seat.close()
            if isinstance(said, Trouble):
                raise said.error()
            self._lost_at_start += 1
            if self._lost_at_start >= self.crew.tries * self.room.size:
                raise ToolFailed(
                    f"{self._lost_at_start} workers were lost before they could begin",
                    where="workers",
                    hint="look at the memory of the machine; fewer --workers need less",
                )
            return None
        index = self._busy.pop(seat)
        if said == LOST:
            seat.close()
            if self._tries[index] < self.crew.tries:
                return index
            said = Trouble(
                exit_code=1,
                what=f"{self._tries[index]} workers were lost with this task, one after the other",
                where=self.tasks[index].name,
                hint="it may need more memory than there is; run it alone, or with fewer --workers",
            )
        else:
            self._idle.append(seat)
        self._answers[index] = _answer(self.tasks[index], cast("list[Value] | Trouble", said), tries=self._tries[index])
        self.tell(self._answers[index])
        return None

    def _refuse_to_wait_for_nobody(self) -> None:
        now = time.monotonic()
        if self._busy or self._idle:
            self._alone_since = now
        elif now - self._alone_since > self.crew.patience:
            raise ToolFailed(
                f"no worker was ready within {self.crew.patience:g} seconds",
                where=self.crew.ray or "this machine",
                hint="look whether the cluster has nodes with a free CPU (`ray status`); what was finished is kept, and the same command resumes",
            )
