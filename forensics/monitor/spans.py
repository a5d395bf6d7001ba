"""Spans and log records of OpenTelemetry that tell of a model: the GenAI conventions, older spellings of them, and OpenInference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from forensics.monitor.events import (
    DIRECTION_PREFIX,
    EXPECTED,
    Event,
    Talk,
    activations,
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

MODEL_KEYS = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name", "llm.request.model")
DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
NOT_REPLIES = ("embeddings", "create_agent", "invoke_agent", "execute_tool", "retrieval")
"""Operations of the conventions that give no reply of their own, or one that another span tells already."""
MOST_TURNS = 500
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,24}")
Attributes = dict[str, Any]


def from_otlp(row: Mapping[str, Any]) -> Iterator[Event | None]:
    """Events of an OTLP/JSON document of spans or log records; None for each that tells of something else.

    Source: opentelemetry-proto (JSON mapping), semantic conventions for generative AI (all in development).
    """
    for outer, scopes, inner in (("resourceSpans", "scopeSpans", "spans"), ("resourceLogs", "scopeLogs", "logRecords")):
        for resource in _tables(row.get(outer)):
            for scope in _tables(resource.get(scopes)):
                for item in _tables(scope.get(inner)):
                    yield _of_span(item) if inner == "spans" else _of_record(item)


def from_span(row: Mapping[str, Any]) -> Event | None:
    """The event of one span as SDKs and Phoenix write it, or None if it tells of something else."""
    return _of_span(row)


def attributes_of(value: object) -> Attributes:
    """Attributes by their dotted names, whether given as OTLP's list of keys and values, as a flat table, or nested."""
    found: Attributes = {}
    if isinstance(value, list):
        for item in _tables(value):
            held = item.get("value")
            # Nearly all are texts, and a span has dozens.
            found[str(item.get("key"))] = held["stringValue"] if isinstance(held, dict) and "stringValue" in held else _plain(held)
        return found
    stack: list[tuple[str, object, int]] = [("", value, 0)]
    while stack:
        prefix, held, depth = stack.pop()
        if isinstance(held, dict) and depth < 8 and (not prefix or not prefix.endswith("messages")):
            stack += [(f"{prefix}.{key}" if prefix else str(key), inner, depth + 1) for key, inner in held.items()]
        else:
            found[prefix] = held
    return found


def _of_span(span: Mapping[str, Any]) -> Event | None:
    told = attributes_of(span.get("attributes"))
    for inside in _tables(span.get("events")):  # the conventions let content stand in an event of the span
        told = attributes_of(inside.get("attributes")) | told
    if not _tells_of_a_reply(told):
        return None
    inner = span.get("context")
    context = inner if isinstance(inner, dict) else span
    start, end = moment(first_of(span, "startTimeUnixNano", "start_time")), moment(first_of(span, "endTimeUnixNano", "end_time"))
    status = span.get("status")
    code = status.get("code") if isinstance(status, dict) else first_of(span, "status_code")
    return _event(
        told, id=_span_id(context), time=start, latency=seconds_between(start, end), failed=code in (2, "STATUS_CODE_ERROR", "ERROR")
    )


def _of_record(record: Mapping[str, Any]) -> Event | None:
    told = attributes_of(record.get("attributes"))
    body = _plain(record.get("body"))
    if isinstance(body, dict):
        told = attributes_of(body) | told
    name = first_of(record, "eventName") or told.get("event.name")
    time = moment(first_of(record, "timeUnixNano", "observedTimeUnixNano"))
    if name == EVALUATION:
        return _evaluation(told, time)
    if name != DETAILS:
        return None
    # The same call is often told by its span as well: one id, so that it counts once.
    return _event(told, id=_span_id(record), time=time, latency=None, failed="error.type" in told)


def _tells_of_a_reply(told: Attributes) -> bool:
    kind = told.get("openinference.span.kind")
    if kind is not None:
        return str(kind).upper() == "LLM"
    operation = told.get("gen_ai.operation.name")
    if operation in NOT_REPLIES:
        return False
    return operation is not None or any(key in told for key in ("gen_ai.system", "gen_ai.provider.name", *MODEL_KEYS))


def _event(told: Attributes, *, id: str, time: float | None, latency: float | None, failed: bool) -> Event:
    said = _said(told)
    reasons = told.get("gen_ai.response.finish_reasons")
    finish = said.finish or (words(reasons[0]) if isinstance(reasons, list) and reasons else words(reasons))
    category, expect = told.get("forensics.category"), words(told.get("forensics.expect"))
    return Event(
        id=words(told.get("gen_ai.response.id")) or id,
        time=time,
        model=words(first_of(told, *MODEL_KEYS)),
        conversation=words(first_of(told, "gen_ai.conversation.id", "session.id")),
        prompt=said.prompt,
        reply=said.reply,
        category=words(category),
        expect=expect if expect in EXPECTED else "",
        latency=latency,
        finish=finish,
        tool_calls=said.tool_calls,
        failed=failed,
        activations=activations(told, DIRECTION_PREFIX),
    )


