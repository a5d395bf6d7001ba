"""The errors a user can meet: what went wrong, where, and what to do about it.

Every error carries the exit code of the house, so that the command line only has to print and leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


class ForensicsError(Exception):
    """Something the user should be told in one paragraph, without a traceback.

    Args:
        what: One clause, lower case, without a full stop: what could not be done.
        where: The file, tensor, line or option it happened at.
        hint: What to do next. It has no default: an error without advice is a bug in us.
        details: Further lines, for example the tensors that disagree. The first few are shown.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str, hint: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        """The whole message as shown to a user, several lines."""
        shown = [f"  {line}" for line in self.details[:MAX_DETAILS]]
        left = len(self.details) - MAX_DETAILS
        if left > 0:
            shown.append(f"  ... and {left} more")
        return "\n".join([self.what, f"  where: {self.where}", *shown, f"  hint: {self.hint}"])

    @property
    def reason(self) -> str:
        """One line without paths, fit for a record that must not depend on where files lie."""
        return " ".join([self.what, *self.details[:MAX_DETAILS]])


MAX_DETAILS = 8


class ToolFailed(ForensicsError):
    """The tool, or the machine under it, failed: no space, no memory, a bug. Exit code 1."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: Python's own, CUDA's, or the text of torch's CPU allocator."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(word in str(error).lower() for word in words)


def first_line(error: Exception) -> str:
    """What another library said, in one line: messages of transformers hold the folder's path, and advice to allow remote code."""
    line = str(error).strip().split("\n")[0]
    return " ".join(word for word in line.split() if "/" not in word)[:200]


def unless_too_many(work: Callable[[Sequence[Row]], Result], rows: Sequence[Row], *, where: str) -> Result | None:
    """What `work` makes of some rows; None where memory runs out and fewer can be tried.

    Raises:
        ToolFailed: There is not enough memory for one.
    """
    try:
        return work(rows)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise ToolFailed(
                "there is not enough memory for one prompt", where=where, hint="use a larger machine, or --max-cost weights"
            ) from error
        return None


class BadInput(ForensicsError):
    """The command or a file it names is wrong and the user can mend it. Exit code 2."""

    exit_code = 2


class CannotCompare(ForensicsError):
    """Both sides were read, but they cannot be compared. Exit code 3."""

    exit_code = 3
