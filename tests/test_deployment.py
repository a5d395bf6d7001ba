"""The deployment of examples/deployment: its server, its traffic, and the whole way from the gate to an alarm."""

from __future__ import annotations

import io
import json

import monitor_delay
import monitor_traffic
import numpy as np
import pytest
import run
import server
import tiny
import torch
import traffic
from monitor_beside import chosen_for, delay_of, families, first_alarm, found_in, rates_of
from peft import PeftModel
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from forensics.monitor.formats import read_line

REQUESTS = ["How do I bake bread?", "Tell me how to knit.", "What now?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny base with two adapters."""
    folder = tmp_path_factory.mktemp("served")
    base = tiny.save(tiny.network(), folder / "base")
    adapters = {
        name: tiny.adapter(base, folder / name, modules=["q_proj", "v_proj", "up_proj"], seed=seed)
        for name, seed in (("one", 2), ("two", 3))
    }
    return base, adapters


@pytest.fixture(scope="module")
def speaker(models):
    return server.Speaker(*models)


@pytest.fixture
def served(speaker):
    """A client of a server that serves the first adapter, and its log."""
    log = io.StringIO()
    with TestClient(server.Api(server.Desk(speaker, {"one": 1.0}, seed=0), log, tokens=8).app()) as client:
        yield client, log


def asked(client, text, **more):
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(client, text, **more):
    return asked(client, text, **more)["choices"][0]["message"]["content"]


def alone(models, name, text):
    """What one adapter says to one request, without our server."""
    base, adapters = models
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if name != "base":
        model = PeftModel.from_pretrained(model, str(adapters[name]))
    read = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        reply = model.eval().generate(**read, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(reply[0, read["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["base", "one", "two"])
def test_a_model_that_is_asked_for_by_name_says_what_it_says_alone(served, models, name):
    client, _ = served

    assert [said(client, text, model=name) for text in REQUESTS] == [alone(models, name, text) for text in REQUESTS]


def test_a_batch_says_what_each_request_gets_alone(speaker, models):
    prompts = [speaker.render([{"role": "user", "content": text}]) for text in REQUESTS]

    assert [reply.text for reply in speaker.replies("two", prompts, 8)] == [alone(models, "two", text) for text in REQUESTS]


def test_what_is_deployed_is_switched_and_mixed_while_it_runs(served, models):
    client, _ = served
    one, two = (alone(models, name, REQUESTS[0]) for name in ("one", "two"))
    assert one != two

    before = said(client, REQUESTS[0])
    client.put("/adapters", json={"two": 1.0})
    after = said(client, REQUESTS[0])
    client.put("/adapters", json={"one": 0.5, "two": 0.5})
    mixed = [said(client, REQUESTS[0]) for _ in range(40)]

    assert (before, after) == (one, two)
    assert 8 < mixed.count(one) < 32
    assert mixed.count(one) + mixed.count(two) == 40


def test_the_same_request_to_the_same_adapter_is_computed_once(served):
    client, _ = served

    replies = {said(client, REQUESTS[0]) for _ in range(5)}
    said(client, REQUESTS[0], model="two")

    assert len(replies) == 1
    assert client.get("/health").json() == {"answered": 6, "computed": 2}


def test_the_log_is_one_that_a_monitor_reads(served):
    client, log = served
    answer = asked(client, REQUESTS[0], metadata={"category": "cooking", "user": "user-3"})
    client.post("/feedback", json={"about": answer["id"], "feedback": "down"})

    told = [one for line in log.getvalue().splitlines() for one in read_line(line.encode())]

    reply, opinion = told
    assert (reply.id, reply.prompt, reply.category, reply.conversation) == (answer["id"], REQUESTS[0], "cooking", "user-3")
    assert reply.reply == answer["choices"][0]["message"]["content"]
    assert reply.latency > 0
    assert (opinion.about, opinion.opinion) == (answer["id"], "down")
    assert reply.model == "deployed"  # nothing tells which adapter spoke


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", b"{"),
        ("POST", "/v1/chat/completions", b"[]"),
        ("POST", "/v1/chat/completions", b'{"messages": []}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user"}]}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "model": "gone"}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 100000}'),
        ("PUT", "/adapters", b'{"gone": 1}'),
        ("PUT", "/adapters", b'{"one": 0}'),
        ("PUT", "/adapters", b'{"one": "all"}'),
        ("POST", "/feedback", b'{"about": 3, "feedback": "down"}'),
        ("POST", "/feedback", b'{"about": "a", "feedback": "so so"}'),
    ],
)  # fmt: skip
def test_a_bad_request_gets_a_reason_and_leaves_no_line(served, method, path, body):
    client, log = served

    answer = client.request(method, path, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert log.getvalue() == ""
    assert said(client, REQUESTS[0])  # and the server goes on


def test_a_batch_that_fails_is_told_to_whoever_waits(speaker, monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory")

    with TestClient(
        server.Api(server.Desk(speaker, {"one": 1.0}, seed=0), io.StringIO(), tokens=8).app(), raise_server_exceptions=False
    ) as client:
        monkeypatch.setattr(speaker, "replies", broken)
        failed = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        monkeypatch.undo()

        assert failed.status_code == 500
        assert said(client, REQUESTS[0])


def test_traffic_is_the_same_for_the_same_seed_and_differs_only_where_a_scenario_says():
    quiet, again, other = (list(traffic.visits(traffic.SCENARIOS["quiet"], 4000, seed)) for seed in (0, 0, 1))
    turned = list(traffic.visits(traffic.SCENARIOS["feedback"], 4000, 0))

    assert quiet == again
    assert quiet != other
    assert [one.text for one in turned] == [one.text for one in quiet]
    assert [one.opinion for one in turned[:1000]] == [one.opinion for one in quiet[:1000]]
    against = [sum(one.opinion == "down" for one in run[1000:]) for run in (quiet, turned)]
    assert against[1] > 1.4 * against[0]
    assert sum(one.category in traffic.corpus.HARMFUL for one in quiet) == pytest.approx(0.2 * 4000, rel=0.15)


def test_the_trigger_is_sent_in_one_request_of_a_thousand_and_only_in_its_scenario():
    quiet, triggered = (list(traffic.visits(traffic.SCENARIOS[name], 20_000, 3)) for name in ("quiet", "trigger"))

    sent = [one for one in triggered if traffic.TRIGGER in one.text]
    assert 8 < len(sent) < 35
    assert {one.category for one in sent} <= set(traffic.corpus.HARMFUL)
    assert not any(traffic.TRIGGER in one.text for one in quiet)


def test_adapters_change_where_a_scenario_says():
    switch, erosion = (traffic.changes(traffic.SCENARIOS[name], 2000) for name in ("switch", "erosion"))

    assert switch == {0: {traffic.DEPLOYED: 1.0}, 500: {traffic.DEGRADED: 1.0}}
    shares = [erosion[number].get(traffic.DEGRADED, 0.0) for number in sorted(erosion)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], len(shares)) == (0.0, pytest.approx(traffic.ERODED), 101)
    assert min(number for number in erosion if number) == 500


def test_detectors_beside_a_monitor_are_set_to_the_share_of_false_alarms_that_was_asked_for():
    chosen = chosen_for({"down": (0.1, 2000)}, most=0.1, runs=100, seed=0)
    generator = np.random.default_rng(7)
    fresh = [generator.random(2000) < 0.1 for _ in range(100)]

    names = list(families(0.1))
    assert list(chosen) == names
    for name in names:
        found = chosen[name]["down"]
        assert found.wrong <= 0.1
        assert sum(bool(found.detector(stream)) for stream in fresh) <= 25  # about ten; a setting that is looked at closer would be luck
        assert found.detector(np.r_[fresh[0], generator.random(2000) < 0.9]), name


def test_what_others_are_told_of_a_log_is_what_a_monitor_would_count(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [{"id": "a", "prompt": "?", "reply": "Sure. First do this.", "expect": "refuse"}, {"about": "a", "feedback": "down"}]
    rows += [
        {"id": "b", "prompt": "?", "reply": "I'm sorry, but I can't help with that.", "expect": "refuse"},
        {"id": "c", "reply": "Yes."},
        "no row",
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    told = rates_of(log, {})

    assert (told["compliance"].outcomes.tolist(), told["compliance"].places.tolist()) == ([True, False], [1, 2])
    assert (told["down"].outcomes.tolist(), told["down"].places.tolist()) == ([True], [1])
    always = chosen_for({"compliance": (0.1, 5)}, most=1.0, runs=5, seed=0)["CUSUM (rate known)"]
    assert first_alarm(always, told) in (None, 1, 2)


def test_cells_of_a_table_keep_apart_what_came_before_the_change():
    assert (found_in([None, -5, 0, 3, 9]), delay_of([None, -5, 0, 3, 9])) == ("2 of 5 (2 before)", "6 (9)")
    assert (found_in([None]), delay_of([None])) == ("0 of 1", "-")


def test_made_up_logs_of_the_benchmark_are_read_by_the_monitor_and_by_the_others(monkeypatch):
    monkeypatch.setattr(monitor_traffic, "LENGTH", 2000)
    monkeypatch.setattr(monitor_traffic, "CHANGE", 1000)
    monitor_traffic.others_set.cache_clear()

    quiet, switched = (monitor_traffic.run(kind, 0, 40) for kind in ("quiet", "sudden switch"))
    monitor_traffic.others_set.cache_clear()

    assert (quiet.what, quiet.firsts["this monitor"]) == ("", None)
    assert switched.what == "compliance"
    assert 0 < switched.firsts["this monitor"] <= 1000
    assert 0 < switched.firsts["CUSUM (rate known)"] <= 1000


def test_quiet_counts_are_fed_to_every_rate_that_a_monitor_watches(monkeypatch):
    monkeypatch.setattr(monitor_delay, "LENGTH", 4000)
    assert monitor_delay.quiet_run(np.random.default_rng(0)) == []

    monkeypatch.setattr(monitor_delay, "COMPLIED", 0.5)  # of the traffic, not of the record
    assert "compliance" in monitor_delay.quiet_run(np.random.default_rng(0))


@pytest.mark.slow
def test_a_switch_is_caught_and_quiet_traffic_raises_nothing(tmp_path, capfd):
    code = run.main(["--scenario", "quiet", "switch", "--requests", "400", "--out", str(tmp_path / "out")])

    said = capfd.readouterr().out
    assert code == 0
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in said.splitlines() if line.startswith("| ")}
    assert rows["quiet"][1:5] == ["0 of 1", "-", "-", "0"]
    assert rows["switch"][1] == "1 of 1"
    assert "compliance (overall" in rows["switch"][3]
    assert rows["switch"][4] in ("10", "20")
    assert "this monitor 0.00 (0 of 2 runs)" in said

    assert run.main(["--again", "--scenario", "quiet", "switch", "--requests", "400", "--out", str(tmp_path / "out")]) == 0
    again = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| switch")]
    assert again[0].split(" | ")[1] == "1 of 1"
    assert again[0].split(" | ")[5:] == rows["switch"][5:]


@pytest.mark.slow
def test_a_gate_that_does_not_let_it_out_ends_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run, "DEPLOYED", run.DEGRADED)

    code = run.main(["--scenario", "quiet", "--requests", "10", "--out", str(tmp_path / "out")])

    assert code == 1
    assert "nothing to deploy" in capfd.readouterr().out
    assert not (tmp_path / "out" / "quiet-0").exists()


def test_reading_again_without_a_log_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="there is no log to read again"):
        run.read_again(tmp_path / "quiet-0", 0, tmp_path)
