"""What was changed in the weights is listed with its size, whoever stored or merged it, and a weight that is no number is flagged."""

from __future__ import annotations

from shutil import copytree

import pytest
import tiny
import torch
from cases import audit, edited, labels, open_case, reweighted
from peft import PeftModel
from transformers import AutoModelForCausalLM

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
