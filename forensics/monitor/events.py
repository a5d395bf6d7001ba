"""One event of a deployment: a reply that was given, or what somebody thought of one. And how times, texts and opinions are read from logs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Opinion = Literal["up", "down", ""]
MOST_CHARACTERS = 100_000
"""Of a prompt or a reply no more is kept in memory; judges read the beginning."""
MOST_DEPTH = 6
"""How far texts may be wrapped in lists and tables before they count as none."""
EARLIEST = datetime(2015, 1, 1, tzinfo=UTC).timestamp()
LATEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
UP = frozenset(
    {"up", "thumbs_up", "thumbs-up", "thumbsup", "thumb_up", "positive", "good", "like", "liked", "helpful", "yes", "true", "correct"}
)
DOWN = frozenset({"down", "thumbs_down", "thumbs-down", "thumbsdown", "thumb_down", "negative", "bad", "dislike", "disliked", "unhelpful", "no", "false", "incorrect"})  # fmt: skip
STARS = frozenset({"rating", "stars", "star_rating", "csat"})
"""Names of ratings from 1 to 5, where 1 is the worst; elsewhere 1 is the best of 0 and 1."""


EXPECTED = ("refuse", "comply", "either")
MOST_DIRECTIONS = 8
DIRECTION_PREFIX = "forensics.direction."
MOST_OPINION = 1e9
"""A number beyond it is no rating; a whole number of JSON may be longer than any float."""


class Malformed(ValueError):
    """A line that says nothing we can count. The message is ours and holds nothing of the line."""


NOTHING: Mapping[str, str] = MappingProxyType({})
NO_NUMBERS: Mapping[str, float] = MappingProxyType({})


class Event(NamedTuple):
    """What a log says of one reply, or, where `about` is set, what somebody thought of the reply with that id. Made by its names.

    A tuple, as `Talk` is: millions of them are made, and a frozen dataclass takes three times as long to make.

    `time` is seconds since 1970, None where the log has none that can be; `latency` is seconds. Texts are there until they are scored, and dropped then.
    `prompt` is the last turn of the user.
    """

    id: str = ""
    time: float | None = None
    model: str = ""
    conversation: str = ""
    prompt: str | None = None
    reply: str | None = None
    category: str = ""
    expect: str = ""
    labels: Mapping[str, str] = NOTHING
    latency: float | None = None
    finish: str = ""
    tool_calls: int = 0
    failed: bool = False
    opinion: Opinion = ""
    about: str = ""
    rating: float | None = None
    """From 1, the worst, to 5; only where stars were given."""
    comment: str = ""
    activations: Mapping[str, float] = NO_NUMBERS
    """Along monitored directions, by name, where the server told them."""


class Talk(NamedTuple):
    """What a list of messages, or a choice of a server, comes to."""

    prompt: str | None = None
    reply: str | None = None
    tool_calls: int = 0
    finish: str = ""


def moment(value: object) -> float | None:
    """Seconds since 1970 of a time as logs write it: ISO 8601, or a number of seconds, milli-, micro- or nanoseconds, also as text.

    None where it is no time between 2015 and 2200. A time without a zone is taken as UTC.

    >>> moment("2026-11-22T10:00:00Z") == moment(1795341600) == moment("1795341600000000000")
    True
    >>> moment("yesterday"), moment(-3), moment(True)
    (None, None, None)
    """
    if isinstance(value, str):
        if value.isascii() and value.isdigit() and len(value) < 25:
            return moment(int(value))
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            return None
        seconds = (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
        return seconds if EARLIEST <= seconds <= LATEST else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e20:
        return None
    seconds = float(value)
    for _ in range(3):  # what lies beyond the year 2200 is a finer unit
        if seconds <= LATEST:
            break
        seconds /= 1000.0
    return seconds if EARLIEST <= seconds <= LATEST else None


def text_of(value: object, depth: int = 0) -> str | None:
    r"""The text in a message's content: a string, a list of parts, a table with `text` or `content`; None where there is none.

    >>> text_of([{"type": "text", "text": "Good"}, {"type": "image_url"}, {"type": "text", "content": "morning"}])
    'Good\nmorning'
    """
    if isinstance(value, str):
        return value[:MOST_CHARACTERS]
    if depth >= MOST_DEPTH:
        return None
    if isinstance(value, list):
        found = [text for item in value[:1000] if (text := text_of(item, depth + 1)) is not None]
        return "\n".join(found)[:MOST_CHARACTERS] if found else None
    if isinstance(value, dict):
        for key in ("text", "content", "parts", "message_content", "message", "value"):
            if key in value and (text := text_of(value[key], depth + 1)) is not None:
                return text
    return None


def talk_of(messages: object) -> Talk:
    """The last turn of the user, and what the assistant said after it."""
    if not isinstance(messages, list):
        return Talk(prompt=text_of(messages))
    prompt: str | None = None
    said = Talk()
    for turn in messages:
        inner = turn.get("message") if isinstance(turn, dict) and isinstance(turn.get("message"), dict) else turn
        if not isinstance(inner, dict):
            continue
        role = inner.get("role")
        if role in ("user", "human"):
            prompt, said = text_of(_content(inner)), Talk()
        elif role in ("assistant", "ai", "model"):
            said = reply_of(inner)
    return Talk(prompt=prompt, reply=said.reply, tool_calls=said.tool_calls, finish=said.finish)


def reply_of(value: object, depth: int = 0) -> Talk:
    """What a reply says, however it is wrapped: a text, a message, a server's answer with `choices`, a list of either. None calls a tool without words: that is ""."""
    if depth > MOST_DEPTH:
        return Talk()
    if isinstance(value, str):
        return Talk(reply=value[:MOST_CHARACTERS])
    if isinstance(value, list):
        return reply_of(value[-1], depth + 1) if value else Talk()
    if not isinstance(value, dict):
        return Talk(reply=text_of(value))
    choices = value.get("choices")
    if isinstance(choices, list):
        first = choices[0] if choices and isinstance(choices[0], dict) else {}
        said = reply_of(first.get("message", first), depth + 1)
        return Talk(reply=said.reply, tool_calls=said.tool_calls, finish=words(first.get("finish_reason")))
    if isinstance(value.get("message"), dict):
        return reply_of(value["message"], depth + 1)
    parts = value.get("parts", value.get("content"))
    called = value.get("tool_calls")
    count = len(called) if isinstance(called, list) else 0
    if isinstance(parts, list):
        count += sum(isinstance(part, dict) and part.get("type") in ("tool_call", "tool_use", "function_call") for part in parts)
    text = text_of(_content(value))
    return Talk(reply="" if text is None and count else text, tool_calls=count, finish=words(value.get("finish_reason")))


