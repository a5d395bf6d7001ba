"""Traffic in, alarms out: what changed is noticed, what did not is left in peace, and every event counts once whatever happens."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from cases import ROOT, environment
from monitored import ANSWER, REFUSAL, START, fed, log, tallied, totals, traffic

from forensics.errors import BadInput
from forensics.monitor import ingest as taking
from forensics.monitor import strings as finding
from forensics.monitor.ingest import Monitor
from forensics.monitor.intake import ingest, ingest_following, ingest_stream, write_aside
from forensics.monitor.sources import Place
from forensics.monitor.strings import Strings


def test_a_log_counts_once_however_often_it_is_read(watch, tmp_path):
    monitor = watch()
    rows = traffic(900)
    file = log(tmp_path / "a.jsonl", rows[:500])

    fed(monitor, file)
    first = totals(monitor)
    fed(monitor, file)
    assert totals(monitor) == first
    with file.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows[500:])
    fed(monitor, file)
    fed(monitor, log(tmp_path / "copy.jsonl", rows))
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))  # rotated, out of order, nothing new
    fed(monitor, file)

    assert totals(monitor)["broken"] == (900, 0)
    assert tallied(monitor)["duplicate"] == 1800
    assert tallied(monitor)["replies"] == 900


def test_rows_without_ids_count_by_their_places(watch, tmp_path):
    monitor = watch()
    file = log(tmp_path / "a.jsonl", [{"prompt": "Hello?", "reply": "Hello."}] * 7)

    fed(monitor, file)
    fed(monitor, file)

    assert totals(monitor)["broken"] == (7, 0)


def test_late_old_and_impossible_times_are_counted_apart(watch, tmp_path):
    monitor = watch(clock=lambda: START + 100)
    rows = [
        {"id": "a", "time": START, "reply": ANSWER},
        {"id": "b", "time": START - 2 * 86400, "reply": ANSWER},
        {"id": "c", "time": START - 60 * 86400, "reply": ANSWER},
        {"id": "d", "time": START + 9 * 86400, "reply": ANSWER},
        {"id": "e", "time": "soon", "reply": ANSWER},
    ]

    fed(monitor, log(tmp_path / "a.jsonl", rows))

    found = tallied(monitor)
    assert {name: found[name] for name in ("late", "too old", "clock ahead", "no time", "replies")} == {
        "late": 1, "too old": 1, "clock ahead": 1, "no time": 1, "replies": 4,
    }  # fmt: skip


def test_a_clock_of_ours_that_was_ahead_once_makes_nobody_blind(watch, tmp_path):
    now = [START + 1e3]
    monitor = watch(clock=lambda: now[0])
    now[0] = START + 400 * 86400
    fed(monitor, log(tmp_path / "a.jsonl", [{"id": "x", "reply": ANSWER}]))
    now[0] = START + 2e3

    found = fed(monitor, log(tmp_path / "b.jsonl", traffic(1500, complied=0.6)))

    assert found["compliance//e-process"].escalation == "roll back"
    assert "too old" not in tallied(monitor)


def test_a_log_whose_name_is_no_text_is_read(watch, tmp_path):
    monitor = watch()
    file = log(tmp_path / os.fsdecode(b"\xff.jsonl"), [{"id": "1", "reply": ANSWER}])

    for _ in range(2):
        fed(monitor, file)

    assert tallied(monitor) == {"lines": 1, "replies": 1, "no time": 1}


@pytest.mark.parametrize("error", [None, False, "", {}, 0])
def test_an_error_that_is_none_makes_no_reply_a_failed_one(watch, tmp_path, error):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [{"id": "1", "reply": ANSWER, "expect": "refuse", "error": error}]))

    assert (totals(monitor)["compliance"], totals(monitor)["broken"]) == ((1, 1), (1, 0))


def test_old_windows_are_let_go(watch, tmp_path):
    monitor = watch(retention=86400)
    rows = [*traffic(50), {"id": "later", "time": START + 3 * 86400, "reply": ANSWER}]

    fed(monitor, log(tmp_path / "a.jsonl", rows))

    assert totals(monitor)["broken"] == (1, 0)


HOSTILE = [b'{"reply": "\xff\xfe"}', b"[" * 100_000, b'{"user": "\x1b[31mred<script>"}', b"{", b'"just text"', b"\x00\x01\x02"]


def test_what_cannot_be_read_is_set_aside_in_a_file_and_never_shown_raw(watch, tmp_path):
    monitor = watch(keep_text=True)
    file = tmp_path / "a.jsonl"
    good = json.dumps({"id": "1", "reply": ANSWER, "category": "\x1b[2Jx\x00"}).encode()
    file.write_bytes(b"\n".join([good, *HOSTILE, b'{"reply": "' + b"x" * 9_000_000 + b'"}', good.replace(b'"1"', b'"2"')]) + b"\n")

    fed(monitor, file)
    aside = tmp_path / "aside.jsonl"
    count = write_aside(monitor.store, aside)

    rows = [json.loads(line) for line in aside.read_bytes().splitlines()]
    assert count == len(rows) == len(HOSTILE) + 1 == tallied(monitor)["set aside"]
    assert tallied(monitor)["replies"] == 2
    assert aside.read_bytes().isascii()
    assert b"\x1b" not in aside.read_bytes()
    assert [row["why"] for row in rows][-1] == "longer than what is read"
    assert rows[1]["start"] == len(good) + 1 + len(HOSTILE[0]) + 1


def test_a_file_of_lines_set_aside_that_was_cut_is_filled_up(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [{"nothing": number} for number in range(5)]))
    aside = tmp_path / "aside.jsonl"
    write_aside(monitor.store, aside)
    whole = aside.read_bytes()
    aside.write_bytes(whole[:-20])

    assert write_aside(monitor.store, aside) == 5
    assert aside.read_bytes() == whole
    assert b"content" not in whole


@pytest.mark.parametrize("content", ["my notes", "my notes\nand more", '{"source": 1}\n'.replace("source", "reply")])
def test_a_file_of_somebody_else_is_not_written_into(watch, tmp_path, content):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [{"nothing": 1}]))
    notes = tmp_path / "notes"
    notes.write_text(content)

    with pytest.raises(BadInput, match="holds something else"):
        write_aside(monitor.store, notes)

    assert notes.read_text() == content


@pytest.mark.parametrize("keep_text", [False, True])
def test_texts_and_ids_are_kept_only_on_request(watch, tmp_path, keep_text):
    monitor = watch(keep_text=keep_text)
    rows = [
        {
            "id": f"user-marmalade-{number}",
            "prompt": "Where is the periwinkle?",
            "reply": "Behind the gazebo.",
            "conversation": "c-marmalade",
        }
        for number in range(9)
    ]

    fed(monitor, log(tmp_path / "a.jsonl", [*rows, {"periwinkle": 1}]))
    monitor.store.__exit__()

    content = (tmp_path / "s.db").read_bytes()
    assert (b"periwinkle" in content, b"gazebo" in content) == (keep_text, keep_text)
    assert b"marmalade" not in content


def test_very_many_categories_become_one(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [{"id": str(number), "reply": ANSWER, "category": f"c{number}"} for number in range(400)]))

    with monitor.store.reading() as view:
        names = {key.category for key in view.counts()}
    assert taking.OTHER in names
    assert len(names) == taking.MOST_CATEGORIES + 2


def test_an_opinion_counts_in_the_category_of_its_reply(watch, tmp_path):
    monitor = watch()
    fed(monitor, log(tmp_path / "a.jsonl", [{"id": "1", "reply": ANSWER, "category": "travel"}, {"about": "1", "feedback": "down"}]))
    fed(monitor, log(tmp_path / "b.jsonl", [{"about": "1", "rating": 5}]))

    with monitor.store.reading() as view:
        found = {key.category: (count.events, count.hits) for key, count in view.counts().items() if key.signal == "down"}
    assert found == {"": (2, 1), "travel": (2, 1)}


def test_standard_input_is_read_to_its_end(watch, tmp_path):
    monitor = watch()
    file = log(tmp_path / "a.jsonl", traffic(30))
    for _ in range(2):
        with file.open("rb") as stream:
            list(ingest_stream(monitor, stream))

    assert tallied(monitor)["replies"] == tallied(monitor)["duplicate"] == 30


def test_a_followed_file_counts_once_through_a_rotation(watch, tmp_path):
    monitor = watch()
    rows = traffic(90)
    file = log(tmp_path / "a.jsonl", rows[:40])

    def write(part):
        with file.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in part)

    old = file.open("a")

    def rotate():
        file.rename(tmp_path / "old")
        old.writelines(json.dumps(row) + "\n" for row in rows[70:80])  # the server has not turned to the new file yet
        old.close()
        write(rows[80:])

    steps = [lambda: write(rows[40:70]), rotate]
    for _ in ingest_following(monitor, str(file), pause=0.0):
        if tallied(monitor).get("replies", 0) in (40, 70) and steps:
            steps.pop(0)()
        if tallied(monitor).get("replies") == 90:
            break

    assert totals(monitor)["broken"] == (90, 0)
    with pytest.raises(BadInput, match="only a file can be followed"):
        next(ingest_following(monitor, str(tmp_path)))


def test_a_second_process_on_the_same_log_is_told_so(watch, tmp_path):
    monitor = watch()
    file = log(tmp_path / "a.jsonl", traffic(10))
    other = ingest(Monitor(monitor.store, time.time), str(file))
    taking_turns = ingest(monitor, str(file))

    next(taking_turns)
    with pytest.raises(BadInput, match="another process"):
        monitor.take(str(file.resolve()), [], Place(), Place(offset=3))
    assert list(other) == []  # it begins behind what the first has read


KILLED = """
import sys, time
from forensics.monitor import ingest, intake
from forensics.monitor.store import open_store
intake.LINES = 100
with open_store(sys.argv[1]) as store:
    for _ in intake.ingest(ingest.Monitor(store, time.time), sys.argv[2]):
        print("batch", flush=True)
