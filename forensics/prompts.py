"""Prompt sets: JSONL files whose every line says what a safe model does with it.

A line is `{"prompt": str | "messages": [{"role", "content"}], "category": str, "expect": "refuse" | "comply" |
"either", "id"?: str}`. Other keys are ignored, so that benchmark files keep their own columns; but `apart`, which a run
writes beside prompts that it asked apart from the comparison.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from forensics.bounds import parsed, read_bytes
from forensics.errors import BadInput
from forensics.record import canonical_json, sha256_text

Expect = Literal["refuse", "comply", "either"]
EXPECTS: tuple[Expect, ...] = get_args(Expect)
ROLES = ("system", "user", "assistant")
MAX_PROMPT_CHARACTERS = 100_000
FRESH, HELD_BACK, WRAPPED, DOMAIN = "fresh", "held-back", "wrapped/", "domain"
"""Kinds of prompts that are asked apart; behind `WRAPPED` stands the kind of wrapping."""
KINDS_APART = re.compile(rf"{FRESH}|{HELD_BACK}|{WRAPPED}[a-z0-9-]{{1,40}}|{DOMAIN}")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Apart:
    """That a prompt is asked apart from the comparison and counts in none of its metrics: of which kind it is, and of which prompt a variant."""

    kind: str
    of: str = ""
    """Id of that prompt; empty where it is a variant of none."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation that ends with a user turn, and what a safe model does with it."""

    id: str
    messages: tuple[Message, ...]
    category: str
    expect: Expect
    apart: Apart | None = None

    @property
    def multi_turn(self) -> bool:
        """Whether the model has already spoken before the turn that is judged."""
        return any(message.role == "assistant" for message in self.messages)

    @property
    def characters(self) -> int:
        """Length of all turns."""
        return sum(len(message.content) for message in self.messages)

    def to_row(self) -> dict[str, Any]:
        """The prompt as a line of a prompt file."""
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        row = {"id": self.id, "messages": turns, "category": self.category, "expect": self.expect}
        return row if self.apart is None else row | {"apart": {"kind": self.apart.kind, "of": self.apart.of}}


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one file, in its order, with the digest of the file."""

    name: str
    digest: str
    prompts: tuple[Prompt, ...]
    source: str = ""
    commit: str = ""
    licence: str = ""
    """Of a public benchmark: where it comes from, at which commit, and under which licence."""
    rows: int = 0
    set_aside: int = 0
    repeated: int = 0
    """Of a public benchmark: rows read, those that hold no prompt, and prompts that an earlier row or set holds as well."""

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts of the comparison there are of each kind."""
        return dict(sorted(Counter(prompt.expect for prompt in self.prompts if prompt.apart is None).items()))

    @property
    def counts_apart(self) -> dict[str, int]:
        """How many prompts are asked apart, by their kind."""
        return dict(sorted(Counter(prompt.apart.kind.partition("/")[0] for prompt in self.prompts if prompt.apart is not None).items()))


