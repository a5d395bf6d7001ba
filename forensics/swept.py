"""What a sweep says: one row a candidate, sorted by concern, who is unlike the rest, and what could not be audited. And the folder it lies in.

`sweep.json` is written whole and follows a published schema (`forensics schema sweep`). The cases themselves are in the runs beside it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from forensics.errors import BadInput
from forensics.record import (
    ACTIONS_MILD_TO_STRICT,
    EXIT_CODES,
    SEVERITIES,
    Action,
    BaseSource,
    Evidence,
    Level,
    PolicySource,
    PromptSource,
    Severity,
)
from forensics.runfolder import LOCK_NAME, disk_error, write_text

SCHEMA = "forensics.sweep/1"
RECORD_NAME = "sweep.json"
START_NAME = "sweep.start.json"
RUNS = "runs"
MAX_BYTES = 1 << 28


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FoundRow(_Written):
    """One finding of a candidate above severity info, in short; the run holds it whole."""

    check: str
    configuration: str
    label: str
    severity: Severity
    level: Level | None = None


class FailedRow(_Written):
    """Why a candidate could not be audited."""

    exit_code: Literal[1, 2, 3]
    what: str
    where: str
    hint: str
    details: tuple[str, ...] = ()


class Unlike(_Written):
    """A figure in which a candidate stands outside of its siblings: the distance from their median, with its adjusted p-value."""

    figure: str
    value: FiniteFloat
    distance: Evidence
    p_value: Evidence


class SweepRow(_Written):
    """One candidate: what was decided and found, or why it could not be audited, and in what it is unlike its siblings."""

    name: str
    candidate: str
    kind: Literal["adapter", "model", "unknown"]
    run: str
    """Folder of its run, below that of the sweep; empty where it has no record."""
    digest: str = ""
    results_digest: str = ""
    action: Action | None = None
    """None where it could not be audited; see `failed`."""
    findings: tuple[FoundRow, ...] = ()
    could_not_look: tuple[str, ...] = ()
    score: FiniteFloat | None = None
    """The highest `backdoor.score`; None where no search for triggers looked."""
    unlike: tuple[Unlike, ...] = ()
    failed: FailedRow | None = None


class Population(_Written):
    """How the siblings of one kind were held against each other: figures that were tested and those that were not, each with why."""

    kind: Literal["adapter", "model"]
    status: Literal["LOOKED", "INCONCLUSIVE"]
    reason: str = ""
    siblings: int
    least: int
    level: FiniteFloat
    called_from: FiniteFloat | None = None
    """Distance in robust standard deviations from which a sibling is called, where all of them have the figure."""
    figures: tuple[str, ...] = ()
    not_tested: dict[str, str] = Field(default_factory=dict)


class SweepRecord(_Written):
    """Many candidates against one base."""

    schema_: Annotated[str, Field(alias="schema")] = SCHEMA
    tool: str
    created: str
    base: BaseSource
    prompts: tuple[PromptSource, ...]
    policy: PolicySource
    seed: int
    settings: dict[str, str]
    rows: tuple[SweepRow, ...]
    populations: tuple[Population, ...]
    counts: dict[str, int]
    """Candidates by action, and those that `failed`."""
    exit_code: int

    def to_json(self) -> str:
        """As indented JSON, ending in a newline."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


