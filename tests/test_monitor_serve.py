"""`forensics monitor serve`: what is acknowledged is counted once, whatever is posted, killed or sent again; and who may ask."""

from __future__ import annotations

import base64
import gzip
import json
import random
import signal
import socket
import sqlite3
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cases import run_cli
from logged import FORMATS, GEN_AI, MESSAGES_IN, MESSAGES_OUT, attributes, otlp_record, otlp_span
from monitored import ANSWER, START, log, traffic
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from posting import JSON, LINES, PROTOBUF, served, tallies

import cli_watch
from forensics.errors import BadInput
from forensics.monitor.otlp import MOST_BODY

SAID = attributes(**GEN_AI, **{"gen_ai.input.messages": json.dumps(MESSAGES_IN), "gen_ai.output.messages": json.dumps(MESSAGES_OUT)})


@pytest.fixture(scope="module")
def begun(accepted, tmp_path_factory):
    path = tmp_path_factory.mktemp("begun") / "watch.db"
    assert run_cli("monitor", "start", accepted, "--store", path).returncode == 0
    return path


@pytest.fixture
def store(begun, tmp_path):
    path = tmp_path / "watch.db"
    path.write_bytes(begun.read_bytes())
    return path


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def spans(ids, said=SAID):
    inner = [otlp_span(said, spanId=f"{id:016x}", traceId="ab" * 16)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for id in ids]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": inner}]}]}).encode()


def test_what_is_posted_is_counted_and_shown_and_the_service_ends_in_order(store):
    with served(store) as service:
        answers = [
            service.post("traces", spans(range(5))),
            service.post("traces", spans(range(5))),
            service.post("traces", gzip.compress(spans(range(3, 8))), content_encoding="gzip"),
            service.post("logs", json.dumps(otlp_record(SAID, "gen_ai.client.inference.operation.details")).encode()),
            service.post("events", lines_of(traffic(20)), LINES),
            service.post("events", json.dumps(traffic(25)).encode()),
        ]
        page, status, numbers = service.get("/"), service.get("/status.json"), service.get("/metrics")
        said, wrong = service.end()

    assert [answer.status_code for answer in answers] == [200] * 6
    assert [answer.json() for answer in answers] == [{}, {}, {}, {}, {"lines": 20}, {"lines": 1}]
    assert (tallies(store)["replies"], tallies(store)["duplicate"]) == (8 + 1 + 25, 5 + 2 + 20)
    assert status.json()["tallies"]["replies"] == 34
    assert 'forensics_monitor_events_total{kind="replies"} 34.0' in numbers.text
    assert "<dt>34</dt><dd>replies counted</dd>" in page.text
    assert (service.child.returncode, wrong) == (0, "")
    assert said == "Ended in order. 6 posts were counted, and all that was acknowledged is in the store.\n"


def connected(service):
    return socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))


def send(sender, body):
    """Send a post of lines whole, and do not wait for its answer."""
    head = f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {LINES}\r\nContent-Length: {len(body)}\r\n\r\n"
    sender.sendall(head.encode() + body)


def test_a_post_in_flight_is_answered_before_the_service_ends(store):
    with served(store) as service:
        sender = connected(service)
        sender.settimeout(60)
        body = lines_of(traffic(5000))
        head = f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {LINES}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        sender.sendall(head.encode())
        assert sender.recv(100).startswith(b"HTTP/1.1 100")  # it waits for the body now
        service.child.send_signal(signal.SIGINT)
        sender.sendall(body)
        answer = sender.recv(100)
        sender.close()
        said, wrong = service.child.communicate(timeout=60)
    assert answer.startswith(b"HTTP/1.1 200")

    assert (tallies(store)["replies"], said[:17], wrong) == (5000, "Ended in order. 1", "")


def test_a_container_is_stopped_in_order_too(store):
    with served(store) as service:
        service.post("events", lines_of(traffic(3)), LINES)
        said, wrong = service.end(signal.SIGTERM)

    assert (service.child.returncode, "Ended in order. 1 post" in said, wrong) == (0, True, "")


