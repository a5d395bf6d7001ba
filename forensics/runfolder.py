"""The folder of one run: what is finished survives a kill, and nothing in it is ever half written.

`journal.jsonl` and `items.jsonl` grow by whole lines, flushed to disk before the next step starts; a line torn by a
kill is cut off when the run is opened again. Everything else is written under a temporary name and moved into place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from forensics.arrays import UNREADABLE, read_arrays
from forensics.bounds import parsed, read_bytes
from forensics.errors import BadInput, ForensicsError, ToolFailed
from forensics.prompts import Prompt, load_prompts
from forensics.record import AuditRecord, CheckResult, Contents, Item, digest_items

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD_NAME = "audit.json"
JOURNAL_NAME = "journal.jsonl"
ITEMS_NAME = "items.jsonl"
PROMPTS_NAME = "prompts.jsonl"
LOCK_NAME = ".lock"
MOST_RECORD, MOST_LINES = 64 << 20, 512 << 20
"""Bytes of a record, and of the lines that a run keeps: half a million replies of a thousand characters."""
ItemKey = tuple[str, str, str, int]


class InUse(BadInput):
    """Another process holds the folder."""


class RunFolder:
    """An open run: append results and items, write the record. Use it as a context manager; it holds a lock."""

    def __init__(self, path: Path, *, key: str, created: str) -> None:
        """Open or create the run in `path`.

        Args:
            path: The folder.
            key: Digest of everything the run depends on; a folder of another run is refused.
            created: Time to write down if the run is new.

        Raises:
            BadInput: The folder cannot be written, belongs to another run, or another process is using it.
            ToolFailed: The disk is full.
        """
        self.path = path
        self.results: list[CheckResult] = []
        self.items: dict[ItemKey, Item] = {}
        try:
            fresh = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            self._lock = (path / LOCK_NAME).open("w")
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InUse(
                "another audit is writing to this folder", where=str(path), hint="wait for it, or give another folder with --out"
            ) from error
        try:
            self.created = self._resume(key, created)
            # Unbuffered: a buffer would keep what a full disk refused, and write it after all when the file is closed.
            self._journal = (path / JOURNAL_NAME).open("ab", buffering=0)
            self._items = (path / ITEMS_NAME).open("ab", buffering=0)
        except OSError as error:
            self._lock.close()
            raise disk_error(error, path) from error
        except ForensicsError:
            self._lock.close()
            if fresh:
                (path / LOCK_NAME).unlink(missing_ok=True)
                path.rmdir()
            raise

    @classmethod
    def begin(cls, out: Path | None, *, stem: str, key: str) -> RunFolder:
        """Open or create the run in `out`, or where runs are kept by default, under `stem` and the beginning of its key.

        Raises:
            BadInput, ToolFailed: As for a folder that is named.
        """
        folder = out or Path("forensics-runs") / f"{stem}-{key[:8]}"
        return cls(folder, key=key, created=datetime.now(UTC).replace(microsecond=0).isoformat())

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open a run that is there already, whatever it is of, to write beside what it holds.

        Raises:
            BadInput: There is no run in `path`, or another process is using it.
        """
        start = next(iter(_lines_of(path / JOURNAL_NAME)), {})
        if not isinstance(start.get("key"), str):
            raise BadInput(
                "this folder has no journal, so it is not the folder of a run",
                where=str(path),
                hint="give a folder that `forensics audit --out` wrote",
            )
        return cls(path, key=start["key"], created="")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in (self._journal, self._items, self._lock):
            stream.close()

    @property
    def record_path(self) -> Path:
        """Where the finished record lies."""
        return self.path / RECORD_NAME

    def add_result(self, result: CheckResult) -> None:
        """Keep the result of a finished check; it will not be redone."""
        self._append(self._journal, [{"event": "result", "result": result.model_dump(mode="json")}])
        self.results.append(result)

    def add_items(self, items: Iterable[Item]) -> None:
        """Keep replies, one line each; those already kept are left as they are."""
        new = [item for item in items if key_of(item) not in self.items]
        self._append(self._items, [item.model_dump(mode="json") for item in new])
        self.items.update((key_of(item), item) for item in new)

    def write_array(self, check: str, save: Callable[[IO[bytes]], None]) -> None:
        """Let `save` write `arrays/<check>.npz`, moved into place when complete."""
        self.write(f"arrays/{check}.npz", save)

    def write(self, name: str, save: Callable[[IO[bytes]], None]) -> Path:
        """Write file `name` in the run through `save`, under a temporary name, then move it into place."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, save)
        except OSError as error:
            raise disk_error(error, target) from error
        return target

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write file `name` in the run whole."""

        def save(stream: IO[bytes]) -> None:
            stream.write(content)

        return self.write(name, save)

    def write_prompts(self, prompts: Iterable[Prompt]) -> Path:
        """Write prompts.jsonl: what is asked, so that the run can be read and replayed without the original files."""
        lines = "".join(json.dumps(prompt.to_row()) + "\n" for prompt in prompts)
        return self.write(PROMPTS_NAME, lambda stream: _put_text(stream, lines))

    def contents(self) -> Contents:
        """What the run holds now, as its record names it."""
        return Contents(
            items=len(self.items), items_digest=digest_items(self.items.values()), prompts_digest=_file_digest(self.path / PROMPTS_NAME)
        )

    def write_record(self, record: AuditRecord) -> Path:
        """Write audit.json."""
        return self.write(RECORD_NAME, lambda stream: _put_text(stream, record.to_json()))

    def _append(self, stream: IO[bytes], rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        start = os.fstat(stream.fileno()).st_size  # where the stream stands may be behind it, if lines were taken back before
        left = memoryview("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode("ascii"))
        try:
            while left:
                left = left[stream.write(left) :]
            os.fsync(stream.fileno())
        except OSError as error:
            self._cut(stream, start)
            raise disk_error(error, self.path) from error

    @staticmethod
    def _cut(stream: IO[bytes], start: int) -> None:
        # On a full disk a part of the lines may have been written; take it back so that no line is torn.
        try:
            os.ftruncate(stream.fileno(), start)
        except OSError:
            return  # the reader cuts torn lines off as well

    def _refuse_strangers(self) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        # A kill before the first line was in place leaves the lock and a half-written journal: that is a run, too.
        if names and JOURNAL_NAME not in names and not names <= {LOCK_NAME, f".{JOURNAL_NAME}.partial"}:
            raise BadInput(
                "this folder exists and is not a run of this tool",
                where=str(self.path),
                hint="give a new folder with --out; nothing in an existing folder is overwritten",
            )

    def _resume(self, key: str, created: str) -> str:
        """Read what an earlier process finished; returns when the run was first started."""
        journal = list(_whole_lines(self.path / JOURNAL_NAME))
        if not journal:
            (self.path / ITEMS_NAME).unlink(missing_ok=True)
            first = json.dumps({"event": "start", "key": key, "created": created}) + "\n"
            self.write(JOURNAL_NAME, lambda stream: _put_text(stream, first))
            return created
        start = journal[0]
        if start.get("key") != key:
            raise BadInput(
                "this folder holds another audit (other models, prompts, policy, options or version)",
                where=str(self.path),
                hint="give another folder with --out, or remove this one",
            )
        try:
            created_at = str(start["created"])
            datetime.fromisoformat(created_at)
            self.results = [CheckResult.model_validate(row["result"]) for row in journal[1:]]
            for row in _whole_lines(self.path / ITEMS_NAME):
                item = Item.model_validate(row)
                self.items.setdefault(key_of(item), item)
        except (ValueError, KeyError) as error:
            raise BadInput(
                "the journal of this run is damaged", where=str(self.path), hint="remove the folder and run the audit again"
            ) from error
        return created_at


def key_of(item: Item) -> ItemKey:
    """What makes an item unique in a run."""
    return (item.side, item.configuration, item.id, item.repeat)


def write_whole(target: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Write a file so that readers see either the old one or the complete new one.

    Raises:
        OSError: The disk refuses; the temporary file is gone and the old one untouched.
    """
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with temporary.open("wb") as stream:
            save(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole; see `write_whole`."""
    write_whole(target, lambda stream: _put_text(stream, text))


def disk_error(error: OSError, path: Path) -> ForensicsError:
    """What to tell a user whose disk refused: full is our trouble (exit 1), not writable is theirs (exit 2)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ToolFailed(
            "there is no space left on the disk", where=str(path), hint="free some space and run the same command again; it resumes"
        )
    return BadInput(f"this folder cannot be written: {error.strerror}", where=str(path), hint="give a writable folder with --out")


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A finished run as read back from disk: all that a page may be made from."""

    folder: Path
    record: AuditRecord
    items: tuple[Item, ...]
    prompts: dict[str, Prompt]

    def arrays(self, check: str) -> dict[str, NDArray[np.generic]]:
        """The arrays a check kept, by "<configuration>/<name>"; none if it kept none.

        Raises:
            BadInput: The file is damaged.
        """
        file = self.folder / "arrays" / f"{check}.npz"
        if not file.exists():
            return {}
        try:
            return read_arrays(file)
        except UNREADABLE as error:
            raise BadInput("the arrays of this run are damaged", where=str(file), hint="run the audit again") from error


def load_run(source: str) -> SavedRun:
    """The record of a finished run with its replies and the prompts they answer.

    Raises:
        BadInput: There is no finished run, or it is damaged, or of another schema; or its replies, their labels or its prompts are not those
            that its record was written of.
    """
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    record = load_record(source)
    items = load_items(folder)
    if record.contents is not None:
        _refuse_changed(record.contents, items, folder)
    asked = folder / PROMPTS_NAME
    prompts = load_prompts(asked).prompts if asked.exists() else ()
    return SavedRun(folder=folder, record=record, items=items, prompts={prompt.id: prompt for prompt in prompts})


def _refuse_changed(contents: Contents, items: Sequence[Item], folder: Path) -> None:
    """Refuse what was changed beside a record by hand. Replies that came behind it, such as an investigation's, are no part of it."""
    changed, file = "", ITEMS_NAME
    if len(items) < contents.items:
        changed = f"{contents.items - len(items)} of {contents.items} replies are missing"
    elif digest_items(items[: contents.items]) != contents.items_digest:
        changed = "replies or their labels were changed"
    elif _file_digest(folder / PROMPTS_NAME) != contents.prompts_digest:
        changed, file = "the prompts were changed", PROMPTS_NAME
    if changed:
        raise BadInput(
            f"{changed} after the record was written",
            where=str(folder / file),
            hint="restore the file; labels of people or of other judges go in by `forensics gate --replay RUN RUN --labels FILE`",
        )


def _file_digest(file: Path) -> str:
    """sha256 of a file; "" if there is none."""
    try:
        return hashlib.sha256(read_bytes(file)).hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadInput(f"this file cannot be read: {error.strerror}", where=str(file), hint="check who may read the folder") from error


def load_record(source: str) -> AuditRecord:
    """The saved record of a run folder, or of an audit.json.

    Raises:
        BadInput: There is none, it is damaged, or of another schema.
    """
    path = Path(source).expanduser()
    file = path / RECORD_NAME if path.is_dir() else path
    try:
        text = read_bytes(file, most=MOST_RECORD).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        unfinished = path.is_dir() and (path / JOURNAL_NAME).exists()
        raise BadInput(
            "this run is not finished: it has no audit.json yet" if unfinished else "there is no saved audit here",
            where=source,
            hint="run the same audit command again; it resumes" if unfinished else "give a folder that `forensics audit --out` wrote",
        ) from error
    return AuditRecord.from_json(text, where=str(file))


def load_items(folder: Path) -> tuple[Item, ...]:
    """The replies of a run folder, in the order they were recorded; none if the run asked nothing.

    Raises:
        BadInput: A line is not one of our items.
    """
    file = folder / ITEMS_NAME
    try:
        return tuple(Item.model_validate(row) for row in _lines_of(file))
    except ValueError as error:  # half a character in a name is one that is no ValidationError
        raise BadInput("a line is not a recorded reply", where=str(file), hint="run the audit again") from error


def _whole_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a JSONL file; a torn end is cut off the file."""
    rows = _lines_of(path)
    if path.exists():
        text = path.read_bytes()
        whole = len(text) - len(text.rpartition(b"\n")[2])
        if whole != len(text):
            with path.open("r+b") as stream:
                stream.truncate(whole)
    return rows


def _lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_bytes(path, most=MOST_LINES).split(b"\n")[:-1], start=1):
        try:
            row = parsed(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                "a line of this run is damaged", where=f"{path}, line {number}", hint="remove the folder and run the audit again"
            ) from error
        rows.append(row if isinstance(row, dict) else {})
    return rows


def _put_text(stream: IO[bytes], text: str) -> None:
    stream.write(text.encode("utf-8", "replace"))
