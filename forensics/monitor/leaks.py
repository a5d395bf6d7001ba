"""Whether prompts of the gate stand in training data: then the model may have been taught to pass, and the evaluation has to be made with others."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from forensics.errors import BadInput
from forensics.monitor.alarms import Alarm
from forensics.monitor.beside import alarm_of
from forensics.monitor.raising import keep_alarms
from forensics.monitor.store import Store
from forensics.prompts import Prompt
from forensics.record import Evidence

GRAM = 13
"""Words in a row that a text shares with a prompt only if one was taken from the other."""
SHORT = 5
"""Words of a prompt below which it has to be a whole text: so few come up by themselves."""
COMMON = 10
"""Prompts that a run of words may stand in before it is taken for their form and not for any of them."""
START = 3
"""Words by which a place that is worth a closer look is found."""
PIECE = 1 << 20
"""Characters of a text that are looked at together; memory stays flat whatever a line holds."""
SEARCHED = 20_000
"""Words that wait before they are searched together, where a text goes on."""
MOST_LINE = 16 << 20
"""Bytes of a line that is read as JSON; a longer one is searched as it is spelled."""
WORD = re.compile(r"\w+")
ADVICE = "Evaluate again with prompts that were in no training data: `forensics gate --fresh`, or a set of your own that is kept back; then start a monitor from that."
ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
BINARY = (b"PAR1", b"PK\x03\x04", b"ARROW1", b"\xff\xfe", b"\xfe\xff")
"""Beginnings of files that hold texts, but not so that they could be read here: Parquet, zip, Arrow, UTF-16."""


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What was found: prompts that stand in the data whole, those that share `GRAM` words in a row with it, and how much was read."""

    whole: tuple[str, ...]
    overlapping: tuple[str, ...]
    prompts: int
    looked_for: int
    texts: int
    words: int
    alarm: Alarm | None


class Sought:
    """The prompts that are looked for, as runs of words; a text is searched once for all of them."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        """Take the prompts. What counts is the longest turn of a user: the system's is shared by many, and short ones come up by themselves."""
        turns = {
            prompt.id: max((words_of(turn.content) for turn in prompt.messages if turn.role == "user"), key=len, default=())
            for prompt in prompts
        }
        self.prompts = len(turns)
        self.looked_for = sum(bool(words) for words in turns.values())
        self.whole: set[str] = set()
        self.overlapping: set[str] = set()
        self._texts: dict[tuple[str, ...], set[str]] = {}
        self._runs: dict[tuple[str, ...], set[str]] = {}
        for id, words in turns.items():
            if words:
                self._texts.setdefault(words, set()).add(id)
            for place in range(len(words) - GRAM + 1):
                self._runs.setdefault(words[place : place + GRAM], set()).add(id)
        self._runs = {run: ids for run, ids in self._runs.items() if len(ids) <= COMMON}
        self._longest = max(map(len, self._texts), default=0)
        sizes: dict[tuple[str, ...], set[int]] = {}
        for words in (*(text for text in self._texts if len(text) >= SHORT), *self._runs):
            sizes.setdefault(words[:START], set()).add(len(words))
        self._sizes = {start: tuple(sorted(found)) for start, found in sizes.items()}
        self._waiting: list[str] = []
        self._many = max(SEARCHED, 4 * self._longest)

    def look(self, text: str, *, goes_on: bool = False) -> int:
        """Take a text, which goes on where the one before it ended or stands by itself, and say how many words it has."""
        if not goes_on:
            self.finish()
        count = 0
        own: tuple[str, ...] = ()
        for piece in pieces(text):
            words = words_of(piece)
            count += len(words)
            own = own + words if count <= self._longest else ()
            self._waiting += words
            if len(self._waiting) >= self._many:
                self._search()
        self.whole.update(self._texts.get(own, ()))
        return count

    def finish(self) -> None:
        """Search what is left: nothing goes on from here."""
        self._search()
        self._waiting = []

    def _search(self) -> None:
        sizes, words = self._sizes, tuple(self._waiting)
        for place, start in enumerate(zip(words, words[1:], words[2:], strict=False)):
            for size in sizes.get(start, ()):
                run = words[place : place + size]
                self.whole.update(self._texts.get(run, ()))
                self.overlapping.update(self._runs.get(run, ()))
        self._waiting = self._waiting[-self._longest :] if self._longest else []