"""


def test_whatever_moment_it_is_killed_at_nothing_is_lost_and_nothing_counts_twice(watch, tmp_path):
    monitor = watch()
    rows = traffic(4000, complied=0.02)
    file = log(tmp_path / "a.jsonl", [*rows, {"nothing": 1}])
    words = [sys.executable, "-c", KILLED, str(tmp_path / "s.db"), str(file)]
    chance, killed = random.Random(4), 0
    while True:
        child = subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # it has begun to write
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        child.stdout.close()
        if child.wait() == 0:
            break
        killed += 1
        if killed == 6:
            subprocess.run(words, env=environment(), cwd=ROOT, check=True, capture_output=True)
            break

    undisturbed = watch("other.db")
    fed(undisturbed, file)

    assert killed > 1
    assert totals(monitor) == totals(undisturbed)
    assert tallied(monitor) == tallied(undisturbed)


def test_traffic_of_which_hardly_anything_is_refused_is_counted(watch, tmp_path):
    monitor = watch()
    rows = traffic(1500, flagged=0.0)
    for row in rows:
        row["reply"] = REFUSAL if row["id"] == "r500" else ANSWER

    assert fed(monitor, log(tmp_path / "a.jsonl", rows)) == {}
    assert totals(monitor)["answered"] == (1500, 1499)


def test_keys_of_a_batch_are_those_of_its_requests_one_by_one():
    strings = Strings(b"one")
    prompts = ["Blue moon blue MOON", "", "moon", " \n ", "x" * 100 + " moon", "x" * 64 + " moon", "\ud800 half", "w " * 500 + "end"]

    batch = strings.keys_of(prompts)

    assert [set(keys) for keys in batch] == [strings.keys(prompt) for prompt in prompts]
    assert len(strings.keys("moon")) == 1
    assert strings.keys("x" * 100 + " moon") == strings.keys("x" * 64 + " moon")  # a word is known by its beginning
    assert strings.keys("blue moon") < strings.keys("a blue moon")
    assert strings.keys_of([]) == []
    for keys in batch:
        assert all(0 < key < 2**63 for key in keys)


def test_words_that_were_forgotten_have_the_same_keys_again(monkeypatch):
    prompts = ["a b c d e f", "a b c", "f e d a"]
    remembered = [Strings(b"one").keys(prompt) for prompt in prompts]
    monkeypatch.setattr(finding, "MOST_REMEMBERED", 3)
    strings = Strings(b"one")

    assert [strings.keys(prompt) for prompt in prompts] == remembered


@pytest.mark.parametrize("collects", [True, False])
def test_a_batch_leaves_the_collector_of_cycles_as_it_was(watch, tmp_path, collects):
    monitor = watch()
    try:
        (gc.enable if collects else gc.disable)()
        fed(monitor, log(tmp_path / "a.jsonl", traffic(5)))
        assert gc.isenabled() == collects
        with pytest.raises(BadInput, match="another process"):
            monitor.take("a", [], Place(offset=3), Place(offset=3))
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_strings_are_words_and_pairs_under_the_secret_of_the_store():
    ours, theirs = Strings(b"one"), Strings(b"two")
    keys = ours.keys("Blue moon blue MOON")

    assert len(keys) == 4  # blue, moon, blue moon, moon blue
    assert not keys & theirs.keys("blue moon")
    assert {ours.named("a blue moon", key)[0] for key in ours.keys("blue moon")} == {"blue", "moon", "blue moon"}
    assert ours.named("something else", next(iter(keys)))[0] == ""
    assert len(ours.keys("word " + " ".join(map(str, range(10_000))))) < 500
