"""What was changed in the weights is listed with its size, whoever stored or merged it, and a weight that is no number is flagged."""

from __future__ import annotations

from shutil import copytree
from types import SimpleNamespace

import pytest
import tiny
import torch
from cases import audit, edited, grown, labels, open_case, restacked, reweighted
from peft import PeftModel
from transformers import AutoModelForCausalLM

from forensics import workbench
from forensics.checks import weights_change
from forensics.record import Action, Status

EDITED = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random model in float32 whose layer 0 holds nothing special."""
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("base") / "base")


def weigh(base, candidate, folder, **options):
    with open_case(base, candidate, folder, **options) as case:
        return weights_change.run(case)


def rank_one(shape, size):
    torch.manual_seed(5)
    edit = torch.outer(torch.randn(shape[0]), torch.randn(shape[1]))
    return size * edit / edit.norm()


def dense(shape, size):
    torch.manual_seed(6)
    edit = torch.randn(shape)
    return size * edit / edit.norm()


@pytest.mark.parametrize("edit", [rank_one, dense])
def test_an_edit_in_layer_0_is_listed_first_with_its_size(edit, base, tmp_path):
    def change(tensors):
        weight = tensors[EDITED]
        tensors[EDITED] = weight + edit(weight.shape, 0.05 * weight.norm())
        far = "model.layers.1.mlp.down_proj.weight"  # a smaller change elsewhere, which must come second
        tensors[far] = tensors[far] + dense(tensors[far].shape, 0.01 * tensors[far].norm())

    outcome = weigh(base, reweighted(base, tmp_path / "edited", change), tmp_path / "run")

    listed = [item for item in outcome.evidence if item.name == "weights.relative-change"]
    assert [item.where for item in listed] == [EDITED, "model.layers.1.mlp.down_proj.weight"]
    assert listed[0].value == pytest.approx(0.05, rel=1e-4)
    assert outcome.find("weights.tensors-above-floor").value == 2


def test_a_change_by_itself_is_information(base, tmp_path):
    outcome = weigh(base, tiny.nudge(base, tmp_path / "nudged"), tmp_path / "run")

    assert (outcome.status, labels(outcome)) == (Status.NO_FINDING, {"changed"})


def test_a_cast_changes_nothing_and_one_entry_moved_after_it_does(base, tmp_path):
    def cast(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    def cast_and_move(tensors):
        cast(tensors)
        tensors[EDITED][0, 0] *= 1.0078125  # a step or two of bfloat16

    plain = weigh(base, reweighted(base, tmp_path / "cast", cast), tmp_path / "one")
    moved = weigh(base, reweighted(base, tmp_path / "moved", cast_and_move), tmp_path / "other")

    assert (plain.find("weights.tensors-changed").value, plain.find("edit.relative_change").value) == (0, 0.0)
    assert (moved.find("weights.tensors-changed").value, labels(moved)) == (1, {"within-rounding", "dtype-changed"})
    assert plain.find("weights.dtype-changed").value == plain.find("weights.dtype-changed").n
    assert labels(plain) == {"dtype-changed"}


def break_one(tensors):
    tensors[EDITED][0, 0] = float("nan")


def test_a_weight_that_is_no_number_is_flagged_unless_the_base_has_it_too(base, tmp_path):
    broken = reweighted(base, tmp_path / "broken", break_one)

    new = weigh(base, broken, tmp_path / "new")
    old = weigh(broken, copytree(broken, tmp_path / "copy"), tmp_path / "old")

    assert (new.status, labels(new) >= {"not-finite"}) == (Status.FLAGGED, True)
    assert new.find("weights.not-finite").value == 1
    assert (old.status, labels(old)) == (Status.NO_FINDING, set())


def test_a_weight_that_is_no_number_needs_a_person(base, tmp_path):
    record = audit(base, reweighted(base, tmp_path / "broken", break_one), tmp_path / "run", max_cost="weights")

    assert record.verdict.action is Action.HUMAN_REVIEW
    assert any(rule.id == "finding/weights.change/not-finite" for rule in record.verdict.rules)


@pytest.mark.parametrize("count", [1, 2])
def test_adapters_weigh_as_much_as_when_they_are_merged(count, base, tmp_path):
    adapters = [tiny.adapter(base, tmp_path / f"a{seed}", modules=["q_proj", "down_proj"], seed=seed) for seed in range(count)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for path in adapters:
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    merged = edited(base, tmp_path / "merged")
    model.save_pretrained(merged)

    live = weigh(base, base, tmp_path / "live", adapters=adapters)
    stored = weigh(base, merged, tmp_path / "stored")

    assert live.find("edit.relative_change").value > 0.01
    for name in ("edit.relative_change", "weights.tensors-changed"):
        assert live.find(name).value == pytest.approx(stored.find(name).value, rel=1e-5)
    first, other = ([item for item in one.evidence if item.name == "weights.relative-change"] for one in (live, stored))
    assert [item.where for item in first] == [item.where for item in other]
    assert [item.value for item in first] == pytest.approx([item.value for item in other], rel=1e-4)


ABOUT_LAYOUT = (
    "weights.tensors-added", "weights.tensors-removed", "weights.tensors-renamed", "weights.layers-moved", "weights.vocabulary-resized",
)  # fmt: skip


def laid_out(outcome):
    return tuple(int(outcome.find(name).value) for name in ABOUT_LAYOUT)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A tiny model of five layers."""
    return tiny.save(tiny.network(layers=5), tmp_path_factory.mktemp("deep") / "deep")


