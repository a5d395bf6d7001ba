"""Which harness wrote a file: told by its shape, never by its name alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from forensics.bounds import parsed
from forensics.errors import BadInput
from forensics.gate.importers import archive, garak, inspect_log, lm_eval, promptfoo, pyrit
from forensics.gate.importers.foreign import Foreign
from forensics.prompts import json_lines

OWN_KEYS = {"reply", "completion", "prompt", "messages"}
"""A line of JSONL with one of these is a recording of ours, or meant to be one."""
READ = (
    'JSONL of ours ({"prompt": "...", "category": "fraud", "expect": "refuse", "reply": "..."})',
    "XSTest's completions (CSV), and the folder of a finished run",
    "logs of Inspect (.eval, or JSON)",
    "samples_*.jsonl of lm-evaluation-harness",
    "*.report.jsonl of garak",
    "results of promptfoo (JSON or JSONL; FILE#provider)",
    "conversations of PyRIT (JSON; FILE#target)",
)
"""What is read, in words."""
DIVIDED = (promptfoo.FORMAT, pyrit.FORMAT)
"""Formats of which one file may hold several models."""
MOST_VALUES = 8_000_000
"""Of JSON in one document: logs with every event of a run hold some millions."""
HEADER = "header.json"


def split(path: Path) -> tuple[Path, str]:
    """A path, and what was chosen in its file behind a `#`; a file whose own name has one is the file."""
    whole = str(path)
    for place, letter in enumerate(whole):
        if letter == "#" and not path.exists() and Path(whole[:place]).is_file():
            return Path(whole[:place]), whole[place + 1 :]
    return path, ""


def read_foreign(raw: bytes, path: Path, chosen: str = "") -> Foreign | None:
    """The answers in a file of another harness.

    Args:
        raw: The file.
        path: Its path, for messages.
        chosen: Of a file that holds several models, which.

    Returns:
        The answers; None if the file is, or is meant to be, a recording of ours.

    Raises:
        BadInput: The file is of no shape that is known, or not what the harness writes; the message says where.
    """
    try:
        found = _of_archive(raw, path) if raw.startswith(archive.MARK) else _of_text(raw.decode("utf-8-sig"), path, chosen)
    except UnicodeDecodeError as error:
        raise BadInput("the file is not UTF-8 text", where=str(path), hint="save it as UTF-8") from error
    except RecursionError as error:
        raise BadInput("the file is nested too deeply", where=str(path), hint="no harness writes such a file; get it again") from error
    if chosen and (found is None or found.format not in DIVIDED):
        raise BadInput("this file holds one model only", where=f"{path}#{chosen}", hint=f"leave out #{chosen}")
    return found


def _of_archive(raw: bytes, path: Path) -> Foreign:
    held = archive.members(raw, path)
    samples = [info for name, info in held.items() if name.startswith("samples/") and name.endswith(".json")]
    if not samples or not (HEADER in held or any(name.startswith("_journal/") for name in held)):
        _unknown(path)
    head = {"status": "started"}  # a run that did not get to its end has no header yet
    if HEADER in held:
        head = next(iter(_parsed(archive.unpacked(raw, [held[HEADER]], path), [HEADER], path)))[1]
    if not isinstance(head, dict):
        _unknown(path)
    return inspect_log.read(head, _parsed(archive.unpacked(raw, samples, path), [info.filename for info in samples], path))


def _parsed(contents: Iterator[bytes], names: list[str], path: Path) -> Iterator[tuple[str, Any]]:
    for name, content in zip(names, contents, strict=True):
        try:
            yield f"{path}, {name}", parsed(content, most=MOST_VALUES)
        except ValueError as error:  # a text that is not UTF-8 is one as well
            raise BadInput(
                f"this is not JSON: {error}", where=f"{path}, {name}", hint="the log is damaged; copy or write it again"
            ) from error


def _of_text(text: str, path: Path, chosen: str) -> Foreign | None:
    try:
        document = parsed(text, most=MOST_VALUES) if text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):  # several lines, each of which is JSON, or none of it is
        document = None
    if isinstance(document, dict) and inspect_log.fits(document):
        return inspect_log.read(document, inspect_log.samples_of(document, str(path)))
    results = promptfoo.results_of(document)
    if results is not None:
        places = [(f"{path}, result {number}", row) for number, row in enumerate(results, start=1)]
        return promptfoo.read(places, where=str(path), chosen=chosen)
    if isinstance(document, list) and pyrit.fits(document):
        return pyrit.read(document, where=str(path), chosen=chosen)
    if isinstance(document, list) and document:
        _unknown(path)
    if path.suffix.lower() == ".csv" or text.lstrip()[:1] != "{":
        return None
    return _of_lines(json_lines(text, path, example=READ[0]), path, chosen)


def _of_lines(rows: Iterator[tuple[str, dict[str, Any]]], path: Path, chosen: str) -> Foreign | None:
    first = next(rows)
    every: Iterator[tuple[str, Mapping[str, Any]]] = chain([first], rows)
    if garak.fits(first[1]):
        return garak.read(_all(every, garak.fits, path))
    if lm_eval.fits(first[1]):
        return lm_eval.read(_all(every, lm_eval.fits, path))
    if promptfoo.fits(first[1]):
        return promptfoo.read(every, where=str(path), chosen=chosen)
    if OWN_KEYS & first[1].keys():
        return None
    return _unknown(path)


def _all(rows: Iterator[tuple[str, Mapping[str, Any]]], fits: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in rows:
        if not fits(row):
            raise BadInput(
                "this line is of another shape than the first one", where=where, hint=f"give the file as it was written: {path.name}"
            )
        yield where, row


def _unknown(path: Path) -> NoReturn:
    raise BadInput(
        "the shape of this file is not known", where=str(path), details=tuple(f"read are: {one}" for one in READ),
        hint="export it as one of these; what a file does not say (category, expect) goes to --prompts",
    )  # fmt: skip
