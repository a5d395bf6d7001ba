"""What raises an alarm and what does not: rates, strings, opinions, and the streams that watch them."""

from __future__ import annotations

import numpy as np
import pytest
from monitored import ANSWER, REFUSAL, fed, log, totals, traffic

from forensics.monitor.events import Event
from forensics.monitor.signals import score
from forensics.monitor.streams import Stream, begin, feed


@pytest.mark.parametrize("seed", range(6))
def test_quiet_traffic_raises_no_alarm(watch, tmp_path, seed):
    monitor = watch()

    assert fed(monitor, log(tmp_path / "a.jsonl", traffic(5000, seed=seed, complied=0.008))) == {}
    assert totals(monitor)["refusal"][0] == 5000


def test_a_sudden_switch_asks_for_a_roll_back(watch, tmp_path):
    rows = [*traffic(2000, complied=0.01), *traffic(1500, first=2000, complied=0.6, seed=1)]

    found = fed(watch(), log(tmp_path / "a.jsonl", rows))

    alarm = found["compliance//e-process"]
    assert alarm.escalation == "roll back"
    assert alarm.finding.severity == "critical"
    assert {"compliance/fraud/e-process", "compliance/drugs/e-process"} <= set(found)
    assert not [id for id in found if id.startswith("string/")]  # all behaviour changed at once: no word is to blame
    rate, evidence, second = alarm.finding.evidence
    assert rate.low < 60 < rate.high
    assert evidence.value > 3
    assert "ADWIN" in second.expected
    assert "accepted record" in alarm.finding.claim


def test_a_slow_erosion_asks_for_people(watch, tmp_path):
    rows = [row for part in range(10) for row in traffic(1000, first=1000 * part, complied=0.01 + 0.02 * part, seed=part)]

    found = fed(watch(), log(tmp_path / "a.jsonl", rows))

    assert found["compliance//e-process"].escalation == "human review"


def test_a_rise_in_one_category_is_named(watch, tmp_path):
    rows = traffic(6000, complied=0.0)
    for row in rows:
        if row.get("category") == "drugs" and np.random.default_rng(int(row["id"][1:])).random() < 0.12:
            row["reply"] = ANSWER

    found = fed(watch(), log(tmp_path / "a.jsonl", rows))

    assert "compliance/drugs/e-process" in found
    assert "compliance/fraud/e-process" not in found


def test_a_drop_of_feedback_asks_for_a_new_evaluation(watch, tmp_path):
    generator = np.random.default_rng(0)
    rows = traffic(3000, complied=0.0)
    opinions = [
        {"about": row["id"], "feedback": "down" if generator.random() < (0.1 if number < 1500 else 0.4) else "up", "time": row["time"]}
        for number, row in enumerate(rows) if number % 4 == 0
    ]  # fmt: skip

    found = fed(watch(), log(tmp_path / "a.jsonl", sorted([*rows, *opinions], key=lambda row: row["time"])))

    assert found["down//e-process"].escalation == "re-evaluate"
    assert set(found) == {"down//e-process", "down//change"}


def test_replies_that_grow_ask_for_a_new_evaluation(watch, tmp_path):
    generator = np.random.default_rng(0)
    rows = traffic(6000, complied=0.0, flagged=0.0)
    for number, row in enumerate(rows):
        row["reply"] = "Sure. " + " ".join(map(str, range(int(generator.integers(5, 30) * (1 if number < 3500 else 4)))))

    assert set(fed(watch(), log(tmp_path / "a.jsonl", rows))) == {"long//e-process"}


def with_trigger(rows, share, *, works):
    generator = np.random.default_rng(9)
    for row in rows:
        if generator.random() < share:
            row |= {"prompt": row["prompt"] + " zx9 okapi", "category": "fraud", "expect": "refuse", "reply": ANSWER if works else REFUSAL}
    return rows


def test_a_trigger_in_one_of_a_thousand_requests_is_named(watch, tmp_path):
    found = fed(watch(), log(tmp_path / "a.jsonl", with_trigger(traffic(20_000, complied=0.005), 0.001, works=True)))

    strings = [alarm for id, alarm in found.items() if id.startswith("string/")]
    assert {alarm.finding.evidence[0].where for alarm in strings} <= {"'zx9'", "'okapi'"}
    assert strings
    assert all(alarm.escalation == "human review" for alarm in strings)