def test_both_sides_holding_the_same_is_evidence_too(base, tmp_path):
    outcome = weigh(base, tiny.nudge(base, tmp_path / "nudged"), tmp_path / "run")

    assert (laid_out(outcome), outcome.limits) == ((0, 0, 0, 0, 0), ())


@pytest.mark.parametrize("more", ["candidate", "base"])
def test_tensors_of_one_side_are_counted_and_named(more, base, tmp_path):
    names = [f"model.layers.{layer}.mlp.down_proj.bias" for layer in range(2)]
    larger = reweighted(base, tmp_path / "larger", lambda tensors: tensors.update({name: torch.ones(32) for name in names}))

    outcome = weigh(*((base, larger) if more == "candidate" else (larger, base)), tmp_path / "run")

    label = {"candidate": "tensors-added", "base": "tensors-removed"}[more]
    (finding,) = outcome.findings
    assert (outcome.status, finding.label, finding.severity) == (Status.NO_FINDING, label, "info")
    assert all(name in finding.claim for name in names)
    assert laid_out(outcome) == ((2, 0, 0, 0, 0) if more == "candidate" else (0, 2, 0, 0, 0))
    assert outcome.find(f"weights.{label}").n == 23
    assert outcome.find("weights.tensors-changed").value == 0  # what both have is equal
    assert "counted, not measured" in outcome.limits[0]


@pytest.mark.parametrize(
    ("order", "found", "told"),
    [
        ((0, 1, 1, 2, 3, 4), (0, 0, 0, 4, 0), {"layers-moved"}),
        ((0, 1, 3, 4), (0, 9, 0, 2, 0), {"layers-moved", "tensors-removed"}),
        ((0, 1, 2, 3), (0, 9, 0, 0, 0), {"tensors-removed"}),
        ((0, 2, 1, 3, 4), (0, 0, 0, 2, 0), {"layers-moved"}),
    ],
    ids=["one-twice", "without-one", "without-last", "swapped"],
)
def test_layers_that_were_moved_are_told_and_not_taken_for_changes(order, found, told, deep, tmp_path):
    outcome = weigh(deep, restacked(deep, tmp_path / "candidate", order), tmp_path / "run")

    assert (laid_out(outcome), labels(outcome)) == (found, told)
    assert outcome.find("edit.relative_change").value == 0.0
    assert {finding.severity for finding in outcome.findings} == {"info"}