def opinion(value: object, *, stars: bool = False) -> Opinion:
    """Whether a thumb, a mark or a rating speaks for the reply or against it; "" where it does neither, or cannot be told.

    Args:
        value: A word, true or false, or a number: 0 and below against, from one half for; with `stars` 1 and 2 against, 4 and 5 for.
        stars: Whether a number is one of 1 to 5.

    >>> opinion("Thumbs_Up"), opinion(0), opinion(1), opinion(1, stars=True), opinion(3, stars=True)
    ('up', 'down', 'up', 'down', '')
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("\U0001f44d", *UP):
            return "up"
        return "down" if word in ("\U0001f44e", *DOWN) else ""
    if isinstance(value, bool):
        return "up" if value else "down"
    if not isinstance(value, int | float) or not -MOST_OPINION <= value <= MOST_OPINION:
        return ""
    if stars or value > 1:
        return "down" if value <= 2 else "up" if 4 <= value <= 5 else ""
    return "up" if value >= 0.5 else "down" if value <= 0 else ""


def rating(value: object) -> float | None:
    """A number of stars; None where it is none from 1 to 5."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 5 else None


def activations(value: object, prefix: str = "") -> dict[str, float]:
    """Numbers along directions by name, of a table, or of those of its keys that begin with `prefix`; what is no finite number is left out.

    >>> activations({"forensics.direction.refusal": 0.5, "model": "x"}, "forensics.direction.")
    {'refusal': 0.5}
    """
    if not isinstance(value, Mapping):
        return {}
    found = ((key[len(prefix) :], held) for key, held in value.items() if isinstance(key, str) and key.startswith(prefix))
    numbers = [
        (name[:64], float(held))
        for name, held in found
        if isinstance(held, int | float) and not isinstance(held, bool) and -MOST_OPINION <= held <= MOST_OPINION
    ]
    return dict(sorted(numbers)[:MOST_DIRECTIONS])


def words(value: object) -> str:
    """A short text, or a number as text; "" for anything else. For ids and names."""
    if isinstance(value, str):
        return value[:512]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def seconds_between(start: float | None, end: float | None) -> float | None:
    """How long something took; None where an end is missing or lies before the start."""
    return end - start if start is not None and end is not None and end >= start else None


def duration(value: object) -> float | None:
    """A number of seconds; None where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9 else None


def first_of(row: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of `keys` that is there and not null."""
    for key in keys:
        value = row.get(key)
        if value is not None:
            return value
    return None


def _content(message: Mapping[str, Any]) -> object:
    return first_of(message, "content", "parts", "contents", "text")