def _said(told: Attributes) -> Talk:
    """Prompt and reply under whichever of the conventions they stand."""
    asked = first_of(told, "gen_ai.input.messages", "gen_ai.prompt", "llm.input_messages")
    given = first_of(told, "gen_ai.output.messages", "gen_ai.completion", "llm.output_messages")
    asked = _turns(_unpacked(asked)) if asked is not None else _numbered(told, ("gen_ai.prompt.", "llm.input_messages."))
    given = _turns(_unpacked(given)) if given is not None else _numbered(told, ("gen_ai.completion.", "llm.output_messages."))
    question, answer = talk_of(asked), reply_of(given)
    prompt = question.prompt if question.prompt is not None else text_of(_shown(told, "input"))
    if answer.reply is None:
        answer = reply_of(_shown(told, "output"))
    return Talk(prompt=prompt, reply=answer.reply, tool_calls=answer.tool_calls, finish=answer.finish)


def _shown(told: Attributes, side: str) -> object:
    """OpenInference's `input.value` and `output.value`; JSON only where the span says that it is."""
    value = told.get(f"{side}.value")
    return _unpacked(value) if told.get(f"{side}.mime_type") == "application/json" else value


def _turns(value: object) -> object:
    """Messages with the prefix taken off their keys that Phoenix leaves on them: `message.role`, `message.content`."""
    if not isinstance(value, list):
        return value
    return [{key.removeprefix("message."): held for key, held in turn.items()} for turn in _tables(value)] or value


def _numbered(told: Attributes, stems: tuple[str, ...]) -> list[Attributes] | None:
    """Messages whose parts are attributes of their own: `llm.output_messages.0.message.content`, `gen_ai.prompt.0.role`."""
    turns: dict[int, Attributes] = {}
    for name, value in told.items():
        if not name.startswith(stems):
            continue
        stem = next(stem for stem in stems if name.startswith(stem))
        place, _, rest = name[len(stem) :].partition(".")
        if not (place.isascii() and place.isdigit() and len(place) < 4 and int(place) < MOST_TURNS):
            continue
        key = rest.removeprefix("message.")
        turn = turns.setdefault(int(place), {})
        if key.startswith("contents.") and key.endswith(".text"):
            turn["content"] = "\n".join(part for part in (text_of(turn.get("content")), text_of(value)) if part)
        elif key.startswith("tool_calls."):
            called = turn.get("tool_calls")
            called = turn["tool_calls"] = called if isinstance(called, list) else []
            index = key.split(".")[1]
            if index not in called:
                called.append(index)
        else:
            turn[key] = value
    return [turns[place] for place in sorted(turns)] or None


def _evaluation(told: Attributes, time: float | None) -> Event | None:
    about = words(told.get("gen_ai.response.id"))
    if not about:
        return None
    value = first_of(told, "gen_ai.evaluation.score.label", "gen_ai.evaluation.score.value")
    name = words(told.get("gen_ai.evaluation.name"))
    stars = name.lower() in {"rating", "stars"}
    score = told.get("gen_ai.evaluation.score.value")
    return Event(id=f"{about}/{name}", time=time, opinion=opinion(value, stars=stars), about=about, rating=rating(score) if stars else None)


def _span_id(context: Mapping[str, Any]) -> str:
    trace, span = words(first_of(context, "traceId", "trace_id")), words(first_of(context, "spanId", "span_id"))
    return f"{trace}:{span}" if span else ""


def _plain(value: object, depth: int = 0) -> Any:
    """The value that OTLP wraps by its type."""
    if not isinstance(value, dict) or depth > 16:
        return value
    for key in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
        if key in value:
            return value[key]
    if "intValue" in value:
        number = value["intValue"]
        return int(number) if isinstance(number, str) and WHOLE_NUMBER.fullmatch(number) else number
    if "arrayValue" in value:
        return [_plain(item, depth + 1) for item in _values(value["arrayValue"])]
    if "kvlistValue" in value:
        return {str(item.get("key")): _plain(item.get("value"), depth + 1) for item in _values(value["kvlistValue"])}
    return value


def _values(held: object) -> list[dict[str, Any]]:
    return _tables(held.get("values")) if isinstance(held, dict) else []


def _unpacked(value: object) -> object:
    """Messages that a span holds as JSON in a text; the text itself where it is none."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except ValueError:
            pass
        try:
            return json.loads(value)  # which lets through what Python writes: halves of characters, numbers that are none
        except (ValueError, RecursionError):
            return value
    return value


def _tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
