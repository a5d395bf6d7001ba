"""What a served monitor shows: the page in a real browser, metrics that Prometheus parses, evaluations that collectors take."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from browsers import driven
from cases import run_cli
from google.protobuf import json_format
from monitored import ANSWER, REFUSAL, START, fed, log, tallied, traffic
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from posting import served, tallies
from prometheus_client.parser import text_string_to_metric_families

from forensics.monitor.formats import read_line
from forensics.monitor.history import history, latest
from forensics.monitor.state import overview
from reports import live, metrics
from reports.evaluations import evaluations

NOW = datetime.fromtimestamp(START + 1e6, UTC)
NASTY = "\x1b[31m<script>document.title='x'</script>\u202e&lt;b&gt; {{7*7}}\x00\"'><img src=//evil.example/x onerror=alert(1)>"


def page_of(monitor, span="all"):
    found = overview(monitor.store, NOW)
    return live.render(found, history(monitor.store, found, span=live.SPANS[span][0]), NOW, span)


def opinions(count, down):
    return [
        {"id": f"f{number}", "about": f"r{number}", "time": START + number, "feedback": "down" if number % 10 < down else "up"}
        for number in range(count)
    ]


def test_an_empty_monitor_says_that_nothing_can_be_said(watch):
    page = page_of(watch())

    assert "No reply has been counted, so nothing can be said." in page
    assert "No alarm." in page
    assert "no event yet" in page
    assert "<svg" not in page


def test_the_page_shows_alarms_rates_over_time_feedback_and_what_was_set_aside(watch, tmp_path):
    monitor = watch(keep_text=True)
    rows = traffic(2000, complied=0.01) + traffic(1000, first=2000, complied=0.8)
    for number, row in enumerate(rows):
        row["time"] = START + 20 * number
    fed(monitor, log(tmp_path / "a.jsonl", [*rows, *opinions(300, 2), {"x": 1}]))

    page = page_of(monitor)

    assert '<h1 id="headline">Roll back</h1>' in page
    assert "More answers to requests that should be refused" in page
    assert "Put the last accepted version back" in page
    assert page.count("<svg") >= 5
    assert 'class="dot over"' in page
    assert "300 opinions about replies came as events of their own, one for every 10 replies" in page
    assert "<dt>1</dt><dd>set aside: an object without a reply, or of a format that is not known</dd>" in page
    assert "kept replies of this time and kind. They may hold harmful text.</summary>" in page
    assert f"{ANSWER}</div>" in page
    assert "<details open" not in page


def test_without_kept_texts_the_page_says_so(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", traffic(1500, complied=0.9)))

    page = page_of(monitor)

    assert "Texts are not kept, so there are no replies to show" in page
    assert ANSWER not in page


def test_a_course_counts_everything_once_within_what_is_looked_at(watch, tmp_path):
    monitor = watch(window=600)
    rows = traffic(3000, flagged=1.0, complied=0.1)
    for number, row in enumerate(rows):
        row["time"] = START + 100 * number
    fed(monitor, log(tmp_path / "a.jsonl", rows))
    found = overview(monitor.store, NOW)

    whole, day = (history(monitor.store, found, span=span) for span in (None, 86400))

    counted = {(one.signal, one.category): sum(bin.events for bin in one.bins) for one in whole.courses}
    assert counted["compliance", ""] == 3000
    assert counted["compliance", "fraud"] == counted["compliance", "drugs"] == 1500
    assert all(len(one.bins) <= 60 for one in whole.courses)
    assert [one.began for one in whole.courses[0].bins] == sorted(one.began for one in whole.courses[0].bins)
    assert whole.courses[0].bins[-1].ended == whole.ended
    assert (
        0.95 * 864
        <= next(sum(bin.events for bin in one.bins) for one in day.courses if one.category == "" and one.signal == "compliance")
        <= 864 + 6
    )
    assert whole.last == latest(monitor.store) == START + 299900


@pytest.mark.parametrize(
    ("signal", "reply", "more"), [("string", REFUSAL, {}), ("compliance", ANSWER, {"category": "fraud", "expect": "refuse"})]
)
def test_examples_are_of_the_alarms_kind(watch, tmp_path, signal, reply, more):
    monitor = watch(keep_text=True)
    rows = traffic(1500, flagged=0.0)
    for number, row in enumerate(rows):
        row |= {"reply": ANSWER, "expect": "comply"}
        if number % 20 == 0 and number > 200:
            row |= {"prompt": f"Say zebrafish, number {number}?", "reply": reply} | more
    fed(monitor, log(tmp_path / "a.jsonl", rows))
    found = overview(monitor.store, NOW)

    alarm = next(one for one in found.alarms if one.finding.id.startswith(signal) and "/drugs/" not in one.finding.id)
    behind = next(one for one in history(monitor.store, found, span=None).behind if one.alarm == alarm.finding.id)

    assert behind.told_apart
    assert 0 < len(behind.examples) <= 12
    assert all("zebrafish" in one.prompt and one.reply == reply for one in behind.examples)


def nasty(count):
    """Traffic in which one request in twenty is hostile, and refused with hostile words."""
    rows = traffic(count, flagged=0.0)
    for number, row in enumerate(rows):
        row |= {"reply": ANSWER, "expect": "comply", "model": NASTY}
        if number % 20 == 0 and number > count // 8:
            row |= {"category": f"{NASTY} c", "reply": f"{REFUSAL} {NASTY}", "prompt": f"{NASTY} {number}"}
    return rows


def test_hostile_text_stays_text_in_everything_that_is_shown(watch, tmp_path):
    monitor = watch(keep_text=True)
    assert any(id.startswith("string/") for id in fed(monitor, log(tmp_path / "a.jsonl", nasty(1000))))
    found = overview(monitor.store, NOW)

    page = page_of(monitor)
    numbers = metrics.exposition(found, latest(monitor.store)).decode()
    told = "".join(json.dumps(one) for one in evaluations(found, NOW, "1"))

    assert page.count("<script") == 1
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "{{7*7}}" in page
    for text in (page, numbers, told):
        assert not {"\x1b", "\u202e", "\0"} & set(text)


def test_metrics_are_parsed_by_prometheus_own_library(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [*traffic(2000, complied=0.6), *traffic(10), {"x": 1}, {"x": 1, "y": 2}]))
    found = overview(monitor.store, NOW)

    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition(found, latest(monitor.store)).decode())}

    assert all(name.startswith("forensics_monitor") for name in families)
    values = {
        (sample.name.removeprefix("forensics_monitor_"), *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    rate = next(rate for rate in found.rates if (rate.signal, rate.category) == ("compliance", ""))
    assert values["events_total", "replies"] == 2000
    assert values["events_total", "duplicate"] == 10
    assert values["set_aside_total", "an object without a reply, or of a format that is not known"] == 2
    assert values["rate_ratio", "", "compliance"] == pytest.approx(rate.hits / rate.events)
    assert values["bound_ratio", "", "compliance"] == pytest.approx(rate.bound / 100)
    assert values["evidence_decades", "", "compliance"] > values["evidence_alarm_decades", "", "compliance"]
    assert values["alarms", "roll back"] >= 1
    assert values["alarms", "watch"] >= 0
    assert values["last_event_timestamp_seconds",] == pytest.approx(START + 199.9)
    assert values["evaluation_expiry_timestamp_seconds",] == datetime.fromisoformat(found.valid_until).timestamp()
    assert [values["decision", words, code] for words, code in (("roll back", "20"), ("nothing has to be done", "0"))] == [1, 0]
    assert not [key for key in values if key[0] == "rate_ratio" and key[-1] == "harmful"]  # nothing counted is no rate of 0
    assert sum(len(family.samples) for family in families.values()) < 200


def test_evaluations_are_log_records_that_a_collector_takes(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", traffic(2000, complied=0.6)))
    found = overview(monitor.store, NOW)

    documents = list(evaluations(found, NOW, "1.2"))

    records = []
    for document in documents:
        request = json_format.ParseDict(document, ExportLogsServiceRequest())  # an unknown field would raise
        records += [record for resource in request.resource_logs for scope in resource.scope_logs for record in scope.log_records]
    told = [{pair.key: pair.value for pair in record.attributes} for record in records]
    assert {record.event_name for record in records} == {"gen_ai.evaluation.result"}
    assert {record.time_unix_nano for record in records} == {int(NOW.timestamp()) * 10**9}
    assert len(records) == sum(rate.events > 0 for rate in found.rates) + len(found.alarms)
    rate = next(rate for rate in found.rates if (rate.signal, rate.category) == ("compliance", ""))
    first = told[0]
    assert first["gen_ai.evaluation.name"].string_value == "forensics.compliance"
    assert first["gen_ai.evaluation.score.value"].double_value == pytest.approx(rate.hits / rate.events)
    assert first["gen_ai.evaluation.score.label"].string_value == "above bound"
    alarm = next(row for row in told if row["gen_ai.evaluation.name"].string_value == "forensics.alarm")
    assert (alarm["gen_ai.evaluation.score.label"].string_value, "gen_ai.evaluation.score.value" in alarm) == ("roll back", False)
    assert "Put the last accepted version back" in alarm["gen_ai.evaluation.explanation"].string_value
    assert max(record.severity_number for record in records) == 21


def test_evaluations_of_one_monitor_are_no_opinions_in_the_log_of_another(watch, tmp_path):
    first, second = watch("a.db"), watch("b.db")
    fed(first, log(tmp_path / "a.jsonl", traffic(2000, complied=0.6)))
    documents = list(evaluations(overview(first.store, NOW), NOW, "1"))

    assert all(one is None for document in documents for one in read_line(json.dumps(document).encode()))
    fed(second, log(tmp_path / "b.jsonl", documents))
    assert tallied(second)["other"] == len(documents)
    assert "opinions" not in tallied(second)


@pytest.fixture
def store(accepted, tmp_path):
    path = tmp_path / "watch.db"
    assert run_cli("monitor", "start", accepted, "--store", path, "--keep-text").returncode == 0
    return path


def test_evaluations_are_written_or_given_to_a_collector(store, accepted, tmp_path, monkeypatch):
    """The collector is a served monitor, which asks for a token; what it cannot take is an error."""
    other = tmp_path / "other.db"
    run_cli("monitor", "start", accepted, "--store", other)
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(500)), "--store", store)
    token = "0123456789abcdef-token"
    with served(other, FORENSICS_MONITOR_TOKEN=token) as service:
        written = run_cli("monitor", "evaluations", store)
        refused = run_cli("monitor", "evaluations", store, "--to", service.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Authorization=Bearer%20{token}")
        posted = run_cli("monitor", "evaluations", store, "--to", service.url)
    gone = run_cli("monitor", "evaluations", store, "--to", service.url)
    strange = run_cli("monitor", "evaluations", store, "--to", "ftp://x")

    rows = [json.loads(line) for line in written.stdout.splitlines()]
    assert len(rows) == tallies(other)["other"] > 5
    assert [one.returncode for one in (written, refused, posted, gone, strange)] == [0, 2, 0, 1, 2]
    assert f"{len(rows)} evaluations were taken." in posted.stdout
    assert ("refused them (401)" in refused.stderr, "cannot be reached" in gone.stderr, "not the address" in strange.stderr) == (
        True,
        True,
        True,
    )
    assert token not in posted.stdout + posted.stderr + gone.stderr


@pytest.mark.slow
def test_the_page_in_a_browser(store, tmp_path):
    """Loads nothing from elsewhere, says nothing wrong, fits a phone, keeps what was opened while it updates, and obeys no hostile text."""
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", [*traffic(1500, complied=0.5), *opinions(300, 2)]), "--store", store)
    run_cli(
        "monitor",
        "ingest",
        log(tmp_path / "b.jsonl", [row | {"id": f"n{place}"} for place, row in enumerate(nasty(1000))]),
        "--store",
        store,
    )
    with served(store) as service, driven() as opened:
        wrong, asked = [], []
        for width, scheme in ((360, "dark"), (1280, "light")):
            page = opened.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
            page.on("console", lambda said: wrong.append(said.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(service.url)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(15, 19, 24)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert page.title() == "Roll back: monitor"
        assert page.locator("details[open]").count() == 0
        assert not page.locator(".said").first.is_visible()

        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the state"
        summary = page.locator("article details summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator(".said").first.is_visible()
        before = page.locator("dl.counts dt").first.text_content()
        service.post("events", "".join(json.dumps(row) + "\n" for row in traffic(7, first=9000)).encode(), "application/x-ndjson")
        page.locator("dl.counts dt", has_text=str(int(before) + 7)).wait_for(timeout=30_000)
        assert int(page.locator("dl.counts dt").first.text_content()) == int(before) + 7
        assert page.locator("article details[open]").count() == 1
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"

        service.child.kill()
        service.child.wait()
        page.wait_for_selector("#asof[data-stale]", timeout=30_000)
        assert "does not answer now" in page.locator("#asof").text_content()

    assert {url.removeprefix(service.url) for url in asked} == {"/", "/live.css", "/live.js"}
    assert [one for one in wrong if "ERR_CONNECTION_REFUSED" not in one] == []


@pytest.mark.slow
def test_the_page_reloads_itself_where_scripts_are_off(store, tmp_path):
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(300)), "--store", store)
    with served(store) as service, driven() as opened:
        page = opened.new_context(java_script_enabled=False).new_page()
        page.goto(service.url)

        assert page.locator("noscript meta[http-equiv=refresh]").count() + page.locator("meta[http-equiv=refresh]").count() >= 1
        assert page.get_by_role("heading", name="Nothing has to be done").is_visible()
        assert not page.locator("#updating").is_visible()
        page.locator("details").first.locator("summary").click()
        assert page.locator("details[open] table").first.is_visible()
