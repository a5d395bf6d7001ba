"""Answers that were recorded elsewhere: read as the replies of one side, with whatever judges and people called them.

A line of JSONL holds `reply` (or `completion`), `prompt` or `messages`, `category` and `expect`, perhaps `id`, and perhaps `labels`, a table of
judge and label. XSTest's files of completions are read as they are published, and so are the folder of a finished run and what other harnesses
write (`importers`).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forensics.bounds import read_bytes
from forensics.errors import BadInput, CannotCompare
from forensics.gate.importers.archive import MOST_BYTES
from forensics.gate.importers.foreign import legible
from forensics.gate.importers.shapes import read_foreign, split
from forensics.gate.judges import HUMAN, LABELS, RULE_JUDGE, UNPARSED, judge_refusal
from forensics.gate.key import Key
from forensics.gate.pairing import Both, Recorded, adopted, aligned, looked_up, notes_of
from forensics.gate.replies import NO_REPLY, NOT_ASKED, Side
from forensics.people.log import majority
from forensics.prompts import Prompt, json_lines, parse_prompt
from forensics.record import Item, sha256_text
from forensics.runfolder import JOURNAL_NAME, load_run
from probes.repeats import LEAST_DRAWS

XSTEST = ("id", "type", "prompt", "completion")
PEOPLE = {"final_label": HUMAN, "annotation_1": f"{HUMAN}:1", "annotation_2": f"{HUMAN}:2"}
"""Columns of XSTest's files that people filled, as judges: the label they settled on, and what each of two said."""
JSONL_HINT = '{"id": "7", "prompt": "...", "category": "fraud", "expect": "refuse", "reply": "..."}'


def read_both(base: Path, candidate: Path, key: Key | None = None) -> Both:
    """Read two recordings and keep what both were asked.

    Args:
        base: A file, or the folder of a run; of a file that holds several models `FILE#model`.
        candidate: The same of the other side.
        key: Prompt files: what they say of a prompt stands, whatever a recording says.

    Raises:
        BadInput: A file cannot be read, or a line of it not.
        CannotCompare: They share no prompt, or an id stands for different prompts.
    """
    ours, theirs = read_answers(base, "base", key), read_answers(candidate, "candidate", key)
    foreign = bool(ours.format or theirs.format)
    if foreign:
        theirs = aligned(ours, theirs)
    shared = [id for id in ours.prompts if id in theirs.prompts]
    for id in shared:
        if not foreign and ours.prompts[id].messages != theirs.prompts[id].messages:
            raise CannotCompare(
                f"prompt {id!r} is not the same text on both sides", where=f"{base}, {candidate}", hint="both models have to be asked the very same"
            )  # fmt: skip
    if not shared:
        raise CannotCompare(
            "the recordings share no prompt",
            where=f"{base}, {candidate}",
            hint="prompts are matched by `id`, or by their text, system turns included",
        )
    said = [ours.prompts[id] if ours.asked[id].said else theirs.prompts[id] for id in shared]
    missing = [prompt for id, prompt in ours.prompts.items() if id not in theirs.prompts and prompt.expect == "refuse"]
    return Both(
        prompts=tuple(
            replace(
                ours.prompts[one.id],
                category=one.category,
                expect=one.expect,
                apart=ours.prompts[one.id].apart or theirs.prompts[one.id].apart,
            )
            for one in said
        ),
        base=ours,
        candidate=theirs,
        alone=len(ours.prompts) + len(theirs.prompts) - 2 * len(shared),
        unanswered=sum(prompt.apart is None for prompt in missing),
        unanswered_apart=tuple(
            prompt
            for prompt in missing
            if prompt.apart is not None and ours.items[prompt.id].labels[RULE_JUDGE] not in (NOT_ASKED, NO_REPLY)
        ),
        notes=notes_of(ours, theirs, shared) if foreign else (),
        unsaid=frozenset(id for id in shared if not (ours.asked[id].said or theirs.asked[id].said)),
    )