def load_prompts(path: Path, *, plain: bool = False, given: Mapping[str, str] | None = None, option: str = "--prompts") -> PromptSet:
    """Read a JSONL file of prompts.

    Args:
        path: The file.
        plain: Whether lines may leave out `category` and `expect`: their prompts are then of category "" and expect "either".
        given: What stands for keys that a line leaves out.
        option: How the file was named on the command line, for messages.

    Raises:
        BadInput: The file cannot be read, is empty, or a line (named) is malformed or repeats an id.
    """
    try:
        raw = read_bytes(path)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(
            f"the prompt file cannot be read: {error.strerror}", where=str(path), hint=f"check the path given to {option}"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput("the prompt file is not UTF-8 text", where=str(path), hint="save it as UTF-8 JSONL") from error
    prompts: dict[str, Prompt] = {}
    for where, row in json_lines(text, path, example=EXAMPLE):
        prompt = parse_prompt({**(given or {}), **row}, where=where, plain=plain)
        if prompt.id in prompts:
            raise BadInput(
                f"prompt id {prompt.id!r} appears twice",
                where=where,
                hint="give each prompt an id of its own; without ids, remove the repeated prompt",
            )
        prompts[prompt.id] = prompt
    if not prompts:
        raise BadInput("the prompt file holds no prompt", where=str(path), hint="one JSON object a line, e.g. " + EXAMPLE)
    return PromptSet(name=path.name, digest=hashlib.sha256(raw).hexdigest(), prompts=tuple(prompts.values()))


EXAMPLE = '{"prompt": "How do I boil an egg?", "category": "cooking", "expect": "comply"}'


def json_lines(text: str, path: Path, *, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place for messages; empty lines are passed over.

    Raises:
        BadInput: A line (named) is no JSON object; `example` shows one.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parsed(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"this line is not JSON: {error}", where=where, hint="one JSON object a line, e.g. " + example) from error
        if not isinstance(row, dict):
            raise BadInput("this line is not a JSON object", where=where, hint="one JSON object a line, e.g. " + example)
        yield where, row


def parse_prompt(row: dict[str, Any], *, where: str, plain: bool = False) -> Prompt:
    """The prompt that a row of a prompt file stands for.

    Args:
        row: The row; keys that mean nothing to us are ignored.
        where: Its place, for messages.
        plain: Whether it may leave out `category` and `expect`.

    Raises:
        BadInput: A key is missing or holds what it cannot; the message says which.
    """
    messages = _parse_messages(row, where=where)
    category: Any = row.get("category")
    expect: Any = row.get("expect")
    if plain:
        category, expect = row.get("category", ""), row.get("expect", "either")
    if not isinstance(category, str) or not (category.strip() or plain):
        raise BadInput("`category` is missing or not a text", where=where, hint='for example "category": "fraud"')
    if is_torn(category):
        raise BadInput("`category` holds half a character (a lone surrogate)", where=where, hint="save the text again as UTF-8")
    if expect not in EXPECTS:
        raise BadInput(f"`expect` is {expect!r}", where=where, hint='one of "refuse", "comply", "either"')
    given = row.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise BadInput("`id` is neither a text nor a whole number", where=where, hint="leave `id` out, or give a text")
    content = canonical_json([[message.role, message.content] for message in messages])
    return Prompt(
        id=str(given) if given is not None else sha256_text(content)[:16],
        messages=messages,
        category=category.strip(),
        expect=expect,
        apart=_parse_apart(row["apart"], where=where) if "apart" in row else None,
    )


def _parse_apart(given: object, *, where: str) -> Apart:
    """What a run wrote beside a prompt that it asked apart; taken for a prompt of the comparison, it would change its metrics."""
    kind, of = (given.get("kind"), given.get("of", "")) if isinstance(given, dict) else (None, None)
    if not isinstance(kind, str) or not KINDS_APART.fullmatch(kind) or not isinstance(of, str):
        raise BadInput(
            "`apart` is not what a run writes there",
            where=where,
            hint=f'for example {{"kind": "{FRESH}", "of": "7"}}; leave `apart` out of prompts of your own',
        )
    return Apart(kind=kind, of=of)


def _parse_messages(row: dict[str, Any], *, where: str) -> tuple[Message, ...]:
    if ("prompt" in row) == ("messages" in row):
        raise BadInput("a line needs either `prompt` or `messages`", where=where, hint="for example " + EXAMPLE)
    turns = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    if not isinstance(turns, list) or not turns:
        raise BadInput("`messages` is not a list of turns", where=where, hint='[{"role": "user", "content": "..."}]')
    messages = []
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise BadInput(
                "a turn needs a `role` (system, user, assistant) and a text `content`",
                where=where,
                hint='for example {"role": "user", "content": "Hello"}',
            )
        messages.append(Message(role=role, content=content))
    if messages[-1].role != "user" or not messages[-1].content.strip():
        raise BadInput("the last turn is not a user turn with text", where=where, hint="end the prompt with what the user asks")
    if any(is_torn(message.content) for message in messages):
        raise BadInput(
            "a turn holds half a character (a lone surrogate)", where=where, hint="no tokenizer reads it; save the text again as UTF-8"
        )
    if sum(len(message.content) for message in messages) > MAX_PROMPT_CHARACTERS:
        raise BadInput(f"the prompt is longer than {MAX_PROMPT_CHARACTERS} characters", where=where, hint="shorten or split the prompt")
    return tuple(messages)


def is_torn(text: str) -> bool:
    """Whether a text holds half a character (a lone surrogate), which no name in a record can."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def needed_kinds(sets: tuple[PromptSet, ...], kinds: tuple[Expect, ...], *, by: str) -> None:
    """Check that `sets` hold at least one prompt of every kind in `kinds`.

    Raises:
        BadInput: A kind is absent; the message says which and which check (`by`) needs it.
    """
    held = Counter(prompt.expect for prompts in sets for prompt in prompts.prompts if prompt.apart is None)
    missing = [kind for kind in kinds if not held[kind]]
    if missing:
        raise BadInput(
            f'no prompt with "expect": "{missing[0]}", which {by} needs (found: {dict(sorted(held.items()))})',
            where=", ".join(prompts.name for prompts in sets),
            hint='add harmful prompts with "expect": "refuse" and harmless ones with "expect": "comply"; --prompts may repeat, and --suite forensics has both',
        )


def unite(sets: tuple[PromptSet, ...]) -> tuple[Prompt, ...]:
    """All prompts of several sets, the same conversation kept once, in order.

    Raises:
        BadInput: Two files use one id for different conversations, or expect different things of the same one.
    """
    by_id: dict[str, tuple[Prompt, str]] = {}
    by_content: dict[tuple[Message, ...], tuple[Prompt, str]] = {}
    for prompts in sets:
        for prompt in prompts.prompts:
            same = by_content.get(prompt.messages)
            if same is not None and same[0].expect != prompt.expect:
                raise BadInput(
                    f"prompts {same[0].id!r} and {prompt.id!r} are the same text but expect {same[0].expect} and {prompt.expect}",
                    where=f"{same[1]}, {prompts.name}",
                    hint="decide which is right and remove the other",
                )
            if same is not None:
                continue
            if prompt.id in by_id:
                raise BadInput(
                    f"prompt id {prompt.id!r} stands for two different prompts",
                    where=f"{by_id[prompt.id][1]}, {prompts.name}",
                    hint="make ids unique across the files given with --prompts",
                )
            by_id[prompt.id] = by_content[prompt.messages] = (prompt, prompts.name)
    return tuple(prompt for prompt, _ in by_id.values())
