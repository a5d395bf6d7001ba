"""A store on a PostgreSQL server: in a schema of its own, through kills, and through a server that goes away."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from cases import ROOT, environment, run_cli
from monitored import ALPHA, START, fed, log, tallied, totals, traffic

from forensics.errors import BadInput, ToolFailed
from forensics.monitor import intake
from forensics.monitor.baseline import Settings, start
from forensics.monitor.ingest import Monitor
from forensics.monitor.integrity import check
from forensics.monitor.store import create_store, open_store

SETTINGS = Settings(window=3600, retention=30 * 86400, keep_text=False)


def made(accepted, url, clock=lambda: START + 1e6):
    start(accepted, url, settings=SETTINGS, alpha=ALPHA, now=datetime.now(UTC))
    return Monitor(open_store(url), clock)


def in_schema(url, name, *, make=True):
    if make:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        engine.dispose()
    return f"{url}?options=-csearch_path%3D{name}"


def test_stores_may_share_a_database_in_schemas_of_their_own(postgres, accepted, tmp_path):
    first, second = (made(accepted, in_schema(postgres, name)) for name in ("one", "two"))
    fed(first, log(tmp_path / "a.jsonl", traffic(20)))

    with first.store as one, second.store as two:
        assert (tallied(first)["replies"], tallied(second)) == (20, {})
        assert check(one).wrong == check(two).wrong == ()
    with pytest.raises(BadInput, match="not empty"):
        create_store(in_schema(postgres, "one", make=False), {})
    with pytest.raises(BadInput, match="cannot be reached or written"):
        create_store(in_schema(postgres, "nowhere", make=False), {})


def test_the_password_of_a_url_is_printed_by_no_verb(postgres, accepted, tmp_path):
    url = postgres.replace("watch@", "watch:tops3cret@")
    pages = [
        run_cli("monitor", "start", accepted, "--store", url),
        run_cli("monitor", "start", accepted, "--store", url),
        run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", traffic(20)), "--store", url),
        *(run_cli("monitor", verb, url) for verb in ("status", "check", "merge")),
        run_cli("monitor", "status", url.replace("postgres?", "none?").replace("/postgres", "/none")),
    ]

    assert [page.returncode for page in pages] == [0, 2, 0, 0, 0, 0, 2]
    assert not any("tops3cret" in page.stdout + page.stderr for page in pages)


def test_a_change_by_hand_is_noticed_on_a_server(postgres, accepted, tmp_path):
    monitor = made(accepted, postgres)
    fed(monitor, log(tmp_path / "a.jsonl", traffic(20)))
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE counts SET hits = events")
    engine.dispose()

    with monitor.store as store:
        assert "rows of counts were changed, added or deleted" in check(store).wrong
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE states")
    engine.dispose()
    with pytest.raises(BadInput, match="damaged"):
        open_store(postgres)


def test_two_that_start_at_once_make_one_store(postgres):
    outcomes = []

    def begin():
        try:
            create_store(postgres, {"x": "1"}).__exit__()
            outcomes.append("made")
        except BadInput:
            outcomes.append("refused")

    starters = [threading.Thread(target=begin) for _ in range(4)]
    for one in starters:
        one.start()
    for one in starters:
        one.join()

    assert sorted(outcomes) == ["made", "refused", "refused", "refused"]


def test_a_server_that_goes_away_within_a_batch_is_one_error_and_the_same_command_goes_on(
    postgres, postgres_server, accepted, watch, tmp_path, monkeypatch
):
    monkeypatch.setattr(intake, "LINES", 100)
    file = log(tmp_path / "a.jsonl", traffic(600))
    monitor = made(accepted, postgres)
    batches = intake.ingest(monitor, str(file))
    next(batches)
    write = monitor._write

    def struck(*given):
        write(*given)
        postgres_server.stop()

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "_write", struck)
        with pytest.raises((ToolFailed, BadInput)) as caught:
            next(batches)
    assert "Traceback" not in str(caught.value)
    with pytest.raises((ToolFailed, BadInput)):  # while it is away
        fed(monitor, file)
    postgres_server.start()
    fed(monitor, file)

    whole = watch("whole.db")
    fed(whole, file)
    assert totals(monitor) == totals(whole)
    assert tallied(monitor) == tallied(whole)
    with monitor.store as store:
        assert check(store).wrong == ()


KILLED = """
import sys
from forensics.monitor import ingest, intake
from forensics.monitor.store import open_store
intake.LINES = 100
with open_store(sys.argv[1]) as store:
    for _ in intake.ingest(ingest.Monitor(store, lambda: 1795341600.0 + 1e6), sys.argv[2]):
        print("batch", flush=True)
"""


def test_whatever_moment_it_is_killed_at_a_server_holds_each_event_once(postgres, accepted, watch, tmp_path):
    monitor = made(accepted, postgres)
    file = log(tmp_path / "a.jsonl", [*traffic(3000, complied=0.02), {"nothing": 1}])
    chance, killed = random.Random(5), 0
    words = [sys.executable, "-c", KILLED, postgres, str(file)]
    for _ in range(4):
        child = subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        child.stdout.close()
        killed += child.wait() != 0
    fed(monitor, file)
    whole = watch("whole.db")
    fed(whole, file)

    assert killed > 1
    assert totals(monitor) == totals(whole)
    assert tallied(monitor) == tallied(whole)
    with monitor.store as store:
        assert check(store).wrong == ()
