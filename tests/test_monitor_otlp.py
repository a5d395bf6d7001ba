"""What exporters post says the same in protobuf and in JSON, and hostile posts end in one of two errors."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from logged import FORMATS, REPLY, attributes, otlp_record, otlp_span
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from forensics.monitor import otlp
from forensics.monitor.events import Malformed
from forensics.monitor.formats import events_of
from forensics.monitor.otlp import TooLarge, accepted, inflated, refused, rows_of

OURS = {name: row for name, row in FORMATS.items() if "resourceSpans" in row or "resourceLogs" in row}


def packed(document):
    """A document of OTLP's JSON in protobuf; the library wants ids in base64 there, where OTLP writes hex."""
    signal = "traces" if "resourceSpans" in document else "logs"
    document = json.loads(json.dumps(document))
    resources, scopes, items = otlp.NESTING[signal]
    held = [item for resource in document[resources] for scope in resource[scopes] for item in scope[items]]
    ids = [(bytes.fromhex(item.pop("traceId")), bytes.fromhex(item.pop("spanId"))) for item in held]
    request = json_format.ParseDict(document, ExportTraceServiceRequest() if signal == "traces" else ExportLogsServiceRequest())
    spans = (
        [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        if signal == "traces"
        else []
    )
    records = (
        [one for resource in request.resource_logs for scope in resource.scope_logs for one in scope.log_records]
        if signal == "logs"
        else []
    )
    for item, (trace, span) in zip([*spans, *records], ids, strict=True):
        item.trace_id, item.span_id = trace, span
    return signal, request.SerializeToString()


@pytest.mark.parametrize("name", OURS)
def test_protobuf_and_json_tell_the_same(name):
    document = json.loads(json.dumps(OURS[name]).replace('"t1"', f'"{"ab" * 16}"').replace('"s1"', f'"{"cd" * 8}"'))
    signal, binary = packed(document)

    of_json = [one for row in rows_of(json.dumps(document).encode(), signal, protobuf=False) for one in events_of(row)]
    of_protobuf = [one for row in rows_of(binary, signal, protobuf=True) for one in events_of(row)]

    assert of_json == of_protobuf == events_of(document)
    assert [one.reply for one in of_protobuf] == [REPLY]


def test_every_span_of_a_post_is_a_row_of_its_own():
    document = {"resourceSpans": [otlp_span([])["resourceSpans"][0], {}, {"scopeSpans": [{"spans": [{"name": "a"}, {"name": "b"}]}, {}]}]}

    rows = list(rows_of(json.dumps(document).encode(), "traces", protobuf=False))

    assert [row["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for row in rows] == ["chat m", "a", "b"]


def test_ids_of_zeros_stand_for_none_in_both():
    document = otlp_record(attributes(x="y"), "some.event")
    document["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0] |= {"traceId": "0" * 32, "spanId": "0" * 16}
    _, binary = packed(document)

    for body, protobuf in ((json.dumps(document).encode(), False), (binary, True)):
        (row,) = rows_of(body, "logs", protobuf=protobuf)
        assert "spanId" not in row["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]


def test_values_nested_as_deep_as_the_parser_allows_are_read():
    value = AnyValue(string_value="x")
    for _ in range(40):
        outer = AnyValue()
        outer.array_value.values.append(value)
        value = outer
    request = ExportTraceServiceRequest()
    pair = request.resource_spans.add().scope_spans.add().spans.add().attributes.add(key="gen_ai.input.messages")
    pair.value.CopyFrom(value)

    (row,) = rows_of(request.SerializeToString(), "traces", protobuf=True)

    assert [one for one in events_of(row) if isinstance(one, Malformed)] == []


def test_too_many_spans_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(otlp, "MOST_ITEMS", 2)
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [{}] * 3}]}]}
    request = json_format.ParseDict(document, ExportTraceServiceRequest())

    for body, protobuf in ((json.dumps(document).encode(), False), (request.SerializeToString(), True)):
        with pytest.raises(TooLarge, match="at most 2"):
            next(rows_of(body, "traces", protobuf=protobuf))


@given(st.binary(max_size=200), st.sampled_from(["traces", "logs"]), st.booleans())
def test_whatever_is_posted_is_rows_or_one_of_two_errors(body, signal, protobuf):
    try:
        rows = list(rows_of(body, signal, protobuf=protobuf))
    except (Malformed, TooLarge):
        return
    for row in rows:
        assert row is None or not [one for one in events_of(json.loads(json.dumps(row))) if isinstance(one, Malformed)]


@given(st.binary(max_size=2000), st.lists(st.integers(0, 200), max_size=4))
def test_what_was_packed_is_unpacked_however_it_is_cut(body, cuts):
    whole = gzip.compress(body)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]

    assert inflated([whole[start:end] for start, end in pairwise(places)]) == body


def test_no_more_is_inflated_than_is_read(monkeypatch):
    monkeypatch.setattr(otlp, "MOST_BODY", 1000)

    assert len(inflated([gzip.compress(b"x" * 1000)])) == 1000
    with pytest.raises(TooLarge, match="once it is inflated"):
        inflated([gzip.compress(b"x" * 1001)])
    with pytest.raises(TooLarge):
        inflated([gzip.compress(b"x" * 600), gzip.compress(b"x" * 600)])


def test_answers_are_what_exporters_parse():
    traces, logs = ExportTraceServiceResponse(), ExportLogsServiceResponse()
    traces.ParseFromString(accepted("traces", 3, protobuf=True))
    logs.ParseFromString(accepted("logs", 2, protobuf=True))
    status = Status.FromString(refused(503, "later", protobuf=True))

    assert (traces.partial_success.rejected_spans, logs.partial_success.rejected_log_records) == (3, 2)
    assert (status.code, status.message) == (14, "later")
    assert (accepted("traces", 0, protobuf=True), accepted("logs", 0, protobuf=False)) == (b"", b"{}")
    assert json_format.Parse(accepted("traces", 3, protobuf=False), ExportTraceServiceResponse()) == traces
    assert json.loads(refused(400, "no", protobuf=False)) == {"code": 3, "message": "no"}