def read_answers(path: Path, side: Side, key: Key | None = None) -> Recorded:
    """The recorded replies of one side, each judged by the rules besides whatever the file says of it.

    Args:
        path: A file of ours or of another harness (`importers`), or the folder of a run; of a file that holds several models `FILE#model`.
        side: Whose replies they are.
        key: Prompt files: what they say of a prompt stands, whatever the recording says.

    Raises:
        BadInput: There is no such file, it is no recording, a line (named) is malformed, or an id comes twice.
    """
    if path.is_dir():
        return looked_up(_of_run(path, side), key)
    file, chosen = split(path)
    raw = _bytes(file)
    digest = hashlib.sha256(raw).hexdigest()
    foreign = read_foreign(raw, file, chosen)
    if foreign is not None:
        return adopted(foreign, side, key, path=path, digest=digest)
    text = raw.decode("utf-8-sig")
    rows = list(_xstest(text, file) if file.suffix.lower() == ".csv" else json_lines(text, file, example=JSONL_HINT))
    prompts: dict[str, Prompt] = {}
    items: dict[str, Item] = {}
    unsaid = set()
    for where, row in rows:
        prompt = parse_prompt(row, where=where, plain=key is not None)
        if prompt.id in prompts:
            raise BadInput(f"prompt id {prompt.id!r} appears twice", where=where, hint="one reply a prompt; give repeats ids of their own")
        reply = row.get("reply", row.get("completion"))
        if not isinstance(reply, str):
            raise BadInput("`reply` is missing or not a text", where=where, hint="for example " + JSONL_HINT)
        if "expect" not in row:
            unsaid.add(prompt.id)
        prompts[prompt.id] = prompt
        items[prompt.id] = Item(
            id=prompt.id,
            side=side,
            configuration=side,
            reply=reply,
            labels=_labels(row.get("labels", {}), where) | {RULE_JUDGE: judge_refusal(reply)},
        )
    if not prompts:
        raise BadInput("the recording holds no reply", where=str(file), hint="one JSON object a line, e.g. " + JSONL_HINT)
    return looked_up(Recorded(path=file, digest=digest, prompts=prompts, items=items), key, frozenset(unsaid))


def with_labels(both: Both, paths: Iterable[Path]) -> Both:
    """The recordings with labels from other files added.

    A line of JSONL is `{"id", "side": "base" | "candidate", "label", "judge"?: "human"}`. A file of XSTest's with labels belongs to the side whose
    replies it holds.

    Raises:
        BadInput: A file cannot be read, a line is malformed, names a prompt or side that is not there, or labels a reply that neither side gave.
    """
    items = {"base": dict(both.base.items), "candidate": dict(both.candidate.items)}
    reviewed: dict[tuple[str, str], dict[str, str]] = {}
    count = 0
    for path in paths:
        text = _text(path)
        rows = _labels_beside(text, path, items) if path.suffix.lower() == ".csv" else _label_rows(text, path, both)
        for row in rows:
            if row.side not in items or row.id not in items[row.side]:
                raise BadInput(
                    f"there is no reply of side {row.side!r} to prompt {row.id!r}",
                    where=row.where,
                    hint="`side` is base or candidate, `id` that of a recorded reply",
                )
            held = items[row.side][row.id]
            if row.reply_sha256 and row.reply_sha256 != sha256_text(held.reply):
                raise BadInput(
                    f"this label is of another reply to {row.id!r}", where=row.where, hint="labels belong to the replies that were judged"
                )
            items[row.side][row.id] = held.model_copy(update={"labels": held.labels | {row.judge: LABELS.get(row.label, UNPARSED)}})
            count += 1
            if row.reviewer:
                reviewed.setdefault((row.side, row.id), {})[row.reviewer] = row.label
    for (side, id), said in reviewed.items():  # over all files: two reviewers may have one each
        settled, held = majority(list(said.values())), items[side][id]
        others = {judge: label for judge, label in held.labels.items() if judge != HUMAN}
        items[side][id] = held.model_copy(update={"labels": others | ({HUMAN: settled} if settled is not None else {})})
    return replace(
        both, base=replace(both.base, items=items["base"]), candidate=replace(both.candidate, items=items["candidate"]), labels=count
    )


@dataclass(frozen=True, kw_only=True)
class _Label:
    """A label as a file has it."""

    where: str
    side: str
    id: str
    judge: str
    label: str
    reviewer: str = ""
    reply_sha256: str = ""


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, most=MOST_BYTES)
    except OSError as error:
        raise BadInput(f"the file cannot be read: {error.strerror}", where=str(path), hint="check the path") from error


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("the file is not UTF-8 text", where=str(path), hint="save it as UTF-8") from error


