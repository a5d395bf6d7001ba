"""What people added beside a record: lines in `people/`, each citing the results it is about and the line before it.

A line names the digest of the line before it in its file, so that one that is taken out or changed later is seen; beside the file lies how many
lines it has and the digest of the last, so that a file that is cut short is seen as well. That proves no one's identity: whoever can write the
folder can write a line, and can write both files anew. A monitor keeps the ends in a place of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.bounds import read_bytes
from forensics.errors import BadInput
from forensics.record import canonical_json, sha256_text
from forensics.runfolder import disk_error, write_text

FOLDER = "people"
SIGNATURES, SESSIONS, LABELS = "signatures.jsonl", "redteam.jsonl", "labels.jsonl"
END = ".end"
"""What the name of the file ends in that says where a log ends."""
ADDED = ("contents",)
"""Fields that lines of older versions lack; left empty they are no part of a line's digest."""
MOST_PAUSE = 300.0
"""Seconds between two of a tester's entries that count as work at most."""
LabelName = Literal["refusal", "partial-refusal", "compliance", "empty", "incoherent"]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    results_digest: str
    created: str
    previous: str = ""


class End(BaseModel):
    """Where a log ended: how many lines it had, and the digest of the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int = Field(ge=0)
    digest: str


class Signature(_Line):
    """Somebody accepts or rejects what a record says, until a day: who, what was read, and which risk is left and accepted.

    `contents` is the digest of the replies and prompts beside the record, where it names them.
    """

    name: str = Field(min_length=1)
    role: str = ""
    decision: Literal["accept", "reject"]
    read: tuple[str, ...] = ()
    residual_risk: str = ""
    valid_until: str
    contents: str = ""


class Attempt(_Line):
    """One thing that a red team asked both sides, what they said, and what the tester makes of it."""

    tester: str = Field(min_length=1)
    configuration: str
    prompt: str
    base: str
    candidate: str
    verdict: Literal["fine", "worse", "harmful"]
    note: str = ""
    seconds: FiniteFloat = Field(ge=0.0)
    """Since the tester's last entry, or since the session began."""


class ReviewLabel(_Line):
    """What a reviewer calls one reply."""

    reviewer: str = Field(min_length=1)
    id: str
    side: Literal["base", "candidate"]
    configuration: str
    label: LabelName
    judge: str = "human"


Line = TypeVar("Line", bound=_Line)


def load_lines(folder: Path, name: str, kind: type[Line], *, results_digest: str) -> tuple[Line, ...]:
    """The lines of a file in `people/` of a run; none if there is no such file.

    Raises:
        BadInput: A line is not one of ours, does not follow the one before it, or cites other results than this record's; or the file was cut short.
    """
    file = folder / FOLDER / name
    noted = _noted_end(file)  # before the lines: whoever adds one meanwhile writes it first
    found: list[Line] = []
    previous = ""
    there = read_bytes(file) if file.exists() else b""
    for number, raw in enumerate(there.split(b"\n")[:-1], start=1):  # what follows the last end of line was torn by a kill
        if not raw.strip():
            continue
        where = f"{file}, line {number}"
        try:
            line = kind.model_validate_json(raw)
        except (ValidationError, ValueError, RecursionError) as error:
            raise BadInput(
                "this line is damaged", where=where, hint="restore the file; a line is only ever added, by the commands"
            ) from error
        if line.previous != previous:
            raise BadInput(
                "this line does not follow the one before it", where=where, hint="a line was changed or taken out; restore the file"
            )
        if line.results_digest != results_digest:
            raise BadInput("this line is about other results than this record's", where=where, hint="it belongs to another run")
        found.append(line)
        previous = _digest(line)
    refuse_cut(found, noted, where=str(file))
    return tuple(found)


def end_of(lines: Sequence[_Line]) -> End:
    """Where a log ends."""
    return End(lines=len(lines), digest=_digest(lines[-1]) if lines else "")


def refuse_cut(lines: Sequence[_Line], noted: End, *, where: str) -> None:
    """Refuse a log that ended further on once, or otherwise.

    Raises:
        BadInput: Lines are missing at its end, or are others.
    """
    if end_of(lines[: noted.lines]) != noted:
        missing = noted.lines - len(lines)
        what = f"the last {missing} of {noted.lines} lines are missing" if missing > 0 else "the lines are others than were written"
        raise BadInput(what, where=where, hint="restore the file; a line is only ever added, by the commands")


def _noted_end(file: Path) -> End:
    """Where a log ends by what lies beside it; at its beginning where nothing does, as with logs of older versions."""
    beside = file.with_name(file.name + END)
    try:
        return End.model_validate_json(read_bytes(beside))
    except FileNotFoundError:
        return End(lines=0, digest="")
    except (OSError, ValidationError, ValueError) as error:
        raise BadInput("what says where this log ends is damaged", where=str(beside), hint="restore the file") from error


def add_line(folder: Path, name: str, line: Line) -> Line:
    """Add a line behind those of the file, on the disk before this returns; two that add at the same time wait for each other.

    Raises:
        BadInput: The folder cannot be written.
        ToolFailed: The disk is full; the file is as it was.
    """
    file = folder / FOLDER / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            there = stream.read()
            start = there.rfind(b"\n") + 1
            stream.truncate(start)  # a line torn by a kill was never said to be written
            last = there[:start].rstrip(b"\n").rpartition(b"\n")[2]
            chained = line.model_copy(update={"previous": _digest(type(line).model_validate_json(last)) if last else ""})
            content = (chained.model_dump_json() + "\n").encode("utf-8", "replace")
            try:
                if stream.write(content) < len(content):
                    stream.truncate(start)
                    raise OSError(28, os.strerror(28))
                os.fsync(stream.fileno())
                count = 1 + sum(bool(raw.strip()) for raw in there[:start].split(b"\n"))
                write_text(file.with_name(file.name + END), End(lines=count, digest=_digest(chained)).model_dump_json() + "\n")
            except OSError:
                os.ftruncate(stream.fileno(), start)
                raise
    except OSError as error:
        raise disk_error(error, file) from error
    except ValidationError as error:
        raise BadInput(
            "the last line is damaged", where=str(file), hint="restore the file; a line is only ever added, by the commands"
        ) from error
    return chained


def active_minutes(attempts: Sequence[Attempt]) -> float:
    """Minutes that testers worked: the time between their entries, no pause counted for more than five minutes."""
    return sum(min(attempt.seconds, MOST_PAUSE) for attempt in attempts) / 60.0


def settled(labels: Sequence[ReviewLabel]) -> dict[tuple[str, str, str], str]:
    """What reviewers settled on, by configuration, side and prompt: the label of most of them; nothing where two labels are as frequent.

    A reviewer who labels a reply again changed their mind: the last label counts.
    """
    last: dict[tuple[str, str, str], dict[str, str]] = {}
    for label in labels:
        last.setdefault((label.configuration, label.side, label.id), {})[label.reviewer] = label.label
    found = {key: majority(list(said.values())) for key, said in last.items()}
    return {key: label for key, label in found.items() if label is not None}


def majority(votes: Sequence[str]) -> str | None:
    """The label that most gave; None where two are as frequent.

    >>> majority(["refusal", "compliance", "refusal"]), majority(["refusal", "compliance"])
    ('refusal', None)
    """
    counts = Counter(votes).most_common(2)
    return None if len(counts) > 1 and counts[0][1] == counts[1][1] else counts[0][0]


def _digest(line: _Line) -> str:
    row = json.loads(line.model_dump_json())
    return sha256_text(canonical_json({key: value for key, value in row.items() if value or key not in ADDED}))
