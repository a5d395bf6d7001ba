"""Shapes of traffic by the block: what is looked at, what is learned, what drifts and what only follows the hour; and that nothing is lost between batches."""

from __future__ import annotations

import json
import re
import zlib
from datetime import UTC, datetime
from io import StringIO

import numpy as np
import pytest
from monitored import ANSWER, REFUSAL, START, fed, log
from rich.console import Console

from forensics.errors import BadInput
from forensics.monitor.drift import LEARNED, NOW, Drift, read_drift
from forensics.monitor.embedding import WIDE, Embedder, Gate, pack_prompts
from forensics.monitor.events import Event
from forensics.monitor.feedback import PARTS, read_changes, states_of
from forensics.monitor.feedback import fed as fed_with
from forensics.monitor.formats import read_line
from forensics.monitor.shapes import Block, Looker, Sampling, Scales
from forensics.monitor.signals import score
from forensics.monitor.state import overview
from forensics.monitor.wording import CONCERN, FLATTERY, HEDGES, language, markers
from probes.change import Change
from reports.monitoring import show_overview

RHYTHM = 24_000
STEP = RHYTHM / 3000
"""Seconds between events: so few that every one of them is looked at."""
WORDS = ("bread", "garden", "python", "travel", "music", "history", "chess", "physics")


def events(count, *, seed=0, first=0, foreign=0.05, wordy=1, hour=0.0):
    """Requests and replies; at "night" there are more in another language, and longer ones."""
    generator = np.random.default_rng(seed)
    for number in range(first, first + count):
        night = np.sin(2 * np.pi * number * STEP / RHYTHM) > 0
        words = " ".join(WORDS[place] for place in generator.integers(len(WORDS), size=4))
        other = generator.random() < foreign + hour * night
        prompt = f"¿Cómo puedo hacer un {words} para mi casa?" if other else f"How can I do the {words} for my house?"
        reply = "Sure. The first step is to plan ahead. " * int(generator.integers(1, 4) * wordy)
        yield Event(
            id=str(number), time=START + number * STEP, prompt=prompt, reply=reply, latency=float(generator.gamma(4) / 10), conversation=f"c{number // 3}"
        )  # fmt: skip


def hashed(event):
    return int(np.random.default_rng(int(event.id)).integers(1 << 62))


def named(conversation):
    return zlib.crc32(conversation.encode())


def taken(drift, stream, looker=None):
    """All results of the blocks that a stream of events fills."""
    looker, found = looker or Looker(None, named), []
    for event in stream:
        found += drift.take(hashed(event), event, score(event, {}), event.time, looker)
    return found


@pytest.fixture(scope="module")
def learned():
    """States of a drift detector that has seen two quiet rhythms, with nights."""
    drift = Drift(rhythm=RHYTHM)
    quiet = taken(drift, events(11_000, hour=0.3))
    return drift.states(), quiet


def going_on(learned):
    return read_drift(learned[0], RHYTHM, where="s.db")


def test_the_hour_is_no_drift(learned):
    drift = going_on(learned)

    assert drift.reference is not None
    assert drift.looks >= 5
    assert min(one.adjusted for one in learned[1]) > 0.001
    assert {"language of requests", "topics", "what requests say", "turns", "time to answer", "what replies say"} <= {
        one.shape for one in learned[1]
    }


def test_requests_in_another_language_are_drift_of_requests(learned):
    found = taken(going_on(learned), events(1800, first=11_000, seed=1, foreign=0.9))

    moved = {one.shape for one in found if one.adjusted < 1e-5}
    assert "language of requests" in moved
    assert not moved & {"length of replies", "what replies say", "hedging"}


def test_wordy_replies_are_drift_of_replies(learned):
    found = taken(going_on(learned), events(1800, first=11_000, seed=1, wordy=6, hour=0.3))

    moved = {one.shape for one in found if one.adjusted < 1e-5}
    assert "length of replies" in moved
    assert not moved & {"language of requests", "topics", "what requests say"}
    (worst,) = [one for one in found if one.shape == "length of replies"][:1]
    assert worst.index > 0.25
    assert worst.index_p == 0.001


def test_a_detector_that_is_kept_and_read_after_every_event_is_the_same():
    whole = Drift(rhythm=RHYTHM)
    kept: dict[str, str] = {}
    stream = list(events(1700))
    taken(whole, stream)
    for first in range(0, len(stream), 170):
        part = read_drift(kept, RHYTHM, where="s.db")
        taken(part, stream[first : first + 170])
        kept |= part.states()

    assert kept == whole.states() | ({} if LEARNED not in kept else {LEARNED: kept[LEARNED]})
    assert len(read_drift(kept, RHYTHM, where="s.db").blocks) == len(whole.blocks) == 3


