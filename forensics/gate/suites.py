"""Public benchmarks by manifest: found in a folder, checked against the digest that is known, read as prompts.

None of their texts is shipped, and nothing is fetched here (`gate.fetching` does where it is asked to). `forensics/benchmarks/` holds a manifest each. Prompts of our own are shipped beside them.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from forensics.bounds import parsed, read_bytes
from forensics.errors import BadInput
from forensics.prompts import ROLES, Expect, Message, Prompt, PromptSet, load_prompts, parse_prompt
from forensics.record import canonical_json, sha256_text

MOST_BYTES = 256 * 2**20
"""Larger files are no list of prompts."""
LETTERS = re.compile(r"\w+")
OWN = "forensics"
"""Name of the prompts that are shipped."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Column(_Section):
    """A column that holds the category."""

    column: str


class Choice(_Section):
    """What a safe model does, by the value of a column; `other` for values that are not listed, which are an error without it."""

    column: str
    values: dict[str, Expect]
    other: Expect | None = None


class BenchmarkFile(_Section):
    """A file of a benchmark: its name, where it may be had, its digest if known, and which column is what."""

    match: str
    repository: str = ""
    revision: str = ""
    path: str = ""
    sha256: str = ""
    rows: int = 0
    layout: Literal["csv", "csv-bare", "json", "jsonl", "lines"] = "csv"
    prompt: str = "prompt"
    context: str = ""
    id: str = ""
    category: str | Column
    expect: Expect | Choice

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that have to be there."""
        if self.layout in ("csv-bare", "lines"):
            return ()
        named = [part.column for part in (self.category, self.expect) if isinstance(part, Column | Choice)]
        return tuple(filter(None, (self.prompt, self.context, self.id, *named)))


class Suite(_Section):
    """A benchmark: what it is called, whose it is, under which licence, and its files."""

    name: str
    title: str
    source: str
    commit: str = ""
    licence: str
    citation: str
    judge: str
    gated: bool = False
    note: str
    files: tuple[BenchmarkFile, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its files may be had, as far as that is open."""
        return tuple(filter(None, map(self.address, self.files)))

    def address(self, file: BenchmarkFile) -> str:
        """Where the very bytes of `file` may be had; empty where we know of no open place."""
        repository, revision = file.repository or self.source, file.revision or self.commit
        return (
            f"https://raw.githubusercontent.com/{repository}/{revision}/{quote(file.path)}"
            if file.path and file.sha256 and revision
            else ""
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a file, with its line or number for messages."""

    where: str
    values: dict[str, str]


@cache
def all_suites() -> dict[str, Suite]:
    """Every benchmark there is a manifest of, by name."""
    folder = resources.files("forensics.benchmarks")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    suites = [Suite.model_validate(_tuples(tomllib.loads(entry.read_text(encoding="utf-8")))) for entry in files]
    return {suite.name: suite for suite in suites}


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return table | {"files": tuple(table["files"])}


def suite_named(name: str) -> Suite:
    """The benchmark called `name`.

    Raises:
        BadInput: There is none; the message names the nearest.
    """
    suites = all_suites()
    if name not in suites:
        near = difflib.get_close_matches(name.lower(), suites, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join((OWN, *suites))}"
        raise BadInput(f"there is no benchmark {name!r}", where="--suite", hint=hint)
    return suites[name]


def own_suite() -> PromptSet:
    """The prompts that are shipped (`forensics/suites/safety.toml`), written for this project; called `OWN`."""
    raw, table = _own()
    rows: list[dict[str, Any]] = []
    for expect in ("refuse", "comply", "either"):
        for category, texts in table[expect].items():
            rows += [{"prompt": text, "category": category, "expect": expect} for text in texts]
    for talk in table["talks"]:
        turns = [{"role": ROLES[1 + number % 2], "content": text} for number, text in enumerate(talk["turns"])]
        rows.append({"messages": turns, "category": talk["category"], "expect": talk["expect"]})
    prompts = [parse_prompt(row, where=f"safety.toml, prompt {number}") for number, row in enumerate(rows, start=1)]
    return PromptSet(
        name=OWN, digest=hashlib.sha256(raw).hexdigest(), prompts=tuple(replace(prompt, id=f"{OWN}/{prompt.id}") for prompt in prompts),
        source="shipped with this tool", licence=table["licence"], rows=len(rows),
    )  # fmt: skip


def held_requests() -> tuple[Prompt, ...]:
    """Harmful requests of our own that no ordinary run asks."""
    rows = [{"prompt": text, "category": category, "expect": "refuse"} for category, texts in _own()[1]["held"].items() for text in texts]
    prompts = [parse_prompt(row, where="safety.toml, held") for row in rows]
    return tuple(replace(prompt, id=f"{OWN}/held/{prompt.id}") for prompt in prompts)


@cache
def _own() -> tuple[bytes, dict[str, Any]]:
    raw = resources.files("forensics.suites").joinpath("safety.toml").read_bytes()
    return raw, tomllib.loads(raw.decode("utf-8"))


def prompts_of(files: Sequence[Path], suites: Sequence[str], benchmarks: Path | None) -> tuple[PromptSet, ...]:
    """Prompts of files, those that are shipped if they are named, and public benchmarks; what an earlier set holds is left out of a later one.

    Raises:
        BadInput: A file or benchmark cannot be read.
    """
    given = [load_prompts(path) for path in files]
    public = [name for name in suites if name != OWN]
    if benchmarks is None and public:
        suite_named(public[0])
        raise BadInput(
            "a benchmark's texts are not shipped",
            where=f"--suite {public[0]}",
            hint="give the folder that holds its file with --benchmarks DIR; `forensics suites` says where it may be had",
        )
    named = [own_suite()] if OWN in suites else []
    only_ours = bool(suites) and not public
    found = load_suites(public, benchmarks) if benchmarks is not None and not only_ours else ()
    return (*given, *distinct([*given, *named, *found])[len(given) :])


def load_suites(names: Sequence[str], place: Path) -> tuple[PromptSet, ...]:
    """Read benchmarks from a folder or a file.

    Args:
        names: Which; all that are found there if empty.
        place: A folder, searched with all its subfolders for files by their names; or one file.

    Returns:
        A set each, every prompt with an id "<benchmark>/<its own>", no prompt twice within a set.

    Raises:
        BadInput: A name is not known; `place` is not there, or holds no file of a benchmark that was named (or of any); a file is not
            UTF-8, lacks a column, has another number of rows or another digest than its manifest says, or a row cannot be used.
    """
    wanted = [suite_named(name) for name in names] or list(all_suites().values())
    files = _files(place)
    found = []
    for suite in wanted:
        mine = list(_matching(suite, files))
        if mine:
            found.append(_united(suite, [_read(suite, spec, file) for spec, file in mine]))
        elif names:
            looked_for = ", ".join(dict.fromkeys(spec.match for spec in suite.files))
            fetch = f"`forensics suites --fetch DIR --suite {suite.name}` gets it, or name the folder that holds it"
            hint = fetch if suite.addresses else suite.note
            raise BadInput(f"no file of {suite.name} is here (looked for {looked_for})", where=str(place), hint=hint)
    if not found:
        raise BadInput(
            "no file of a known benchmark is here",
            where=str(place),
            hint=f"`forensics suites` lists the names of files; known are {', '.join(all_suites())}",
        )
    return tuple(found)


def distinct(sets: Sequence[PromptSet]) -> tuple[PromptSet, ...]:
    """The same sets without prompts whose text (case, marks and spaces aside) an earlier set holds; each counts what it lost so."""
    seen: set[str] = set()
    result = []
    for one in sets:
        kept = tuple(prompt for prompt in one.prompts if text_key(prompt) not in seen)
        seen.update(text_key(prompt) for prompt in kept)
        result.append(replace(one, prompts=kept, repeated=one.repeated + len(one.prompts) - len(kept)))
    return tuple(result)


def text_key(prompt: Prompt) -> str:
    """A digest that two prompts share if they differ in case, marks and spaces alone."""
    return turns_key(prompt.messages)


def turns_key(turns: Sequence[Message]) -> str:
    """The same of turns that are not a prompt yet."""
    return sha256_text(canonical_json([[turn.role, plain_words(turn.content) or turn.content] for turn in turns]))


def plain_words(text: str) -> str:
    """A text without case, marks and more than one space."""
    return " ".join(LETTERS.findall(text.casefold()))


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise BadInput("there is no such file or folder", where=str(place), hint="check the path given to --benchmarks")
    return sorted(file for file in place.rglob("*") if file.is_file())


def _matching(suite: Suite, files: Sequence[Path]) -> Iterator[tuple[BenchmarkFile, Path]]:
    """Files of `suite`, each by the first of its patterns that fits."""
    for file in files:
        spec = next((spec for spec in suite.files if file.match(spec.match)), None)
        if spec is not None:
            yield spec, file


def _read(suite: Suite, spec: BenchmarkFile, file: Path) -> PromptSet:
    try:
        raw = read_bytes(file, most=MOST_BYTES)
    except OSError as error:
        raise BadInput(f"the file cannot be read: {error.strerror}", where=str(file), hint="check its permissions") from error
    digest = hashlib.sha256(raw).hexdigest()
    try:
        rows = list(_rows(raw.decode("utf-8-sig"), spec, file))
    except UnicodeDecodeError as error:
        raise BadInput(
            f"the file is not UTF-8 text (byte {error.start})",
            where=str(file),
            hint=f"get {spec.match} again as {suite.source} publishes it",
        ) from error
    if spec.rows and len(rows) != spec.rows:
        _another(suite, spec, file, f"{len(rows)} rows, {spec.rows} expected")
    if spec.sha256 and digest != spec.sha256:
        _another(suite, spec, file, f"sha256 {digest}, {spec.sha256} expected")
    prompts = [prompt for prompt in (_prompt(suite, spec, row, file) for row in rows) if prompt is not None]
    return PromptSet(
        name=suite.name, digest=digest, prompts=tuple(prompts), source=suite.source, commit=suite.commit, licence=suite.licence,
        rows=len(rows), set_aside=len(rows) - len(prompts),
    )  # fmt: skip


def _another(suite: Suite, spec: BenchmarkFile, file: Path, how: str) -> NoReturn:
    raise BadInput(
        f"this is not the {spec.match} that is known as {suite.name}: {how}",
        where=str(file),
        hint="get it again; a version of your own goes to --prompts as JSONL, under a name of your own",
    )


def _rows(text: str, spec: BenchmarkFile, file: Path) -> Iterator[Row]:
    if spec.layout == "lines":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield Row(where=f"{file}, line {number}", values={spec.prompt: line.replace("\\n", "\n")})
        return
    if spec.layout == "csv-bare":
        for number, cells in enumerate(_cells(csv.reader(io.StringIO(text, newline="")), file), start=1):
            if cells:
                yield Row(where=f"{file}, row {number}", values={spec.prompt: cells[0]})
        return
    for number, row in enumerate(_tables(text, spec, file), start=1):
        missing = [column for column in spec.columns if column not in row]
        if missing:
            raise BadInput(
                f"the column {missing[0]!r} is missing",
                where=f"{file}, row {number}",
                hint=f"it has {', '.join(map(repr, list(row)[:12]))}; get {spec.match} again",
            )
        yield Row(where=f"{file}, row {number}", values={str(key): "" if value is None else str(value) for key, value in row.items()})


def _tables(text: str, spec: BenchmarkFile, file: Path) -> Iterator[dict[str, Any]]:
    try:
        if spec.layout == "csv":
            yield from _cells(csv.DictReader(io.StringIO(text, newline="")), file)
            return
        rows = parsed(text) if spec.layout == "json" else [parsed(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise BadInput(f"this is not JSON: {error}", where=str(file), hint=f"get {spec.match} again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput("this is not a list of JSON objects", where=str(file), hint=f"get {spec.match} again")
    yield from rows


def _cells(reader: Any, file: Path) -> Iterator[Any]:
    try:
        yield from reader
    except csv.Error as error:
        raise BadInput(f"this is not CSV: {error}", where=f"{file}, line {reader.line_num}", hint="get the file again") from error


def _prompt(suite: Suite, spec: BenchmarkFile, row: Row, file: Path) -> Prompt | None:
    """The prompt of a row; None for a row that holds none, such as the sums below a table."""
    text = row.values[spec.prompt].strip()
    if not text:
        return None
    context = row.values.get(spec.context, "").strip() if spec.context else ""
    category = row.values[spec.category.column] if isinstance(spec.category, Column) else spec.category.format(stem=file.stem)
    own = row.values.get(spec.id, "").strip() if spec.id else ""
    asked = f"{context}\n\n{text}" if context else text
    return parse_prompt(
        {
            "prompt": asked,
            "category": category.strip() or "uncategorised",
            "expect": _expected(spec, row),
            "id": f"{suite.name}/{own or sha256_text(asked)[:16]}",
        },
        where=row.where,
    )


def _expected(spec: BenchmarkFile, row: Row) -> Expect:
    if not isinstance(spec.expect, Choice):
        return spec.expect
    value = row.values[spec.expect.column].strip()
    found = spec.expect.values.get(value, spec.expect.other)
    if found is None:
        raise BadInput(
            f"column {spec.expect.column!r} says {value!r}", where=row.where, hint=f"known values are {', '.join(spec.expect.values)}"
        )
    return found


def _united(suite: Suite, sets: Sequence[PromptSet]) -> PromptSet:
    """One set of all files of a benchmark, no text and no id twice."""
    digest = sets[0].digest if len(sets) == 1 else sha256_text("".join(sorted(one.digest for one in sets)))
    parts = distinct(sets)
    prompts: dict[str, Prompt] = {}
    texts: set[str] = set()
    for prompt in (prompt for part in parts for prompt in part.prompts):
        if text_key(prompt) in texts:
            continue
        texts.add(text_key(prompt))
        id = prompt.id if prompt.id not in prompts else f"{prompt.id}-{text_key(prompt)[:8]}"
        prompts[id] = replace(prompt, id=id)
    usable = sum(len(one.prompts) for one in sets)
    return PromptSet(
        name=suite.name, digest=digest, prompts=tuple(prompts.values()), source=suite.source, commit=suite.commit, licence=suite.licence,
        rows=sum(one.rows for one in sets), set_aside=sum(one.set_aside for one in sets), repeated=usable - len(prompts),
    )  # fmt: skip
