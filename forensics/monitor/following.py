"""What a monitor follows beside rates and strings: shapes of traffic by the block, what users say, and ADWIN as a second opinion on every rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from forensics.errors import BadInput
from forensics.monitor import alarms
from forensics.monitor.baseline import FEEDBACK, SHAPES, Baseline, Settings
from forensics.monitor.drift import Drift, Result, read_drift
from forensics.monitor.embedding import gate_of
from forensics.monitor.events import Event
from forensics.monitor.feedback import CONCERN, PARTS, Enriched, fed, read_changes, states_of
from forensics.monitor.shapes import KINDS, PROMPTS, REPLIES, Looker
from forensics.monitor.signals import DOWN, Scored
from forensics.monitor.store import Store
from forensics.monitor.streams import Stream
from forensics.monitor.wording import CONCERN as WORDS_OF_HARM
from forensics.monitor.wording import markers
from probes.adwin import Adwin, slide
from probes.change import Change

ADWIN = "adwin"
"""The name of the state that holds its windows."""
SEEMS_UNMOVED = 0.01
"""Chance, before any adjustment, above which requests count as unchanged when replies have moved."""
Span = tuple[float, float]


class _Window(BaseModel):
    """What is kept of a window of ADWIN's; its grain and clock are those of the program."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]
    partial: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    taken: Annotated[int, Field(ge=0)]
    cuts: Annotated[int, Field(ge=0)]
    last_cut: Annotated[int, Field(ge=0)]
    rose: bool


WINDOWS = TypeAdapter(dict[str, _Window])


@dataclass(kw_only=True)
class Beside:
    """What is known of all of it, as it stands before a batch, and what the batch adds."""

    drift: Drift
    changes: dict[str, Change]
    windows: dict[str, Adwin]
    outcomes: dict[str, list[bool]] = field(default_factory=dict)
    """Of opinions in the batch, by signal, in the order in which they came."""
    moved: list[tuple[Result, bool, float, Span]] = field(default_factory=list)
    """Shapes of blocks that the batch filled, that none of the reference had: with whether requests had moved, the level of the look, and the block's span."""

    def states(self) -> dict[str, str]:
        """Everything as a store keeps it."""
        windows = {name: _Window(**{key: value for key, value in vars(one).items() if key in _Window.model_fields}) for name, one in self.windows.items()}  # fmt: skip
        kept = {ADWIN: WINDOWS.dump_json(windows).decode("ascii")} if windows else {}
        return kept | states_of(self.changes, list(PARTS)) | self.drift.states()


def kind_of(shape: str) -> str:
    """What a shape is of; activations along directions are of replies."""
    return KINDS.get(shape, REPLIES)


def read_beside(states: Mapping[str, str], settings: Settings, *, where: str) -> Beside:
    """What a store keeps.

    Raises:
        BadInput: It is damaged.
    """
    try:
        windows = WINDOWS.validate_json(states.get(ADWIN, "{}"))
    except ValidationError as error:
        raise BadInput("the state of a detector in this store is damaged", where=where, hint="restore the store from a copy") from error
    return Beside(
        drift=read_drift(states, settings.rhythm, where=where),
        changes=read_changes(states, where=where),
        windows={name: Adwin(**dict(one)) for name, one in windows.items()},
    )


class Follower:
    """Feeds events to what is followed, and says what raised an alarm. Cheap where an event is in no sample."""

    def __init__(self, store: Store, baseline: Baseline, settings: Settings) -> None:
        """Take the store that is written to, and what it was started with."""
        self._settings = settings
        self._shapes, self._feedback = baseline.alpha * SHAPES, baseline.alpha * FEEDBACK
        self._looker = Looker(gate_of(store), store.hashed)

    def read(self, states: Mapping[str, str], *, where: str) -> Beside:
        """What the store knows."""
        return read_beside(states, self._settings, where=where)

    def take(self, beside: Beside, id: int, event: Event, scored: Scored, time: float) -> None:
        """Take an event into account, by its hashed id and the time that it counts at."""
        if event.opinion:
            beside.outcomes.setdefault(DOWN, []).append(event.opinion == "down")
        if event.comment:
            beside.outcomes.setdefault(CONCERN, []).append(markers(event.comment, WORDS_OF_HARM) > 0)
        drift = beside.drift
        block = drift.block
        results = drift.take(id, event, scored, time, self._looker)
        if results:
            level = drift.level(self._shapes)
            moved = any(kind_of(one.shape) == PROMPTS and one.p_value <= SEEMS_UNMOVED for one in results)
            span = (min(block.began, block.ended), block.ended)
            beside.moved += [(one, moved, level, span) for one in results if one.adjusted <= level]

    def slide(self, beside: Beside, name: str, outcomes: NDArray[np.bool_]) -> bool:
        """Move ADWIN's window on a rate on, and say whether it has just seen a rise."""
        old = beside.windows.get(name, Adwin())
        new = beside.windows[name] = slide(old, outcomes)
        return new.cuts > old.cuts and new.rose

    def decide(self, beside: Beside, span: Span, enriched: Callable[[], Sequence[Enriched]]) -> list[alarms.Alarm]:
        """The alarms of a batch. `enriched` is asked only where there is one that it could say something to."""
        found = [
            alarms.of_shape(result, kind_of(result.shape), requests_moved=moved, level=level, span=when)
            for result, moved, level, when in beside.moved
        ]
        for signal, said in beside.outcomes.items():
            change = beside.changes[signal] = fed(beside.changes[signal], said)
            alpha = self._feedback * PARTS[signal]
            if change.alarms(alpha):
                alarm = alarms.of_change(signal, change, alpha, span, enriched() if signal == DOWN else ())
                found += [alarm] if alarm is not None else []
        beside.outcomes, beside.moved = {}, []
        return found


def spoken(alarm: alarms.Alarm, stream: Stream, beside: Beside) -> alarms.Alarm:
    """The alarm of a rate, with ADWIN's word on the same events."""
    window = beside.windows.get(stream.name)
    return alarm if window is None else alarms.seconded(alarm, window)
