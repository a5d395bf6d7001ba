"""`forensics monitor`: what a cron job reads from its exit codes, and that nothing of a log reaches a terminal raw."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cases import command, environment, run_cli
from monitored import ANSWER, START, log, traffic

from forensics.errors import BadInput
from forensics.monitor.baseline import Settings, start
from forensics.monitor.ingest import Monitor
from forensics.monitor.intake import ingest
from forensics.monitor.overview import Overview
from forensics.monitor.state import overview
from forensics.monitor.store import open_store


@pytest.fixture
def store(accepted, tmp_path):
    path = tmp_path / "watch.db"
    assert run_cli("monitor", "start", accepted, "--store", path).returncode == 0
    return path


def test_a_monitor_from_its_start_to_a_roll_back(store, accepted, tmp_path):
    nothing = run_cli("monitor", "status", store)
    read = run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", [*traffic(1500, complied=0.01), {"x": 1}]), "--store", store)
    quiet = run_cli("monitor", "status", store)
    switched = run_cli("monitor", "ingest", log(tmp_path / "b.jsonl", traffic(1000, first=1500, complied=0.6)), "--store", store)
    loud = run_cli("monitor", "status", store)
    alarms = run_cli("monitor", "alarms", store, "--json")

    assert [one.returncode for one in (nothing, read, quiet, switched, loud, alarms)] == [3, 0, 0, 0, 20, 20]
    assert "No reply has been counted" in nothing.stdout
    assert "1500 replies" in read.stdout
    assert "watch.db.aside.jsonl" in read.stdout
    assert "No alarm asks anybody to act" in quiet.stdout
    assert "ROLL BACK: More answers to requests that should be refused" in switched.stdout
    assert "exit 20 (roll back)" in loud.stdout
    assert json.loads(alarms.stdout.splitlines()[0])["escalation"] == "roll back"
    assert len((tmp_path / "watch.db.aside.jsonl").read_text().splitlines()) == 1


def test_the_status_as_json_is_the_page_and_nothing_else(store, accepted, tmp_path):
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(1500, complied=0.01)), "--store", store)

    done = run_cli("monitor", "status", store, "--json")

    found = Overview.model_validate_json(done.stdout)
    rates = {(rate.signal, rate.category): rate for rate in found.rates}
    assert json.loads(done.stdout)["schema"] == "forensics.monitor-status/1"
    assert (done.returncode, found.exit_code, found.run) == (0, 0, str(accepted))
    whole = rates["compliance", ""]
    assert whole.low <= whole.rate <= whole.high <= whole.bound + 3
    assert (whole.standing, whole.whence) == ("watched", "the accepted record")
    assert (rates["refusal", ""].standing, rates["down", ""].standing) == ("watched", "learning")
    assert rates["refusal", ""].events == found.tallies["replies"] == 1500


def test_an_alarm_that_people_should_look_at_exits_ten(store, tmp_path):
    rows = traffic(3000, complied=0.12)
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", rows), "--store", store)

    assert run_cli("monitor", "status", store).returncode == 10


def test_a_followed_log_is_read_until_it_is_interrupted(store, tmp_path):
    file = log(tmp_path / "a.jsonl", traffic(30))
    words = command("monitor", "ingest", file, "--store", store, "--follow")
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # whoever runs the tests in the background ignores it, and a child would too
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=environment(), text=True, preexec_fn=heard, **pipes) as child:
        try:
            until(lambda: replies(store) == 30)
            log(file, traffic(50))
            until(lambda: replies(store) == 50)
            child.send_signal(signal.SIGINT)
            said, wrong = child.communicate(timeout=60)
        finally:
            child.kill()

    assert (child.returncode, wrong) == (0, "")
    assert "50 replies" in said


def replies(store):
    with open_store(str(store)) as opened, opened.reading() as view:
        return view.tallies().get("replies", 0)


def until(true):
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


SET = "UPDATE states SET state = json_set(state, '$.{}', json('{}')) WHERE name = 'stream:compliance/'"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE states SET state = '{}' WHERE name LIKE 'stream:%'",
        *(SET.format(part, value) for part, value in (("bound", "2.0"), ("process", '{"x": 1}'), ("cusum", '{"x": 1}'), ("reference_events", "0"), ("recent", '""'))),
        "DELETE FROM states WHERE name = 'stream:compliance/'",
        "UPDATE states SET name = 'stream:other/' WHERE name = 'stream:compliance/'",
        "UPDATE states SET state = '[]' WHERE name = 'general'",
        "UPDATE states SET state = '{' WHERE name = 'general'",
        "UPDATE states SET state = json_set(state, '$.version', 'x') WHERE name = 'general'",
        "UPDATE states SET state = json_set(state, '$.hunts.flagged', 3) WHERE name = 'general'",
        "UPDATE meta SET value = json_set(value, '$.alpha', 0) WHERE key = 'baseline'",
        "UPDATE meta SET value = json_set(value, '$.valid_until', 'soon') WHERE key = 'baseline'",
        "UPDATE meta SET value = json_set(value, '$.valid_until', '2026-01-01') WHERE key = 'baseline'",
        "UPDATE meta SET value = json_set(value, '$.window', 0) WHERE key = 'settings'",
        "DELETE FROM meta WHERE key = 'salt'",
    ],
)  # fmt: skip
def test_a_store_that_was_tampered_with_is_one_error(change, accepted, tmp_path):
    path, file = tmp_path / "s.db", tmp_path / "a.jsonl"
    start(accepted, str(path), settings=Settings(window=3600, retention=86400, keep_text=False), alpha=0.05, now=datetime.now(UTC))

    def look():
        with open_store(str(path)) as opened:
            list(ingest(Monitor(opened, time.time), str(file)))
            overview(opened, datetime.now(UTC))

    log(file, traffic(30))
    look()
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(change).rowcount
    connection.close()
    log(file, traffic(40))

    with pytest.raises(BadInput, match=r"is damaged|are damaged|is missing"):
        look()


def test_a_damaged_store_exits_two(store, tmp_path):
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(30)), "--store", store)
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("UPDATE states SET state = '[]' WHERE name = 'general'")
    connection.close()

    done = run_cli("monitor", "ingest", log(tmp_path / "b.jsonl", traffic(30)), "--store", store)

    assert (done.returncode, "is damaged" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_store_may_be_named_as_no_url_could_be(accepted, tmp_path):
    path = tmp_path / "a?b=c#%41.db"

    assert run_cli("monitor", "start", accepted, "--store", path).returncode == 0
    assert run_cli("monitor", "status", path).returncode == 3
    assert path.is_file()


def test_an_expired_record_asks_for_a_new_evaluation(store, tmp_path):
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(50)), "--store", store)
    with open_store(str(store)) as opened:
        now = overview(opened, datetime.now(UTC))
        later = overview(opened, datetime.now(UTC) + timedelta(days=400))

    assert (now.exit_code, now.expired) == (0, False)
    assert (later.exit_code, later.expired) == (10, True)
    assert any("expired" in sentence for sentence in later.sentences)


def test_replies_without_their_texts_say_nothing(store, tmp_path):
    spans = [{"attributes": {"gen_ai.operation.name": "chat"}, "span_id": str(number), "start_time": START} for number in range(50)]
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", spans), "--store", store)

    done = run_cli("monitor", "status", store)

    assert (done.returncode, "None of 50 replies came with its text" in done.stdout) == (3, True)


def test_what_stands_in_a_log_is_shown_and_not_obeyed(store, tmp_path):
    nasty = "\x1b[31mred\x1b]0;x\x07<b>\u202e"
    rows = traffic(2000, complied=0.0)
    for row in rows:
        row |= {"category": nasty, "expect": "refuse", "reply": ANSWER, "prompt": f"{nasty} {row['id']}"}
    log(tmp_path / "a.jsonl", rows)

    pages = [
        run_cli("monitor", "ingest", tmp_path / "a.jsonl", "--store", store),
        *(run_cli("monitor", verb, store) for verb in ("status", "alarms")),
    ]

    for page in pages:
        assert "ROLL BACK" in page.stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(page.stdout + page.stderr)


def test_standard_input_is_a_log(store, tmp_path):
    rows = log(tmp_path / "a.jsonl", traffic(20)).read_text()

    done = run_cli("monitor", "ingest", "-", "--store", store, given=rows)

    assert (done.returncode, "20 replies" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("ingest", "none.jsonl", "--store", "STORE"), "there is no such log"),
        (("ingest", "-", "--store", "STORE", "--follow"), "standard input is read to its end"),
        (("ingest", "a.jsonl", "--store", "none.db"), "there is no such store"),
        (("status", "none.db"), "there is no such store"),
        (("start", "none", "--store", "x.db"), "there is no saved audit"),
        (("start", "RUN", "--store", "STORE"), "there is a file already"),
        (("start", "RUN", "--store", "x.db", "--alpha", "2"), "is no chance"),
        (("start", "RUN", "--store", "x.db", "--alpha", "1e-30"), "is no chance"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_error(words, what, store, accepted, tmp_path):
    log(tmp_path / "a.jsonl", traffic(3))
    done = run_cli("monitor", *({"STORE": str(store), "RUN": str(accepted)}.get(word, word) for word in words), cwd=tmp_path)

    assert done.returncode == 2
    assert what in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_beside_a_clock_that_is_behind_counts_the_present(store, tmp_path):
    """Traffic of the future (by our clock) is counted when it came, and said to be."""
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", [{"id": "1", "time": START + 3e8, "reply": ANSWER}]), "--store", store)

    assert "from the future" in run_cli("monitor", "status", store).stdout


def test_help_names_the_exit_codes():
    assert "20 roll back" in " ".join(run_cli("monitor", "--help").stdout.split())