def find_leaks(store: Store, prompts: Sequence[Prompt], files: Sequence[Path], now: datetime) -> Leaks:
    """Search training data for the prompts of a gate, and keep an alarm in the store if any stands there.

    A text is compared by its words, whatever their case and marks. A prompt of `SHORT` words or more leaks where all of it, or `GRAM` words of it in a
    row, stand anywhere; a shorter one where it is the whole of a text.

    Args:
        store: Of the monitor.
        prompts: Of the gate.
        files: JSONL, whose texts are searched wherever they stand in a row, or plain text; gzipped if the name ends in .gz.
        now: The time, with its zone.

    Raises:
        BadInput: A file cannot be read.

    Source:
        Overlap of 13 words: Brown et al. 2020 (arXiv:2005.14165, appendix C). There, too, runs that stand in more than ten places are left out.
    """
    sought = Sought(prompts)
    texts = words = 0
    for file in files:
        for text, goes_on in texts_of(file):
            texts += 1
            words += sought.look(text, goes_on=goes_on)
        sought.finish()
    if not words:
        raise BadInput(
            "there is not one word in these files", where=str(files[0]), hint="give the training data: JSONL or text, or either with .gz"
        )
    whole = tuple(sorted(sought.whole))
    partly = tuple(sorted(sought.overlapping - sought.whole))
    alarm = _alarm(whole, partly, sought, words, now) if whole or partly else None
    if alarm is not None:
        with store.batch() as batch:
            keep_alarms(batch, store, {alarm.finding.id: alarm}, now.timestamp())
    return Leaks(
        whole=whole, overlapping=partly, prompts=sought.prompts, looked_for=sought.looked_for, texts=texts, words=words, alarm=alarm
    )


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared.

    >>> words_of("How do I pick the LOCK, of my neighbour\u2019s door?")[4:]
    ('the', 'lock', 'of', 'my', 'neighbour', 's', 'door')
    """
    return tuple(WORD.findall(text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()))


def pieces(text: str) -> Iterator[str]:
    """A long text in parts that end between words, where there is a space within reach."""
    start = 0
    while len(text) - start > PIECE:
        end = max(text.rfind(" ", start, start + PIECE), text.rfind("\n", start, start + PIECE)) + 1
        end = end if end > start else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def texts_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Every text of a file, and whether it goes on where the one before it ended: texts of JSON rows do not, lines of what is no JSON do.

    Raises:
        BadInput: It cannot be read, or is of another format.
    """
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            first, torn = True, False
            while line := stream.readline(MOST_LINE):
                if first and (line.startswith(BINARY) or b"\0" in line):
                    raise BadInput("this file is no text", where=str(file), hint="write the training data as JSONL, one row a line")
                yield from _texts_of_line(line, torn=torn)
                first, torn = False, not line.endswith(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(
            f"this file cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}", where=str(file), hint="give JSONL or text, or either with .gz"
        ) from error  # fmt: skip


def _texts_of_line(line: bytes, *, torn: bool) -> Iterator[tuple[str, bool]]:
    """The texts of a line; `torn` says that it is the rest of one that was too long, whose texts can no longer be told apart."""
    spelled = line.decode("utf-8", "replace")
    if torn:
        spelled = ESCAPE.sub(" ", spelled)
    elif spelled.lstrip()[:1] in ("{", "[", '"'):
        try:
            row = json.loads(spelled)
        except (ValueError, RecursionError):
            spelled = ESCAPE.sub(" ", spelled)  # the beginning of a row that is too long, or a line of a document
        else:
            yield from ((text, False) for text in _inside(row))
            return
    yield spelled, True


def _inside(row: Any) -> Iterator[str]:
    """Every text in a row, wherever it stands; not by calling itself, since rows may be deep."""
    left = [row]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)


def _alarm(whole: Sequence[str], partly: Sequence[str], sought: Sought, words: int, now: datetime) -> Alarm:
    found = len(whole) + len(partly)
    claim = (
        f"{found} of the gate's {sought.prompts} prompts stand in the training data that was searched, {len(whole)} of them whole: "
        "what the model does with them says little of what it does with others."
    )
    evidence = (
        Evidence(name="prompts.leaked", value=100 * found / sought.prompts, unit="%", where="training data", n=sought.prompts,
                 expected=f"0: no prompt whole, and none with {GRAM} words in a row; {words} words were searched"),
        Evidence(name="prompts.leaked-whole", value=100 * len(whole) / sought.prompts, unit="%", where="training data", n=sought.prompts, expected="0"),
    )  # fmt: skip
    return alarm_of("leak/prompts", claim, evidence, "re-evaluate", now.timestamp(), ADVICE)
