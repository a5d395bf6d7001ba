"""What exporters of OpenTelemetry post: requests in protobuf or JSON become rows that `monitor.formats` reads, and the answers that exporters expect."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import orjson
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from forensics.bounds import crowded
from forensics.monitor.events import Malformed
from forensics.monitor.wire import holds_more

Signal = Literal["traces", "logs"]
NESTING: Mapping[Signal, tuple[str, str, str]] = {
    "traces": ("resourceSpans", "scopeSpans", "spans"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
}
REJECTED: Mapping[Signal, tuple[str, str]] = {"traces": ("rejectedSpans", "spans"), "logs": ("rejectedLogRecords", "log records")}
MOST_BODY = 16 << 20
"""Bytes of a post, as it comes and once it is inflated."""
MOST_ITEMS = 100_000
"""Spans or log records of one post."""
MOST_PARTS = 1_000_000
"""Resources, scopes, attributes, values and events of one post in protobuf, all of them together."""
IDS = ("traceId", "spanId")
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 411: 3, 413: 8, 415: 3, 503: 14}
"""Which of gRPC's codes stands for a status of HTTP."""
Row = dict[str, Any]


class TooLarge(ValueError):
    """A post that is larger than what is read, perhaps only once it is inflated."""


def inflated(chunks: Iterable[bytes]) -> bytes:
    """What was packed by gzip; never more than `MOST_BODY` bytes of it are made.

    Raises:
        TooLarge: There would be more.
        Malformed: It is not gzip, or is cut off.
    """
    body = bytearray()
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            left = chunk
            while left:
                if unpacker.eof:  # gzip files may follow each other
                    unpacker = zlib.decompressobj(wbits=31)
                body += unpacker.decompress(left, MOST_BODY + 1 - len(body))
                if len(body) > MOST_BODY:
                    raise TooLarge(f"this post holds more than {MOST_BODY} bytes once it is inflated")
                left = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error:
        raise Malformed("a post that is not gzip, though it says so") from None
    if not unpacker.eof:
        raise Malformed("a post whose gzip is cut off")
    return bytes(body)


def rows_of(body: bytes, signal: Signal, *, protobuf: bool) -> Iterator[Row | None]:
    """The spans or log records of a request, each as a document of its own in OTLP's JSON; None for each thing that is neither.

    What resources and scopes say is left out: nothing of it is counted, and a request could repeat it a million times.

    Raises:
        Malformed: It is no such request.
        TooLarge: It holds more than `MOST_ITEMS`.

    Source: opentelemetry-proto 1.10 (protobuf, and its JSON mapping: ids in hex, names in lowerCamelCase, 64-bit numbers as text).
    """
    resources, scopes, items = NESTING[signal]
    for item in _of_protobuf(body, signal) if protobuf else _of_json(body, signal):
        row = item if isinstance(item, dict) else _plain(item) if item is not None else None
        yield {resources: [{scopes: [{items: [_without_empty_ids(row)]}]}]} if row is not None else None


def accepted(signal: Signal, rejected: int, *, protobuf: bool) -> bytes:
    """The answer to a request whose spans or records are counted, but for those that were none."""
    field, words = REJECTED[signal]
    told = f"{rejected} {words} could not be read and were set aside" if rejected else ""
    if not protobuf:
        # 64-bit numbers are text in the JSON mapping.
        return json.dumps({"partialSuccess": {field: str(rejected), "errorMessage": told}} if rejected else {}).encode("ascii")
    answer = ExportTraceServiceResponse() if signal == "traces" else ExportLogsServiceResponse()
    if rejected and isinstance(answer, ExportTraceServiceResponse):
        answer.partial_success.rejected_spans, answer.partial_success.error_message = rejected, told
    elif rejected and isinstance(answer, ExportLogsServiceResponse):
        answer.partial_success.rejected_log_records, answer.partial_success.error_message = rejected, told
    return answer.SerializeToString()


def refused(status: int, why: str, *, protobuf: bool) -> bytes:
    """The answer to a request that was refused: a Status, as OTLP/HTTP wants it, by HTTP's status and a sentence of ours."""
    code = CODES.get(status, 2)
    return Status(code=code, message=why).SerializeToString() if protobuf else json.dumps({"code": code, "message": why}).encode("ascii")