def test_an_alarm_is_told_while_it_is_served(store):
    with served(store) as service:
        service.post("events", lines_of(traffic(2000, complied=0.8)), LINES)
        said, _ = service.end()

    assert "ROLL BACK: More answers to requests that should be refused" in said


def test_records_without_ids_count_once_however_often_they_are_sent(store):
    """Two of the very same in one post are two; the same post again is the same two, also in another order of batches."""
    record = otlp_record(SAID, "gen_ai.client.inference.operation.details")["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    first, second = ({**record, "spanId": "0" * 16, "timeUnixNano": str(int((START + late) * 1e9))} for late in (0, 1))

    def post(*records):
        return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).encode()

    with served(store) as service:
        answers = [service.post("logs", post(*records)) for records in ((first, first), (first, first), (second, first), (second,))]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert tallies(store)["replies"] == 3


def test_rows_of_ones_own_without_ids_are_known_by_their_post(store):
    body = lines_of([{"prompt": "Hello?", "reply": ANSWER}] * 3)
    with served(store) as service:
        for key in ("", "", "a", "a", "b"):
            service.post("events", body, LINES, **({"idempotency_key": key} if key else {}))

    assert (tallies(store)["replies"], tallies(store)["duplicate"]) == (9, 6)


def test_every_format_of_a_log_may_be_posted(store):
    with served(store) as service:
        answer = service.post("events", lines_of(row | {"nonce": place} for place, row in enumerate(FORMATS.values())), LINES)

    assert answer.json() == {"lines": len(FORMATS)}
    assert tallies(store).get("set aside", 0) == 0