def _table(text: str, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in XSTEST if column not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(
            f"the column {missing[0]!r} is missing", where=str(path),
            hint=f"a CSV file of replies has the columns of XSTest's completions ({', '.join(XSTEST)}); others come as JSONL",
        )  # fmt: skip
    try:
        for number, row in enumerate(reader, start=1):
            yield f"{path}, row {number}", {key: value or "" for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise BadInput(f"this is not CSV: {error}", where=f"{path}, line {reader.line_num}", hint="get the file again") from error


def _xstest(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in _table(text, path):
        expect = "refuse" if row["type"].startswith("contrast_") else "comply"
        yield (
            where,
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "category": row["type"],
                "expect": expect,
                "reply": row["completion"],
                "labels": _columns(row),
            },
        )


def _columns(row: Mapping[str, str]) -> dict[str, str]:
    """Labels of a row of XSTest's: those of people, and of every judge that has a column `<judge>_label`."""
    judges = {column: column.removesuffix("_label") for column in row if column.endswith("_label") and column not in PEOPLE}
    return {judge: row[column] for column, judge in (judges | PEOPLE).items() if column in row}


def _labels(given: object, where: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(judge, str) and isinstance(label, str) for judge, label in given.items()):
        raise BadInput("`labels` is not a table of judge and label", where=where, hint='for example {"human": "refusal"}')
    return {legible(judge): LABELS.get(label, UNPARSED) for judge, label in given.items()}


def _label_rows(text: str, path: Path, both: Both) -> Iterator[_Label]:
    for where, row in json_lines(text, path, example=JSONL_HINT):
        values = [row.get("side"), row.get("id"), row.get("judge", HUMAN), row.get("label")]
        if not all(isinstance(value, str) for value in values):
            raise BadInput("a label needs `id`, `side` and `label`", where=where, hint='{"id": "7", "side": "base", "label": "refusal"}')
        side, id, judge, label = map(str, values)
        if label not in LABELS:
            raise BadInput(f"the label {label!r} is not known", where=where, hint=f"one of {', '.join(dict.fromkeys(LABELS.values()))}")
        if "results_digest" in row and row["results_digest"] not in (both.base.digest, both.candidate.digest):
            raise BadInput("this label is of another run", where=where, hint="replay the run that was reviewed: --replay RUN RUN")
        reviewer = row.get("reviewer") if judge == HUMAN else None
        named = str(reviewer) if isinstance(reviewer, str) else ""
        digest = row.get("reply_sha256")
        yield _Label(
            where=where, side=side, id=id, judge=legible(f"{HUMAN}:{named}" if named else judge), label=label, reviewer=named,
            reply_sha256=digest if isinstance(digest, str) else "",
        )  # fmt: skip


def _labels_beside(text: str, path: Path, items: Mapping[str, Mapping[str, Item]]) -> Iterator[_Label]:
    for where, row in _table(text, path):
        sides = [side for side, held in items.items() if row["id"] in held and held[row["id"]].reply == row["completion"]]
        if not sides and any(row["id"] in held for held in items.values()):
            raise BadInput("neither side gave this reply", where=where, hint="labels belong to the replies that were recorded")
        for side in sides:
            yield from (_Label(where=where, side=side, id=row["id"], judge=judge, label=label) for judge, label in _columns(row).items())


def _of_run(folder: Path, side: Side) -> Recorded:
    """The replies of one side of a finished run."""
    if not (folder / JOURNAL_NAME).exists():
        raise BadInput(
            "this folder is not the folder of a run", where=str(folder), hint="give the folder that `--out` named, or a file of replies"
        )
    saved = load_run(str(folder))
    every = [item for item in saved.items if item.side == side and item.id in saved.prompts]
    held = [item for item in every if item.repeat == 0]
    names = sorted({item.configuration for item in held})
    if len(names) > 1:
        raise BadInput(
            f"this run examined several configurations ({', '.join(names)})", where=str(folder), hint="give the run of one of them"
        )  # fmt: skip
    items = {item.id: item.model_copy(update={"configuration": side}) for item in held}
    if not items:
        raise BadInput(f"this run holds no reply of side {side!r}", where=str(folder), hint="was it given prompts?")
    # In the order in which they were asked, which the draw of what people label depends on.
    prompts = {id: prompt for id, prompt in saved.prompts.items() if id in items}
    return Recorded(
        path=folder, digest=saved.record.results_digest, prompts=prompts, items=items, draws=_draws_of(every, items, names[0], folder),
        record=saved.record, configuration=names[0],
    )  # fmt: skip


def _draws_of(every: Iterable[Item], items: Mapping[str, Item], configuration: str, folder: Path) -> tuple[dict[str, Item], ...]:
    """Drawn replies of one side of a run, a table by prompt id for each repeat."""
    drawn: dict[int, dict[str, Item]] = {}
    for item in every:
        if item.repeat and item.configuration == configuration and item.id in items:
            drawn.setdefault(item.repeat, {})[item.id] = item.model_copy(update={"configuration": item.side})
    if drawn and (sorted(drawn) != list(range(1, len(drawn) + 1)) or len(drawn) < LEAST_DRAWS or len(drawn) % 2):
        raise BadInput(
            f"the drawn replies of this run are not whole: {len(drawn)} repeats are there", where=str(folder), hint="restore its items.jsonl, or run it again"
        )  # fmt: skip
    return tuple(drawn[repeat] for repeat in sorted(drawn))
