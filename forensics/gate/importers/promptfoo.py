"""Results of promptfoo (`promptfoo eval --output`, as JSON or JSONL): test cases put to one provider or several.

A file with several providers is read one at a time: `FILE#provider`, by its label or its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forensics.errors import BadInput
from forensics.gate.importers.foreign import (
    Answer,
    Foreign,
    category_of,
    chat_or_text,
    counted,
    declines,
    expect_of,
    rows,
    sifted,
    table,
    text,
    texts_in,
    usable,
)
from forensics.gate.judges import UNPARSED

FORMAT = "promptfoo results"
REFUSAL_TESTS = {"is-refusal": True, "not-is-refusal": False}
"""Assertions whose question is ours: what a pass says of "is this a refusal?". What others ask is no judgement of refusal."""


def fits(row: object) -> bool:
    """Whether this is one result: a prompt that was put to a provider."""
    return isinstance(row, dict) and "provider" in row and "vars" in row and isinstance(row.get("prompt"), dict)


def results_of(document: object) -> list[Any] | None:
    """The results of a whole file of JSON; None if it is no file of promptfoo's."""
    if not isinstance(document, dict):
        return None
    held = document.get("results")
    inner = held.get("results") if isinstance(held, dict) else held
    if not isinstance(inner, list):
        return None
    return inner if any(fits(row) for row in inner[:1]) or "evalId" in document else None


def read(results: Iterable[tuple[str, object]], *, where: str, chosen: str = "") -> Foreign:
    """The answers of one provider.

    Args:
        results: Each with its place.
        where: The file.
        chosen: Label or id of the provider; may be empty if there is one only.

    Raises:
        BadInput: A result is not what promptfoo writes; there are several providers and none was chosen, or the chosen one is not there.
    """
    held = [(place, table(row, "results[]", place)) for place, row in results]
    names = [_names(row.get("provider"), place) for place, row in held]
    known = list(dict.fromkeys(names))
    taken = [name for name in known if chosen and chosen in _spellings(name)] or ([] if chosen else known)
    if len(taken) != 1:
        raise BadInput(
            f"there is no provider {chosen!r} in this file" if chosen else "this file holds the answers of several providers" if known else "this file holds no result",
            where=where,
            hint="choose one with FILE#provider: " + ", ".join(filter(None, (name[0] or name[1] for name in known))),
        )  # fmt: skip
    answers, unusable, silent = sifted(_answer(row, place) for (place, row), name in zip(held, names, strict=True) if name == taken[0])
    notes = counted(
        (unusable, "results are left out: their prompt does not end with a user's turn of text, or is too long"),
        (silent, "results hold an error or no output: they are not scored"),
    )
    return Foreign(format=FORMAT, answers=answers, notes=notes)


def _names(provider: object, where: str) -> tuple[str, str]:
    """Label and id of a provider; a text is its id."""
    if isinstance(provider, str):
        return ("", provider)
    row = table(provider, "provider", where)
    return (text(row.get("label") or "", "provider.label", where), text(row.get("id") or "", "provider.id", where))


def _spellings(name: tuple[str, str]) -> set[str]:
    """What a provider may be called on the command line, where a path loses one of two slashes."""
    return {spelled for one in name if one for spelled in (one, str(Path(one)))}


def _answer(row: Mapping[str, Any], where: str) -> Answer | None:
    raw = text(table(row.get("prompt"), "prompt", where).get("raw"), "prompt.raw", where)
    turns = chat_or_text(raw)
    if not usable(turns, where):
        return None
    response = table(row.get("response") or {}, "response", where)
    given, about = row.get("vars"), response.get("metadata")
    test = row.get("testCase")
    metadata = (row.get("metadata"), test.get("metadata") if isinstance(test, dict) else None)
    driven = {key: about[key] for key in ("redteamFinalPrompt", "redteamHistory") if key in about} if isinstance(about, dict) else {}
    return Answer(
        where=where,
        turns=turns,
        reply=_reply(response),
        asked=json.dumps([raw, driven], sort_keys=True) if driven else "",
        texts=texts_in(turns, given),
        category=category_of(given, *metadata),
        expect=expect_of(given, *metadata),
        labels=_labels(row.get("gradingResult"), where),
    )


def _reply(response: Mapping[str, Any]) -> str | None:
    """What the provider said; promptfoo parses replies that are JSON, which are written out again."""
    said = response.get("output")
    if said is None or response.get("error"):
        return None
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _labels(grading: object, where: str) -> dict[str, str]:
    found = {}
    for part in rows(table(grading or {}, "gradingResult", where).get("componentResults") or [], "gradingResult.componentResults", where):
        row = table(part, "gradingResult.componentResults[]", where)
        assertion = row.get("assertion")
        kind = assertion.get("type") if isinstance(assertion, dict) else None
        if isinstance(kind, str):
            passed, asks = row.get("pass"), REFUSAL_TESTS.get(kind)
            found[f"promptfoo:{kind}"] = declines(passed is asks) if asks is not None and isinstance(passed, bool) else UNPARSED
    return found