def bomb(size=1 << 30):
    """A gigabyte of spaces in a megabyte."""
    packer = zlib.compressobj(9, wbits=31)
    body = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(size >> 20))
    return body + packer.flush()


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "why"),
    [
        ("traces", JSON, b"{", 400, "no JSON"),
        ("traces", JSON, b"[]", 400, "without resourceSpans"),
        ("traces", JSON, b'{"resourceLogs": []}', 400, "without resourceSpans"),
        ("traces", JSON, b'{"resourceSpans": 3}', 400, "without resourceSpans"),
        ("traces", JSON, b"[" * 100_000, 400, "no JSON"),
        ("traces", JSON, b'{"resourceSpans": ["\xff"]}', 400, "no JSON"),
        ("logs", PROTOBUF, b"\xff\xff\xff", 400, "no protobuf"),
        ("logs", PROTOBUF, b"\x0a\x04\x12\x02\x12" + b"\x05", 400, "no protobuf"),
        ("events", JSON, b"nothing", 400, "not JSON"),
        ("events", JSON, b"\xff\xfe", 400, "not UTF-8"),
        ("traces", JSON, b"x" * (MOST_BODY + 1), 413, "may hold"),
        ("events", LINES, b"\n" * (MOST_BODY + 1), 413, "may hold"),
        ("traces", JSON, b'{"resourceSpans": [{"scopeSpans": [{"spans": [' + b"{}," * 100_001 + b"{}]}]}]}", 413, "at most 100000"),
        ("traces", "text/plain", b"{}", 415, "not taken here"),
        ("traces", LINES, b"{}", 415, "not taken here"),
        ("events", PROTOBUF, b"", 415, "not taken here"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_the_words_of_otlp_and_counted(path, kind, body, status, why, one_for_all):
    service, store = one_for_all
    before = tallies(store).get("set aside", 0)

    answer = service.post(path, body, kind)

    told = answer.json()["message"] if kind != PROTOBUF else answer.content.decode("latin-1")
    assert (answer.status_code, why in told) == (status, True)
    assert answer.headers["content-type"] == (PROTOBUF if kind == PROTOBUF else JSON)
    assert tallies(store).get("set aside", 0) - before == (status != 415)


@pytest.fixture(scope="module")
def one_for_all(begun, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "watch.db"
    path.write_bytes(begun.read_bytes())
    with served(path) as service:
        yield service, path


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (bomb(), 413),
        (gzip.compress(b"{}")[:-9], 400),
        (b"{}", 400),
        (gzip.compress(b"{}") + gzip.compress(b"  "), 200),
        (gzip.compress(b"{}") + b"rest", 400),
    ],
    ids=["bomb", "cut off", "not packed", "two after each other", "something behind"],
)  # fmt: skip
def test_gzip_is_read_as_far_as_it_may_go(body, status, one_for_all):
    service, _ = one_for_all
    assert len(body) < MOST_BODY

    answer = service.post("traces", body, content_encoding="gzip")

    assert answer.status_code == status
    assert resident(service.child.pid) < 1 << 30


def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_another_encoding_is_refused(one_for_all):
    assert one_for_all[0].post("traces", b"{}", content_encoding="br").status_code == 415


def test_things_that_are_no_spans_are_told_to_the_exporter(one_for_all):
    service, _ = one_for_all

    answer = service.post("traces", b'{"resourceSpans": [{"scopeSpans": [{"spans": [1, null, {}]}]}, 7, {"scopeSpans": 3}]}')

    assert answer.status_code == 200
    assert answer.json()["partialSuccess"] == {"rejectedSpans": "4", "errorMessage": "4 spans could not be read and were set aside"}


def test_halves_of_characters_long_numbers_and_many_levels_stop_nothing(store):
    """What one strange span holds costs no other span of its post."""
    strange = ['"\\ud83d"', "9" * 30, "NaN", "[" * 400 + "]" * 400, "[" * 990 + "]" * 990, '"\\u0000"']
    whole = spans(range(1, 4)).decode()
    bodies = [whole.replace('"status": {}', f'"status": {{}}, "x": {value}', 1) for value in strange]
    with served(store) as service:
        answers = [service.post("traces", body.encode()) for body in bodies]
        page = service.get("/")

    assert [answer.status_code for answer in (*answers, page)] == [200] * 7
    assert tallies(store)["replies"] == 3


def test_what_was_set_aside_is_listed_when_the_service_ends(store):
    with served(store) as service:
        service.post("traces", b"{")
        service.post("events", b'{"x": 1}\nnothing\n', LINES)
        service.end()

    listed = [json.loads(line) for line in (store.parent / "watch.db.aside.jsonl").read_text().splitlines()]
    assert [row["why"] for row in listed] == [
        "a post that is no JSON",
        "an object without a reply, or of a format that is not known",
        "not JSON",
    ]
    assert not any("content" in row for row in listed)


def test_a_store_that_cannot_be_written_asks_the_exporter_to_try_again(store):
    with served(store) as service:
        assert service.post("events", lines_of(traffic(5)), LINES).status_code == 200
        connection = sqlite3.connect(store)
        connection.executescript("CREATE TRIGGER no BEFORE INSERT ON seen BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
        refused = service.post("events", lines_of(traffic(10)), LINES)
        connection.executescript("DROP TRIGGER no")
        connection.close()
        again = service.post("events", lines_of(traffic(10)), LINES)
        _, wrong = service.end()

    assert (refused.status_code, refused.headers["retry-after"], refused.json()["code"]) == (503, "10", 14)
    assert (again.status_code, tallies(store)["replies"]) == (200, 10)
    assert "no space left" in wrong
    assert "Traceback" not in wrong


@pytest.mark.slow
def test_a_service_that_is_killed_loses_and_doubles_nothing_that_was_acknowledged(store):
    """SIGKILL at random moments while posts arrive; the sender sends again what was not acknowledged."""
    generator = random.Random(0)
    posts = [lines_of(traffic(40, first=40 * number, seed=number)) for number in range(60)]
    done, kills = 0, 0
    while done < len(posts):
        with served(store) as service:
            deadline = time.monotonic() + generator.uniform(0.0, 0.25)
            while done < len(posts):
                if time.monotonic() > deadline and kills < 8:
                    break
                assert service.post("events", posts[done], LINES).status_code == 200
                done += 1
            if done < len(posts):
                sender = connected(service)
                send(sender, posts[done])
                time.sleep(generator.uniform(0.0, 0.03))
                service.child.kill()
                service.child.wait()
                kills += 1
                sender.settimeout(5)
                with suppress(OSError):  # an answer that came before the kill is an acknowledgement
                    done += sender.recv(100).startswith(b"HTTP/1.1 200")
                sender.close()

    kept = tallies(store)
    assert kills == 8
    assert kept["replies"] == 2400
    connection = sqlite3.connect(store)
    assert connection.execute("SELECT sum(events) FROM counts WHERE signal = 'broken' AND category = ''").fetchone() == (2400,)
    connection.close()


def test_pages_of_other_sites_are_turned_away(one_for_all):
    service, _ = one_for_all

    own = [service.get("/"), service.get("/", host="localhost:9"), service.get("/", origin=service.url)]
    followed = service.get("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document")
    foreign = [
        service.get("/", host="evil.example"),
        service.get("/", host="localhost.evil.example"),
        service.get("/", host="127.0.0.1.evil.example:4318"),
        service.get("/", host=""),
        service.get("/status.json", origin="http://evil.example"),
        service.get("/status.json", origin="null"),
        service.get("/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors"),
        service.post("events", b"{}", LINES, origin="http://evil.example"),
        service.post("events", b"{}", LINES, host="evil.example"),
        service.post("events", b"{}", LINES, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document"),
    ]

    assert [answer.status_code for answer in (*own, followed)] == [200] * 4
    assert [answer.status_code for answer in foreign] == [403] * len(foreign)
    assert all("default-src 'none'" in answer.headers["content-security-policy"] for answer in (*own, *foreign))


def test_a_token_is_asked_for_and_never_told(store, tmp_path):
    token = "correct-horse-battery-staple"
    (tmp_path / "token").write_text(token + "\n")
    basic = base64.b64encode(f"anyone:{token}".encode()).decode()
    with served(store, "--host", "0.0.0.0", "--token-file", tmp_path / "token") as service:
        wrong = [
            {},
            {"authorization": "Bearer x"},
            {"authorization": f"Bearer {token}x"},
            {"authorization": "Basic !"},
            {"authorization": f"Digest {token}"},
        ]
        refused = [service.get("/metrics", **headers) for headers in wrong]
        let_in = [service.get("/metrics", authorization=f"{scheme}") for scheme in (f"Bearer {token}", f"Basic {basic}")]
        posted = service.post("events", lines_of(traffic(2)), LINES, authorization=f"Bearer {token}", host="monitor.internal")
        said, complained = service.end()

    assert [answer.status_code for answer in refused] == [401] * len(refused)
    assert "Basic" in refused[0].headers["www-authenticate"]
    assert [answer.status_code for answer in (*let_in, posted)] == [200] * 3
    assert token not in said + complained + "".join(answer.text + str(answer.headers) for answer in refused)


@pytest.mark.parametrize(
    ("words", "variables", "what"),
    [
        (("--host", "0.0.0.0"), {}, "others can reach"),
        (("--host", "monitor.example"), {}, "others can reach"),
        (("--token-file", "none"), {}, "the token cannot be read"),
        (("--host", "0.0.0.0"), {"FORENSICS_MONITOR_TOKEN": "short-secret"}, "a token has at least"),
        (("--host", "no.such.invalid"), {"FORENSICS_MONITOR_TOKEN": "x" * 20}, "cannot be listened on"),
        (("--port", "TAKEN"), {}, "cannot be listened on"),
        (("NO STORE",), {}, "there is no such store"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_error(words, variables, what, store, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [str(taken.getsockname()[1]) if word == "TAKEN" else word for word in words]
        done = run_cli("monitor", "serve", *([store, "--port", "0", *given] if words != ("NO STORE",) else ["none.db"]))

    assert (done.returncode, what in done.stderr, "hint:" in done.stderr, "Traceback" in done.stderr) == (2, True, True, False)
    assert "short-secret" not in done.stdout + done.stderr


def test_a_library_that_is_missing_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    with pytest.raises(BadInput, match="a library that is not installed: uvicorn"):
        cli_watch.serve(str(store), host="127.0.0.1", port=0, token_file=None, aside=None)


def test_the_loopback_of_today_is_served_as_well(store):
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 loopback here")
    with served(store, "--host", "::1") as service:
        assert "[::1]" in service.url
        assert [service.get("/metrics").status_code, service.get("/metrics", host="[::1]").status_code] == [200, 200]
        assert [service.get("/metrics", host="[::2]").status_code, service.get("/metrics", host="::1").status_code] == [403, 403]


def test_logs_of_a_real_exporter_are_understood(store):
    """Feedback about a reply and the reply itself, as log records of the SDK in protobuf."""
    with served(store) as service:
        provider = LoggerProvider()
        provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{service.url}/v1/logs")))
        logger = provider.get_logger("app")
        for number in range(30):
            told = GEN_AI | {
                "gen_ai.response.id": f"r{number}",
                "gen_ai.input.messages": MESSAGES_IN,
                "gen_ai.output.messages": MESSAGES_OUT,
            }
            logger.emit(LogRecord(timestamp=int(START * 1e9), event_name="gen_ai.client.inference.operation.details", attributes=told))
            opinion = {
                "gen_ai.response.id": f"r{number}",
                "gen_ai.evaluation.name": "thumb",
                "gen_ai.evaluation.score.label": "thumbs_down",
            }
            logger.emit(LogRecord(timestamp=int(START * 1e9) + 1, event_name="gen_ai.evaluation.result", attributes=opinion))
        assert provider.force_flush()
        provider.shutdown()

    kept = tallies(store)
    assert (kept["replies"], kept["opinions"], kept.get("without text", 0), kept.get("set aside", 0)) == (30, 30, 0, 0)


def test_what_ingest_read_and_what_was_posted_count_together(store, tmp_path):
    with served(store) as service:
        service.post("events", lines_of(traffic(10)), LINES)
        run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(15)), "--store", store)
        service.post("events", lines_of(traffic(20)), LINES)

    assert tallies(store)["replies"] == 20


def test_many_exporters_at_once_are_counted_one_after_the_other(store):
    bodies = [lines_of(traffic(50, first=50 * number, seed=number)) for number in range(40)]

    def insist(service, body):
        for _ in range(100):
            answer = service.post("events", body, LINES)
            if answer.status_code == 200:
                return 200
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            time.sleep(0.1)
        return answer.status_code

    with served(store) as service, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda body: insist(service, body), bodies))

    assert answers == [200] * 40
    assert tallies(store)["replies"] == 2000


def test_a_body_that_ends_early_is_counted_as_nothing(store):
    with served(store) as service:
        sender = connected(service)
        sender.sendall(f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {LINES}\r\nContent-Length: 1000\r\n\r\n{{}}".encode())
        sender.close()
        assert service.post("events", lines_of(traffic(2)), LINES).status_code == 200
        said, wrong = service.end()

    assert (tallies(store)["replies"], tallies(store).get("set aside", 0), wrong) == (2, 0, "")
    assert "1 posts were counted" in said


def test_a_real_exporter_is_understood(store):
    """The SDK of OpenTelemetry, which posts protobuf packed by gzip."""
    with served(store) as service:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=f"{service.url}/v1/traces", compression=Compression.Gzip)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        tracer = provider.get_tracer("app")
        for row in traffic(60, flagged=0.5, complied=1.0):
            with tracer.start_as_current_span("chat m") as span:
                asked = [{"role": "user", "parts": [{"type": "text", "content": row["prompt"]}]}]
                given = [{"role": "assistant", "parts": [{"type": "text", "content": row["reply"]}], "finish_reason": "stop"}]
                told = GEN_AI | {"gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(given)}
                told["gen_ai.response.finish_reasons"] = ["stop"]
                for name in ("category", "expect"):
                    if name in row:
                        told[f"forensics.{name}"] = row[name]
                span.set_attributes(told)
        with tracer.start_as_current_span("SELECT 1") as span:
            span.set_attribute("db.system", "sqlite")
        assert provider.force_flush()
        provider.shutdown()
        status = service.get("/status.json").json()

    rates = {(rate["signal"], rate["category"]): rate for rate in status["rates"]}
    assert (status["tallies"]["replies"], status["tallies"]["other"]) == (60, 1)
    assert rates["compliance", ""]["events"] == rates["compliance", ""]["hits"] > 20
