"""Many candidates against one base: the records that an audit writes, in one table, whatever happens to some of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import jsonschema
import pytest
import tiny
from cases import ROOT, audit, command, environment, run_cli, tiny_prompts
from sweeping import SHORT, family, items, swept, untimed

from forensics import audit as conductor
from forensics import checkpoint, model
from forensics.errors import BadInput
from forensics.policy import load_policy
from forensics.record import Action
from forensics.swept import SweepFolder, load_sweep, schema_text


@pytest.fixture(scope="module")
def kin(tmp_path_factory):
    return family(tmp_path_factory.mktemp("kin"))


@pytest.fixture(scope="module")
def made(kin, tmp_path_factory):
    """A sweep of three adapters, a full model, and a folder that holds half of one."""
    folder = tmp_path_factory.mktemp("made")
    tiny.nudge(kin / "base", folder / "tuned")
    shutil.copytree(kin / "adapters" / "a0", folder / "torn")
    (folder / "torn" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    return swept(kin / "base", [kin / "adapters", folder / "torn", folder / "tuned"], folder / "out"), folder


def row(found, name):
    return next(one for one in found.record.rows if one.name == name)


def test_each_record_is_the_one_an_audit_writes(kin, made, tmp_path):
    done, folder = made
    for name, source in (("a1", kin / "adapters" / "a1"), ("tuned", folder / "tuned")):
        audit(kin / "base", source, tmp_path / name, max_cost="weights", decoding=SHORT)

        assert untimed(done.folder / "runs" / name) == untimed(tmp_path / name)


@pytest.mark.slow
def test_a_base_that_is_kept_says_what_a_fresh_one_says(kin, tmp_path):
    """Adapters of every kind one after the other on the same live base, with prompts: the record and every reply are those of an audit alone."""
    sources = [
        tiny.adapter(kin / "base", tmp_path / "plain", modules=["q_proj", "v_proj"]),
        tiny.adapter(kin / "base", tmp_path / "dora", modules=["o_proj"], use_dora=True),
        tiny.adapter(kin / "base", tmp_path / "embedded", modules=["embed_tokens", "k_proj"], save_embeddings=False),
        tiny.adapter(kin / "base", tmp_path / "whole", modules=["q_proj"], modules_to_save=["lm_head"]),
        tiny.nudge(kin / "base", tmp_path / "tuned"),
        tiny.adapter(kin / "base", tmp_path / "last", modules=["q_proj"], seed=5),
    ]
    how = {"max_cost": "generation", "only": ("weights.change", "activations.drift", "behaviour.refusal")}
    prompts = tiny_prompts(tmp_path / "p.jsonl")

    done = swept(kin / "base", sources, tmp_path / "out", prompts=(prompts,), **how)

    assert done.record.counts["failed"] == 0
    for source in sources:
        audit(kin / "base", source, tmp_path / "alone" / source.name, prompts=prompts, decoding=SHORT, **how)
        assert untimed(done.folder / "runs" / source.name) == untimed(tmp_path / "alone" / source.name)
        assert items(done.folder / "runs" / source.name) == items(tmp_path / "alone" / source.name)


def test_the_base_is_read_loaded_and_asked_once(kin, tmp_path, monkeypatch):
    hashed, loaded, asked = [], [], []
    hash_files, open_model, reply = checkpoint.hash_files, model.open_model, model.LiveModel.reply
    monkeypatch.setattr(checkpoint, "hash_files", lambda path: hashed.append(path.name) or hash_files(path))
    monkeypatch.setattr(model, "open_model", lambda weights, **how: loaded.append(weights.name) or open_model(weights, **how))
    monkeypatch.setattr(model.LiveModel, "reply", lambda self, rows, **how: asked.append(len(how["adapters"])) or reply(self, rows, **how))

    swept(
        kin / "base",
        [kin / "adapters"],
        tmp_path / "out",
        prompts=(tiny_prompts(tmp_path / "p.jsonl"),),
        max_cost="generation",
        only=("behaviour.refusal",),
    )

    assert (hashed.count("base"), loaded, asked.count(0), asked.count(1)) == (1, ["base"], 1, 3)


@pytest.mark.slow
def test_processes_write_what_one_process_writes(kin, made, tmp_path):
    several = swept(kin / "base", [kin / "adapters"], tmp_path / "several", workers=2)

    assert [one.name for one in several.record.rows] == ["a0", "a1", "a2"]
    for name in ("a0", "a1", "a2"):
        assert untimed(several.folder / "runs" / name) == untimed(made[0].folder / "runs" / name)


def test_a_candidate_that_cannot_be_read_is_a_row_and_stops_no_other(made):
    done, _ = made

    torn = row(done, "torn")
    assert (torn.action, torn.run, torn.kind, torn.failed.exit_code) == (None, "", "adapter", 2)
    assert "safetensors" in torn.failed.where
    assert done.record.counts == {
        "BLOCK": 0,
        "HUMAN_REVIEW": 0,
        "INCONCLUSIVE": 4,
        "DEPLOY_WITH_ENHANCED_MONITORING": 0,
        "DEPLOY": 0,
        "failed": 1,
    }
    assert [one.name for one in done.record.rows] == ["torn", "a0", "a1", "a2", "tuned"]
    assert done.record.exit_code == 2


def test_a_candidate_for_another_base_is_a_row(kin, tmp_path):
    stranger = tiny.save(tiny.network("gpt2"), tmp_path / "stranger")

    done = swept(kin / "base", [stranger, kin / "adapters" / "a0"], tmp_path / "out")

    assert row(done, "stranger").failed.exit_code == 3
    assert row(done, "a0").action is Action.INCONCLUSIVE


def test_what_was_finished_is_not_done_again_and_candidates_may_be_added(kin, tmp_path, monkeypatch):
    first = swept(kin / "base", [kin / "adapters" / "a0"], tmp_path / "out")
    journal = (first.folder / "runs" / "a0" / "journal.jsonl").read_bytes()
    looked = []
    guarded = conductor.guarded
    monkeypatch.setattr(conductor, "guarded", lambda *given: looked.append(given[2].configuration) or guarded(*given))

    second = swept(kin / "base", [kin / "adapters" / "a0", kin / "adapters" / "a2"], tmp_path / "out")

    assert set(looked) == {"adapter:a2"}
    assert (first.folder / "runs" / "a0" / "journal.jsonl").read_bytes() == journal
    assert [one.name for one in second.record.rows] == ["a0", "a2"]
    assert load_sweep(second.folder) == second.record


@pytest.mark.slow
def test_a_killed_sweep_resumes_with_nothing_lost_and_nothing_twice(kin, made, tmp_path):
    words = command(
        "sweep", kin / "base", kin / "adapters", "--max-cost", "weights", "--device", "cpu", "--quiet", "--out", tmp_path / "out"
    )
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not (tmp_path / "out" / "runs" / "a1" / "journal.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "sweep.json").exists()
    finished = (tmp_path / "out" / "runs" / "a0" / "journal.jsonl").read_bytes()

    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (3, "")
    assert (tmp_path / "out" / "runs" / "a0" / "journal.jsonl").read_bytes() == finished
    for name in ("a0", "a1", "a2"):
        rows = [json.loads(line) for line in (tmp_path / "out" / "runs" / name / "journal.jsonl").read_text().splitlines()[1:]]
        checks = [one["result"]["check"] for one in rows]
        assert len(checks) == len(set(checks)) > 0
        told = {one["check"]: one for one in untimed(tmp_path / "out" / "runs" / name)["results"]}
        assert told == {one["check"]: one for one in untimed(made[0].folder / "runs" / name)["results"]}


def test_a_base_that_changes_meanwhile_is_noticed(kin, tmp_path, monkeypatch):
    base = shutil.copytree(kin / "base", tmp_path / "base")
    run = conductor.run

    def meddle(request, progress, held):
        outcome = run(request, progress, held)
        (base / "config.json").write_text((base / "config.json").read_text() + "\n")
        return outcome

    monkeypatch.setattr("forensics.sweep.run", meddle)

    done = swept(base, [kin / "adapters" / "a0", kin / "adapters" / "a1"], tmp_path / "out")

    assert row(done, "a0").action is not None
    assert "changed after it was opened" in row(done, "a1").failed.what


def test_a_candidate_that_vanishes_is_a_row(kin, tmp_path, monkeypatch):
    gone = shutil.copytree(kin / "adapters" / "a1", tmp_path / "gone")
    run = conductor.run

    def vanish(request, progress, held):
        shutil.rmtree(gone, ignore_errors=True)
        return run(request, progress, held)

    monkeypatch.setattr("forensics.sweep.run", vanish)

    done = swept(kin / "base", [kin / "adapters" / "a0", gone], tmp_path / "out")

    assert (row(done, "gone").failed.what, row(done, "a0").action) == ("this folder does not exist", Action.INCONCLUSIVE)


def test_two_sweeps_on_one_folder_exclude_each_other(kin, made, tmp_path):
    first = swept(kin / "base", [kin / "adapters" / "a0"], tmp_path / "out")
    key = json.loads((first.folder / "sweep.start.json").read_text())["key"]

    with SweepFolder(tmp_path / "out", key=key, created="now"), pytest.raises(BadInput, match="another sweep is writing"):
        swept(kin / "base", [kin / "adapters" / "a0"], tmp_path / "out")

    assert swept(kin / "base", [kin / "adapters" / "a0"], tmp_path / "out").record == first.record


@pytest.mark.parametrize("other", [{"seed": 3}, {"max_cost": "files"}, {"policy": load_policy(None, ("public",))}])
def test_a_folder_of_another_sweep_is_refused(kin, made, other):
    with pytest.raises(BadInput, match="holds another sweep"):
        swept(kin / "base", [kin / "adapters"], made[0].folder, **other)


def test_a_folder_of_something_else_is_refused_and_left_alone(kin, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(BadInput, match="not a sweep of this tool"):
        swept(kin / "base", [kin / "adapters"], tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '{"schema": "forensics.sweep-start/1"}'])
def test_a_damaged_start_is_refused(kin, tmp_path, text):
    (tmp_path / "sweep.start.json").write_text(text)

    with pytest.raises(BadInput, match=r"damaged|holds another sweep"):
        swept(kin / "base", [kin / "adapters"], tmp_path)


@pytest.mark.parametrize(
    ("base", "said"), [("nowhere", "this folder does not exist"), ("adapters/a0", "BASE is an adapter"), ("adapters", "no safetensors")]
)
def test_a_base_that_cannot_be_used_is_one_error_and_nothing_is_written(kin, tmp_path, base, said):
    with pytest.raises(BadInput, match=said):
        swept(kin / base, [kin / "adapters"], tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_the_saved_sweep_follows_the_published_schema(made):
    published = (ROOT / "reports" / "schemas" / "forensics.sweep-1.schema.json").read_text(encoding="utf-8")

    assert published == schema_text() == run_cli("schema", "sweep").stdout
    jsonschema.validate(json.loads((made[0].folder / "sweep.json").read_text(encoding="utf-8")), json.loads(published))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"schema": "forensics.sweep/9"}', '{"schema": "forensics.sweep/1"}', "null"])
def test_a_saved_sweep_that_cannot_be_read_is_one_error(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)

    with pytest.raises(BadInput, match="saved sweep"):
        load_sweep(tmp_path)


@pytest.mark.slow
def test_the_command_shows_the_table_writes_the_pages_and_leaves_with_the_worst(kin, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("{")
    words = (kin / "base", kin / "adapters" / "a0", tmp_path / "bad", "--max-cost", "weights", "--device", "cpu", "--out", tmp_path / "out")

    done = run_cli("sweep", *words)

    assert done.returncode == 2, done.stderr
    assert done.stdout.index("bad") < done.stdout.index("a0")
    for words_shown in ("could not be audited", "INCONCLUSIVE", "not held against each other", "exit 2"):
        assert words_shown in " ".join(done.stdout.split())
    assert (tmp_path / "out" / "runs" / "a0" / "report.html").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "bad could not be audited" in page
    again = run_cli("sweep", *words, "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))


def test_a_saved_sweep_is_shown_again_in_every_format(made):
    done, _ = made
    shown = {form: run_cli("report", done.folder, "--format", form) for form in ("text", "json", "html", "markdown", "csv")}

    assert {form: one.returncode for form, one in shown.items()} == dict.fromkeys(shown, 0) | {"csv": 2}
    assert "could not be audited: torn" in " ".join(shown["text"].stdout.split())
    assert json.loads(shown["json"].stdout) == json.loads(done.record.to_json())
    assert "torn could not be audited" in shown["html"].stdout
    assert all(f"| {name} |" in shown["markdown"].stdout for name in ("a0", "a1", "a2", "tuned"))
    assert "- torn could not be audited" in shown["markdown"].stdout
    assert "speaks of runs one by one" in shown["csv"].stderr


@pytest.mark.parametrize("words", [(), ("--workers", "0")])
def test_no_candidates_and_odd_options_are_exit_2(kin, words, tmp_path):
    done = run_cli("sweep", kin / "base", *words, cwd=tmp_path)

    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])


def test_a_check_that_broke_down_leaves_no_live_model_to_the_next(kin, tmp_path, monkeypatch):
    """Nobody knows what it did to the model before it broke."""
    loaded = []
    open_model, reply = model.open_model, model.LiveModel.reply
    monkeypatch.setattr(model, "open_model", lambda weights, **how: loaded.append(weights.name) or open_model(weights, **how))

    def breaks(self, rows, **how):
        if how["adapters"] and len(loaded) == 1:
            raise ZeroDivisionError("broke")
        return reply(self, rows, **how)

    monkeypatch.setattr(model.LiveModel, "reply", breaks)

    done = swept(
        kin / "base",
        [kin / "adapters"],
        tmp_path / "out",
        prompts=(tiny_prompts(tmp_path / "p.jsonl"),),
        max_cost="generation",
        only=("behaviour.refusal",),
    )

    assert loaded == ["base", "base"]
    records = {name: untimed(done.folder / "runs" / name)["results"][-1] for name in ("a0", "a1")}
    assert records["a0"]["status"] == "ERROR"
    assert "broke" not in records["a1"]["reason"]
    assert done.record.counts["failed"] == 0


def test_a_base_on_the_hub_is_located_once_and_named_by_its_id(kin, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint, "_download", lambda repository, revision: asked.append((repository, revision)) or kin / "base")

    done = swept("org/model@main", [kin / "adapters" / "a0", kin / "adapters" / "a1"], tmp_path / "out")

    assert asked == [("org/model", "main")]
    assert done.record.counts["failed"] == 0
    assert done.record.base.path == str(kin / "base")