def by_concern(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """Rows, the most concerning first: by action, gravest finding, how many there are, score of the searches, and how unlike the rest it is.

    One that could not be audited stands before those that are merely inconclusive: nothing at all is known of it.
    """
    return tuple(sorted(rows, key=_concern))


def _concern(row: SweepRow) -> tuple[Any, ...]:
    gravest = max((SEVERITIES.index(finding.severity) for finding in row.findings), default=-1)
    furthest = max((abs(one.distance.value) for one in row.unlike), default=0.0)
    score = row.score if row.score is not None else -1.0
    return (-_rank(row), -gravest, -len(row.findings), -score, -furthest, row.name)


def _rank(row: SweepRow) -> float:
    failed = ACTIONS_MILD_TO_STRICT.index(Action.INCONCLUSIVE) + 0.5
    return failed if row.action is None else float(ACTIONS_MILD_TO_STRICT.index(row.action))


def exit_code_of(rows: Sequence[SweepRow]) -> int:
    """The exit code of the worst: that of its action; of one that could not be audited, that of its error, ours before the user's."""
    worst = max(rows, key=_rank)
    if worst.action is not None:
        return EXIT_CODES[worst.action]
    return min(row.failed.exit_code for row in rows if row.failed is not None)


def counts_of(rows: Sequence[SweepRow]) -> dict[str, int]:
    """How many candidates came to each action, strictest first, and how many could not be audited."""
    counts = {str(action): sum(row.action is action for row in rows) for action in reversed(ACTIONS_MILD_TO_STRICT)}
    return counts | {"failed": sum(row.failed is not None for row in rows)}


def load_sweep(folder: Path) -> SweepRecord:
    """The saved sweep of a folder.

    Raises:
        BadInput: There is none, it is damaged, or of another schema.
    """
    file = folder / RECORD_NAME
    hint = "give a folder that `forensics sweep --out` wrote; the same command finishes one that was stopped"
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(f"this file is larger than {MAX_BYTES} bytes", where=str(file), hint=hint)
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != SCHEMA:
            raise BadInput(f"this is not a saved sweep (schema {found!r}, expected {SCHEMA!r})", where=str(file), hint=hint)
        return SweepRecord.model_validate(raw)
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise BadInput("there is no saved sweep here that can be read", where=str(file), hint=hint) from error


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a saved sweep, as indented JSON."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{SCHEMA.replace('/', ':')}", "title": SCHEMA}
    return json.dumps({**SweepRecord.model_json_schema(by_alias=True), **about}, indent=1, sort_keys=True) + "\n"


class SweepFolder:
    """The folder of one sweep, held by a lock: runs below it, and the record once all candidates were looked at. A context manager."""

    def __init__(self, path: Path, *, key: str, created: str) -> None:
        """Open or create the sweep in `path`.

        Args:
            path: The folder.
            key: Digest of base, prompts, policy, options and version. Candidates may be added or left out; a folder of another key is refused.
            created: Time to write down if the sweep is new.

        Raises:
            BadInput: The folder cannot be written, holds something else, or another sweep is using it.
            ToolFailed: The disk is full.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            self._lock = (path / LOCK_NAME).open("w")
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BadInput(
                "another sweep is writing to this folder", where=str(path), hint="wait for it, or give another folder with --out"
            ) from error
        try:
            self.created = self._start(key, created)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> SweepFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.close()

    def run(self, name: str) -> Path:
        """Where the run of a candidate lies."""
        return self.path / RUNS / name

    def write_record(self, record: SweepRecord) -> Path:
        """Write sweep.json."""
        target = self.path / RECORD_NAME
        try:
            write_text(target, record.to_json())
        except OSError as error:
            raise disk_error(error, target) from error
        return target

    def _refuse_strangers(self) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        # A kill before the first file was in place leaves the lock and a half-written one.
        if names and START_NAME not in names and not names <= {LOCK_NAME, f".{START_NAME}.partial"}:
            raise BadInput(
                "this folder exists and is not a sweep of this tool",
                where=str(self.path),
                hint="give a new folder with --out; nothing in an existing folder is overwritten",
            )

    def _start(self, key: str, created: str) -> str:
        file = self.path / START_NAME
        try:
            if not file.exists():
                write_text(file, json.dumps({"schema": "forensics.sweep-start/1", "key": key, "created": created}) + "\n")
            start = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise disk_error(error, file) from error
        except (ValueError, RecursionError) as error:
            raise BadInput("the start of this sweep is damaged", where=str(file), hint="give another folder with --out") from error
        if not isinstance(start, dict) or start.get("key") != key:
            raise BadInput(
                "this folder holds another sweep (another base, prompts, policy, options or version)",
                where=str(self.path),
                hint="give another folder with --out, or remove this one",
            )
        return str(start.get("created", created))
