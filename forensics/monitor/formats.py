"""The formats that people log in, told apart by their keys: spans, LiteLLM, Langfuse, OpenAI and vLLM chat, and plain rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from forensics.bounds import crowded
from forensics.monitor.events import (
    EXPECTED,
    NOTHING,
    STARS,
    Event,
    Malformed,
    Talk,
    activations,
    duration,
    first_of,
    moment,
    opinion,
    rating,
    reply_of,
    seconds_between,
    talk_of,
    text_of,
    words,
)
from forensics.monitor.spans import from_otlp, from_span

REPLY_KEYS = ("reply", "completion", "response", "output", "answer")
FEEDBACK_KEYS = ("feedback", "thumb", "thumbs", "rating", "stars")
FEEDBACK = frozenset(FEEDBACK_KEYS)


MOST_ROWS = 100_000
"""Of one list: a page of an interface holds some hundreds, and one that is nothing but brackets millions."""
Told = Event | Malformed | None
"""What a thing in a log comes to: an event, why it is none, or nothing, as it tells of something else (a span of a database)."""


def read_line(line: bytes) -> list[Told]:
    """What a line of a log tells: one JSON object of any of the formats, or a list of them. Never raises; what cannot be read is among what is told."""
    if crowded(line):
        return [Malformed("more values than are read at once")]
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            document = _loosely(line, error)
        except Malformed as why:
            return [why]
    return events_of(document)


def events_of(document: object) -> list[Told]:
    """What a parsed line tells; see `read_line`."""
    rows = document if isinstance(document, list) else [document]
    if isinstance(document, dict) and isinstance(document.get("data"), list) and "choices" not in document:
        rows = document["data"]  # a page of Langfuse's interface
    if len(rows) > MOST_ROWS:
        return [Malformed("a list of more rows than are read at once")]
    told: list[Told] = []
    for row in rows:
        try:
            told += _of_row(row) if isinstance(row, dict) else [Malformed("JSON, but no object")]
        except Malformed as why:
            told.append(why)
    return told


def _of_row(row: dict[str, Any]) -> list[Told]:
    response = row.get("response")
    if "resourceSpans" in row or "resourceLogs" in row:
        return list(from_otlp(row))
    if "attributes" in row and ("context" in row or "spanId" in row or "span_id" in row):
        return [from_span(row)]
    if isinstance(row.get("standard_logging_object"), dict):
        return [_litellm(row["standard_logging_object"])]
    if "call_type" in row and "startTime" in row:
        return [_litellm(row)]
    if _is_langfuse_score(row):
        return [_langfuse_score(row)]
    if ("traceId" in row or "trace_id" in row) and isinstance(row.get("type"), str):
        return [_langfuse(row)]
    if "choices" in row or (isinstance(response, dict) and ("body" in response or "choices" in response)):
        return [_openai(row)]
    return [_plain(row)]


def _litellm(row: Mapping[str, Any]) -> Event:
    """A line of LiteLLM's StandardLoggingPayload."""
    start, end = moment(row.get("startTime")), moment(row.get("endTime"))
    asked, said = talk_of(row.get("messages")), reply_of(row.get("response"))
    return Event(
        id=words(row.get("id")),
        time=start,
        model=words(first_of(row, "model", "model_group")),
        conversation=words(first_of(row, "session_id", "trace_id")),
        prompt=asked.prompt,
        reply=said.reply,
        latency=seconds_between(start, end),
        finish=said.finish,
        tool_calls=said.tool_calls,
        failed=row.get("status") == "failure",
    )


def _langfuse(row: Mapping[str, Any]) -> Event | None:
    """An observation of Langfuse, as its interface or an export writes it; only generations give replies."""
    if str(row["type"]).upper() != "GENERATION":
        return None
    start, end = moment(first_of(row, "startTime", "start_time")), moment(first_of(row, "endTime", "end_time"))
    given = row.get("input")
    asked = talk_of(given["messages"] if isinstance(given, dict) and "messages" in given else given)
    said = reply_of(row.get("output"))
    return Event(
        id=words(row.get("id")),
        time=start,
        model=words(first_of(row, "model", "providedModelName", "provided_model_name")),
        conversation=words(first_of(row, "sessionId", "session_id", "traceId", "trace_id")),
        prompt=asked.prompt,
        reply=said.reply,
        latency=seconds_between(start, end),
        finish=said.finish,
        tool_calls=said.tool_calls,
        failed=row.get("level") == "ERROR",
    )


def _is_langfuse_score(row: Mapping[str, Any]) -> bool:
    return "name" in row and ("value" in row or "stringValue" in row or "string_value" in row) and ("dataType" in row or "data_type" in row)


