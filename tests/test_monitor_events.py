"""What people log is read in every format, from every source, and nothing in a log can end or mislead the reading."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import COMPLETION, FORMATS, GEN_AI, PROMPT, REPLY, START, TELL, TURNS, attributes, otlp_record, otlp_span

from forensics.errors import BadInput
from forensics.monitor import sources
from forensics.monitor.events import Event, Malformed, moment, opinion
from forensics.monitor.formats import events_of, read_line
from forensics.monitor.sources import Place, files_of, follow, known_place, lines_of, lines_of_log, opened_log, place_in


def only(row):
    (told,) = read_line(json.dumps(row).encode())
    return told


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_is_read_whatever_logged_it(name):
    event = only(FORMATS[name])

    assert isinstance(event, Event)
    assert (event.prompt, event.reply) == (PROMPT, REPLY)
    assert event.model == "m"
    assert event.id
    assert event.time == START
    assert not event.failed
    if name.startswith(("otlp span", "openinference", "phoenix", "litellm", "langfuse")):
        assert event.latency == pytest.approx(2.0)


def test_a_span_that_expects_something_unheard_of_expects_nothing():
    assert only(otlp_span(attributes(**GEN_AI | {"forensics.expect": "whatever"}))).expect == ""
    assert only(otlp_span(attributes(**GEN_AI | {"forensics.expect": "refuse"}))).expect == "refuse"


def test_a_span_and_the_record_of_the_same_call_have_one_id():
    span = only(FORMATS["otlp span, messages as JSON"])
    record = only(FORMATS["otlp log record, structured"])

    assert span.id == record.id == "t1:s1"


@pytest.mark.parametrize(
    "row",
    [
        otlp_span(attributes(**{"http.method": "GET"})),
        otlp_span(attributes(**{"openinference.span.kind": "RETRIEVER", "llm.model_name": "m"})),
        otlp_span(attributes(**GEN_AI | {"gen_ai.operation.name": "execute_tool"})),
        otlp_record(attributes(**GEN_AI), "gen_ai.user.message"),
        {"id": "o", "traceId": "t", "type": "SPAN"},
        {"id": "s", "traceId": "t", "name": "judge", "value": 1, "dataType": "NUMERIC", "source": "EVAL"},
    ],
    ids=["http", "retriever", "tool", "message", "langfuse span", "score of a judge"],
)
def test_what_tells_of_something_else_is_no_event_and_no_error(row):
    assert only(row) is None


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"id": "f", "traceId": "t", "observationId": "o1", "name": "thumb", "value": 0, "dataType": "BOOLEAN", "source": "API"}, ("o1", "down")),
        ({"id": "f", "traceId": "t", "name": "rating", "value": 1, "dataType": "NUMERIC", "source": "ANNOTATION"}, ("t", "down")),
        ({"id": "f", "traceId": "t", "name": "x", "stringValue": "good", "data_type": "CATEGORICAL"}, ("t", "up")),
        ({"about": "1", "feedback": "thumbs_down"}, ("1", "down")),
        ({"about": "1", "rating": 5}, ("1", "up")),
        (otlp_record(attributes(**{"gen_ai.evaluation.name": "user", "gen_ai.response.id": "r", "gen_ai.evaluation.score.value": {"doubleValue": 1.0}}), "gen_ai.evaluation.result"), ("r", "up")),
    ],
)  # fmt: skip
def test_an_opinion_names_the_reply_that_it_is_about(row, found):
    event = only(row)

    assert (event.about, event.opinion) == found
    assert event.id
    assert event.reply is None


def test_a_call_of_a_tool_without_words_is_an_empty_reply_and_not_a_missing_one():
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g"}}]}

    event = only(COMPLETION | {"choices": [{"message": called, "finish_reason": "tool_calls"}]})

    assert (event.reply, event.tool_calls, event.finish) == ("", 2, "tool_calls")


def test_the_last_turn_counts_in_a_conversation():
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "one"}, *TURNS[1:], TELL]

    assert (only({"messages": turns}).prompt, only({"messages": turns}).reply) == (PROMPT, REPLY)


def test_a_list_and_a_page_hold_several_and_what_is_wrong_between_them_takes_none_along():
    told = events_of([FORMATS["plain"], 7, {"nothing": 1}, FORMATS["litellm"]])

    assert [type(one) for one in told] == [Event, Malformed, Malformed, Event]
    assert len(events_of({"data": [FORMATS["langfuse observation"]] * 2, "meta": {}})) == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"reply": "\xff\xfe"}', "not UTF-8 text"),
        (b'{"reply": ' + b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"reply": "half', "not JSON"),
        (b'"a text"', "no object"),
        (b'{"user": "secret words"}', "not known"),
    ],
)
def test_a_line_that_cannot_be_read_says_why_and_repeats_nothing_of_it(line, why):
    (told,) = read_line(line)

    assert isinstance(told, Malformed)
    assert why in str(told)
    assert "secret" not in str(told)


def nested(key, depth):
    """A reply within so many objects under `key`, or lists where it is none."""
    opened, closed = (f'{{"{key}": ', "}") if key else ("[", "]")
    return f'{{"id": "1", "prompt": "Hello?", "reply": {opened * depth}"text"{closed * depth}}}'.encode()


@pytest.mark.parametrize(
    "line",
    [
        nested("", 1000),
        nested("message", 1000),
        b'{"id": "1", "about": "1", "rating": 1' + b"0" * 400 + b"}",
        b'{"id": "1", "about": "1", "feedback": -1' + b"0" * 400 + b"}",
        *(json.dumps(otlp_span([{"key": "gen_ai.system", "value": {"intValue": value}}])).encode() for value in ("--5", "\u00b2", "-")),
    ],
    ids=["lists", "messages", "long rating", "long thumb", "two signs", "superscript", "a sign"],
)
def test_a_line_that_json_allows_and_nobody_would_write_ends_nothing(line):
    (told,) = read_line(line)

    assert isinstance(told, Event | Malformed)
    assert not isinstance(told, Event) or told.opinion == ""


def test_what_python_writes_as_json_is_read_though_it_is_none():
    (event,) = read_line(b'{"id": "1", "reply": "half \\ud800", "latency": NaN, "time": Infinity}')

    assert (event.latency, event.time) == (None, None)
    assert event.reply.startswith("half")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["LLM", "GENERATION", "2026-01-01T00:00:00Z", "[1", '[{"role": 1}]']),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["resourceSpans", "scopeSpans", "spans", "resourceLogs", "scopeLogs", "logRecords", "attributes", "key", "value", "context", "spanId", "events", "body", "status",
             "arrayValue", "kvlistValue", "values", "intValue", "stringValue", "eventName", "standard_logging_object", "call_type", "startTime", "messages", "response", "choices",
             "message", "role", "content", "parts", "type", "traceId", "name", "dataType", "data", "input", "output", "reply", "prompt", "about", "feedback", "rating", "time", "labels",
             "tool_calls", "gen_ai.operation.name", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.response.finish_reasons", "openinference.span.kind",
             "llm.output_messages.0.message.content", "llm.output_messages.0.message.tool_calls.0.x", "llm.output_messages.0.message.contents.0.text", "output.value"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(json_values)
def test_whatever_stands_under_known_keys_nothing_breaks(value):
    for told in read_line(json.dumps(value).encode()):
        assert told is None or isinstance(told, Event | Malformed)
        if isinstance(told, Event):
            assert told.time is None or math.isfinite(told.time)
            assert all(isinstance(text, str) for text in (told.id, told.model, told.category, told.expect, told.finish, told.about))
            assert told.reply is None or isinstance(told.reply, str)


@pytest.mark.parametrize(
    "value",
    [
        START,
        START * 1e3,
        str(int(START * 1e6)),
        int(START * 1e9),
        "2026-11-22T10:00:00+00:00",
        "2026-11-22 11:00:00+01:00",
        "2026-11-22T10:00:00",
    ],
)
def test_a_time_is_read_in_every_unit(value):
    assert moment(value) == pytest.approx(START)


@pytest.mark.parametrize(
    "value", ["", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59Z", -1, 0, 12, 1e40, None, [], True, math.nan, "1" * 5000]
)
def test_a_clock_that_jumped_tells_no_time(value):
    assert moment(value) is None


@pytest.mark.parametrize("value", ["", "whatever", None, [], math.nan, 99, 0.3])
def test_what_is_no_opinion_counts_for_neither_side(value):
    assert opinion(value) == ""


def lines_of_file(file, offset=0):
    with opened_log(file) as stream:
        return list(lines_of_log(stream, offset, document=file.suffix == ".json"))


def place_after(file, offset):
    with opened_log(file) as stream:
        return place_in(stream, offset)


def whole(path):
    return [line.content for line in lines_of_file(path)]


def test_lines_come_with_places_that_can_be_read_on_from(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"b": 2}\r\n{"c": 3}')

    lines = list(lines_of_file(file))
    rest = list(lines_of_file(file, lines[1].end))

    assert [line.content.strip() for line in lines] == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']
    assert rest == lines[2:]
    assert lines[-1].end == file.stat().st_size


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"b": "half')

    (first,) = lines_of_file(file)
    file.write_bytes(b'{"a": 1}\n{"b": "half done"}\n')

    assert [json.loads(line.content) for line in lines_of_file(file, first.end)] == [{"b": "half done"}]


def test_a_line_of_fifty_megabytes_is_passed_over_without_being_held(tmp_path):
    file = tmp_path / "a.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"reply": "')
        for _ in range(50):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n{"reply": "after"}\n')

    long, after = lines_of_file(file)

    assert (long.content, long.end - long.start) == (None, 50_000_014)
    assert json.loads(after.content) == {"reply": "after"}


def test_a_document_is_one_line_and_a_file_of_lines_is_not(tmp_path):
    pretty, lines = tmp_path / "pretty.json", tmp_path / "lines.json"
    pretty.write_text(json.dumps([FORMATS["plain"]], indent=1))
    lines.write_text('{"a": 1}\n{"b": 2}\n')

    assert len(whole(pretty)) == 1
    assert len(whole(lines)) == 2


def test_a_folder_is_read_file_by_file_and_other_files_are_left_alone(tmp_path):
    for name in ("b.jsonl", "a.ndjson", "notes.txt", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}\n")

    assert [file.name for file in files_of(tmp_path)] == ["a.ndjson", "b.jsonl"]


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path], ids=["missing", "empty folder"])
def test_where_there_is_no_log_the_error_says_so(make, tmp_path):
    with pytest.raises(BadInput, match=r"no such log|holds no log"):
        files_of(make(tmp_path))


def test_a_log_that_breaks_off_is_one_error(tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as stream, pytest.raises(BadInput, match="cannot be read"):  # it cannot be read, only written
        list(lines_of_log(stream))


def test_a_log_that_cannot_be_read_is_one_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.symlink_to(file)  # a link to itself: not even root reads it

    with pytest.raises(BadInput, match="cannot be read"):
        list(lines_of_file(file))


def test_reading_goes_on_in_the_same_file_and_begins_again_in_another(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"b": 2}\n')
    place = place_after(file, 9)

    assert known_place(file, place) == place
    with file.open("a") as stream:
        stream.write('{"c": 3}\n')
    assert known_place(file, place) == place
    file.write_text('{"z": 1}\n{"b": 2}\n')
    assert known_place(file, place) == Place()
    file.write_text('{"a"')
    assert known_place(file, place) == Place()


def followed(file, steps):
    """Numbers in the lines that come, where a step is taken each time that nothing does; it ends behind the last."""
    seen, left = [], iter([*steps, None])
    for line, _ in follow(file, Place(), pause=0.0):
        if line is not None:
            seen.append(json.loads(line.content)["n"])
            continue
        step = next(left)
        if step is None:
            break
        step()
    return seen


def test_a_growing_file_is_followed_through_a_rotation(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n{"n": 2')

    def finish_the_line():
        with file.open("a") as stream:
            stream.write("}\n")

    def rotate():
        file.rename(tmp_path / "old")
        file.write_text('{"n": 3}\n')

    steps = [finish_the_line, rotate, lambda: None, lambda: file.write_text("")]

    seen = followed(file, steps)

    assert seen == [1, 2, 3]


def test_what_is_written_to_a_file_after_it_was_renamed_is_read_before_the_new_one(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n')
    writer = file.open("a")

    def write_on():
        writer.write('{"n": 2}\n{"n": 3}')  # as a server does until it is told to turn to the new file
        writer.close()
        file.write_text('{"n": 4}\n')

    steps = [lambda: file.rename(tmp_path / "old"), write_on, lambda: None, lambda: None]
    seen = followed(file, steps)

    assert seen == [1, 2, 3, 4]


def test_a_followed_file_that_was_cut_and_grew_again_is_read_from_its_beginning(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n')
    seen, cut = [], False
    for line, _ in follow(file, Place(), pause=0.0):
        if line is not None:
            seen.append(json.loads(line.content)["n"])
        elif cut and len(seen) >= 3:
            break
        elif not cut:
            file.write_text('{"n": 2}\n{"n": 3}\n')  # longer than it was before anybody looked
            cut = True

    assert seen == [1, 2, 3]


def test_a_file_of_another_day_that_begins_alike_is_another_file(tmp_path):
    file, words = tmp_path / "a.jsonl", "x" * 1000
    file.write_text(f'{{"system": "{words}", "n": 1}}\n')
    place = place_after(file, file.stat().st_size)
    assert known_place(file, place) == place

    file.write_text(f'{{"system": "{words}", "n": 2}}\n{{"n": 3}}\n')

    assert known_place(file, place) == Place()


@pytest.mark.parametrize("torn", ['{"id": {"a": 1}', '{"id": [1]', '{"id": "{}'])
def test_a_line_torn_behind_a_bracket_is_left_for_later(tmp_path, torn):
    file = tmp_path / "a.jsonl"
    file.write_text(torn)

    assert whole(file) == []


def test_of_a_stream_that_ended_the_torn_line_is_given():
    assert len(list(lines_of(io.BytesIO(b'{"n": 1}\n{"n": {}'), torn=True))) == 2


def test_a_document_counts_once_it_is_whole_and_again_where_it_grew(tmp_path):
    file, rows = tmp_path / "a.json", [FORMATS["plain"] | {"id": str(number)} for number in range(9)]
    file.write_text(json.dumps(rows, indent=1)[:-3])
    assert whole(file) == []
    file.write_text(json.dumps(rows[:8]))
    (line,) = lines_of_file(file)
    place = place_after(file, line.end)

    file.write_text(json.dumps(rows))

    assert known_place(file, place) == Place()


def test_a_damaged_first_line_hides_no_other_of_a_file_of_lines(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('ply": "torn"}\n' + "".join(json.dumps(FORMATS["plain"]) + "\n" for _ in range(5)))

    assert len(whole(file)) == 6


def test_a_damaged_document_is_one_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[\n {"a": 1,}\n]')

    assert len(whole(file)) == 1


def test_a_followed_file_gives_no_torn_line_however_it_ends():
    stream = io.BytesIO(b'{"n": 1}\n{"n": 2}')

    assert len(list(lines_of(stream, open_end=False))) == 1


def test_a_torn_long_line_is_not_passed_over_while_it_grows(monkeypatch):
    monkeypatch.setattr(sources, "MOST_LINE", 10)

    assert list(lines_of(io.BytesIO(b'{"n": "long, and still growing'), open_end=False)) == []
