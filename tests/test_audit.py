"""The conductor: which configurations are examined, what is written, and what survives a breakdown or a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import tiny
import torch
from cases import (
    ORGANISMS,
    audit,
    command,
    environment,
    grown,
    read_rows,
    reconfigured,
    restacked,
    reweighted,
    some_prompts,
    tiny_prompts,
)

from forensics.checks import all_checks
from forensics.errors import BadInput, CannotCompare, ToolFailed
from forensics.gate.replies import Decoding
from forensics.model import LiveModel
from forensics.record import Action, AuditRecord, Item, Status, canonical_json, sha256_text
from forensics.runfolder import load_record, load_run

CHECKS = [check.id for check in all_checks() if not check.by_controls]
CHEAP = ("files.surface", "weights.change")
KILLS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny base, a candidate that moved, and two adapters called a and b."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny.save(tiny.network(), folder / "base")
    return {
        "base": base,
        "moved": tiny.nudge(base, folder / "moved"),
        "a": tiny.adapter(base, folder / "a", modules=["q_proj"], seed=1),
        "b": tiny.adapter(base, folder / "b", modules=["v_proj"], seed=2),
        "prompts": tiny_prompts(folder / "prompts.jsonl"),
    }


@pytest.mark.parametrize(
    ("candidate", "adapters", "expected"),
    [
        ("moved", (), ["candidate"]),
        ("a", (), ["adapter:a"]),
        ("moved", ("a",), ["candidate", "adapter:a"]),
        ("moved", ("a", "b"), ["candidate", "adapter:a", "adapter:b", "adapter:a+b"]),
        ("a", ("b",), ["adapter:a", "adapter:b", "adapter:a+b"]),
    ],
)
def test_each_configuration_is_examined_by_every_check(candidate, adapters, expected, models, tmp_path):
    put_on = tuple(str(models[name]) for name in adapters)

    record = audit(models["base"], models[candidate], tmp_path / "run", prompts=models["prompts"], adapters=put_on)

    assert list(record.verdict.by_configuration) == expected
    assert [(one.configuration, one.check) for one in record.results] == [(name, check) for name in expected for check in CHECKS]
    assert [source.name for source in record.candidate.adapters] == ([candidate] if candidate in "ab" else []) + list(adapters)


def test_adapters_weigh_differently_alone_and_together(models, tmp_path):
    put_on = tuple(str(models[name]) for name in "ab")

    record = audit(models["base"], models["base"], tmp_path / "run", adapters=put_on, max_cost="weights")

    size = {one.configuration: one.find("edit.relative_change").value for one in record.results if one.check == "weights.change"}
    assert size["candidate"] == 0.0
    assert 0.0 < size["adapter:a"] != size["adapter:b"] > 0.0
    # They change different matrices, so their squares add up.
    assert size["adapter:a+b"] ** 2 == pytest.approx(size["adapter:a"] ** 2 + size["adapter:b"] ** 2, rel=1e-6)


def more_bias(tensors):
    for layer in range(2):
        tensors.update(
            {f"model.layers.{layer}.mlp.{name}.bias": torch.ones(n) for name, n in (("up_proj", 64), ("gate_proj", 64), ("down_proj", 32))}
        )


OTHERWISE_BUILT = {
    "grown vocabulary": lambda base, target: grown(base, target, 300),
    "shrunk vocabulary": lambda base, target: grown(base, target, 259),
    "layer twice": lambda base, target: restacked(base, target, (0, 0, 1), noise=0.01),
    "layer less": lambda base, target: restacked(base, target, (1,), noise=0.01),
    "layers swapped": lambda base, target: restacked(base, target, (1, 0), noise=0.01),
    "biases": lambda base, target: reconfigured(reweighted(base, target, more_bias), mlp_bias=True),
    "biases that nobody reads": lambda base, target: reweighted(base, target, more_bias),
}


@pytest.mark.parametrize("build", OTHERWISE_BUILT.values(), ids=list(OTHERWISE_BUILT))
def test_a_candidate_that_is_otherwise_built_is_examined_to_the_end(build, models, tmp_path):
    prompts = tiny_prompts(tmp_path / "prompts.jsonl", 12)

    record = audit(models["base"], build(models["base"], tmp_path / "candidate"), tmp_path / "run", prompts=prompts)

    assert [one.check for one in record.results] == CHECKS
    status = {one.check: one.status for one in record.results}
    assert Status.ERROR not in status.values()
    assert status["weights.change"] is status["activations.drift"] is Status.NO_FINDING
    items = [Item.model_validate(row) for row in read_rows(tmp_path / "run" / "items.jsonl")]
    assert sum(item.side == "candidate" for item in items) == 12


def test_a_vocabulary_cut_below_its_tokenizer_is_told_and_breaks_nothing(models, tmp_path):
    candidate = grown(models["base"], tmp_path / "candidate", 200)

    record = audit(models["base"], candidate, tmp_path / "run", prompts=tiny_prompts(tmp_path / "prompts.jsonl", 12))

    assert Status.ERROR not in {one.status for one in record.results}
    items = [Item.model_validate(row) for row in read_rows(tmp_path / "run" / "items.jsonl")]
    assert all("of 200 that it has an embedding for" in item.reply for item in items if item.side == "candidate")


def test_a_candidate_whose_files_lack_weights_is_weighed_but_not_run(models, tmp_path):
    candidate = reweighted(models["base"], tmp_path / "candidate", lambda tensors: tensors.pop("lm_head.weight"))

    record = audit(models["base"], candidate, tmp_path / "run", prompts=tiny_prompts(tmp_path / "prompts.jsonl", 12))

    by_check = {one.check: one for one in record.results}
    assert [finding.label for finding in by_check["weights.change"].findings] == ["tensors-removed"]
    assert by_check["behaviour.refusal"].status is Status.INCONCLUSIVE
    assert "1 weights of this model are not in its files" in by_check["behaviour.refusal"].reason
    assert record.verdict.exit_code == 3


def test_two_adapters_of_one_name_are_told_apart(models, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tiny.adapter(models["base"], tmp_path / "other" / "a", modules=["v_proj"])

    record = audit(models["base"], models["a"], tmp_path / "run", adapters=(str(twin),), max_cost="files")

    assert list(record.verdict.by_configuration) == ["adapter:a", "adapter:a-2", "adapter:a+a-2"]


def test_the_record_follows_the_contract(models, tmp_path):
    run = tmp_path / "run"

    record = audit(models["base"], models["moved"], run, prompts=models["prompts"])

    raw = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    assert set(raw) == {
        "schema", "tool", "created", "valid_until", "base", "candidate", "prompts", "policy", "seed", "settings", "versions",
        "results", "verdict", "limits", "pending", "results_digest", "contents",
    }  # fmt: skip
    assert raw["schema"] == "forensics.audit/1"
    assert set(raw["base"]) == {"path", "digest"}
    assert set(raw["candidate"]) == {"path", "digest", "adapters", "files"}
    assert sha256_text(canonical_json(raw["candidate"]["files"])) == raw["candidate"]["digest"]
    assert raw["contents"]["items"] == 12
    assert set(raw["verdict"]) == {"action", "exit_code", "rules", "by_configuration"}
    assert set(raw["verdict"]["rules"][0]) >= {"id", "sentence", "action", "evidence"}
    assert {"check", "configuration", "status", "reason", "findings", "evidence"} <= set(raw["results"][0])
    evidence = {"name", "value", "unit", "where", "expected", "n", "low", "high"}
    assert all(set(item) == evidence for one in raw["results"] for item in one["evidence"])
    finding = {"id", "check", "label", "severity", "confidence", "claim", "level", "evidence"}
    assert all(set(one) == finding for row in raw["results"] for one in row["findings"])
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    arrays = {f"arrays/{check}.npz" for check in CHECKS}
    caches = {name for name in written if name.startswith("cache/") or name == "cache"}
    assert written - arrays - caches == {".lock", "audit.json", "items.jsonl", "journal.jsonl", "prompts.jsonl", "people/review.jsonl"}
    assert "arrays/weights.change.npz" in written
    assert load_record(str(run)) == record
    items = [Item.model_validate(row) for row in read_rows(run / "items.jsonl")]
    assert [(item.side, item.configuration) for item in items] == [("base", "base")] * 6 + [("candidate", "candidate")] * 6


def test_two_audits_of_the_same_say_the_same_wherever_they_lie(models, tmp_path):
    one, other = (audit(models["base"], models["moved"], tmp_path / name, prompts=models["prompts"]) for name in ("one", "other"))

    assert one.results_digest == other.results_digest


def test_a_record_that_was_edited_is_refused(models, tmp_path):
    audit(models["base"], models["moved"], tmp_path / "run", max_cost="files")
    file = tmp_path / "run" / "audit.json"
    text = file.read_text(encoding="utf-8")

    AuditRecord.from_json(text, where="here")
    with pytest.raises(BadInput, match="results_digest"):
        AuditRecord.from_json(text.replace('"value": 0.0', '"value": 7.0', 1), where="here")


def breaking(monkeypatch, error, check="files.surface"):
    """Let one check raise `error`."""

    def run(_case):
        raise error

    broken = tuple(replace(one, run=run) if one.id == check else one for one in all_checks())
    monkeypatch.setattr("forensics.audit.all_checks", lambda: broken)


def test_a_check_that_breaks_down_is_an_error_with_its_traceback_and_the_others_go_on(models, tmp_path, monkeypatch):
    breaking(monkeypatch, ZeroDivisionError("by nothing"))

    record = audit(models["base"], models["moved"], tmp_path / "run", only=CHEAP)

    broken, whole = record.results
    assert (broken.status, whole.status) == (Status.ERROR, Status.NO_FINDING)
    assert "ZeroDivisionError" in broken.reason
    assert "ZeroDivisionError: by nothing" in broken.traceback
    assert (record.verdict.action, record.verdict.exit_code) == (Action.INCONCLUSIVE, 3)
    assert any("files.surface did not look" in limit for limit in record.limits)


def test_a_check_that_can_explain_itself_is_inconclusive(models, tmp_path, monkeypatch):
    breaking(monkeypatch, CannotCompare("the moon is full", where="/secret/path", hint="wait"))

    record = audit(models["base"], models["moved"], tmp_path / "run", max_cost="weights")

    assert (record.results[0].status, record.results[0].reason) == (Status.INCONCLUSIVE, "the moon is full")
    assert record.results[0].traceback == ""
    assert record.verdict.exit_code == 3


@pytest.mark.parametrize("error", [ToolFailed("the disk is full", where="x", hint="y"), MemoryError()])
def test_a_machine_that_fails_says_nothing_about_the_candidate_and_the_run_resumes(error, models, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ToolFailed):
        breaking(patch, error, check="weights.change")
        audit(models["base"], models["moved"], tmp_path / "run", only=CHEAP)
    assert not (tmp_path / "run" / "audit.json").exists()

    record = audit(models["base"], models["moved"], tmp_path / "run", only=CHEAP)

    assert [one.status for one in record.results] == [Status.NO_FINDING] * 2


def test_a_finished_run_is_read_and_nothing_is_redone(models, tmp_path, monkeypatch):
    given = {"prompts": models["prompts"], "adapters": (str(models["a"]),)}
    first = audit(models["base"], models["moved"], tmp_path / "run", **given)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}

    def never(*_arguments, **_options):
        raise AssertionError("a model was opened again")

    monkeypatch.setattr("forensics.model.open_model", never)
    monkeypatch.setattr("forensics.audit.guarded", never)
    again = audit(models["base"], models["moved"], tmp_path / "run", **given)

    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_replies_that_a_run_holds_are_not_asked_again(models, tmp_path, monkeypatch):
    def fail(_case):
        raise ToolFailed("stop here", where="x", hint="y")

    first = audit(models["base"], models["moved"], tmp_path / "whole", prompts=models["prompts"])
    with monkeypatch.context() as patch, pytest.raises(ToolFailed):
        patch.setattr("forensics.checks.behaviour_refusal.compare", lambda *_: fail(None))
        audit(models["base"], models["moved"], tmp_path / "run", prompts=models["prompts"])
    assert len(read_rows(tmp_path / "run" / "items.jsonl")) == 12

    monkeypatch.setattr("forensics.model.open_model", fail)
    again = audit(models["base"], models["moved"], tmp_path / "run", prompts=models["prompts"])

    assert again.results_digest == first.results_digest


@pytest.mark.parametrize("torn", [False, True], ids=["between-batches", "within-a-batch"])
def test_at_most_the_batch_in_flight_is_asked_again(torn, models, tmp_path, monkeypatch):
    given = {
        "prompts": tiny_prompts(tmp_path / "prompts.jsonl", 12),
        "decoding": Decoding(max_new_tokens=4, batch_size=3),
        "only": ("behaviour.refusal",),
    }
    whole = audit(models["base"], models["moved"], tmp_path / "whole", **given)
    reply, batches = LiveModel.reply, []

    def counted(model, rendered, **options):
        if len(batches) == 6:  # of 4 of the base and 4 of the candidate
            raise ToolFailed("the power is gone", where="x", hint="y")
        batches.append([row.ids for row in rendered])
        return reply(model, rendered, **options)

    with monkeypatch.context() as patch, pytest.raises(ToolFailed):
        patch.setattr(LiveModel, "reply", counted)
        audit(models["base"], models["moved"], tmp_path / "run", **given)
    items = tmp_path / "run" / "items.jsonl"
    if torn:
        items.write_bytes(items.read_bytes()[:-5])
    before, batches[:] = list(batches), []
    monkeypatch.setattr(LiveModel, "reply", counted)
    again = audit(models["base"], models["moved"], tmp_path / "run", **given)

    assert len(before) == 6
    assert len(batches) == (3 if torn else 2)
    assert batches[0] == (before[5] if torn else before[2])  # the candidate's prompts are the base's, in the same batches
    assert again.results_digest == whole.results_digest
    assert len(read_rows(items)) == 24


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_cost": "weights"}, {"only": ("files.surface",)}])
def test_a_folder_of_another_audit_is_left_alone(change, models, tmp_path):
    audit(models["base"], models["moved"], tmp_path / "run", max_cost="files")
    text = (tmp_path / "run" / "audit.json").read_text(encoding="utf-8")

    with pytest.raises(BadInput, match="holds another audit"):
        audit(models["base"], models["moved"], tmp_path / "run", **({"max_cost": "files"} | change))
    assert (tmp_path / "run" / "audit.json").read_text(encoding="utf-8") == text


# --- kills --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_audit(tmp_path_factory):
    """An audit of many small batches, in this process and as a command, and what it says when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("kills")
    prompts = some_prompts(folder / "prompts.jsonl", refuse=96, comply=48, talks=8)
    sides = ORGANISMS / "base", ORGANISMS / "degraded"

    def words(out):
        return command("audit", *sides, "--prompts", prompts, "--batch-size", 4, "--device", "cpu", "--quiet", "--out", out)

    undisturbed = subprocess.run(words(folder / "undisturbed"), env=environment(), check=False, cwd=folder)
    assert undisturbed.returncode == 20
    return folder, words, load_run(str(folder / "undisturbed"))


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(words, cwd):
    return subprocess.Popen(words, env=environment(), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(true, process, seconds=120.0):
    """Wait until `true()`; returns False if the process ended before."""
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
    return True


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(long_audit):
    folder, words, undisturbed = long_audit
    run, chance = folder / "killed", random.Random(7)
    # The first kill may hit a run that holds nothing yet; the others come after some more replies.
    for kill in range(KILLS):
        process = start(words(run), folder)
        held = lines(run / "items.jsonl")
        more = 0 if kill == 0 else chance.randint(1, 60)
        alive = wait_until(
            lambda held=held, more=more: (run / "journal.jsonl").exists() and lines(run / "items.jsonl") >= held + more, process
        )
        assert alive, "the audit ended before it could be killed: ask it more"
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = whole_lines(run / "items.jsonl"), whole_lines(run / "journal.jsonl")
        assert not (run / "audit.json").exists()

        # What was on disk when it was killed is a beginning of what is there in the end.
        assert whole_lines(folder / "undisturbed" / "items.jsonl").startswith(kept[0])

    last = subprocess.run(words(run), env=environment(), cwd=folder, check=False)

    assert last.returncode == 20
    saved = load_run(str(run))
    assert saved.record.results_digest == undisturbed.record.results_digest
    assert saved.items == undisturbed.items
    assert (run / "items.jsonl").read_bytes().startswith(kept[0])
    assert (run / "journal.jsonl").read_bytes().startswith(kept[1])
    keys = [(item.side, item.configuration, item.id, item.repeat) for item in saved.items]
    assert len(keys) == len(set(keys)) == 2 * (96 + 48 + 8)
    results = [(row["result"]["configuration"], row["result"]["check"]) for row in read_rows(run / "journal.jsonl")[1:]]
    assert results == [("adapter:degraded", check) for check in CHECKS]
    assert not list(run.rglob("*.partial"))


def whole_lines(path):
    text = path.read_bytes() if path.exists() else b""
    return text[: text.rfind(b"\n") + 1]


@pytest.mark.slow
def test_two_processes_do_not_write_to_one_folder(long_audit):
    folder, words, undisturbed = long_audit
    run = folder / "shared"
    first = start(words(run), folder)
    assert wait_until(lambda: (run / "journal.jsonl").exists(), first)

    os.kill(first.pid, signal.SIGSTOP)  # so that the first one is certainly not done when the second one comes
    second = subprocess.run(words(run), env=environment(), cwd=folder, capture_output=True, text=True, check=False)
    os.kill(first.pid, signal.SIGCONT)
    first.communicate()

    assert (second.returncode, first.returncode) == (2, 20)
    assert "another audit is writing to this folder" in second.stderr
    assert load_run(str(run)).items == undisturbed.items
