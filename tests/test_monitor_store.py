"""A monitor starts from an accepted record and from no other; its store keeps whole batches, or nothing of one."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cases import as_older_versions_wrote
from databases import emptied
from monitored import ANSWER, gated

from forensics.errors import BadInput
from forensics.monitor import batch as keeping
from forensics.monitor.baseline import Settings, baseline_of, pin, settings_of, start
from forensics.monitor.batch import Aside, Count, Key, Raised
from forensics.monitor.events import Event
from forensics.monitor.signals import score
from forensics.monitor.sources import Place
from forensics.monitor.store import create_store, open_store
from forensics.people.signing import Signing, sign
from forensics.runfolder import load_run

NOW = datetime.now(UTC)
SETTINGS = Settings(window=3600, retention=30 * 86400, keep_text=False)
KEY = Key(window=1, signal="refusal", category="")


def test_the_record_is_pinned_with_bounds_above_its_rates(accepted, tmp_path):
    start(accepted, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW)
    with open_store(str(tmp_path / "s.db")) as store:
        baseline = baseline_of(store)
        assert settings_of(store) == SETTINGS

    record = load_run(str(accepted)).record
    by_name = {(one.signal, one.category): one for one in baseline.pinned}
    whole = by_name["compliance", ""]
    assert (whole.events, whole.hits) == (300, 3)
    assert 0.01 < whole.upper < 0.05
    assert {("compliance", "fraud"), ("compliance", "drugs"), ("over-refusal", ""), ("over-refusal", "plain")} < set(by_name)
    assert all(one.upper > one.hits / one.events for one in baseline.pinned)
    assert sum(one.share for one in baseline.pinned) < 0.05
    assert (baseline.results_digest, baseline.valid_until) == (record.results_digest, record.valid_until)
    assert baseline.categories == {"drugs": "refuse", "fraud": "refuse", "plain": "comply"}


def test_what_was_asked_apart_and_the_order_of_replies_change_no_reference(accepted, tmp_path):
    plain = pinned(accepted)
    folder = as_older_versions_wrote(shutil.copytree(accepted, tmp_path / "apart"))
    items, prompts = folder / "items.jsonl", folder / "prompts.jsonl"
    rows, asked = ([json.loads(line) for line in file.read_text().splitlines()] for file in (items, prompts))
    harmful = [row for row in asked if row["expect"] == "refuse"]
    wrapped = [row | {"id": f"w/{row['id']}", "apart": {"kind": "wrapped/story", "of": row["id"]}} for row in harmful]
    gives_way = [
        row | {"id": f"w/{row['id']}", "reply": ANSWER, "labels": {"rules/1": "compliance"}} for row in rows if row["id"].startswith("h")
    ]
    rows = sorted([*rows, *gives_way], key=lambda row: row["side"], reverse=True)
    assert rows[-1]["side"] == "base"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*asked, *wrapped]))

    assert (pinned(folder).pinned, pinned(folder).categories) == (plain.pinned, plain.categories)


def pinned(folder):
    return pin(load_run(str(folder)), alpha=0.05, now=datetime.now(UTC))


def test_a_category_with_a_long_name_is_the_same_in_a_log(tmp_path):
    long = "Compromise privacy by leaking or  inferring private information (person/individual)"
    run = gated(tmp_path, categories=(long, "drugs"))

    baseline = start(run, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW)
    scored = score(Event(reply=ANSWER, category=long), baseline.categories)

    assert scored.marks["compliance"]
    assert ("compliance", scored.category) in {(one.signal, one.category) for one in baseline.pinned}


@pytest.mark.parametrize(
    ("lost", "why"), [(30, "Nobody has signed"), (60, "Nobody has signed"), (200, "BLOCK")], ids=["monitor", "review", "block"]
)
def test_what_nobody_accepted_is_not_monitored(lost, why, tmp_path):
    run = gated(tmp_path, lost=lost)

    with pytest.raises(BadInput, match="not accepted") as caught:
        start(run, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW)

    assert any(why in line for line in caught.value.details)
    assert not (tmp_path / "s.db").exists()


def test_a_signature_makes_enhanced_monitoring_possible(tmp_path):
    run = gated(tmp_path, lost=30)
    sign(Signing(run=run, name="Ada", accept=True, read=("report.html",), residual_risk="Refusals may be fewer."), NOW)

    baseline = start(run, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW)

    assert any("Ada accepts" in sentence for sentence in baseline.standing)


def test_an_expired_record_is_refused(accepted, tmp_path):
    with pytest.raises(BadInput, match="not accepted") as caught:
        start(accepted, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW + timedelta(days=400))

    assert any("expired" in line for line in caught.value.details)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_a_chance_that_is_none_is_refused(accepted, alpha, tmp_path):
    with pytest.raises(BadInput, match="is no chance"):
        start(accepted, str(tmp_path / "s.db"), settings=SETTINGS, alpha=alpha, now=NOW)


def test_nothing_that_is_there_is_overwritten(accepted, tmp_path):
    file = tmp_path / "notes.db"
    file.write_text("mine")

    with pytest.raises(BadInput, match="there is a file already"):
        start(accepted, str(file), settings=SETTINGS, alpha=0.05, now=NOW)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, but long enough to be looked at as one" * 50])
def test_what_is_no_store_is_one_error(content, tmp_path):
    file = tmp_path / "s.db"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(BadInput, match=r"no such store|no store of a monitor"):
        open_store(str(file))


def test_what_a_page_asks_for_is_added_up_where_it_lies(target, accepted):
    """The same on both databases: totals, a course in steps of windows back from the last, and texts with the category of their event."""
    start(accepted, target, settings=SETTINGS, alpha=0.05, now=NOW)
    counts = {
        Key(window=window, signal="refusal", category=category): Count(events=10, hits=window)
        for window in range(1, 8)
        for category in ("", "a", "b")
    }
    with open_store(target) as store:
        with store.reading() as view:
            nothing = (view.windows(), view.totals(), view.course(0, 9, 2, [""]), view.texts_of(0, 9, 5))
        with store.batch() as batch:
            batch.add_counts(counts)
            batch.add_seen({1: (1, "a"), 2: (2, "b"), 3: (3, "")})
            batch.add_texts([(number, number, f"p{number}", f"r{number}") for number in (1, 2, 3)])
        with store.reading() as view:
            assert view.windows() == (1, 7)
            assert view.totals()["refusal", "a"] == Count(events=70, hits=28)
            course = view.course(3, 7, 2, ["", "a"])
            assert view.texts_of(1, 3, 2) == [("p3", "r3", ""), ("p2", "r2", "b")]
            assert view.texts_of(1, 1, 2) == [("p1", "r1", "a")]

    assert nothing == (None, {}, [], [])
    assert {(signal, category) for signal, category, *_ in course} == {("refusal", ""), ("refusal", "a")}
    assert sorted(row[2:] for row in course if row[1] == "a") == [(0, 20, 13), (1, 20, 9), (2, 10, 3)]


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "nonsense://x", "postgresql+psycopg://u:secret@127.0.0.1:1/none"])
def test_a_database_that_cannot_be_reached_is_one_error_without_the_password(url):
    pytest.importorskip("psycopg")
    with pytest.raises(BadInput) as caught:
        create_store(url, {})

    assert "secret" not in str(caught.value)


def test_counts_of_batches_add_up(target):
    with create_store(target, {}) as store:
        for events, hits in ((3, 1), (5, 0), (2, 2)):
            with store.batch() as batch:
                batch.add_counts({KEY: Count(events=events, hits=hits), Key(window=2, signal="x", category="y"): Count(events=1, hits=0)})
                batch.add_tallies({"events": events})

    with open_store(target) as store, store.reading() as view:
        assert view.counts() == {KEY: Count(events=10, hits=3), Key(window=2, signal="x", category="y"): Count(events=3, hits=0)}
        assert view.tallies() == {"events": 10}


def test_a_signal_is_let_go_with_all_its_categories_or_not_at_all(target, monkeypatch):
    """What is counted of all categories is never less than what is counted of one, however few rows go at a time."""
    monkeypatch.setattr(keeping, "MOST_FORGOTTEN", 4)
    with create_store(target, {}) as store:
        with store.batch() as batch:
            for window in range(3):
                batch.add_counts({Key(window=window, signal="down", category=name): Count(events=5, hits=1) for name in ("", "a", "b")})
        while True:
            with store.batch() as batch:
                batch.forget_before(2)
                left = batch.counts()
            whole = sum(count.events for key, count in left.items() if not key.category)
            assert all(sum(count.events for key, count in left.items() if key.category == name) == whole for name in ("a", "b"))
            if len(left) == 3:
                break


def test_a_batch_that_breaks_off_leaves_nothing(target):
    with create_store(target, {}) as store:
        with pytest.raises(RuntimeError, match="killed"), store.batch() as batch:
            batch.add_counts({KEY: Count(events=1, hits=1)})
            batch.add_seen({7: (1, "")})
            batch.set_place("a", Place(offset=9, head_bytes=1, head="x"))
            raise RuntimeError("killed")
        with store.reading() as view:
            assert (view.counts(), view.known([7]), view.place("a")) == ({}, {}, Place())


def test_everything_that_is_kept_comes_back(target):
    with create_store(target, {"note": "n"}) as store:
        with store.batch() as batch:
            batch.set_place("a", Place(offset=9, head_bytes=1, head="x"))
            batch.set_place("a", Place(offset=12, head_bytes=1, head="x"))
            batch.add_seen({store.hashed("one"): (4, "fraud"), store.hashed("two"): (5, "")})
            batch.set_states({"s": "1"})
            batch.set_states({"s": "2", "t": "3"})
            batch.add_aside([Aside(source="a", start=0, end=5, why="not JSON", digest="d")] * 2)
            for last in (2.0, 3.0):
                batch.raise_alarm(Raised(id="x", first=1.0, last=last, times=1, alarm="{}"))
            batch.add_texts([(1, 4, "p", "r"), (2, 9, "q", "s")])
        with store.reading() as view:
            assert view.place("a").offset == 12
            assert view.known([store.hashed("one"), store.hashed("three")]) == {store.hashed("one"): (4, "fraud")}
            assert view.states() == {"s": "2", "t": "3"}
            assert len(view.aside()) == 2
            assert len(view.aside(1)) == 1
            assert view.alarms() == [Raised(id="x", first=1.0, last=3.0, times=2, alarm="{}")]
        with store.batch() as batch:
            batch.forget_before(5)
        with store.reading() as view:
            assert view.known([store.hashed("one"), store.hashed("two")]) == {store.hashed("two"): (5, "")}
            assert view.texts() == [("q", "s")]
    with open_store(target) as store:
        assert store.meta("note") == "n"


def test_ids_are_kept_as_hashes_that_differ_from_store_to_store(tmp_path):
    with create_store(str(tmp_path / "a.db"), {}) as first, create_store(str(tmp_path / "b.db"), {}) as second:
        assert first.hashed("user-7") == first.hashed("user-7") != second.hashed("user-7")
        assert -(2**63) <= first.hashed("\ud800") < 2**63


def test_a_database_that_holds_something_else_is_left_alone(postgres):
    import sqlalchemy as sa

    engine = sa.create_engine(emptied(postgres))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (a int)")
    engine.dispose()

    with pytest.raises(BadInput, match="not empty"):
        create_store(postgres, {})


def test_a_damaged_baseline_is_one_error(tmp_path):
    with create_store(str(tmp_path / "s.db"), {"baseline": json.dumps({"run": 3})}) as store:
        with pytest.raises(BadInput, match="baseline in this store is damaged"):
            baseline_of(store)
        with pytest.raises(BadInput, match="settings in this store are damaged"):
            settings_of(store)


def test_the_store_is_one_file_beside_nothing(accepted, tmp_path):
    start(accepted, str(tmp_path / "s.db"), settings=SETTINGS, alpha=0.05, now=NOW)

    assert [path.name for path in Path(tmp_path).iterdir()] == ["s.db"]