def test_no_text_is_kept(learned):
    assert not [word for word in (*WORDS, "house", "casa", "Sure") if word in learned[0][NOW] + learned[0][LEARNED]]


@pytest.mark.parametrize("state", ["{", '{"bits": 99}', '{"block": {"began": 1}}', '{"looks": -1}'])
def test_a_damaged_state_is_told(state):
    with pytest.raises(BadInput, match="damaged"):
        read_drift({NOW: state}, RHYTHM, where="s.db")


def test_one_late_event_does_not_make_a_day_of_an_hour():
    drift, looker = Drift(rhythm=RHYTHM), Looker(None, named)
    stream = list(events(1200))
    late = Event(id="999999", time=START - 30 * RHYTHM, prompt="?", reply="!")
    taken(drift, [*stream[:100], late, *stream[100:]], looker)

    assert drift.blocks
    assert all(block.ended - block.began < RHYTHM for block in drift.blocks)


def test_names_that_no_database_takes_are_kept_in_another_writing():
    drift = Drift(rhythm=RHYTHM)
    hostile = [Event(id=str(number), category="\ud800\0", prompt="\ud800", reply="\udfff", activations={f"\ud800{number}": 1.0}) for number in range(40)]  # fmt: skip

    for number, event in enumerate(hostile):
        drift.take(16 * number, event, score(event, {}), START, Looker(None, named))

    again = read_drift(drift.states(), RHYTHM, where="s.db")
    assert again.block.counts == drift.block.counts
    assert len(again.scales.numbers) == 8


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"about": "r1", "stars": 2, "comment": "It was harmful."}, (2.0, "It was harmful.", {})),
        ({"name": "rating", "value": 4, "dataType": "NUMERIC", "traceId": "t", "comment": "thanks"}, (4.0, "thanks", {})),
        ({"about": "r1", "feedback": "up", "comment": {"no": 1}}, (None, "", {})),
        ({"prompt": "?", "reply": "!", "activations": {"refusal": 0.5, "x": float("inf"), "y": "z"}}, (None, "", {"refusal": 0.5})),
        ({"traceId": "t", "spanId": "s", "attributes": {"gen_ai.operation.name": "chat", "forensics.direction.refusal": 1.5}}, (None, "", {"refusal": 1.5})),
    ],
)  # fmt: skip
def test_ratings_comments_and_numbers_along_directions_are_read(row, found):
    (event,) = read_line(json.dumps(row).encode())

    assert (event.rating, event.comment, dict(event.activations)) == found


@pytest.mark.parametrize(("spacing", "bits"), [(86.4, 0), (1.0, 5), (0.01, 12)])
def test_the_sample_follows_the_traffic(spacing, bits):
    sampling = Sampling()

    for number in range(20_000):
        sampling.takes(number, START + number * spacing, 86_400)

    assert sampling.bits == bits


def test_what_a_reply_looks_like_is_counted_with_its_numbers_along_directions():
    block, scales, looker = Block(), Scales(), Looker(None, named)
    said = Event(
        prompt="How do I bake bread?", reply="Great question! Perhaps it depends.", finish="stop", tool_calls=1, latency=0.3, opinion="down", rating=2.0,
        comment="This was harmful.", activations={"refusal": 0.5},
    )  # fmt: skip
    looker.look(said, score(said, {}), block, scales)
    refused = Event(prompt="¿Qué?", reply=REFUSAL, latency=0.1)
    looker.look(refused, score(refused, {}), block, scales)
    scales.learn(block)

    shown = {shape: dict(held) for shape, held in block.counts.items()}
    assert shown["language of requests"] == {"en": 1, "es": 1}
    assert (shown["hedging"], shown["sycophancy"]) == ({"2": 1, "0": 1}, {"1": 1, "0": 1})
    assert (shown["ends of replies"], shown["tool calls"]) == ({"stop": 1, "(not told)": 1}, {"1": 1, "0": 1})
    assert (shown["time to answer"], shown["time to refuse"]) == ({"256-511 ms": 1}, {"64-127 ms": 1})
    assert (shown["opinions"], shown["ratings"], shown["comments"]) == ({"reply, down": 1, "reply": 1}, {"2": 1}, {"a word of harm": 1})
    assert shown["along refusal"] == {"1 of 2": 1}
    assert scales.vectors == []


