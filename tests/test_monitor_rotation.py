"""A log that became another file while nobody read: what was left unread in the old one is read first, wherever it stands now, or the loss is said."""

from __future__ import annotations

import gzip
import os
import shutil

import pytest
from monitored import ANSWER, fed, log, tallied, totals, traffic

from forensics.monitor import rotation
from forensics.monitor.intake import ingest_following


def row(name):
    """A row without an id: it counts by its place alone."""
    return {"prompt": f"What of {name}?", "reply": ANSWER}


def aged(file, seconds):
    os.utime(file, (1e9 + seconds, 1e9 + seconds))
    return file


def half_read(monitor, folder):
    """A log of 60 events, of which 40 were read."""
    rows = [one if number % 2 else row(number) for number, one in enumerate(traffic(60))]
    file = log(folder / "x.log", rows[:40])
    fed(monitor, file)
    log(file, rows)
    return file


def moved(file, name):
    return file.rename(file.with_name(name))


def packed(file, name):
    whole = file.with_name(name)
    whole.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return whole


def copied(file, name):
    whole = shutil.copy(file, file.with_name(name))
    file.write_text("")
    return whole


@pytest.mark.parametrize("name", ["x.log.1", "x-2026-11-22.log", "old"])
@pytest.mark.parametrize("rotate", [moved, copied])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_what_was_unread_in_a_rotated_log_is_read_first(rotate, name, whole_folder, watch, tmp_path):
    monitor, folder = watch(), tmp_path / "logs"
    folder.mkdir()
    file = half_read(monitor, folder)
    rotate(file, name)
    log(file, [row("new"), *traffic(9, first=60)])

    for _ in range(2):
        fed(monitor, folder if whole_folder else file)

    assert totals(monitor)["broken"] == (70, 0)
    assert {name: count for name, count in tallied(monitor).items() if name in ("duplicate", "rests read", "begun again")} == {
        "rests read": 1
    }


def test_an_old_file_given_by_its_new_name_counts_nothing_again(watch, tmp_path):
    monitor = watch()
    file = half_read(monitor, tmp_path)
    old = moved(file, "x.log.1")
    log(file, [row("new")])

    fed(monitor, file)
    fed(monitor, old)

    assert totals(monitor)["broken"] == (61, 0)
    assert "duplicate" not in tallied(monitor)


def test_a_packed_log_is_unpacked_and_read_on(watch, tmp_path):
    monitor = watch()
    file = half_read(monitor, tmp_path)
    packed(file, "x.log.1.gz")
    log(file, [row("new")])

    fed(monitor, file)

    assert totals(monitor)["broken"] == (61, 0)


def test_a_log_that_was_rotated_several_times_is_read_in_its_order(watch, tmp_path):
    monitor = watch(keep_text=True)
    file = half_read(monitor, tmp_path)
    aged(packed(file, "x.log.3.gz"), 1)
    aged(log(tmp_path / "x.log.2", [row("second")]), 2)
    aged(log(tmp_path / "x.log.1", [row("third")]), 3)
    aged(log(tmp_path / "x.log.9", [row("before our time")]), 0)
    aged(log(tmp_path / "y.log.1", [row("another log")]), 3)
    log(file, [row("fourth")])

    fed(monitor, file)

    with monitor.store.reading() as view:
        prompts = {prompt for prompt, _ in view.texts()}
    assert totals(monitor)["broken"] == (63, 0)
    assert {"What of second?", "What of third?", "What of fourth?"} < prompts


@pytest.mark.parametrize("left", [None, b"no gzip", gzip.compress(b"x" * 100_000)])
def test_a_log_whose_old_file_is_gone_says_so(left, watch, tmp_path, monkeypatch):
    monkeypatch.setattr(rotation, "MOST_UNPACKED", 50_000)
    monitor = watch()
    file = half_read(monitor, tmp_path)
    if left is not None:
        (tmp_path / "x.log.1.gz").write_bytes(left)
    log(file, [row("new")])

    fed(monitor, file)

    assert totals(monitor)["broken"] == (41, 0)
    assert tallied(monitor)["begun again"] == 1


def test_a_neighbour_that_is_a_log_of_its_own_is_no_old_file(watch, tmp_path):
    monitor = watch()
    file = log(tmp_path / "x.log", traffic(5))
    twin = log(tmp_path / "x.log.1", traffic(5))
    fed(monitor, file)
    fed(monitor, twin)
    log(file, traffic(5, first=5))

    fed(monitor, file)

    assert tallied(monitor)["begun again"] == 1


@pytest.mark.parametrize("rotate", [moved, copied])
def test_a_followed_log_reads_the_rest_of_the_old_file_first(rotate, watch, tmp_path):
    monitor = watch()
    file = half_read(monitor, tmp_path)
    rotate(file, "x.log.1")
    log(file, [row("new")])

    for _ in ingest_following(monitor, str(file), pause=0.0):
        if totals(monitor)["broken"][0] >= 61:
            break

    assert totals(monitor)["broken"] == (61, 0)
    assert tallied(monitor)["rests read"] == 1


def test_a_followed_log_that_is_copied_and_cut_loses_nothing(watch, tmp_path):
    monitor = watch()
    rows = [row(number) for number in range(30)]
    file = log(tmp_path / "x.log", rows[:10])
    steps = 0
    for _ in ingest_following(monitor, str(file), pause=0.0):
        if tallied(monitor).get("replies") == 10 and not steps:
            log(tmp_path / "x.log.1", rows[:20])  # ten came between our last look and the copy
            log(file, rows[20:])
            steps = 1
        if tallied(monitor).get("replies") == 30:
            break

    assert totals(monitor)["broken"] == (30, 0)


def test_a_file_that_cannot_be_read_is_no_old_file(watch, tmp_path):
    monitor = watch()
    file = half_read(monitor, tmp_path)
    moved(file, "x.log.1").unlink()
    (tmp_path / "x.log.1").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.log.2").mkdir()
    log(file, [row("new")])

    fed(monitor, file)

    assert tallied(monitor)["begun again"] == 1


def test_opinions_on_replies_that_are_not_known_count_without_a_category_and_say_so(watch, tmp_path):
    monitor = watch(retention=86400)
    old, later = traffic(2, flagged=1.0), traffic(1, first=3 * 864_000)
    fed(monitor, log(tmp_path / "a.jsonl", [*old, *later]))
    rows = [{"about": id, "feedback": "down", "time": later[0]["time"]} for id in ("r0", later[0]["id"], "never")]

    fed(monitor, log(tmp_path / "b.jsonl", [one | {"id": f"o{number}"} for number, one in enumerate(rows)]))

    with monitor.store.reading() as view:
        found = {key.category: count.events for key, count in view.counts().items() if key.signal == "down"}
    assert found[""] == 3
    assert tallied(monitor)["about an unknown reply"] == 2