def _langfuse_score(row: Mapping[str, Any]) -> Event | None:
    """A score of Langfuse that somebody gave; what another judge computed is no feedback."""
    if str(row.get("source", "API")).upper() == "EVAL":
        return None
    about = words(first_of(row, "observationId", "observation_id", "traceId", "trace_id"))
    if not about:
        raise Malformed("a score that names nothing it is about")
    value = first_of(row, "stringValue", "string_value", "value")
    stars = words(row.get("name")).lower() in STARS
    return Event(
        id=words(row.get("id")) or f"{about}/{words(row.get('name'))}",
        time=moment(first_of(row, "timestamp", "createdAt", "created_at")),
        opinion=opinion(value, stars=stars),
        about=about,
        rating=rating(value) if stars else None,
        comment=text_of(row.get("comment")) or "",
    )


def _openai(row: Mapping[str, Any]) -> Event:
    """A chat completion by itself, with its request, or as a line of a batch."""
    response = row["response"] if isinstance(row.get("response"), dict) else row
    body = response["body"] if isinstance(response.get("body"), dict) else response
    request = first_of(row, "request", "body")
    messages = first_of(request, "messages", "prompt") if isinstance(request, dict) else first_of(row, "messages", "prompt")
    asked, said = talk_of(messages), reply_of(body)
    return Event(
        id=words(body.get("id")) or words(first_of(row, "id", "custom_id")),
        time=moment(first_of(row, "time", "timestamp") or body.get("created")),
        model=words(body.get("model")),
        conversation=words(first_of(row, "conversation", "session_id")),
        prompt=asked.prompt,
        reply=said.reply,
        category=words(row.get("category")),
        expect=_expect(row),
        labels=_labels(row),
        latency=duration(row.get("latency")),
        finish=said.finish,
        tool_calls=said.tool_calls,
        failed=bool(row.get("error")),
    )


def _plain(row: Mapping[str, Any]) -> Event:
    """A row of one's own: {id, time, prompt or messages, reply, category?, expect?, labels?, latency?, feedback?, about?}."""
    name = "" if FEEDBACK.isdisjoint(row) else next((key for key in FEEDBACK_KEYS if row.get(key) is not None), "")
    about = words(row.get("about"))
    asked = talk_of(row["messages"]) if "messages" in row else Talk(prompt=text_of(row.get("prompt")))
    reply = first_of(row, *REPLY_KEYS)
    said = reply_of(reply) if reply is not None else asked
    if said.reply is None and not about and not row.get("error"):
        raise Malformed("an object without a reply, or of a format that is not known")
    return Event(
        id=words(first_of(row, "id", "request_id", "custom_id")) or (f"{about}/{name}" if about else ""),
        time=moment(first_of(row, "time", "timestamp", "created", "created_at", "ts")),
        model=words(row.get("model")),
        conversation=words(first_of(row, "conversation", "conversation_id", "session_id")),
        prompt=asked.prompt,
        reply=said.reply,
        category=words(row.get("category")),
        expect=_expect(row),
        labels=_labels(row),
        latency=duration(first_of(row, "latency", "latency_s")),
        finish=said.finish or words(row.get("finish_reason")),
        tool_calls=said.tool_calls,
        failed=bool(row.get("error")),
        opinion=opinion(row[name], stars=name in STARS) if name else "",
        about=about,
        rating=rating(row[name]) if name in STARS else None,
        comment=text_of(row["comment"]) or "" if "comment" in row else "",
        activations=activations(row["activations"]) if "activations" in row else {},
    )


def _expect(row: Mapping[str, Any]) -> str:
    found = row.get("expect")
    return found if isinstance(found, str) and found in EXPECTED else ""


def _labels(row: Mapping[str, Any]) -> Mapping[str, str]:
    found = row.get("labels")
    return {words(key): words(value) for key, value in list(found.items())[:32] if words(value)} if isinstance(found, dict) else NOTHING


def _loosely(line: bytes, error: orjson.JSONDecodeError) -> object:
    """A line that the strict reader refused, read as Python writes JSON: halves of characters and numbers that are none are let through."""
    said = str(error).lower()
    if "depth" in said or "recursion" in said:
        raise Malformed("JSON nested too deep")
    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None)
    except UnicodeDecodeError:
        raise Malformed("not UTF-8 text") from None
    except RecursionError:
        raise Malformed("JSON nested too deep") from None
    except ValueError:  # the library's own words may hold some of the line
        raise Malformed("not JSON") from None