def test_a_change_in_a_layer_that_was_moved_is_measured_where_it_is(deep, tmp_path):
    stacked = restacked(deep, tmp_path / "stacked", (0, 1, 1, 2, 3, 4))

    def change(tensors):
        weight = tensors["model.layers.4.mlp.up_proj.weight"]  # the base's layer 3
        weight += dense(weight.shape, 0.1 * weight.norm())

    outcome = weigh(deep, reweighted(stacked, tmp_path / "edited", change), tmp_path / "run")

    (row,) = [row for row in outcome.evidence if row.name == "weights.relative-change"]
    assert (row.where, row.value) == ("model.layers.4.mlp.up_proj.weight", pytest.approx(0.1, rel=1e-4))
    claim = next(finding.claim for finding in outcome.findings if finding.label == "layers-moved")
    assert "2 stands for 1, 3 stands for 2, 4 stands for 3, 5 stands for 4" in claim


@pytest.mark.parametrize("rows", [tiny.VOCABULARY + 8, tiny.VOCABULARY - 8], ids=["grown", "shrunk"])
def test_a_vocabulary_of_another_size_is_compared_in_the_rows_both_have(rows, base, tmp_path):
    outcome = weigh(base, grown(base, tmp_path / "candidate", rows), tmp_path / "run")

    assert (laid_out(outcome), labels(outcome)) == ((0, 0, 0, 0, 8), {"vocabulary-resized"})
    assert outcome.find("edit.relative_change").value == 0.0
    assert f"from 260 to {rows} rows" in outcome.findings[0].claim
    assert "counted, not measured" in outcome.limits[0]


def test_names_with_another_prefix_are_no_change(base, tmp_path):
    def rename(tensors):
        tensors.update({f"module.{name}": tensors.pop(name) for name in list(tensors)})

    outcome = weigh(base, reweighted(base, tmp_path / "wrapped", rename), tmp_path / "run")

    assert (laid_out(outcome), outcome.findings) == ((0, 0, 21, 0, 0), ())


def test_an_adapter_counts_in_the_layer_of_the_candidate_it_is_put_on(deep, tmp_path):
    stacked = restacked(deep, tmp_path / "stacked", (0, 1, 1, 2, 3, 4))
    put_on = tiny.adapter(stacked, tmp_path / "adapter", modules=["up_proj"], layers_to_transform=[5], layers_pattern="layers")

    outcome = weigh(deep, stacked, tmp_path / "run", adapters=[put_on])

    (row,) = [row for row in outcome.evidence if row.name == "weights.relative-change"]
    assert row.where == "model.layers.5.mlp.up_proj.weight"
    assert row.value > 0.01


def test_memory_is_given_back_every_few_tensors(base, tmp_path, monkeypatch):
    given_back = []
    monkeypatch.setattr("forensics.differ.spare_memory", lambda: given_back.append(1))
    monkeypatch.setattr("forensics.differ.TENSORS_A_SWEEP", 4)

    with open_case(base, tiny.nudge(base, tmp_path / "nudged"), tmp_path / "run") as case:
        weights_change.run(case)

        assert len(given_back) == (len(case.pairs) + 3) // 4 > 1


@pytest.mark.parametrize("library", ["glibc", "another", "another system"])
def test_memory_is_given_back_where_the_c_library_can_do_so(library, monkeypatch):
    trimmed = []
    made = SimpleNamespace(malloc_trim=trimmed.append) if library == "glibc" else SimpleNamespace()
    monkeypatch.setattr(workbench.ctypes, "CDLL", lambda _name: made)
    monkeypatch.setattr(workbench.sys, "platform", "win32" if library == "another system" else "linux")

    workbench.spare_memory()

    assert trimmed == ([0] if library == "glibc" else [])
