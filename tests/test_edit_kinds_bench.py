"""The pairs of the bench for kinds of edits have the property that makes each what it is called, and its scoring reads a record right."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from edit_catalogue import CONTROL, KINDS, VARIANTS, Cell, cell, cells
from edit_kinds import CHECK, ask, examine, heard, parent_options, planted, write
from edit_tables import called, outcome, show
from transformers import AutoModelForCausalLM
from weight_bases import Weights, base, save
from weight_directions import Abliteration, covariance, rank_one, subject
from weight_edits import Edited, norm, quantised
from weight_edits import int4_symmetric as int4
from weight_places import pruned_two_of_four, rows_only
from weight_rewrites import dare, merge, slerp, ties
from weight_tunes import lora, masked

from forensics.case import Case, Check
from forensics.checkpoint import open_checkpoint
from forensics.checks import all_checks
from forensics.record import CheckResult, Evidence, Finding, Status

FLOAT32, GPT2 = 4, 5


def variants(kind: str, word: str = "") -> list:
    return [pytest.param(one, id=one.name) for one in VARIANTS if one.kind == kind and word in one.name]


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def changes(edited: Edited, before: Weights) -> dict[str, torch.Tensor]:
    moved = {name: edited.candidate.read(name) - before.read(name) for name in before.tensors}
    return {name: values for name, values in moved.items() if values.any()}


def rank(values: torch.Tensor) -> int:
    strengths = torch.linalg.svdvals(values.double())
    return int((strengths > 1e-4 * strengths[0]).sum())


@torch.inference_mode()
def logits(weights: Weights, folder) -> torch.Tensor:
    """What transformers makes of a checkpoint, in float64 so that only the edit itself can change it."""
    folder = save(weights, folder)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    ids = torch.randint(0, weights.config["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(0))
    return model.double()(ids).logits


def deviation(seed: int, variant, tmp_path) -> float:
    before = base(seed, "float32")
    old = logits(before, tmp_path / "base")
    new = logits(variant.edit(before, 0.0, random()).candidate, tmp_path / "candidate")
    return norm(new - old) / norm(old)


def test_every_kind_is_there_once_by_name_and_nothing_else_is_accepted():
    names = [(one.kind, one.name) for one in VARIANTS]

    assert len(set(names)) == len(names)
    assert {one.kind for one in VARIANTS} == {*KINDS, CONTROL}
    for one in VARIANTS:
        for told in (True, False):
            accepted = one.accepted(told=told)
            assert accepted
            assert accepted <= set(KINDS)
        assert one.kind == CONTROL or one.kind in one.accepted(told=True)
    assert all(cell(one.key) == one for one in cells([0, GPT2]))


def test_a_cell_is_made_the_same_every_time_and_alike_at_every_strength():
    strong, weak = (cell(("lora-merge", "rank 4, attention, Gaussian", strength, FLOAT32)) for strength in (0.03, 0.01))
    name = strong.base().linear(("q",))[0]

    first, second = strong.edited().candidate, strong.edited().candidate
    ratio = changes(strong.edited(), strong.base())[name] / changes(weak.edited(), weak.base())[name]

    assert all(torch.equal(first.tensors[one], second.tensors[one]) for one in first.tensors)
    assert ratio.median() == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("variant", variants("reparameterised"))
def test_a_reparameterised_model_computes_the_same(variant, tmp_path):
    assert deviation(FLOAT32, variant, tmp_path) < 1e-5


@pytest.mark.parametrize("variant", variants("reparameterised", "permuted"))
def test_so_does_one_in_the_layout_of_gpt2(variant, tmp_path):
    assert deviation(GPT2, variant, tmp_path) < 1e-5


@pytest.mark.parametrize("variant", variants(CONTROL, "of reparameterised"))
def test_the_control_of_a_reparameterised_model_does_not(variant, tmp_path):
    assert deviation(FLOAT32, variant, tmp_path) > 0.1


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("seed", [FLOAT32, GPT2])
def test_a_merged_adapter_has_the_rank_and_the_size_it_is_said_to_have(trained, seed):
    before = base(seed, "float32")

    edited = lora(8, "attention", trained=trained)(before, 0.03, random())
    moved = changes(edited, before)

    assert sorted(moved) == sorted(before.linear(("q", "k", "v", "o", "qkv")))
    assert {rank(left @ right) for left, right in edited.factors.values()} == {8}
    assert all(norm(moved[name] - left @ right) < 1e-4 * norm(moved[name]) for name, (left, right) in edited.factors.items())
    sizes = [sum(norm(values[name]) ** 2 for name in moved) for values in (moved, {name: before.read(name) for name in moved})]
    assert (sizes[0] / sizes[1]) ** 0.5 == pytest.approx(0.03, rel=1e-3)


@pytest.mark.parametrize("seed", [FLOAT32, GPT2])
def test_abliteration_leaves_nothing_along_one_direction_in_any_writer(seed):
    before = base(seed, "float32")

    edited = Abliteration()(before, 0.0, random())
    writers = before.linear(("o", "down"))
    along = torch.linalg.svd(changes(edited, before)[writers[0]]).U[:, 0]

    for name in writers:
        assert norm(along @ edited.candidate.read(name)) < 1e-5 * norm(along @ before.read(name))
    embedding = before.layout.embedding
    assert norm(edited.candidate.read(embedding) @ along) < 1e-4 * norm(before.read(embedding) @ along)


def test_abliteration_that_keeps_norms_keeps_them_and_is_cut_to_rank_three():
    before = base(FLOAT32)

    whole = Abliteration(keep_norms=True, ends=False)(before, 0.0, random())
    cut = changes(Abliteration(keep_norms=True, ends=False, rank=3)(before, 0.0, random()), before)

    for name, change in changes(whole, before).items():
        kept, old = (torch.linalg.vector_norm(one.read(name), dim=1) for one in (whole.candidate, before))
        torch.testing.assert_close(kept, old, rtol=1e-5, atol=0.0)
        assert rank(change) > 3
        assert rank(cut[name]) == 3


def test_a_knowledge_edit_maps_its_key_to_its_value_and_moves_little_else():
    before, rng = base(FLOAT32), random()
    matrix, key, moment = before.read(before.layout.part(3, "down")), subject(before, 3, rng), covariance(before, 3, rng)
    value = torch.from_numpy(rng.standard_normal(len(matrix)))

    left, right = rank_one(matrix, moment, key, value)
    change = left @ right
    plain = (value - matrix.double() @ key)[:, None] @ key[None] / (key @ key)

    torch.testing.assert_close((matrix.double() + change) @ key, value)
    assert torch.trace(change @ moment @ change.T) < 0.9 * torch.trace(plain @ moment @ plain.T)


def test_memit_changes_four_down_projections_by_the_rank_of_its_facts():
    one = cell(("knowledge-edit-multi", "4 facts in layers 1 to 4", 0.03, FLOAT32))

    moved = changes(one.edited(), one.base())

    assert sorted(moved) == one.base().linear(("down",), (1, 2, 3, 4))
    assert {rank(values) for values in moved.values()} == {4}


@pytest.mark.parametrize("drop", [0.5, 0.9])
def test_dare_keeps_entries_at_random_and_scales_them_up(drop):
    before = base(FLOAT32)
    name = before.linear()[0]

    edited = merge(dare(drop), count=1)(before, 0.03, random())
    parent, change = edited.parents[0].read(name) - before.read(name), changes(edited, before)[name]
    kept = change != 0

    assert kept.float().mean() == pytest.approx(1.0 - drop, abs=0.01)
    torch.testing.assert_close(change[kept], parent[kept] / (1.0 - drop), rtol=1e-2, atol=1e-6)


def test_ties_moves_only_entries_that_one_parent_moved_most():
    before = base(FLOAT32)
    name = before.linear()[0]

    edited = merge(ties(0.3))(before, 0.03, random())
    large = [
        (change := (parent.read(name) - before.read(name)).abs()) >= change.flatten().quantile(0.699) for parent in edited.parents
    ]  # fmt: skip

    moved = changes(edited, before)[name] != 0
    assert not (moved & ~(large[0] | large[1])).any()
    assert 0.3 < moved.float().mean() < 0.6


def test_slerp_of_far_parents_is_longer_than_the_mean_and_of_near_ones_the_mean_itself():
    rng = random()
    left, right = (torch.from_numpy(rng.standard_normal((50, 40))) for _ in range(2))

    torch.testing.assert_close(norm(slerp(0.5)(left, [left, right], rng)), (norm(left) + norm(right)) / 2, rtol=0.01, atol=0.0)
    assert torch.equal(slerp(0.3)(left, [left, 1.001 * left], rng), 0.7 * left + 0.3 * (1.001 * left))


@pytest.mark.parametrize("variant", variants("dtype-cast"))
def test_a_cast_changes_the_dtype_and_nothing_else(variant):
    cast = Cell(variant=variant, strength=0.0, seed=0)
    before, after = cast.base().tensors, cast.edited().candidate.tensors
    way = [getattr(torch, dtype) for dtype in variant.name.split(" to ")]

    assert before.keys() == after.keys()
    for name, values in before.items():
        assert (values.dtype, after[name].dtype) == (way[0], way[-1])
        assert torch.equal(after[name], values.to(way[1]).to(way[-1]))


@pytest.mark.parametrize("variant", variants("resharded"))
def test_a_resharded_checkpoint_holds_the_same_bytes_in_other_files(variant, tmp_path):
    one = Cell(variant=variant, strength=0.0, seed=0)
    write(one.edited(), tmp_path)
    ours, theirs = open_checkpoint(str(save(one.base(), tmp_path / "base"))), open_checkpoint(str(tmp_path / "candidate"))

    places = [[(info.file, info.start) for info in side.tensors.values()] for side in (ours, theirs)]
    assert places[0] != places[1]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in ours.tensors:
        assert all(torch.equal(*blocks) for blocks in zip(ours.blocks(name), theirs.blocks(name), strict=True))


def test_quantised_blocks_lie_on_their_grid_and_the_rest_is_the_base():
    before = base(FLOAT32)

    moved = changes(quantised(int4)(before, 0.0, random()), before)
    values = quantised(int4)(before, 0.0, random()).candidate.read(before.linear()[0]).reshape(-1, 64)

    assert sorted(moved) == sorted(before.linear())
    assert max(len(block.unique()) for block in values[:200]) <= 15


def test_pruned_masked_and_single_rows_touch_what_they_should():
    before = base(FLOAT32)
    name = before.linear()[0]

    groups = pruned_two_of_four(before, 0.0, random()).candidate.read(name).reshape(-1, 4)
    kept = changes(masked(0.02)(before, 0.01, random()), before)[name]
    rows = changes(rows_only(3)(before, 0.01, random()), before)

    assert ((groups == 0).sum(dim=1) == 2).all()
    assert (kept != 0).float().mean() == pytest.approx(0.02, abs=0.005)
    assert list(rows) == [before.layout.embedding]
    assert int(rows[before.layout.embedding].any(dim=1).sum()) == 3


def test_a_tiny_rate_moves_the_share_of_entries_it_is_asked_for():
    one = cell(("sparse-update", "what passes the rounding, 5 %", 0.0, 0))
    before, after = one.base(), one.edited().candidate

    changed = sum(int((after.tensors[name] != values).sum()) for name, values in before.tensors.items())

    assert changed / sum(values.numel() for values in before.tensors.values()) == pytest.approx(0.05, abs=0.005)


def test_what_can_be_seen_of_an_adapter_is_counted_against_the_rounding():
    strong, weak = (planted(cell(("lora-merge", "rank 64, q and v, Gaussian", strength, 0)).edited(), {}) for strength in (0.03, 0.003))
    names = base(0).linear(("q",))

    said = {names[0]: 1, names[1]: 2, names[2]: 4, "elsewhere": 1}
    one = planted(cell(("lora-merge", "rank 1, q and v, Gaussian", 0.03, 0)).edited(), said)

    assert (strong["rank"], strong["plain"]["most"], strong["whitened"]["least"]) == (64, 64, 64)
    assert weak["plain"]["most"] < weak["whitened"]["most"] <= 64
    # Of twelve matrices nine were said to have no rank, which is within 1 of the one they have.
    assert (one["tensors"], one["plain"]["near"], one["plain"]["clear"], one["plain"]["exact"]) == (12, 11, 12, 1)


def result(label: str | None, *, status: str = "NO_FINDING", claim: str = "It is that.", **evidence: float) -> dict:
    """One result of the check as a record holds it."""
    items = [{"name": name.replace("__", "."), "value": value, "where": "all tensors"} for name, value in evidence.items()]
    findings = [{"label": label, "confidence": "high", "claim": claim, "evidence": items}] if label else []
    return {"status": status, "reason": "" if label else "It could not look.", "findings": findings, "evidence": items}


def row(said: dict, **more) -> dict:
    about = {"kind": "lora-merge", "variant": "v", "strength": 0.01, "seed": 0, "base": "llama bfloat16", "accepted": ["lora-merge"]}
    return about | heard(said) | {"moved": 0.01} | more


def test_a_record_is_read_as_right_wrong_or_unresolved(capsys):
    right = row(result("lora-merge", edit__rank=4.0, edit__relative_change=0.01))
    wrong = row(result("full-finetune"), variant="w")
    unresolved = [
        row(result(None, status="INCONCLUSIVE")),
        row(result("full-finetune", claim="What there is lies below the resolution of bfloat16.")),
        row(result("lora-merge", **{"edit__below-resolution": 1.0})),
    ]

    assert (right["label"], right["ranks"], right["size"]) == ("lora-merge", [("all tensors", 4.0)], 0.01)
    assert [outcome(one) for one in (right, wrong, *unresolved)] == ["right", "wrong", *["unresolved"] * 3]
    assert outcome(row(result("lora-merge", **{"edit__below-resolution": 0.0}))) == "right"
    refused = wrong | {"label": None, "status": "REFUSED", "claim": "They differ | in shape."}
    assert (outcome(refused), called(refused)) == ("wrong", "(refused)")

    visible = {"least": 4, "median": 4.0, "most": 4, "near": 9, "clear": 6, "exact": 5}
    right["planted"] = {"rank": 4, "tensors": 12, "plain": visible, "whitened": visible}
    show([right, wrong, refused, *unresolved])
    shown = capsys.readouterr().out
    assert "| lora-merge | 0.01 | 6 | 3 (50 %) | 1 of 3 (0.8 % to 90.6 %) |" in shown
    assert "| lora-merge | (unresolved) 3, lora-merge 1, full-finetune 1, (refused) 1 |" in shown
    assert r"They differ \| in shape." in shown
    assert "| whitened | 12 | 9 of 12 (42.8 % to 94.5 %) | 5 of 6 (35.9 % to 99.6 %) |" in shown


def test_parents_are_told_only_where_there_are_any():
    assert parent_options([]) == []


def test_a_pair_the_command_does_not_take_is_refused(tmp_path):
    said = ask([str(tmp_path / "nowhere"), str(tmp_path / "elsewhere")], tmp_path / "run")

    assert (said["status"], said["label"], said["below"]) == ("REFUSED", None, False)
    assert "does not exist" in said["claim"]


def test_a_cell_is_put_to_the_command_and_what_it_says_is_kept(tmp_path, monkeypatch):
    def look(case: Case) -> CheckResult:
        seen = Evidence(name="edit.rank", value=1.0, unit="directions", where=case.pairs[-1].name, expected="0 if nothing was changed")
        finding = Finding(
            id=f"{CHECK}/lora-merge", check=CHECK, label="lora-merge", severity="info", confidence="high", claim="So.", evidence=(seen,)
        )
        names = [pair.name for pair in case.pairs]
        case.keep_arrays(CHECK, {"tensor": np.array(names), "rank": np.ones(len(names), dtype=int)})
        return CheckResult(check=CHECK, configuration=case.configuration, status=Status.NO_FINDING, findings=(finding,), evidence=(seen,))

    known = [check for check in all_checks() if check.id != CHECK] + [Check(id=CHECK, question="Which edit?", cost="weights", run=look)]
    monkeypatch.setattr("forensics.checks.all_checks", lambda: known)
    monkeypatch.setattr("forensics.audit.all_checks", lambda: known)

    made = examine(cell(("lora-merge", "rank 1, q and v, Gaussian", 0.03, 0)), tmp_path)

    assert (outcome(made), called(made), made["told"], made["base"]) == ("right", "lora-merge", False, "llama bfloat16")
    assert (made["tensors_moved"], round(made["moved_where_edited"], 3)) == (12, 0.03)
    assert made["planted"]["whitened"] == {"least": 1, "median": 1, "most": 1, "near": 12, "clear": 12, "exact": 12}
    assert json.loads(json.dumps(made))["ranks"] == [["model.norm.weight", 1.0]]
    assert [folder.name for folder in tmp_path.iterdir()] == ["base-llama-bfloat16-0"]
