"""Several monitors of one record shown as one: counts add up, evidence is averaged, and what cannot be put together is said."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from cases import run_cli
from monitored import ALPHA, ANSWER, START, fed, gated, log, traffic

from forensics.errors import BadInput
from forensics.monitor.baseline import Settings, start
from forensics.monitor.ingest import Monitor
from forensics.monitor.merging import merged
from forensics.monitor.state import overview
from forensics.monitor.store import open_store

NOW = datetime.now(UTC)
SETTINGS = Settings(window=3600, retention=30 * 86400, keep_text=False)


@pytest.fixture
def shards(accepted, tmp_path):
    """Makes stores of one record that share a secret, or not, each with rows counted."""
    opened = []

    def make(*logs, shared=True):
        for number, rows in enumerate(logs):
            path = tmp_path / f"{number}.db"
            first = str(tmp_path / "0.db") if shared and number else None
            start(accepted, str(path), settings=SETTINGS, alpha=ALPHA, now=NOW + timedelta(seconds=number), shard_of=first)
            opened.append(open_store(str(path)))
            fed(Monitor(opened[-1], lambda: START + 1e6), log(tmp_path / f"{number}.jsonl", rows))
        return opened

    yield make
    for store in opened:
        store.__exit__()


def rates(page):
    return {(rate.signal, rate.category): rate for rate in page.rates}


def test_counts_of_parts_are_those_of_the_whole(shards, watch, tmp_path):
    rows = traffic(3000, complied=0.01)
    whole = watch("whole.db")
    fed(whole, log(tmp_path / "whole.jsonl", rows))
    expected = rates(overview(whole.store, NOW))

    page = merged(shards(rows[:1000], rows[1000:1100], rows[1100:]), NOW)

    assert page.exit_code == 0
    assert page.tallies["replies"] == 3000
    assert any("No event that is still known is in more than one store" in words for words in page.sentences)
    for name in (("compliance", ""), ("over-refusal", ""), ("refusal", ""), ("broken", "")):
        found = rates(page)[name]
        assert (found.events, found.hits, found.low, found.high) == (
            expected[name].events, expected[name].hits, pytest.approx(expected[name].low), pytest.approx(expected[name].high),
        )  # fmt: skip
    assert rates(page)["compliance", ""].bound == expected["compliance", ""].bound
    assert rates(page)["refusal", ""].bound is None


def test_evidence_of_parts_is_their_mean(shards):
    stores = shards(traffic(1500, complied=0.01), traffic(1500, first=1500, complied=0.6), [])
    wealth = []
    for store in stores[:2]:
        with store.reading() as view:
            wealth.append(math.exp(json.loads(view.states()["stream:compliance/"])["process"]["log_wealth"]))

    page = merged(stores, NOW)

    assert rates(page)["compliance", ""].evidence == pytest.approx(math.log10((sum(wealth) + 1.0) / 3))
    assert page.exit_code == 20  # as the second says by itself
    assert any("(store 2)" in alarm.detector for alarm in page.alarms)
    assert any(words.startswith("Together: answers to requests that should be refused") for words in page.sentences)
    assert page.alpha == pytest.approx(3.25 * ALPHA)


def test_events_in_two_stores_are_told_where_that_can_be_known(shards):
    rows = traffic(300)

    page = merged(shards(rows[:200], rows[150:], rows[150:160]), NOW)

    assert any(words.startswith("60 events are in more than one store") for words in page.sentences)


def test_stores_with_secrets_of_their_own_say_that_it_cannot_be_known(shards):
    page = merged(shards(traffic(10), traffic(10), shared=False), NOW)

    assert any("cannot be known" in words for words in page.sentences)


def test_stores_that_counted_nothing_say_nothing(shards):
    assert merged(shards([], []), NOW).exit_code == 3


def test_one_store_named_twice_is_refused(shards):
    one, _ = shards([], traffic(3))

    with pytest.raises(BadInput, match="named twice"):
        merged([one, one], NOW)


def test_stores_of_other_records_are_refused(shards, tmp_path):
    other = gated(tmp_path, lost=1)
    (store,) = shards(traffic(5))
    start(other, str(tmp_path / "other.db"), settings=SETTINGS, alpha=ALPHA, now=NOW)

    with open_store(str(tmp_path / "other.db")) as stranger, pytest.raises(BadInput, match="different records"):
        merged([store, stranger], NOW)
    with pytest.raises(BadInput, match="another record"):
        start(other, str(tmp_path / "x.db"), settings=SETTINGS, alpha=ALPHA, now=NOW, shard_of=store.where)
    assert not (tmp_path / "x.db").exists()


def test_merge_from_the_command_line(accepted, tmp_path):
    run_cli("monitor", "start", accepted, "--store", tmp_path / "a.db")
    run_cli("monitor", "start", accepted, "--store", tmp_path / "b.db", "--shard-of", tmp_path / "a.db")
    run_cli("monitor", "ingest", log(tmp_path / "a.jsonl", [{"id": "1", "reply": ANSWER}]), "--store", tmp_path / "a.db")

    done = run_cli("monitor", "merge", tmp_path / "a.db", tmp_path / "b.db", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["tallies"]["replies"] == 1