def _of_protobuf(body: bytes, signal: Signal) -> Iterator[Span | LogRecord]:
    request = ExportTraceServiceRequest() if signal == "traces" else ExportLogsServiceRequest()
    if holds_more(body, request.DESCRIPTOR, MOST_PARTS):
        raise TooLarge(f"this post holds more than {MOST_PARTS} things within its spans or records")
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Malformed("a post that is no protobuf of OTLP") from None
    if isinstance(request, ExportTraceServiceRequest):
        spans = [scope.spans for resource in request.resource_spans for scope in resource.scope_spans]
        _refuse_many(sum(map(len, spans)))
        for held in spans:
            yield from held
    else:
        records = [scope.log_records for resource in request.resource_logs for scope in resource.scope_logs]
        _refuse_many(sum(map(len, records)))
        for kept in records:
            yield from kept


def _of_json(body: bytes, signal: Signal) -> Iterator[Row | None]:
    resources, scopes, items = NESTING[signal]
    if crowded(body):
        raise TooLarge("this post holds more values than are read at once")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:  # exporters in JavaScript write halves of characters, which the strict reader refuses
            request = json.loads(body.decode("utf-8"), parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            raise Malformed("a post that is no JSON") from None
    if not isinstance(request, dict) or (request and not isinstance(request.get(resources), list)):
        raise Malformed(f"a post of {signal} without {resources}")
    held = [item for resource in _inside(request, resources) for scope in _inside(resource, scopes) for item in _inside(scope, items)]
    _refuse_many(len(held))
    for item in held:
        yield item if isinstance(item, dict) else None


def _inside(held: object, name: str) -> list[object]:
    """What a table lists under a name. A thing that is no table, or lists nothing there, stands for itself: one thing that cannot be read."""
    found = held.get(name) if isinstance(held, dict) else None
    if isinstance(found, list):
        return found
    return [] if isinstance(held, dict) and found is None else [None]


def _refuse_many(count: int) -> None:
    if count > MOST_ITEMS:
        raise TooLarge(f"this post holds {count} things; at most {MOST_ITEMS} are read at once")


def _without_empty_ids(row: Row) -> Row:
    """The row without ids that are all zeros, which stand for none; every record without a span would be the same one."""
    return {name: value for name, value in row.items() if name not in IDS or (isinstance(value, str) and value.strip("0"))}


def _plain(item: Message) -> Row:
    """A span or a log record as OTLP's JSON writes it, as far as it is read; `MessageToDict` takes ten times as long."""
    if isinstance(item, Span):
        return {
            **_shared(item),
            "name": item.name,
            "startTimeUnixNano": str(item.start_time_unix_nano),
            "endTimeUnixNano": str(item.end_time_unix_nano),
            "events": [{"name": event.name, "attributes": _attributes(event.attributes)} for event in item.events],
            "status": {"code": item.status.code},
        }
    assert isinstance(item, LogRecord)
    body = _value(item.body)
    return {
        **_shared(item),
        "timeUnixNano": str(item.time_unix_nano or item.observed_time_unix_nano),
        "eventName": item.event_name or None,
        **({"body": body} if body else {}),
    }


def _shared(item: Span | LogRecord) -> Row:
    return {"traceId": item.trace_id.hex(), "spanId": item.span_id.hex(), "attributes": _attributes(item.attributes)}


def _attributes(pairs: Iterable[KeyValue]) -> list[Row]:
    return [{"key": pair.key, "value": _value(pair.value)} for pair in pairs]


def _value(value: AnyValue) -> Row:
    """A value wrapped by its type. The parser allows a hundred levels, so that this ends."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return {"stringValue": value.string_value}
    if kind == "bool_value":
        return {"boolValue": value.bool_value}
    if kind == "int_value":
        return {"intValue": str(value.int_value)}
    if kind == "double_value":
        return {"doubleValue": value.double_value}
    if kind == "bytes_value":
        return {"bytesValue": base64.b64encode(value.bytes_value).decode("ascii")}
    if kind == "array_value":
        return {"arrayValue": {"values": [_value(held) for held in value.array_value.values]}}
    if kind == "kvlist_value":
        return {"kvlistValue": {"values": _attributes(value.kvlist_value.values)}}
    return {}
