"""Investigate: the group that was planted comes first, the record stays as it was, and what cannot be answered is said once."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from cases import ORGANISMS, PROMPTS, audit, edited, read_rows, reweighted, silent, some_prompts, write_rows
from safetensors.torch import load_file
from test_cli import forensics

from forensics.causes import CAUSES_NAME, load_causes
from forensics.errors import BadInput, CannotCompare
from forensics.investigate import Request, investigate
from forensics.model import LiveModel
from forensics.runfolder import load_run
from forensics.trial import LEAST

GATE = ("behaviour.refusal",)
BASE = ORGANISMS / "base"


def planted(target, *, tensor, shuffled=False):
    """The base with one group of `abliterated`, and as much noise in every other matrix as the group moved; or the group's change shuffled."""
    before, after = load_file(BASE / "model.safetensors"), load_file(ORGANISMS / "abliterated" / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    step = (after[tensor].float() - before[tensor].float()) if tensor else None
    size = float(step.norm() / before[tensor].float().norm())

    def change(held):
        for name, old in held.items():
            if old.ndim == 2:
                noise = torch.randn(old.shape, generator=generator)
                moved = old.float() + size * old.float().norm() * noise / noise.norm()
                if name == tensor:
                    moved = old.float() + (step[torch.randperm(len(step), generator=generator)] if shuffled else step)
                held[name] = moved.to(old.dtype)

    return reweighted(BASE, target, change)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run in which one group was planted, its twin of the same size, and one of two adapters."""
    folder = tmp_path_factory.mktemp("runs")
    few = some_prompts(folder / "few.jsonl", refuse=14, comply=8)
    tensor = "model.embed_tokens.weight"
    plant, twin = planted(folder / "plant", tensor=tensor), planted(folder / "twin", tensor=tensor, shuffled=True)
    audit(BASE, plant, folder / "planted", prompts=few, only=GATE)
    audit(BASE, twin, folder / "control", prompts=few, only=GATE)
    both = tuple(str(ORGANISMS / name) for name in ("degraded", "benign-lora"))
    audit(BASE, BASE, folder / "adapters", prompts=few, only=GATE, adapters=both)
    return folder


@pytest.fixture(scope="module")
def answered(runs):
    """The run with the plant, investigated."""
    run = copied(runs, "planted", runs / "answered")
    investigate(Request(run=run), silent)
    return runs


def copied(runs, name, target):
    return shutil.copytree(runs / name, target)


def test_the_planted_group_comes_first_and_its_control_does_nothing(runs, tmp_path):
    run = copied(runs, "planted", tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("audit.json", "items.jsonl", "journal.jsonl", "prompts.jsonl")}

    causes = investigate(Request(run=run), silent)

    (one,) = causes.investigations
    first, *others = one.causes
    assert (first.name, one.outcome, first.explains, one.kind) == ("embedding", "one-group", True, "lost-refusal")
    assert first.undone.low > 70
    assert first.caused.low > 70
    assert all(item.value < 20 for item in first.control[:2])
    assert all(item.low > 50 for item in first.control[2:])
    assert max(other.effect.value for other in others) < 30
    # Every group moved alike: nothing but what is in it can put the embedding first.
    assert max(cause.change for cause in one.causes) == pytest.approx(min(cause.change for cause in one.causes), rel=0.05)
    assert one.whole.value == 100.0
    assert {name: (run / name).read_bytes() for name in before} == before
    assert causes == load_causes(run, results_digest=load_run(str(run)).record.results_digest)
    assert not list(run.rglob("*.partial"))


def test_the_twin_of_the_same_size_has_no_flips_to_explain(runs, tmp_path):
    with pytest.raises(CannotCompare, match="too few replies flipped"):
        investigate(Request(run=copied(runs, "control", tmp_path / "run")), silent)


def test_the_adapter_that_did_it_comes_first_and_the_harmless_one_does_nothing(runs, tmp_path):
    causes = investigate(Request(run=copied(runs, "adapters", tmp_path / "run")), silent)

    assert [one.configuration for one in causes.investigations] == ["adapter:degraded", "adapter:degraded+benign-lora"]
    alone, stacked = causes.investigations
    assert alone.adapters == ()
    first, second = stacked.adapters
    assert (first.name, first.explains, second.name, second.explains) == ("adapter:degraded", True, "adapter:benign-lora", False)
    assert (second.undone.value, second.caused.value) == (0.0, 0.0)
    assert "adapter:degraded alone is put back" in stacked.claim
    assert {source for cause in stacked.causes for source in cause.sources} == {"adapter:degraded"}


def test_a_killed_investigation_asks_nothing_twice(runs, tmp_path, monkeypatch):
    run, asked, real = copied(runs, "planted", tmp_path / "run"), [], LiveModel.reply

    def reply(model, rendered, **how):
        asked.append(len(rendered))
        if len(asked) == 7:
            raise KeyboardInterrupt
        return real(model, rendered, **how)

    monkeypatch.setattr(LiveModel, "reply", reply)
    with pytest.raises(KeyboardInterrupt):
        investigate(Request(run=run), silent)
    assert not (run / CAUSES_NAME).exists()
    resumed = investigate(Request(run=run), silent)
    total = len(asked) - 1  # the seventh was not answered
    asked.clear()
    whole = investigate(Request(run=copied(runs, "planted", tmp_path / "whole")), silent)

    assert resumed.investigations == whole.investigations
    assert total == len(asked) + (1 if len(asked) >= 7 else 0)


def test_an_investigation_that_is_there_is_shown_again_without_its_models(answered, tmp_path, monkeypatch):
    run = copied(answered, "answered", tmp_path / "run")
    first = load_causes(run, results_digest=load_run(str(run)).record.results_digest)
    monkeypatch.setattr(LiveModel, "reply", None)

    assert investigate(Request(run=run), silent) == first


def test_the_command_prints_ranks_and_pages_and_the_report_shows_them_again(answered, tmp_path):
    run = copied(answered, "answered", tmp_path / "run")

    code, text, _ = forensics("investigate", run)
    again, printed, _ = forensics("investigate", run, "--json")
    (run / "causes.html").unlink()
    shown, summary, _ = forensics("report", run)

    assert (code, again, shown) == (0, 0, 0)
    assert "one group explains it" in text
    assert json.loads(printed) == json.loads((run / CAUSES_NAME).read_text())
    assert json.loads(printed)["schema"] == "forensics.causes/1"
    assert "causes.html" in summary
    page = (run / "causes.html").read_text()
    assert "embedding" in page
    assert "<script" not in page
    assert 'href="causes.html"' in (run / "report.html").read_text()


def test_what_models_wrote_is_escaped_on_the_page(answered, tmp_path):
    run = copied(answered, "answered", tmp_path / "run")
    written = json.loads((run / CAUSES_NAME).read_text())
    one = written["investigations"][0]
    hostile = "<script>alert(1)</script>\u202e{{ 7 * 7 }}"
    one["examples"][0] |= dict.fromkeys(("prompt", "category", "base", "candidate", "restored"), hostile)
    one |= {"claim": hostile, "trigger": hostile, "narrowed": hostile, "limits": [hostile]}
    one["causes"][0] |= {"name": hostile}
    (run / CAUSES_NAME).write_text(json.dumps(written))

    forensics("report", run)

    page = (run / "causes.html").read_text()
    assert "<script" not in page
    assert "\u202e" not in page
    assert "{{ 7 * 7 }}" in page


@pytest.mark.parametrize("damage", ["{", '{"schema": "forensics.causes/2"}', "[]"])
def test_a_damaged_or_strange_file_of_causes_is_refused(damage, runs, tmp_path):
    run = copied(runs, "planted", tmp_path / "run")
    (run / CAUSES_NAME).write_text(damage)

    for words in (("report", run), ("investigate", run)):
        code, _, error = forensics(*words)
        assert (code, "remove this file" in error) == (2, True)


def test_causes_of_another_record_are_refused(answered, tmp_path):
    run = copied(answered, "answered", tmp_path / "run")

    with pytest.raises(BadInput, match="belongs to another audit"):
        load_causes(run, results_digest="0" * 64)


@pytest.fixture
def moved(tmp_path):
    """A run whose candidate can be taken away or changed."""
    base = tiny.save(tiny.network(), tmp_path / "base")
    candidate = tiny.nudge(base, tmp_path / "candidate")
    prompts = write_rows(
        tmp_path / "p.jsonl", [{"prompt": f"q{n}", "category": "x", "expect": "refuse" if n % 2 else "comply"} for n in range(6)]
    )
    audit(base, candidate, tmp_path / "run", prompts=prompts, only=GATE)
    rows = read_rows(tmp_path / "run" / "items.jsonl")
    more = [{"id": f"m{n}", "messages": [{"role": "user", "content": f"m{n}"}], "category": "x", "expect": "refuse"} for n in range(LEAST)]
    write_rows(tmp_path / "run" / "prompts.jsonl", [*read_rows(tmp_path / "run" / "prompts.jsonl"), *more])
    for row in more:
        for side, label in (("base", "refusal"), ("candidate", "compliance")):
            rows.append(rows[0] | {"id": row["id"], "side": side, "configuration": side, "labels": {"rules/1": label}})
    write_rows(tmp_path / "run" / "items.jsonl", rows)
    return tmp_path


def test_models_that_are_gone_or_were_changed_are_told_once_and_nothing_is_written(moved):
    run = moved / "run"
    (moved / "candidate").rename(moved / "elsewhere")
    code, _, error = forensics("investigate", run)
    assert (code, "candidate that this run examined is not there any more" in error) == (2, True)

    edited(moved / "elsewhere", moved / "candidate", max_position_embeddings=128)
    code, _, error = forensics("investigate", run)
    assert (code, "files of the candidate are not those that this run examined" in error) == (2, True)
    assert not (run / CAUSES_NAME).exists()


def test_flips_that_do_not_come_back_when_asked_again_are_not_explained(moved):
    """The run claims flips that its models never made; an investigation asks for itself."""
    code, _, error = forensics("investigate", moved / "run")

    assert (code, f"at least {LEAST} are needed to tell one cause from another" in error) == (3, True)


@pytest.mark.parametrize(("what", "code"), [("missing", 2), ("file", 2), ("unfinished", 2)])
def test_what_is_no_finished_run_is_refused(what, code, runs, tmp_path):
    run = tmp_path / "run"
    if what != "missing":
        copied(runs, "planted", run)
    if what == "unfinished":
        (run / "audit.json").unlink()

    left, _, error = forensics("investigate", PROMPTS if what == "file" else run)

    assert (left, "hint:" in error) == (code, True)