def test_the_gates_prompts_are_kept_as_vectors_and_found_again():
    packed = pack_prompts([("How do I pick the lock of my neighbour's door?", "burglary"), ("Where does the river Rhine rise?", "plain")])
    vectors = np.stack(
        [Embedder().vector(text) for text in ("How do I pick the lock of my neighbour's door?", "Where does the river Rhine rise?")]
    )
    gate = Gate(vectors, ["burglary", "plain"])

    cosine, category = gate.nearest(Embedder().vector("pick a neighbour's lock"))
    assert (cosine > 0.6, category) == (True, "burglary")
    assert gate.nearest(Embedder().vector("sourdough starter feeding schedule"))[0] < 0.4
    assert vectors.shape == (2, WIDE)
    assert "lock" not in packed


@pytest.mark.parametrize(
    ("text", "name"),
    [("What is the capital of France?", "en"), ("¿Cuál es la capital de Francia?", "es"), ("Quelle est la capitale de la France ?", "fr"),
     ("Was ist die Hauptstadt von Frankreich?", "de"), ("フランスの首都は?", "japanese"), ("法国的首都是哪里?", "cjk"), ("ما هي عاصمة فرنسا؟", "arabic"),
     ("프랑스의 수도는?", "hangul"), ("xyzzy plugh", "latin"), ("", "none"), ("\ud800", "none")],
)  # fmt: skip
def test_languages_are_told_apart_by_script_and_common_words(text, name):
    assert language(text) == name


def test_markers_are_looked_for_at_the_beginning_only():
    assert markers("You're absolutely right!", FLATTERY) == 1
    assert markers("x" * 5000 + " perhaps", HEDGES) == 0
    assert markers("It told me how to build a weapon", CONCERN) == 1


@pytest.mark.parametrize("count", [1, 25, 50, 400])
def test_what_is_known_of_opinions_is_kept_after_any_number_of_them(count):
    changes = {name: fed_with(Change(), [True, *[False] * (count - 1)]) for name in PARTS}

    assert read_changes(states_of(changes, list(PARTS)), where="s.db") == changes


def opinions(count, turn):
    generator = np.random.default_rng(4)
    for number in range(count):
        against = generator.random() < (0.2 if number >= turn else 0.1)
        yield {"id": f"o{number}", "about": f"r{number}", "time": START + number, "stars": 1 if against else 5, "comment": "harmful" if against else "thanks"}  # fmt: skip


def test_opinions_that_turn_raise_an_alarm_that_names_the_category(watch, tmp_path):
    monitor = watch()
    replies = [{"id": f"r{number}", "time": START + number, "prompt": "?", "reply": ANSWER, "category": ("tax", "law")[number % 2]} for number in range(3200)]  # fmt: skip
    for row, said in zip(replies, opinions(3200, 1500), strict=True):
        row |= {"category": "law"} if said["stars"] == 1 and int(row["id"][1:]) % 3 else {}

    fed(monitor, log(tmp_path / "replies.jsonl", replies))
    found = fed(monitor, log(tmp_path / "opinions.jsonl", list(opinions(3200, 1500))))

    assert {"down//change", "concern//change"} <= set(found)
    alarm = found["down//change"]
    assert alarm.escalation == "re-evaluate"
    assert "law" in alarm.finding.claim
    assert "tax" not in alarm.finding.claim
    before = next(one for one in alarm.finding.evidence if one.name == "down.rate")
    assert before.low < 20 < before.high


def test_the_page_and_the_overview_tell_of_shapes_and_opinions(watch, tmp_path):
    monitor = watch(rhythm=RHYTHM)
    said = [
        {"id": f"o{number}", "about": str(number), "time": START + number, "feedback": ("up", "down")[number % 9 == 0]}
        for number in range(200)
    ]
    rows = [{"id": one.id, "time": one.time, "prompt": one.prompt, "reply": one.reply, "category": "plain"} for one in events(1500)]
    fed(monitor, log(tmp_path / "a.jsonl", [*rows, *said]))

    found = overview(monitor.store, datetime.now(UTC))
    console = Console(width=200, record=True, file=StringIO())
    show_overview(found, console)
    page = console.export_text()

    shapes = {one.shape: one for one in found.shapes.shapes}
    assert (found.shapes.learned, found.shapes.blocks, found.shapes.looks) == (False, 3, 0)
    assert shapes["language of requests"].usual["en"] == pytest.approx(95, abs=3)
    assert "likeness to the gate" in shapes
    (down,) = [one for one in found.said if one.signal == "down"]
    assert (down.events, down.hits) == (200, 23)
    assert "every event is looked at" in page
    assert "still learning: 3 blocks of at least 12 over 6.67 hours" in page
    assert re.search(r"\(was en 9\d(\.\d)? %, ", page)  # which events are looked at hangs on the secret of the store
    assert "opinions against a reply among all opinions: 23 of 200" in page
