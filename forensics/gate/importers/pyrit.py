"""Conversations of PyRIT: the pieces of messages that its memory exports as JSON, with their scores.

The last turn of a conversation that is the target's is the reply, the turns before it are what was asked: as it was sent, after converters. A file
with several targets (the one that attacks, the one that scores) is read one at a time: `FILE#target`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from forensics.errors import BadInput
from forensics.gate.importers.foreign import (
    ROLES,
    Answer,
    Foreign,
    category_of,
    counted,
    declines,
    expect_of,
    named,
    rows,
    sifted,
    table,
    text,
    usable,
    whole,
)
from forensics.gate.judges import UNPARSED
from forensics.prompts import Message

FORMAT = "PyRIT conversations"
YES_OR_NO = {"true": declines(True), "false": declines(False)}
Held = tuple[int, int, Mapping[str, Any]]
"""A piece, with its place in its conversation and in the file."""


def fits(document: object) -> bool:
    """Whether this is a list of pieces."""
    first = document[0] if isinstance(document, list) and document else None
    return (
        isinstance(first, dict)
        and "conversation_id" in first
        and "role" in first
        and ("original_value" in first or "converted_value" in first)
    )


def read(pieces: Sequence[object], *, where: str, chosen: str = "") -> Foreign:
    """The answers of one target, a conversation each.

    Args:
        pieces: Of all conversations, in any order.
        where: The file.
        chosen: The target, by the name of its model or its class; may be empty if no more than one is named.

    Raises:
        BadInput: A piece is not what PyRIT writes; there are several targets and none was chosen, or the chosen one is not there.
    """
    talks: dict[str, list[Held]] = {}
    for number, piece in enumerate(pieces, start=1):
        place = f"{where}, piece {number}"
        row = table(piece, "piece", place)
        talks.setdefault(named(row.get("conversation_id"), "conversation_id", place), []).append(
            (whole(row.get("sequence", 0), "sequence", place), number, row)
        )
    targets = {id: _target(piece for _, _, piece in talk) for id, talk in talks.items()}
    known = list(dict.fromkeys(filter(None, targets.values())))
    if (chosen and chosen not in known) or (not chosen and len(known) > 1):
        raise BadInput(
            f"there is no target {chosen!r} in this file" if chosen else "this file holds the conversations of several targets",
            where=where,
            hint="choose one with FILE#target: " + (", ".join(known) or "none is named"),
        )
    wanted = [talk for id, talk in talks.items() if not chosen or targets[id] == chosen]
    answers, unusable, silent = sifted(_answer(sorted(talk, key=lambda held: held[:2]), where) for talk in wanted)
    notes = counted(
        (len(talks) - len(wanted), "conversations of other targets are left out"),
        (unusable, "conversations are left out: what was asked is no text that ends with a user's turn, or too long"),
        (silent, "conversations end in an error, a block, or without a reply: they are not scored"),
    )
    return Foreign(format=FORMAT, answers=answers, notes=notes)


def _target(pieces: Iterable[Mapping[str, Any]]) -> str:
    """What the target of a conversation is called, where a piece says."""
    for piece in pieces:
        held = piece.get("prompt_target_identifier")
        for key in ("model_name", "class_name", "__type__"):
            if isinstance(held, dict) and isinstance(held.get(key), str) and held[key]:
                return str(held[key])
    return ""


def _answer(talk: Sequence[Held], where: str) -> Answer | None:
    place = f"{where}, piece {talk[0][1]}"
    messages = [list(parts) for _, parts in groupby(talk, key=lambda held: (held[0], str(held[2].get("role"))))]
    turns = []
    for message in messages:
        named_role = text(message[0][2].get("role"), "role", place)
        if message is messages[-1] and named_role == "assistant":  # a simulated one is no reply of the target's
            break
        role, sent = ROLES.get(named_role), _value(message, "converted", where)
        if role is None or sent is None:
            return None
        turns.append(Message(role=role, content=sent))
    if not usable(tuple(turns), place):
        return None
    asked, replied = (messages[-1], []) if len(turns) == len(messages) else (messages[-2], messages[-1])
    before = _value(asked, "original", where)
    said = [piece.get(key) for _, _, piece in talk for key in ("labels", "prompt_metadata")]
    harms = [{"category": piece.get("targeted_harm_categories")} for _, _, piece in talk]
    return Answer(
        where=place,
        turns=tuple(turns),
        reply=_reply(replied, where) if replied else None,
        texts=(before,) if before else (),
        category=category_of(*said, *harms),
        expect=expect_of(*said),
        labels=_labels(replied, where),
    )


def _value(message: Sequence[Held], kind: str, where: str) -> str | None:
    """The text of a message of one part or several, as it was sent ("converted") or as it was before ("original"); None if a part is no text."""
    said = []
    for _, number, piece in message:
        sort = piece.get(f"{kind}_value_data_type", "text")
        if sort == "reasoning":
            continue
        if sort != "text":
            return None
        held = piece.get(f"{kind}_value")
        name = "original_value" if held in (None, "") else f"{kind}_value"  # what no converter touched may be left out
        said.append(text(piece.get(name), name, f"{where}, piece {number}"))
    return "\n".join(said)


def _reply(message: Sequence[Held], where: str) -> str | None:
    """What the target said itself, before converters of responses; a refusal that its interface reports apart is one."""
    for _, number, piece in message:
        error = piece.get("response_error")
        if error not in (None, "none"):
            about = piece.get("prompt_metadata")
            stated = about.get("structured_refusal") if isinstance(about, dict) else None
            if isinstance(stated, str) and stated:
                return stated
            return "" if text(error, "response_error", f"{where}, piece {number}") == "empty" else None
    return _value(message, "original", where)


def _labels(message: Sequence[Held], where: str) -> dict[str, str]:
    """What scorers said; a scorer of refusals says yes or no to our question, and what others ask is no judgement of refusal."""
    found = {}
    for _, number, piece in message:
        place = f"{where}, piece {number}"
        for score in rows(piece.get("scores") or [], "scores", place):
            row = table(score, "scores[]", place)
            scorer, said = _scorer(row.get("scorer_class_identifier")), row.get("score_value")
            ours = "Refusal" in scorer and row.get("score_type") == "true_false" and isinstance(said, str)
            found[f"pyrit:{scorer}"] = YES_OR_NO.get(str(said).lower(), UNPARSED) if ours else UNPARSED
    return found


def _scorer(identifier: object) -> str:
    for key in ("class_name", "__type__"):
        if isinstance(identifier, dict) and isinstance(identifier.get(key), str):
            return str(identifier[key])
    return "scorer"