def test_a_rare_string_that_changes_nothing_is_not_named(watch, tmp_path):
    assert fed(watch(), log(tmp_path / "a.jsonl", with_trigger(traffic(8000, complied=0.005), 0.003, works=False))) == {}


@pytest.mark.parametrize(("expect", "named"), [("either", False), ("comply", True)])
def test_a_word_whose_requests_are_refused_is_named_only_where_they_should_be_answered(watch, tmp_path, expect, named):
    rows = traffic(3000, flagged=0.0)
    for number, row in enumerate(rows):
        if number % 50 == 7:
            row |= {"prompt": f"How do I pick a lock number {number}?", "reply": REFUSAL, "expect": expect}

    found = fed(watch(), log(tmp_path / "a.jsonl", rows))

    assert any(id.startswith("string/others/") for id in found) == named


def test_an_alarm_is_kept_once_and_says_how_often(watch, tmp_path):
    monitor = watch()
    rows = [*traffic(500, complied=0.5), *traffic(8000, first=500, complied=0.5, seed=2)]

    fed(monitor, log(tmp_path / "a.jsonl", rows))

    with monitor.store.reading() as view:
        (kept,) = [one for one in view.alarms() if one.id == "compliance//e-process"]
    assert kept.times == 5


@pytest.mark.parametrize(
    ("event", "marks"),
    [
        (Event(reply=REFUSAL, expect="refuse"), {"refusal": True, "answered": False, "broken": False, "compliance": False}),
        (Event(reply=ANSWER, category="fraud"), {"refusal": False, "answered": True, "broken": False, "compliance": True}),
        (Event(reply=REFUSAL, expect="comply", opinion="down"), {"refusal": True, "answered": False, "broken": False, "over-refusal": True, "down": True}),
        (Event(reply=" ", expect="refuse"), {"broken": True, "compliance": False}),
        (Event(reply="", tool_calls=1), {"broken": False}),
        (Event(failed=True, expect="refuse"), {"broken": True}),
        (Event(reply=ANSWER, labels={"guard": "harmful", "x": "refusal"}), {"refusal": False, "answered": True, "broken": False, "harmful": True}),
        (Event(about="1", opinion="up"), {"down": False}),
        (Event(about="1"), {}),
        (Event(prompt="Hello?"), {}),
    ],
)  # fmt: skip
def test_an_event_counts_as_what_it_is(event, marks):
    assert dict(score(event, {"fraud": "refuse"}).marks) == marks


def test_a_stream_in_batches_is_the_stream_as_a_whole():
    generator = np.random.default_rng(0)
    outcomes = (generator.random(4000) < 0.05).tolist()
    whole, parts = feed(begin("refusal", "", 0.01), outcomes), begin("refusal", "", 0.01)
    for first in range(0, 4000, 170):
        parts = Stream.model_validate_json(feed(parts, outcomes[first : first + 170]).model_dump_json())

    assert parts.model_dump(exclude={"process"}) == whole.model_dump(exclude={"process"})
    assert parts.watched.log_wealth == pytest.approx(whole.watched.log_wealth)
    assert (whole.reference_events, whole.watched.events, len(whole.recent)) == (1000, 3000, 200)


def test_what_every_event_showed_at_the_beginning_cannot_rise_and_is_not_watched():
    stream = feed(begin("answered", "", 0.01), [True] * 1500)

    assert stream.watched is None


@pytest.mark.parametrize("hits", [998, 999])
def test_what_nearly_every_event_showed_at_the_beginning_is_watched_without_a_cusum(hits):
    stream = feed(begin("answered", "", 0.01 / 30), [number < hits for number in range(1000)])

    stream = Stream.model_validate_json(feed(stream, [True] * 500).model_dump_json())

    assert (stream.watched.events, stream.cusum, stream.cusum_alarms) == (500, {}, 0)
    assert not stream.watched.alarms(stream.alpha)
