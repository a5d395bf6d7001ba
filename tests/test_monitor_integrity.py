"""A store says whether it is whole: what changed by hand is named, whatever is damaged is one error of every verb, and what is too old goes a little at a time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from cases import ROOT, environment, run_cli
from monitored import ALPHA, ANSWER, START, fed, log, tallied, totals, traffic

from forensics.errors import BadInput, ForensicsError
from forensics.monitor import batch as keeping
from forensics.monitor import database
from forensics.monitor.baseline import Settings, start
from forensics.monitor.ingest import Monitor
from forensics.monitor.intake import ingest, write_aside
from forensics.monitor.integrity import check
from forensics.monitor.seals import Seals
from forensics.monitor.state import overview
from forensics.monitor.store import create_store, open_store
from forensics.monitor.tables import TABLES

SETTINGS = Settings(window=3600, retention=30 * 86400, keep_text=True)
CLOCK = START + 1e6


@pytest.fixture(scope="module")
def whole(accepted, tmp_path_factory):
    """A store that has counted a log in which a rate jumped, with texts, lines set aside, opinions and alarms."""
    path = tmp_path_factory.mktemp("whole") / "s.db"
    start(accepted, str(path), settings=SETTINGS, alpha=ALPHA, now=datetime.now(UTC))
    rows = [*traffic(700), *traffic(500, first=700, complied=0.7), {"nothing": 1}]
    rows += [{"id": f"o{number}", "about": f"r{number}", "feedback": "down", "time": START + 1e3} for number in range(9)]
    with open_store(str(path)) as store:
        fed(Monitor(store, lambda: CLOCK), log(path.with_name("a.jsonl"), rows))
    return path


def changed(whole, folder, *statements):
    """A copy of the store in which something was changed by hand."""
    path = shutil.copy(whole, folder / "copy.db")
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            assert connection.execute(statement).rowcount
    connection.close()
    return path


def wrong(path):
    with open_store(str(path)) as store:
        return check(store).wrong


def test_a_store_that_nobody_touched_is_whole(whole):
    with open_store(str(whole)) as store:
        found = check(store)

    assert found.wrong == ()
    assert len(found.held) == 4
    assert found.batches == 1


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE counts SET hits = hits - 1 WHERE signal = 'compliance' AND category = '' AND hits > 0", "rows of counts"),
        ("UPDATE counts SET category = 'other' WHERE category = 'fraud'", "rows of counts"),
        ("DELETE FROM counts WHERE signal = 'broken'", "rows of counts"),
        ("INSERT INTO gone VALUES ('x', '', 1, 0)", "rows of gone"),
        ("DELETE FROM seen WHERE id IN (SELECT id FROM seen LIMIT 1)", "rows of seen"),
        ("UPDATE seen SET category = 'plain' WHERE id IN (SELECT id FROM seen WHERE category = 'fraud' LIMIT 1)", "rows of seen"),
        ("UPDATE tallies SET count = count + 1 WHERE name = 'replies'", "rows of tallies"),
        ("UPDATE texts SET reply = 'No.' WHERE id IN (SELECT id FROM texts LIMIT 1)", "rows of texts"),
        ("DELETE FROM aside", "rows of aside"),
        ("UPDATE states SET state = replace(state, '\"log_wealth\":', '\"log_wealth\":1') WHERE name = 'stream:compliance/'", "state 'stream:compliance/'"),
        ("DELETE FROM alarms WHERE id IN (SELECT id FROM alarms LIMIT 1)", "is gone"),
        ("UPDATE alarms SET alarm = replace(alarm, 'e-process', 'x-process')", "alarm"),
        ("UPDATE alarms SET times = times + 1", "rows of alarms"),
        ("UPDATE sources SET place = 1", "source"),
        ("DELETE FROM seals WHERE name = 'sum/counts'", "rows of counts"),
    ],
)  # fmt: skip
def test_a_row_that_was_changed_by_hand_is_noticed(statement, said, whole, tmp_path):
    assert any(said in words for words in wrong(changed(whole, tmp_path, statement)))


def test_the_seals_of_what_a_store_was_started_with_are_looked_at_whenever_it_is_opened(whole, tmp_path):
    path = changed(whole, tmp_path, "UPDATE meta SET value = replace(value, '0.05', '0.04') WHERE key = 'baseline'")

    with pytest.raises(BadInput, match="started with is damaged"):
        open_store(str(path))


def resealed(path):
    """What somebody does who knows the seals."""
    with open_store(str(path)) as store, store.reading() as view:
        counts = sum(store.seals.of_numbers("counts", {row[:3]: row[3:]}) for row in view.content("counts"))
        tallies = sum(store.seals.of_numbers("tallies", {row[:1]: row[1:]}) for row in view.content("tallies"))
    connection = sqlite3.connect(path)
    with connection:
        for name, value in (("counts", counts), ("tallies", tallies)):
            connection.execute("UPDATE seals SET seal = ? WHERE name = ?", (f"{value & (1 << 64) - 1:016x}", f"sum/{name}"))
    connection.close()
    return path


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE counts SET hits = 0 WHERE signal = 'compliance' AND category = ''", "the detector of compliance/ has seen"),
        ("UPDATE counts SET hits = events + 1 WHERE signal = 'broken'", "broken in window"),
        ("UPDATE counts SET events = events + 5000 WHERE signal = 'broken'", "broken in window"),
        ("DELETE FROM counts WHERE signal = 'answered' AND category = ''", "events in categories, and 0 over all"),
        ("UPDATE tallies SET count = count - 1 WHERE name = 'replies'", "ids are kept"),
        ("UPDATE tallies SET count = 7 WHERE name = 'set aside'", "1 lines are listed as set aside"),
        ("UPDATE tallies SET count = -7 WHERE name = 'lines'", "below zero"),
    ],
)
def test_counts_that_fit_their_seals_still_have_to_agree(statement, said, whole, tmp_path):
    found = wrong(resealed(changed(whole, tmp_path, statement)))

    assert any(said in words for words in found)
    assert not any("rows of" in words for words in found)


def test_check_says_what_is_wrong_and_exits_two(whole, tmp_path):
    good = run_cli("monitor", "check", whole)
    bad = run_cli("monitor", "check", changed(whole, tmp_path, "DELETE FROM aside"))

    assert (good.returncode, bad.returncode) == (0, 2)
    assert "Every row fits its seal." in good.stdout
    assert "Batch 1, seal " in good.stdout
    assert "rows of aside were changed" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_seals_are_keyed_and_linear():
    ours, theirs = Seals(b"one"), Seals(b"two")
    rows = {(1, "x", ""): (5, 2)}

    assert ours.of_numbers("t", rows) != theirs.of_numbers("t", rows)
    parts = ours.of_numbers("t", {(1, "x", ""): (2, 0)}) + ours.of_numbers("t", {(1, "x", ""): (3, 2)})
    assert parts & (1 << 64) - 1 == ours.of_numbers("t", rows)
    swapped = [(7, 1, "a"), (8, 2, "b")], [(7, 2, "b"), (8, 1, "a")]
    assert ours.of_seen(swapped[0]) != ours.of_seen(swapped[1])


def looked_at(path, folder):
    """Every verb on a store; True if all went well, False if any was one of our errors."""
    well = True
    for verb in (
        lambda store: list(ingest(Monitor(store, lambda: CLOCK), str(log(folder / "more.jsonl", [*traffic(40, first=3000), {"x": 2}])))),
        lambda store: overview(store, datetime.now(UTC)),
        lambda store: write_aside(store, folder / "aside.jsonl"),
        lambda store: [] if not check(store).wrong else 1 / 0,
    ):
        try:
            with open_store(str(path)) as store:
                verb(store)
        except ZeroDivisionError:
            well = False
        except ForensicsError as error:
            assert error.hint
            well = False
        (folder / "aside.jsonl").unlink(missing_ok=True)
    return well


def test_whatever_byte_is_changed_no_verb_breaks_and_the_check_notices(whole, tmp_path):
    content, chance = whole.read_bytes(), random.Random(8)
    noticed = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 40])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "s.db").write_bytes(damaged)
        noticed += not looked_at(tmp_path / "s.db", tmp_path)

    assert noticed > 30  # the rest fell into pages that hold nothing


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.999])
def test_a_store_that_was_cut_is_one_error(share, whole, tmp_path):
    content = whole.read_bytes()
    (tmp_path / "s.db").write_bytes(content[: int(share * len(content))])

    assert not looked_at(tmp_path / "s.db", tmp_path)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_store_without_a_table_is_one_error(table, whole, tmp_path):
    path = shutil.copy(whole, tmp_path / "s.db")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()

    with pytest.raises(BadInput, match="damaged") as caught:
        open_store(str(path))
    assert caught.value.details == (f"there is no table {table}",)


WRONG = ("'x'", "x'00ff'", "NULL", "-5", "1.5", "9e999", "9223372036854775807", "'-1'", "'{}'")


def columns():
    return [(name, column.name) for name, table in TABLES.items() for column in table.columns if name != "meta"]


@pytest.mark.parametrize(("table", "column"), columns())
def test_whatever_stands_in_a_column_no_verb_breaks(table, column, whole, tmp_path):
    for value in random.Random(f"{table}.{column}").sample(WRONG, 4):
        path = shutil.copy(whole, tmp_path / "s.db")
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(replace(sql, 'NOT NULL', ''), 'BIGINT', 'ANY') WHERE type = 'table'")
        connection.commit()
        connection.close()
        connection = sqlite3.connect(path)
        try:
            with connection:
                connection.execute(f'UPDATE OR IGNORE {table} SET "{column}" = {value} WHERE rowid IN (SELECT max(rowid) FROM {table})')
        except sqlite3.Error:
            continue
        finally:
            connection.close()
        looked_at(path, tmp_path)


def test_old_rows_go_a_few_at_a_time_and_all_is_still_accounted_for(accepted, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "MOST_FORGOTTEN", 300)
    path, now = str(tmp_path / "s.db"), START + 40 * 86400
    start(accepted, path, settings=Settings(window=3600, retention=86400, keep_text=True), alpha=ALPHA, now=datetime.now(UTC))
    with open_store(path) as store:
        monitor = Monitor(store, lambda: now)
        fed(monitor, log(tmp_path / "a.jsonl", traffic(1000)))
        left = []
        for number in range(5):
            fed(monitor, log(tmp_path / f"{number}.jsonl", [{"id": f"late{number}", "time": START + 9 * 86400, "reply": ANSWER}]))
            with store.reading() as view:
                left.append((sum(1 for _ in view.content("seen")), sum(1 for _ in view.content("texts"))))
            assert check(store).wrong == ()

        assert left == [(701, 701), (402, 402), (103, 103), (4, 4), (5, 5)]
        assert tallied(monitor)["let go"] == 1000
        assert totals(monitor)["broken"] == (5, 0)


def test_a_file_grows_no_further_once_as_much_goes_as_comes(accepted, tmp_path):
    path = tmp_path / "s.db"
    start(accepted, str(path), settings=Settings(window=3600, retention=10 * 86400, keep_text=False), alpha=ALPHA, now=datetime.now(UTC))
    sizes, day = [], 200
    with open_store(str(path)) as store:
        monitor = Monitor(store, lambda: START + 4e7)
        for number in range(60):
            rows = [one | {"time": START + number * 86400 + place * 400} for place, one in enumerate(traffic(day, first=number * day))]
            fed(monitor, log(tmp_path / "a.jsonl", rows))
            sizes.append(path.stat().st_size)

        assert check(store).wrong == ()
    assert sizes[59] <= 1.1 * sizes[24]


KILLED = """
import sys
from forensics.monitor.store import create_store
print("begun", flush=True)
create_store(sys.argv[1], {"baseline": "x" * 100_000})
"""


def test_a_store_half_made_is_none_and_hinders_nobody(target):
    chance, outcomes = random.Random(3), set()
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", KILLED, target], env=environment(), cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        try:
            with open_store(target) as store:
                assert store.meta("baseline") == "x" * 100_000
        except BadInput:
            outcomes.add("none")
        else:
            outcomes.add("whole")
            break
    if "whole" not in outcomes:
        create_store(target, {"baseline": "y"}).__exit__()
    with pytest.raises(BadInput, match=r"a file already|not empty"):
        create_store(target, {"baseline": "z"})


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_file_may_become_a_store(content, tmp_path):
    path = tmp_path / "s.db"
    if content is None:  # as SQLite leaves one that was rolled back
        connection = sqlite3.connect(path)
        connection.execute("VACUUM")
        connection.close()
    else:
        path.write_bytes(content)

    with create_store(str(path), {}):
        pass


def test_two_that_list_lines_at_once_list_each_once(whole, tmp_path):
    aside = tmp_path / "aside.jsonl"
    with open_store(str(whole)) as store:
        with store.batch() as batch:
            batch.add_aside([keeping.Aside(source="a", start=number, end=number + 1, why="not JSON", digest="d") for number in range(3000)])
        writers = [threading.Thread(target=write_aside, args=(store, aside)) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        lines = aside.read_bytes().splitlines()

    assert len(lines) == len(set(lines)) == 3001


SECRETS = (
    "postgresql+psycopg://ada:tops3cret@127.0.0.1:1/none",
    "postgresql+psycopg://ada:tops3cret@x@127.0.0.1:1/none",
    "postgresql+psycopg://ada:x@tops3cret@127.0.0.1:1/none",
    "postgresql+psycopg://ada:top?x@tops3cret@127.0.0.1:1/none",
    "postgresql+psycopg://127.0.0.1:1/none?user=ada&password=tops3cret",
    "postgresql+psycopg://127.0.0.1:1/none?password=x@tops3cret",
    "postgresql+psycopg://ada:tops3cret@[::1/none",
    "postgresql+psycopg://ada:tops3cret@127.0.0.1:port/none",
    "nosuch+driver://ada:tops3cret@host/none",
    "mysql://ada:tops3cret@host/none",
)


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("use", [open_store, lambda url: create_store(url, {})])
def test_a_password_is_shown_nowhere(use, url):
    pytest.importorskip("psycopg")
    with pytest.raises(ForensicsError) as caught:
        use(url)

    assert "tops3cret" not in str(caught.value)
    assert "tops3cret" not in database.shown(url)
